// The second view: all fine clusters in pages, and the atlas if the run has one.

import { ApiError, ask, askJson, needsToken } from "./api.js";
import { element, plural, quotes, text } from "./elements.js";

const PAGE = 24;
const TYPING_PAUSE_MILLISECONDS = 200;
const byId = (id) => document.getElementById(id);
const before = byId("before");
const after = byId("after");
let offset = 0;
let running = null;
let started = false;

export function showClusters(experts) {
  if (started) return;
  started = true;
  let pause;
  byId("filter").addEventListener("submit", (event) => event.preventDefault());
  byId("find").addEventListener("input", () => {
    clearTimeout(pause);
    pause = setTimeout(() => load(0), TYPING_PAUSE_MILLISECONDS);
  });
  byId("expert").addEventListener("change", () => load(0));
  before.addEventListener("click", () => turn(-PAGE));
  after.addEventListener("click", () => turn(PAGE));
  experts.then((known) => {
    byId("expert").append(...known.map(({ id }) => element("option", { value: id }, `expert ${id}`)));
  });
  load(0);
}

async function turn(by) {
  await load(offset + by);
  const title = byId("clusters-title");
  title.focus({ preventScroll: true });
  title.scrollIntoView({ block: "nearest" });
}

async function load(from) {
  running?.abort();
  const mine = new AbortController();
  running = mine;
  const query = new URLSearchParams({ offset: from, limit: PAGE });
  const find = byId("find").value.trim();
  if (find) query.set("filter", find);
  if (byId("expert").value) query.set("expert", byId("expert").value);
  try {
    const page = await askJson(`v1/clusters?${query}`, { signal: mine.signal });
    offset = from;
    show(page);
    byId("clusters-problem").textContent = "";
  } catch (error) {
    if (mine.signal.aborted) return;
    if (!(error instanceof ApiError)) throw error;
    byId("clusters-problem").textContent = error.message;
  }
}

function show({ clusters, total, atlas }) {
  const range = clusters.length ? `${offset + 1} to ${offset + clusters.length} of ${plural(total, "cluster")}` : "No cluster matches.";
  byId("found").textContent = range;
  byId("cluster-list").replaceChildren(...clusters.map(clusterCard));
  before.disabled = offset === 0;
  after.disabled = offset + clusters.length >= total;
  document.querySelector(".pages").hidden = before.disabled && after.disabled;
  byId("atlas").replaceChildren(...(atlas ? [atlasLink()] : []));
}

function clusterCard({ fine, expert, mass, terms = [], captions }) {
  const card = element(
    "li",
    {},
    element(
      "header",
      {},
      element("h3", {}, `Cluster ${fine}`),
      element("span", { class: "hint" }, `expert ${expert} · ${plural(mass, "caption")}`),
    ),
  );
  if (terms.length) card.append(element("p", { class: "terms" }, ...terms.flatMap((term, place) => [place ? ", " : "", text(term)])));
  if (captions.length) card.append(quotes(captions));
  if (!terms.length && !captions.length) card.append(element("p", { class: "hint" }, "No captions to show: the run has no atlas."));
  return card;
}

/** A link, or a download if the server requires a token, which a link cannot carry. */
function atlasLink() {
  if (!needsToken()) return element("a", { href: "atlas", target: "_blank", rel: "noopener" }, "Atlas: map and figures");
  const button = element("button", { type: "button" }, "Download the atlas");
  button.addEventListener("click", async () => {
    try {
      const address = URL.createObjectURL(await (await ask("atlas")).blob());
      element("a", { href: address, download: "atlas.html" }).click();
      setTimeout(() => URL.revokeObjectURL(address), 60_000);
    } catch (error) {
      byId("clusters-problem").textContent = error.message;
    }
  });
  return button;
}
