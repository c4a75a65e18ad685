// Before anything is drawn, so that the page does not flash in the other colours.
{
  const chosen = localStorage.getItem("wfe-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
