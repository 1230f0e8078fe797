"use strict";
const byId = id => document.getElementById(id);
const rows = [...document.querySelectorAll("#table tbody tr")];
const pages = new Map(rows.map(row => [row, byId(row.dataset.page)]));
const choices = { source: byId("f-source"), printed: byId("f-printed"), status: byId("f-status") };
const presets = [...document.querySelectorAll("button[data-filter]")];

function filter() {
  const words = byId("q").value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const page = pages.get(row), text = page.textContent.toLowerCase();
    const ok = words.every(w => text.includes(w)) && Object.entries(choices).every(([k, s]) => !s.value || row.dataset[k] === s.value);
    row.hidden = page.hidden = !ok;
    shown += ok;
  }
  byId("count").textContent = `${shown} of ${rows.length} shown`;
  for (const button of presets) {
    const wanted = JSON.parse(button.dataset.filter);
    button.setAttribute("aria-pressed", String(Object.entries(choices).every(([k, s]) => s.value === (wanted[k] ?? ""))));
  }
}
function choose(wanted) {
  for (const [k, s] of Object.entries(choices)) s.value = wanted[k] ?? "";
  filter();
}
// a link may lead to a claim that the filter hides
function reveal() {
  const page = byId(decodeURIComponent(location.hash.slice(1)));
  if (page && page.hidden) { byId("q").value = ""; choose({}); page.scrollIntoView(); }
}
function sort(header) {
  const column = [...header.parentNode.children].indexOf(header), rising = header.getAttribute("aria-sort") !== "ascending";
  const key = row => row.children[column].dataset.key ?? row.children[column].textContent.trim();
  const numeric = header.classList.contains("n");
  rows.sort((a, b) => (rising ? 1 : -1) * (numeric ? key(a) - key(b) : key(a).localeCompare(key(b))));
  for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", rising ? "ascending" : "descending");
  document.querySelector("#table tbody").append(...rows);
}
byId("q").addEventListener("input", filter);
for (const s of Object.values(choices)) s.addEventListener("change", filter);
for (const button of presets) button.addEventListener("click", () => {
  choose(button.getAttribute("aria-pressed") === "true" ? {} : JSON.parse(button.dataset.filter));
  byId("claims").scrollIntoView();
});
byId("filters").addEventListener("submit", event => event.preventDefault());
byId("filters").addEventListener("reset", () => setTimeout(filter));
for (const header of document.querySelectorAll("#table th")) header.querySelector("button").addEventListener("click", () => sort(header));
addEventListener("hashchange", reveal);
addEventListener("keydown", event => {
  if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) { event.preventDefault(); byId("q").focus(); }
  if (event.key === "Escape" && event.target === byId("q")) { byId("q").value = ""; filter(); }
});
filter();
