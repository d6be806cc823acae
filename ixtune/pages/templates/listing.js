"use strict";
// Sorting and filtering of listings. Rows come from the template; nothing here makes HTML.

const collator = new Intl.Collator("en", { numeric: true });

for (const section of document.querySelectorAll("[data-listing]")) makeListing(section);

function makeListing(section) {
  const body = section.querySelector(".listing tbody");
  const rows = [...body.rows];
  const words = new Map();
  const form = section.querySelector(".filters");
  const filters = [...form.querySelectorAll("[data-filter]")];
  const headings = [...section.querySelectorAll(".listing th")];

  function wordsOf(row) {
    if (!words.has(row)) {
      const cells = [...row.querySelectorAll("[data-search]")];
      words.set(row, cells.map((cell) => cell.textContent).join(" ").toLowerCase());
    }
    return words.get(row);
  }

  function passes(row, rule, value) {
    const [kind, key] = rule.split(":");
    if (kind === "text") return value.toLowerCase().split(/\s+/).every((word) => wordsOf(row).includes(word));
    const found = row.dataset[key];
    if (kind === "min") return Number(found) >= Number(value);
    if (kind === "max") return Number(found) <= Number(value);
    if (kind === "has") return found.split(" ").includes(value);
    return found === value;
  }

  function filter() {
    const active = filters.filter((field) => field.value.trim() !== "");
    let shown = 0;
    for (const row of rows) {
      row.hidden = !active.every((field) => passes(row, field.dataset.filter, field.value.trim()));
      if (!row.hidden) shown += 1;
    }
    form.querySelector("output").value = `${shown.toLocaleString("en")} of ${rows.length.toLocaleString("en")} shown`;
  }

  function clear() {
    form.reset();
    filter();
  }

  function sort(heading) {
    const down = heading.getAttribute("aria-sort") === "ascending";
    for (const other of headings) other.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const column = heading.cellIndex;
    const keyOf = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const byNumber = heading.classList.contains("number");
    const keys = new Map(rows.map((row) => [row, byNumber ? Number(keyOf(row)) : keyOf(row)]));
    const compare = byNumber ? (a, b) => a - b : collator.compare;
    rows.sort((a, b) => (down ? -1 : 1) * compare(keys.get(a), keys.get(b)));
    body.append(...rows);
  }

  form.addEventListener("input", filter);
  form.addEventListener("change", filter); // all that some browsers fire for a select
  form.addEventListener("submit", (event) => event.preventDefault());
  form.querySelector("[data-clear]").addEventListener("click", clear);
  for (const heading of headings) heading.addEventListener("click", () => sort(heading));
  for (const link of section.querySelectorAll(".extremes a")) {
    link.addEventListener("click", clear); // its row may be hidden
  }
  filter(); // a browser may have kept what was typed before a reload
}
