// Starts the page: shows a view and one line about the ensemble.

import { ApiError, askJson } from "./api.js";
import { startClassify } from "./classify.js";
import { showClusters } from "./clusters.js";
import { plural } from "./elements.js";

const views = [...document.querySelectorAll("main")];
const links = [...document.querySelectorAll("[data-view]")];
const experts = askJson("v1/experts").then(({ experts: known }) => known);

experts.then(
  (known) => {
    const away = known.filter(({ available }) => !available).length;
    const state = away ? `, ${away} not answering` : "";
    document.getElementById("about").textContent = `An ensemble of ${plural(known.length, "CLIP data expert")}${state}`;
  },
  (error) => {
    if (!(error instanceof ApiError)) throw error;
    document.getElementById("about").textContent = error.message;
  },
);

function showView() {
  const wanted = location.hash === "#clusters" ? "clusters" : "classify";
  for (const view of views) view.hidden = view.id !== wanted;
  for (const link of links) {
    if (link.dataset.view === wanted) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (wanted === "clusters") showClusters(experts.catch(() => []));
}

startClassify();
addEventListener("hashchange", showView);
showView();
