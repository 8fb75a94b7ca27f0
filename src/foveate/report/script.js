"use strict";
// Tables are sorted by a click on a column's title, and by another click the other way round.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const first = head.dataset.first === "rising" ? "ascending" : "descending";
    const now = !before ? first : before === "ascending" ? "descending" : "ascending";
    heads.forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", now);
    const turn = now === "ascending" ? 1 : -1, body = table.tBodies[0];
    const key = row => {
      const cell = row.cells[column];
      return cell.dataset.v !== undefined ? Number(cell.dataset.v) : cell.textContent.trim();
    };
    const empty = value => value === "" || value === "–";
    body.append(...[...body.rows].map(row => [key(row), row]).sort(([a], [b]) => {
      if (empty(a) || empty(b)) return empty(a) - empty(b); // what was not measured comes last, either way
      return turn * (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", {numeric: true}));
    }).map(([, row]) => row));
  }));
}

// A mark says what it is below its chart: fingers have no tooltip.
for (const figure of document.querySelectorAll("figure.chart")) {
  const line = figure.querySelector(".readout");
  const tell = mark => {
    figure.querySelectorAll(".told").forEach(other => other.classList.remove("told"));
    mark.classList.add("told");
    line.textContent = mark.querySelector("title").textContent;
  };
  for (const mark of figure.querySelectorAll(".p")) {
    mark.addEventListener("pointerenter", () => tell(mark));
    mark.addEventListener("click", () => tell(mark));
  }
}

// The filter shows what belongs to a model, a budget and families of methods; the address keeps it.
const form = document.getElementById("filters");
if (form) {
  form.hidden = false;
  const {model, budget} = form.elements, boxes = [...form.querySelectorAll("input[type=checkbox]")];
  const asked = new URLSearchParams(location.hash.slice(1));
  const offer = () => {
    for (const option of budget.options) {
      const models = option.dataset.models;
      option.hidden = option.disabled = Boolean(models) && model.value !== "*" && !JSON.parse(models).includes(model.value);
    }
    if (budget.selectedOptions[0].disabled) budget.value = "*";
  };
  const fits = item => {
    const {model: m, budget: b, group: g} = item.dataset;
    return (m === undefined || model.value === "*" || m === model.value)
      && (!b || budget.value === "*" || b === budget.value)
      && (!g || boxes.every(box => box.value !== g || box.checked));
  };
  const apply = () => {
    offer();
    document.body.classList.toggle("one", model.value !== "*");
    document.querySelectorAll("tbody tr[data-model], figure.chart[data-model]").forEach(item => { item.hidden = !fits(item); });
    document.querySelectorAll(".chart .p, .chart .label").forEach(mark => {
      mark.classList.toggle("off", boxes.some(box => box.value === mark.dataset.group && !box.checked));
      mark.classList.toggle("faint", Boolean(mark.dataset.budget) && budget.value !== "*" && mark.dataset.budget !== budget.value);
    });
    document.querySelectorAll(".filtered").forEach(part => {
      const shown = part.querySelector("tbody tr:not([hidden]), figure.chart:not([hidden])");
      part.querySelector(".none").hidden = Boolean(shown);
    });
    const kept = new URLSearchParams();
    if (model.selectedIndex) kept.set("model", model.value);
    if (budget.selectedIndex) kept.set("budget", budget.value);
    const off = boxes.filter(box => !box.checked).map(box => box.value);
    if (off.length) kept.set("without", off.join(","));
    if (started) try { history.replaceState(null, "", "#" + kept); } catch { /* some browsers refuse it in local files */ }
  };
  let started = false;
  const choose = (select, value) => { if ([...select.options].some(option => option.value === value)) select.value = value; };
  choose(model, asked.get("model"));
  choose(budget, asked.get("budget"));
  const without = (asked.get("without") || "").split(",");
  boxes.forEach(box => { box.checked = !without.includes(box.value); });
  apply();
  started = true;
  form.addEventListener("change", apply);
}
