"use strict"
// Runs before anything is painted: a page that was switched to dark never flashes white.
try {
  const kept = localStorage.getItem("deskbook-theme")
  if (kept === "dark" || kept === "light") document.documentElement.dataset.theme = kept
} catch {}
