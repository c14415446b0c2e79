// The answer for one image: its labels, most likely first.

import { bar, element, percent, plural, shortened, text } from "./elements.js";
import { thumbnail } from "./images.js";

const LABELS_SHOWN = 8;

/** A card with an image and its answer. */
export async function imageCard(file, ...content) {
  return element("li", { class: "result" }, await thumbnail(file, 132), ...content);
}

export function errorCard(file, message) {
  return imageCard(file, heading(file), element("p", { class: "problem" }, text(message)));
}

export function rankingCard(file, result) {
  const rows = result.labels.map((label, place) =>
    element(
      "li",
      { class: place === 0 ? "first" : "" },
      text(label, { class: "name" }),
      element("span", { class: "figure" }, percent(result.probabilities[place])),
      element("span", { class: "small", title: "cosine" }, element("span", { class: "sr" }, "cosine "), result.scores[place].toFixed(3)),
      bar(result.probabilities[place]),
    ),
  );
  const ranking = element("ol", { class: "ranking", "aria-label": `Labels of ${file.name}, most likely first` });
  const body = element("div", { class: "body" }, ...shortened(ranking, rows, LABELS_SHOWN));
  if (result.experts?.length > 1) body.append(expertTable(result));
  return imageCard(file, heading(file, result), body);
}

function heading(file, result) {
  const made = element("header", {});
  if (result) made.append(text(result.labels[0], { class: "winner" }));
  const among = result ? `most likely of ${plural(result.labels.length, "label")} · ` : "";
  made.append(element("span", { class: "hint" }, among, text(file.name)));
  return made;
}

/** Every expert's own first choice. */
function expertTable({ labels, experts }) {
  const rows = experts.map(({ id, weight, scores }) => {
    const first = scores.indexOf(Math.max(...scores));
    return element(
      "tr",
      {},
      element("th", { scope: "row" }, `Expert ${id}`),
      element("td", {}, text(labels[first])),
      element("td", { class: "number" }, scores[first].toFixed(3)),
      element("td", { class: "number" }, percent(weight)),
    );
  });
  const head = element("tr", {}, element("th", { scope: "col" }, "Expert"), element("th", { scope: "col" }, "First choice"));
  head.append(element("th", { scope: "col", class: "number" }, "Cosine"), element("th", { scope: "col", class: "number" }, "Weight"));
  const table = element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
  return element("details", {}, element("summary", {}, "The first choice of each expert"), table);
}
