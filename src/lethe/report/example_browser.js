// Fills the example browser, and keeps it and the chosen example in the page's address.
// Text from data is only ever set as textContent, or passed through DataTables' escape.

const page = JSON.parse(document.getElementById("browser-data").textContent);
const models = Object.keys(page.tasks);
const control = (name) => document.getElementById(`browser-${name}`);
const state = { model: models[0], task: "", domain: "", least: "", search: "", example: "" };
const positions = new Map(page.examples.map((example, position) => [example.id, position]));

function format(value) {
  return value === null ? "–" : value.toFixed(3);
}

function numberCell(value, purpose) {
  if (purpose === "display") return format(value);
  return value === null ? -Infinity : value;
}

function describe(position) {
  const tasks = page.tasks[state.model];
  const values = page.forgetting[state.model][position];
  const known = values.filter((value) => value !== null);
  const mean = known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
  const largest = known.length ? Math.max(...known) : null;
  const chosen = state.task === "" ? mean : values[tasks.indexOf(state.task)];
  const example = page.examples[position];
  const losses = page.base_loss[state.model];
  return {
    position,
    id: example.id,
    domain: example.domain,
    split: example.split,
    base: losses ? losses[position] : null,
    chosen,
    largest,
    task: largest === null ? "" : tasks[values.indexOf(largest)],
    count: known.filter((value) => value > page.threshold).length,
    text: example.text.length > 100 ? `${example.text.slice(0, 100)} …` : example.text,
  };
}

// DataTables has its dark colours under this class.
const dark = matchMedia("(prefers-color-scheme: dark)");
const setColours = () => document.documentElement.classList.toggle("dark", dark.matches);
dark.addEventListener("change", setColours);
setColours();

const plain = DataTable.render.text();
const columns = [
  { title: "example", data: "id", render: plain },
  { title: "domain", data: "domain", render: plain },
  { title: "split", data: "split", render: plain },
  { title: "base loss", data: "base", render: numberCell, className: "number" },
  { title: "forgetting", data: "chosen", render: numberCell, className: "number" },
  { title: "largest", data: "largest", render: numberCell, className: "number" },
  { title: "in task", data: "task", render: plain },
  { title: "tasks that forget it", data: "count", className: "number" },
  { title: "text", data: "text", render: plain, className: "text" },
];

const table = new DataTable(control("table"), {
  columns,
  data: [],
  deferRender: true,
  pageLength: 15,
  lengthMenu: [15, 50, 200],
  order: [[4, "desc"]],
  autoWidth: false,
  createdRow: (row, data) => {
    row.dataset.position = data.position;
    row.classList.toggle("chosen", data.id === state.example);
  },
});

table.search.fixed("controls", (text, row) => {
  if (state.domain !== "" && row.domain !== state.domain) return false;
  return state.least === "" || (row.chosen !== null && row.chosen >= Number(state.least));
});

function fillOptions(select, values, first) {
  select.replaceChildren();
  const options = first === null ? [] : [["", first]];
  for (const value of values) options.push([value, value]);
  for (const [value, label] of options) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = label;
    select.append(option);
  }
}

function fillTable() {
  table.clear();
  table.rows.add(page.examples.map((_, position) => describe(position)));
  table.search(state.search);
  table.draw();
}

// The address of the present view with some parts changed.
function address(changes) {
  const parts = new URLSearchParams({ view: "browser" });
  for (const [name, value] of Object.entries({ ...state, ...changes })) {
    if (value !== "" && !(name === "model" && value === models[0])) parts.set(name, value);
  }
  return parts.toString();
}

function change(changes) {
  Object.assign(state, changes);
  history.replaceState(null, "", `#${address({})}`);
  update(Object.keys(changes));
}

function update(names) {
  for (const name of ["model", "task", "domain", "least"]) control(name).value = state[name];
  if (names.some((name) => name !== "example")) {
    fillTable();
  } else {
    for (const row of control("table").querySelectorAll("tbody tr")) {
      row.classList.toggle("chosen", row.dataset.position === String(positions.get(state.example)));
    }
  }
  showExample();
}

function readAddress() {
  const parts = new URLSearchParams(location.hash.slice(1));
  // A link to an example needs no view: #example=ID&task=TASK&model=MODEL.
  if (parts.get("view") !== "browser" && !parts.has("example")) return;
  for (const name of Object.keys(state)) state[name] = parts.get(name) ?? "";
  if (!models.includes(state.model)) state.model = models[0];
  if (!page.tasks[state.model].includes(state.task)) state.task = "";
  update(["model"]);
  control(state.example === "" ? "section" : "example").scrollIntoView();
}

function moveChoice(step) {
  const order = table.rows({ search: "applied", order: "applied" });
  const rows = order.data().toArray();
  if (!rows.length) return;
  const present = rows.findIndex((row) => row.id === state.example);
  const next = Math.min(rows.length - 1, Math.max(0, present + step));
  table.page(Math.floor(next / table.page.len())).draw("page");
  change({ example: rows[next].id });
}

document.addEventListener("keydown", (event) => {
  const typing = ["INPUT", "SELECT", "TEXTAREA"].includes(event.target.tagName);
  if (event.key === "Escape") {
    event.target.blur();
    change({ example: "" });
  } else if (typing || event.ctrlKey || event.metaKey || event.altKey) {
    return;
  } else if (event.key === "/") {
    event.preventDefault();
    control("section").querySelector("input[type=search]").focus();
  } else if (event.target.closest("#browser-section") && /^Arrow(Up|Down)$/.test(event.key)) {
    event.preventDefault();
    moveChoice(event.key === "ArrowDown" ? 1 : -1);
  }
});

control("table").addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr[data-position]");
  if (!row) return;
  change({ example: page.examples[Number(row.dataset.position)].id });
  control("example").scrollIntoView({ block: "nearest" });
});
for (const name of ["model", "task", "domain", "least"]) {
  control(name).addEventListener("change", (event) => change({ [name]: event.target.value }));
}
table.on("search", () => {
  if (table.search() === state.search) return;
  state.search = table.search();
  history.replaceState(null, "", `#${address({})}`);
});
window.addEventListener("hashchange", readAddress);
// On paper the table is whole.
let pageLength = table.page.len();
window.addEventListener("beforeprint", () => {
  pageLength = table.page.len();
  table.page.len(-1).draw();
});
window.addEventListener("afterprint", () => table.page.len(pageLength).draw());

fillOptions(control("model"), models, null);
fillOptions(control("task"), page.tasks[state.model], "mean over all tasks");
const domains = [...new Set(page.examples.map((example) => example.domain))].sort();
fillOptions(control("domain"), domains, "all domains");
const hasTexts = page.examples.some((example) => example.text !== "");
for (const [number, shown] of [[1, hasTexts], [2, hasTexts], [3, models[0] in page.base_loss], [8, hasTexts]]) {
  table.column(number).visible(shown);
}
update(["model"]);
readAddress();
document.documentElement.dataset.browser = "ready";
