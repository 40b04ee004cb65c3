// Light, dark, or as the system says; kept in this browser.

const THEMES = ["system", "light", "dark"] as const;
type Theme = (typeof THEMES)[number];
const KEY = "lemonade-theme";

/** The theme in force, applied to the document. */
export function theme(): Theme {
  const kept = THEMES.find((one) => one === localStorage.getItem(KEY)) ?? "system";
  if (kept === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.setAttribute("data-theme", kept);
  return kept;
}

/** Goes on to the next theme. */
export function nextTheme(): Theme {
  const next = THEMES[(THEMES.indexOf(theme()) + 1) % THEMES.length] ?? "system";
  localStorage.setItem(KEY, next);
  return theme();
}
