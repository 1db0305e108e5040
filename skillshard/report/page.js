"use strict";
// The page holds the numbers of each run as JSON. The script moves the line of the chosen round and fills the table of this round.
const LEFT = 58, WIDE = 570;
const runs = JSON.parse(document.getElementById("data").textContent);
const number = (value) => value === null || value === undefined ? "–" : Number(value.toPrecision(4)).toString();

function cell(row, text, kind) {
  const made = document.createElement("td");
  made.textContent = text;
  if (kind) made.className = kind;
  row.append(made);
  return made;
}

function newestReport(run, until) {
  let newest = -1;
  run.reports.forEach((report, index) => { if (report[1] <= until) newest = index; });
  return newest;
}

function sentence(run, at) {
  const [name, first, end, fresh, until] = run.rounds[at];
  const report = newestReport(run, until);
  const range = `Round ${name.toLocaleString("en")}, draws ${first.toLocaleString("en")} to ${(end - 1).toLocaleString("en")}. `;
  if (report < 0) return range + "The round used no losses.";
  const [step, draw] = run.reports[report];
  const losses = `The losses are those of step ${step.toLocaleString("en")}, draw ${draw.toLocaleString("en")}, the newest report that the round used.`;
  return range + losses + (fresh.length ? "" : " The round before used the same report.");
}

function show(section, run, at) {
  const [, first] = run.rounds[at];
  const report = newestReport(run, run.rounds[at][4]);
  const x = LEFT + WIDE * (first - run.span[0]) / Math.max(1, run.span[1] - run.span[0]);
  section.querySelectorAll(".cursor").forEach((line) => { line.setAttribute("x1", x); line.setAttribute("x2", x); });
  section.querySelector(".round").textContent = sentence(run, at);
  const body = section.querySelector(".readout tbody");
  body.replaceChildren();
  for (const line of run.lines) {
    const row = body.insertRow();
    const name = cell(row, "");
    const swatch = document.createElement("span");
    swatch.className = "swatch dash" + Math.floor(line.colour / 8);
    swatch.style.color = `var(--c${line.colour % 8})`;
    const words = document.createElement("bdi");
    words.textContent = line.name;
    name.append(swatch, words);
    const weight = line.weights ? line.weights[at] : null;
    const before = line.weights && at > 0 ? line.weights[at - 1] : null;
    const change = weight === null || before === null ? null : weight - before;
    const loss = line.losses && report >= 0 ? line.losses[report] : null;
    cell(row, number(loss));
    cell(row, number(before));
    cell(row, number(weight));
    const small = change === null || Math.abs(change) < 1e-9;
    cell(row, change === null ? "–" : small ? "0" : (change > 0 ? "+" : "−") + Number(Math.abs(change).toPrecision(2)), small ? "" : change > 0 ? "up" : "down");
  }
}

document.querySelectorAll("section.history").forEach((section, index) => {
  const run = runs[index];
  const slider = section.querySelector("input[type=range]");
  const choose = (at) => { slider.value = at; slider.setAttribute("aria-valuetext", sentence(run, at)); show(section, run, at); };
  slider.addEventListener("input", () => choose(Number(slider.value)));
  section.querySelectorAll("svg.chart").forEach((chart) => {
    chart.addEventListener("pointermove", (event) => {
      const box = chart.getBoundingClientRect();
      const x = (event.clientX - box.left) * 640 / box.width;
      const draw = run.span[0] + (x - LEFT) / WIDE * (run.span[1] - run.span[0]);
      let at = 0;
      run.rounds.forEach((round, position) => { if (round[1] <= draw) at = position; });
      choose(at);
    });
    chart.addEventListener("keydown", (event) => {
      const last = run.rounds.length - 1, at = Number(slider.value);
      const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageUp: at - 10, PageDown: at + 10, Home: 0, End: last }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      choose(Math.max(0, Math.min(last, to)));
    });
  });
  section.querySelectorAll(".key button").forEach((button) => button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    section.querySelectorAll(".key button").forEach((other) => other.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", String(pressed));
    section.querySelectorAll(".curve").forEach((curve) => curve.classList.toggle("dim", pressed && curve.dataset.line !== button.dataset.line));
  }));
  choose(run.rounds.length - 1);
});

const table = document.getElementById("skills"), filter = document.getElementById("filter");
const value = (row, column) => {
  const text = row.cells[column].dataset.sort ?? row.cells[column].textContent.trim();
  const parsed = Number(text.replace(/[,%+\s]/g, "").replace("−", "-"));
  return column > 0 ? (Number.isNaN(parsed) || text === "" ? null : parsed) : text;
};
table.querySelectorAll("th button").forEach((button) => button.addEventListener("click", () => {
  const head = button.parentElement, column = Number(button.dataset.column);
  // Numbers begin with the largest, names with the first letter.
  const down = head.ariaSort ? head.ariaSort === "ascending" : column > 0;
  table.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].sort((a, b) => {
    const [one, two] = [value(a, column), value(b, column)];
    if (one === null || two === null) return (one === null) - (two === null);
    const order = column > 0 ? one - two : one.localeCompare(two);
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows);
}));
filter.addEventListener("input", () => {
  const wanted = filter.value.toLowerCase();
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    shown += !row.hidden;
  }
  document.getElementById("matches").textContent = `${shown.toLocaleString("en")} of ${table.tBodies[0].rows.length.toLocaleString("en")} skills`;
});
