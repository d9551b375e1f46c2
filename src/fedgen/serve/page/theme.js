// Not a module: it is done before anything is painted, so that the page does not flash in the other theme.
try {
  const kept = localStorage.getItem("fedgen-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch {
  // a browser that keeps nothing follows the system
}
