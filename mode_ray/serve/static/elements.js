// Builds elements. Captions, labels, file names and messages are untrusted: they enter as text nodes only.

/** An element with attributes (true = present, false and undefined = absent) and children (elements or texts). */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== false && value !== undefined) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
}

/** Untrusted text; its writing direction does not affect the text around it. */
export const text = (value, attributes = {}) => element("bdi", { dir: "auto", ...attributes }, String(value));

/** A bar for a share between 0 and 1, hidden from screen readers, because the number is next to it. */
export function bar(share) {
  const inner = element("i");
  inner.style.width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return element("span", { class: "bar", "aria-hidden": "true" }, inner);
}

/** Captions as quotes. */
export const quotes = (captions) =>
  element("ul", { class: "quotes" }, ...captions.map((caption) => element("li", {}, text(caption))));

/** A list of the first items, and a button that shows the others. */
export function shortened(list, items, count) {
  list.append(...items.slice(0, count));
  const rest = items.slice(count);
  if (!rest.length) return [list];
  const more = element("button", { type: "button", class: "more" }, `Show ${rest.length.toLocaleString("en")} more`);
  more.addEventListener("click", () => {
    list.append(...rest);
    more.remove();
    rest[0].tabIndex = -1;
    rest[0].focus();
  });
  return [list, more];
}

export function percent(share) {
  const points = share * 100;
  if (points > 0 && points < 0.1) return "< 0.1 %";
  return `${points < 99.95 ? points.toFixed(1) : points === 100 ? "100" : points.toFixed(2)} %`;
}

export const plural = (count, noun) => `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;

/** "a", "a and b", "a, b and c". */
export function listed(words) {
  return words.length < 2 ? words.join("") : `${words.slice(0, -1).join(", ")} and ${words.at(-1)}`;
}
