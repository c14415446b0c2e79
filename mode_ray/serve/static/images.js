// The chosen, dropped, pasted or drawn images. Previews are canvases, which need no URL.

import { element } from "./elements.js";

/** A preview of a whole image, or an empty square if the browser cannot decode the file. */
export async function thumbnail(file, pixels) {
  try {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, (2 * pixels) / Math.max(bitmap.width, bitmap.height));
    const canvas = element("canvas", { class: "thumb", role: "img", "aria-label": file.name });
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext("2d");
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    bitmap.close();
    return canvas;
  } catch {
    return element("span", { class: "thumb blank", role: "img", "aria-label": file.name }, "no preview");
  }
}

/** The list of chosen images below the input field. */
export class Tray {
  #list = document.getElementById("tray");
  #input = document.getElementById("files");
  #files = [];

  constructor() {
    const drop = document.getElementById("drop");
    this.#input.addEventListener("change", () => {
      this.add(this.#input.files);
      this.#input.value = "";
    });
    // On the whole page: otherwise a file dropped outside the field would replace the page.
    document.addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.toggle("over", event.dataTransfer.types.includes("Files"));
    });
    document.addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.add(event.dataTransfer.files);
    });
    document.addEventListener("paste", (event) => {
      if (event.clipboardData.files.length) {
        event.preventDefault();
        this.add(event.clipboardData.files);
      }
    });
  }

  get files() {
    return [...this.#files];
  }

  focus() {
    this.#input.focus();
  }

  clear() {
    this.#files = [];
    this.#list.replaceChildren();
  }

  add(files) {
    for (const file of files) {
      this.#files.push(file);
      const remove = element("button", { type: "button", "aria-label": `Remove ${file.name}`, title: "Remove" }, "×");
      const item = element("li", { title: file.name }, remove);
      remove.addEventListener("click", () => {
        this.#files = this.#files.filter((other) => other !== file);
        item.remove();
        this.focus();
      });
      this.#list.append(item);
      thumbnail(file, 68).then((preview) => item.prepend(preview));
    }
  }
}
