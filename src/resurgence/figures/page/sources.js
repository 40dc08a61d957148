"use strict";
// A click on a number shows the entry of the list of sources; without JavaScript the link leads to it.
document.addEventListener("click", event => {
  const link = event.target.closest("a.n");
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const entry = document.getElementById(link.getAttribute("href").slice(1));
  const text = entry.cloneNode(true), place = document.createElement("div");
  place.append(...text.childNodes);
  document.getElementById("source-text").replaceChildren(place);
  document.getElementById("source").showModal();
  event.preventDefault();
});
function openTarget() {
  const target = /^#s\d+$/.test(location.hash) && document.querySelector(location.hash);
  if (!target) return;
  document.getElementById("sources").open = true;
  target.scrollIntoView();
}
addEventListener("hashchange", openTarget);
openTarget();
