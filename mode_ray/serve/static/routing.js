// The experts' weights, and the clusters that the labels are in.

import { bar, element, listed, percent, plural, quotes, shortened, text } from "./elements.js";

const CLUSTERS_SHOWN = 6;
const NAME_CHARACTERS = 60;
const RULES = {
  uniform: "The rule is uniform: all experts have the same weight, whatever the labels.",
};

/** Both sections, from an answer of the API. */
export function routingView({ routing, left_out }) {
  return element("div", { class: "routing" }, expertsSection(routing, new Set(left_out)), clustersSection(routing));
}

/** What an answer leaves out: experts, and labels or their ends. */
export function notices({ degraded, left_out, routing: { unknown = [] }, truncated = [] }) {
  return [
    degraded && degradedNotice(left_out),
    unknown.length && namesNotice("Ignored in the weights, because the caption encoder knows no word of it: ", unknown),
    truncated.length && namesNotice("Too long for the experts, which ignore the end: ", truncated),
  ].filter(Boolean);
}

function degradedNotice(left_out) {
  const who = left_out.length === 1 ? "Expert" : "Experts";
  return element(
    "p",
    { class: "notice", role: "alert" },
    `Degraded answer: ${who} ${listed(left_out.map(String))} did not answer in time. The weights of the others are larger instead.`,
  );
}

function expertsSection({ weights, entropy, rule }, leftOut) {
  const ordered = [...weights].sort((one, other) => other.weight - one.weight);
  const rows = ordered.map((expert) => {
    const lost = leftOut.has(expert.id);
    const state = lost ? "lost" : expert.used ? "used" : "idle";
    return element(
      "li",
      { class: state },
      element("span", { class: "name" }, `Expert ${expert.id}`),
      element("span", { class: "figure" }, percent(expert.weight)),
      bar(expert.weight),
      element("span", { class: "small" }, lost ? "left out: no answer" : partOf(expert)),
    );
  });
  return element(
    "section",
    { "aria-labelledby": "experts-title" },
    element("h2", { id: "experts-title" }, "Experts"),
    element("p", { class: "hint" }, RULES[rule] ?? spread(entropy, ordered)),
    element("ul", { class: "weights", "aria-label": "Weights of the experts" }, ...rows),
  );
}

function partOf({ used, applied, weight }) {
  if (!used) return "not asked: its weight is too small to matter";
  const counted = percent(applied ?? weight);
  return counted === percent(weight) ? "asked" : `asked; ${counted} in this answer`;
}

/** The entropy in words. n to the power of the entropy is a number of equal experts with the same spread. */
function spread(entropy, ordered) {
  const n = ordered.length;
  if (n === 1) return "There is only one expert.";
  const effective = n ** entropy;
  const alike = `as spread as ${effective.toFixed(1)} of ${n} experts with equal weights (entropy ${entropy.toFixed(2)}, at most 1)`;
  if (entropy < 0.15) return `Expert ${ordered[0].id} has nearly all the weight: ${alike}.`;
  if (entropy < 0.6) return `A few experts have most of the weight, expert ${ordered[0].id} the most: ${alike}.`;
  if (entropy < 0.95) return `The weight is spread over several experts: ${alike}.`;
  return `No expert stands out: ${alike}.`;
}

function clustersSection({ clusters }) {
  const groups = new Map();
  for (const hit of clusters) groups.set(hit.fine, [...(groups.get(hit.fine) ?? []), hit]);
  const items = [...groups.values()].map((hits) => {
    const [{ fine, expert, captions }] = hits;
    const labels = hits.flatMap((hit, place) => [place ? ", " : "", text(hit.text)]);
    const nearest = Math.min(...hits.map((hit) => hit.squared_distance));
    const item = element(
      "li",
      {},
      element("h3", {}, ...labels),
      element("p", { class: "hint" }, `cluster ${fine} of expert ${expert} · squared distance ${hits.length > 1 ? "from " : ""}${nearest.toFixed(2)}`),
    );
    if (captions.length) item.append(quotes(captions));
    return item;
  });
  return element(
    "section",
    { "aria-labelledby": "hits-title" },
    element("h2", { id: "hits-title" }, "Nearest clusters"),
    element("p", { class: "hint" }, "The cluster of training captions nearest to each label, with some of its captions."),
    ...shortened(element("ul", { class: "hits" }), items, CLUSTERS_SHOWN),
  );
}

/** A sentence about some labels. */
function namesNotice(sentence, labels) {
  const names = labels.slice(0, 5).flatMap((name, place) => [place ? ", " : "", text(clipped(name))]);
  const more = labels.length > 5 ? ` and ${plural(labels.length - 5, "other")}` : "";
  return element("p", { class: "notice" }, sentence, ...names, more, ".");
}

function clipped(name) {
  return name.length > NAME_CHARACTERS ? `${name.slice(0, NAME_CHARACTERS).trimEnd()}…` : name;
}
