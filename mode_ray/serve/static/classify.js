// The first view: sends images one by one with the labels, and shows the answers as they arrive.

import { ApiError, askJson, base64 } from "./api.js";
import { element, percent, plural } from "./elements.js";
import { EXAMPLES, exampleFile } from "./examples.js";
import { Tray } from "./images.js";
import { errorCard, rankingCard } from "./ranking.js";
import { notices, routingView } from "./routing.js";

const byId = (id) => document.getElementById(id);
const form = byId("ask");
const labels = byId("labels");
const template = byId("template");
const problem = byId("problem");
const said = byId("said");
const answer = document.querySelector(".answer");
let tray;
let running = null;

/** The typed labels without repetitions: one per line, or a single line with commas. */
export function labelsOf(typed) {
  const lines = typed.split(/\r?\n/).map((line) => line.trim()).filter(Boolean);
  const parts = lines.length === 1 ? lines[0].split(",").map((part) => part.trim()).filter(Boolean) : lines;
  return [...new Set(parts)];
}

export function startClassify() {
  tray = new Tray();
  labels.addEventListener("input", countLabels);
  countLabels();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    run();
  });
  form.addEventListener("reset", () => {
    running?.abort();
    tray.clear();
    clearAnswer();
    byId("intro").hidden = false;
    setTimeout(countLabels);
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  for (const example of EXAMPLES) {
    const button = element("button", { type: "button" }, example.name);
    button.addEventListener("click", async () => {
      tray.clear();
      tray.add([await exampleFile(example.name)]);
      labels.value = example.labels.join("\n");
      countLabels();
      form.requestSubmit();
    });
    byId("examples").append(button);
  }
}

function countLabels() {
  const count = labelsOf(labels.value).length;
  byId("label-count").textContent = count ? plural(count, "label") : "";
}

function clearAnswer() {
  problem.textContent = said.textContent = "";
  for (const id of ["notice", "results", "routing"]) byId(id).replaceChildren();
}

async function run() {
  running?.abort();
  clearAnswer();
  const files = tray.files;
  const request = { labels: labelsOf(labels.value), experts: true };
  if (template.value.trim()) request.templates = [template.value.trim()];
  if (!files.length) return refuse("Choose an image first.", tray);
  if (!request.labels.length) return refuse("Type at least one label.", labels);
  const mine = new AbortController();
  running = mine;
  byId("intro").hidden = true;
  answer.setAttribute("aria-busy", "true");
  try {
    await askAll(files, request, mine.signal);
  } catch (error) {
    if (mine.signal.aborted) return;
    if (!(error instanceof ApiError)) throw error;
    said.textContent = "";
    problem.textContent = error.message;
    problem.scrollIntoView({ block: "nearest" });
  } finally {
    if (running === mine) answer.removeAttribute("aria-busy");
  }
}

function refuse(message, field) {
  problem.textContent = message;
  field.focus();
}

async function askAll(files, request, signal) {
  for (const [place, file] of files.entries()) {
    const count = files.length > 1 ? `${place + 1} of ${files.length}: ` : "";
    said.textContent = `${count}asking the experts about ${file.name} …`;
    let card;
    try {
      const body = { ...request, images: [{ base64: await base64(file) }] };
      const found = await askJson("v1/classify", { body, signal });
      const [result] = found.results;
      card = await rankingCard(file, result);
      said.textContent = `${count}${result.labels[0]}, ${percent(result.probabilities[0])}`;
      byId("routing").replaceChildren(routingView(found));
      byId("notice").replaceChildren(...notices(found));
    } catch (error) {
      if (signal.aborted || !(error instanceof ApiError) || !isOfImage(error)) throw error;
      card = await errorCard(file, error.message);
      said.textContent = `${count}${error.message}`;
    }
    if (signal.aborted) return;
    byId("results").append(card);
    // On a phone the answer is below the form.
    if (place === 0 && card.getBoundingClientRect().top > 0.8 * innerHeight) answer.scrollIntoView({ block: "start" });
  }
}

/** Whether the error is about the image only; then the other images are sent too. */
const isOfImage = (error) => error.status === 413 || (error.field ?? "").startsWith("image");
