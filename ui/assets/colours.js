// Dark or light: the system's wish, unless this browser's user chose otherwise.

export function restoreColours() {
  const chosen = localStorage.getItem("colours");
  if (chosen) document.body.classList.toggle("dark", chosen === "dark");
}

export function toggleColours() {
  const dark = document.body.classList.toggle("dark");
  localStorage.setItem("colours", dark ? "dark" : "light");
}

// For pages without a script of their own.
export function start(element) {
  restoreColours();
  element.querySelector("#colours").addEventListener("click", toggleColours);
}
