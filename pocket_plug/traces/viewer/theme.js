// Light or dark: as the system is set, until the reader chooses.

const THEMES = { auto: "◐ auto", light: "☀ light", dark: "☾ dark" };

function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  at("theme").textContent = THEMES[theme];
  try {
    localStorage.setItem("pocket_plug.theme", theme);
  } catch {
    // without storage, the choice lasts until the page is closed
  }
  if (trace) waterfall.drawOverview();
}

function nextTheme() {
  const names = Object.keys(THEMES);
  setTheme(names[(names.indexOf(document.documentElement.dataset.theme ?? "auto") + 1) % names.length]);
}

function storedTheme() {
  try {
    const theme = localStorage.getItem("pocket_plug.theme");
    return theme in THEMES ? theme : "auto";
  } catch {
    return "auto";
  }
}
