// Images of a sensitive task are blurred until they are clicked; a second click blurs them again.
function veil(button, hidden) {
  button.classList.toggle("veiled", hidden);
  button.setAttribute("aria-pressed", String(!hidden));
}
const veils = [...document.querySelectorAll("button.picture")];
veils.forEach(button => button.addEventListener("click", () => veil(button, !button.classList.contains("veiled"))));
const unveil = document.getElementById("unveil");
if (unveil) unveil.addEventListener("click", () => {
  const hidden = !veils.some(button => button.classList.contains("veiled"));
  veils.forEach(button => veil(button, hidden));
  unveil.textContent = hidden ? "Show all images" : "Blur all images";
});
// Print has no folds: reasons, settings and sources are on paper, too.
const folds = [...document.querySelectorAll("details")];
addEventListener("beforeprint", () => folds.forEach(fold => { fold.dataset.was = fold.open; fold.open = true; }));
addEventListener("afterprint", () => folds.forEach(fold => { fold.open = fold.dataset.was === "true"; }));
