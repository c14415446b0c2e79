// Why these experts: their weights, and the clusters that the labels lie in.

import { bar, element, listed, percent, plural, quotes, shortened, text } from "./elements.js";

const CLUSTERS_SHOWN = 6;
const RULES = {
  uniform: "The rule is uniform: all experts count alike, whatever the labels.",
};

/** Both sections, from an answer of the API. */
export function routingView({ routing, left_out }) {
  return element("div", { class: "routing" }, expertsSection(routing, new Set(left_out)), clustersSection(routing));
}

/** What is missing in an answer, or null. */
export function degradedNotice({ degraded, left_out }) {
  if (!degraded) return null;
  const who = left_out.length === 1 ? "Expert" : "Experts";
  return element(
    "p",
    { class: "notice", role: "alert" },
    `Degraded answer: ${who} ${listed(left_out.map(String))} did not answer in time. The others count for more instead.`,
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
      element("span", { class: "small" }, lost ? "did not answer: left out" : partOf(expert)),
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
  if (!used) return "not asked: it would hardly change the answer";
  const counted = percent(applied ?? weight);
  return counted === percent(weight) ? "asked" : `asked; counts ${counted} in this answer`;
}

/** The entropy in words; n to the power of it is how many equal experts would be as spread. */
function spread(entropy, ordered) {
  const n = ordered.length;
  if (n === 1) return "There is one expert, and it answers alone.";
  const effective = n ** entropy;
  const alike = `as if ${effective.toFixed(1)} of ${n} shared the work equally (entropy ${entropy.toFixed(2)} of 1)`;
  if (entropy < 0.15) return `The labels are the field of expert ${ordered[0].id}, nearly alone: ${alike}.`;
  if (entropy < 0.6) return `The labels lean to a few experts, most to expert ${ordered[0].id}: ${alike}.`;
  if (entropy < 0.95) return `The labels are spread over several experts: ${alike}.`;
  return `The labels are no expert's field in particular: ${alike}.`;
}

function clustersSection({ clusters, unknown = [] }) {
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
  const section = element(
    "section",
    { "aria-labelledby": "hits-title" },
    element("h2", { id: "hits-title" }, "Clusters met"),
    element("p", { class: "hint" }, "Where each label lies among the training captions, with captions from there."),
    ...shortened(element("ul", { class: "hits" }), items, CLUSTERS_SHOWN),
  );
  if (unknown.length) {
    const names = unknown.slice(0, 5).flatMap((name, place) => [place ? ", " : "", text(name)]);
    const more = unknown.length > 5 ? ` and ${plural(unknown.length - 5, "other")}` : "";
    section.append(element("p", { class: "notice" }, "No say in the weights, as the caption encoder knows no word of it: ", ...names, more, "."));
  }
  return section;
}
