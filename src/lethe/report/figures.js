// Fills the interactive figures, arranges the heat map, and links its cells to the example browser.
// Text from data goes into the figures as data only; Bokeh writes it as text.

const figures = JSON.parse(document.getElementById("figure-data").textContent);
const shown = JSON.parse(document.getElementById("browser-data").textContent);
const heat = figures.heat_map;
const select = (name) => document.getElementById(`heat-map-${name}`);
const agreement = (name) => document.getElementById(`agreement-${name}`);
const views = ["measured", "predicted", "residual"];
const documents = [];
let columnOrder = [];
let rowOrder = [];

// ---- values

function decode({ scale, codes }) {
  const bytes = Uint8Array.from(atob(codes), (letter) => letter.charCodeAt(0));
  const numbers = new Int16Array(bytes.buffer);
  return Float32Array.from(numbers, (code) => (code === heat.missing ? NaN : code * scale));
}

const decoded = new Map();
function valuesOf(kind, model) {
  const key = `${kind} ${model}`;
  if (!decoded.has(key)) decoded.set(key, decode(heat[kind][model]));
  return decoded.get(key);
}

// Rows of numbers in the present order of tasks and examples.
function arrange(values, tasks) {
  const width = shown.examples.length;
  return rowOrder.map((task) => {
    const start = tasks.indexOf(task) * width;
    return columnOrder.map((position) => values[start + position]);
  });
}

// ---- heat map

function fillHeatMap(model) {
  const tasks = shown.tasks[select("model").value];
  rowOrder = heat.rows[select("rows").value].filter((task) => tasks.includes(task));
  columnOrder = heat.columns[select("columns").value];
  const measured = arrange(valuesOf("measured", select("model").value), tasks);
  const predicted = arrange(valuesOf("predicted", select("model").value), tasks);
  const residual = measured.map((row, number) => row.map((value, at) => value - predicted[number][at]));
  const examples = columnOrder.map((position) => shown.examples[position]);
  const names = { task: [], example: [], domain: [], text: [] };
  const texts = examples.map((example) => shorten(example.text));
  for (const task of rowOrder) {
    const label = `${task} (${heat.groups[task]}, ${heat.splits[task]})`;
    for (const [number, example] of examples.entries()) {
      names.task.push(label);
      names.example.push(example.id);
      names.domain.push(example.domain);
      names.text.push(texts[number]);
    }
  }
  const find = (name) => model.get_model_by_name(name);
  const cells = find("heat-map-cells");
  // Bokeh's own class of arrays, of the array that Python sent.
  const Grid = cells.data.measured[0].constructor;
  const grid = (values) => [new Grid(values.flat(), [rowOrder.length, columnOrder.length])];
  const data = { measured: grid(measured), predicted: grid(predicted), residual: grid(residual) };
  for (const [name, values] of Object.entries(names)) data[name] = [values];
  for (const view of views) {
    const glyph = find(`${view}-image`).glyph;
    glyph.dw = { value: columnOrder.length };
    glyph.dh = { value: rowOrder.length };
  }
  cells.data = data;
  find("heat-map-boundaries").data = boundaries();
  labelHeatMap(model);
}

function shorten(text) {
  return text.length > 80 ? `${text.slice(0, 80)} …` : text;
}

// Lines between domains and between groups of tasks.
function boundaries() {
  const lines = { x0: [], x1: [], y0: [], y1: [] };
  const add = (x0, x1, y0, y1) => {
    for (const [name, value] of Object.entries({ x0, x1, y0, y1 })) lines[name].push(value);
  };
  for (const start of domainStarts().slice(1)) add(start, start, 0, rowOrder.length);
  for (const { start } of groupRuns().slice(1)) add(0, columnOrder.length, start, start);
  return lines;
}

// Numbers of the first column of each domain, if the columns are ordered by domain.
function domainStarts() {
  if (select("columns").value !== "domain") return [];
  const starts = [];
  for (const [number, position] of columnOrder.entries()) {
    const before = number === 0 ? null : heat.domains[columnOrder[number - 1]];
    if (heat.domains[position] !== before) starts.push(number);
  }
  return starts;
}

// The names that have room at the present zoom.
function labelHeatMap(model) {
  const find = (name) => model.get_model_by_name(name);
  const columns = find("heat-map-columns");
  const rows = find("heat-map-rows");
  const tall = Math.abs(rows.end - rows.start) || 1;
  const wide = Math.abs(columns.end - columns.start) || 1;
  for (const view of views) {
    const room = Math.max(1, Math.floor((find(view).height - 90) / 12));
    const step = Math.ceil(tall / room);
    const mark = (task) => (heat.splits[task] === "train" ? task : `${task} (${heat.splits[task]})`);
    setTicks(find(`${view}-tasks`), rowOrder.flatMap((task, row) => (row % step ? [] : [[row + 0.5, mark(task)]])));
    setTicks(find(`${view}-groups`), groupMiddles());
    setTicks(find(`${view}-examples`), wide > 40 ? domainMiddles() : exampleNames());
    find(`${view}-examples`).major_label_orientation = wide > 40 ? 0.4 : 0.9;
  }
}

function exampleNames() {
  return columnOrder.map((position, column) => [column + 0.5, shown.examples[position].id]);
}

function domainMiddles() {
  const starts = domainStarts();
  return starts.map((start, number) => {
    const end = starts[number + 1] ?? columnOrder.length;
    return [(start + end) / 2, heat.domains[columnOrder[start]]];
  });
}

// The rows of each group, if the tasks are ordered by group.
function groupRuns() {
  if (select("rows").value !== "group") return [];
  const runs = [];
  for (const [row, task] of rowOrder.entries()) {
    const group = heat.groups[task];
    if (runs.at(-1)?.group !== group) runs.push({ group, start: row });
    runs.at(-1).end = row + 1;
  }
  return runs;
}

function groupMiddles() {
  return groupRuns().map(({ group, start, end }) => [(start + end) / 2, group]);
}

function setTicks(axis, ticks) {
  axis.ticker.ticks = ticks.map(([position]) => position);
  axis.major_label_overrides = new Map(ticks);
}

function openCell(event) {
  const position = columnOrder[Math.floor(event.x)];
  const task = rowOrder[Math.floor(event.y)];
  if (position === undefined || task === undefined) return;
  openExample(shown.examples[position].id, task, select("model").value);
}

function openExample(example, task, model) {
  location.hash = new URLSearchParams({ view: "browser", example, task, model }).toString();
}

async function showHeatMap() {
  const model = await embed("heat-map");
  const find = (name) => model.get_model_by_name(name);
  const columns = find("heat-map-columns");
  Object.assign(find("heat-map-colours"), { low: -heat.limit, high: heat.limit });
  Object.assign(columns, { end: shown.examples.length, reset_start: 0, reset_end: shown.examples.length });
  fillHeatMap(model);
  for (const view of views) find(view).on_event("tap", openCell);
  for (const range of [columns, find("heat-map-rows")]) {
    range.change.connect(() => labelHeatMap(model));
  }
  for (const name of ["model", "rows", "columns"]) {
    select(name).addEventListener("change", () => fillHeatMap(model));
  }
  select("view").addEventListener("change", () => {
    const choice = select("view").value;
    for (const view of views) find(view).visible = choice === "all" || choice === view;
  });
}

// ---- agreement of prediction and measurement

const palette = ["#0b6e99", "#c4622d", "#1b7f5c", "#7b61c4", "#b5467a", "#c69214", "#57606a", "#56a0d3"];
const domainNames = [...new Set(heat.domains)].sort();

function fillAgreement(model) {
  const name = agreement("model").value;
  const task = agreement("task").value;
  const width = shown.examples.length;
  const start = shown.tasks[name].indexOf(task) * width;
  const measured = valuesOf("measured", name).slice(start, start + width);
  const predicted = valuesOf("predicted", name).slice(start, start + width);
  const data = { measured: [], predicted: [], example: [], domain: [], text: [], colour: [] };
  for (const [position, example] of shown.examples.entries()) {
    if (Number.isNaN(measured[position] - predicted[position])) continue;
    data.measured.push(measured[position]);
    data.predicted.push(predicted[position]);
    data.example.push(example.id);
    data.domain.push(example.domain);
    data.text.push(shorten(example.text));
    data.colour.push(palette[domainNames.indexOf(example.domain) % palette.length]);
  }
  const cells = model.get_model_by_name("agreement-cells");
  cells.selected.indices = [];
  cells.data = data;
  model.get_model_by_name("agreement-title").text = `${name}, ${task}: ${data.example.length} predicted examples`;
}

async function showAgreement() {
  const model = await embed("agreement");
  fillAgreement(model);
  for (const name of ["model", "task"]) {
    agreement(name).addEventListener("change", () => fillAgreement(model));
  }
  const cells = model.get_model_by_name("agreement-cells");
  cells.selected.properties.indices.change.connect(() => {
    const [first] = cells.selected.indices;
    if (first === undefined) return;
    openExample(cells.data.example[first], agreement("task").value, agreement("model").value);
  });
}

// ---- all figures

async function embed(name) {
  const target = document.getElementById(`${name}-figure`);
  const manager = await Bokeh.embed.embed_item(figures.items[name], target);
  const model = manager.roots[0].model.document;
  documents.push(model);
  // On a touch screen a finger scrolls the page.
  if (matchMedia("(pointer: coarse)").matches) {
    for (const toolbar of modelsOf(model, "Toolbar")) toolbar.active_drag = null;
  }
  paint([model], paperColours());
  return model;
}

function modelsOf(model, type) {
  return [...model.all_models].filter((one) => one.type === type);
}

function paperColours() {
  const style = getComputedStyle(document.documentElement);
  return { ink: style.getPropertyValue("--ink"), paper: style.getPropertyValue("--paper") };
}

// Gives all text of the figures the colours of the page.
function paint(painted, { ink, paper }) {
  const colours = { Title: ["text_color"], Legend: ["label_text_color"], ColorBar: ["title_text_color", "major_label_text_color"] };
  for (const axis of ["LinearAxis", "LogAxis", "CategoricalAxis"]) {
    colours[axis] = ["axis_label_text_color", "major_label_text_color"];
  }
  for (const model of painted) {
    for (const [type, names] of Object.entries(colours)) {
      for (const one of modelsOf(model, type)) {
        for (const name of names) one[name] = ink;
        if (type === "Legend" || type === "ColorBar") one.background_fill_color = paper;
      }
    }
  }
}

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => paint(documents, paperColours()));
window.addEventListener("beforeprint", () => paint(documents, { ink: "#000", paper: "#fff" }));
window.addEventListener("afterprint", () => paint(documents, paperColours()));

function fillSelect(list, values) {
  for (const value of values) {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = value;
    list.append(option);
  }
}

const models = Object.keys(shown.tasks);
fillSelect(select("model"), models);
fillSelect(select("rows"), Object.keys(heat.rows));
fillSelect(select("columns"), Object.keys(heat.columns));
fillSelect(agreement("model"), models);
// Tasks that are not for training come first: their predictions matter.
const tasks = Object.keys(heat.splits);
fillSelect(agreement("task"), [
  ...tasks.filter((task) => heat.splits[task] !== "train"),
  ...tasks.filter((task) => heat.splits[task] === "train"),
]);
Bokeh.logger.set_level("warn");

// The page can be read before all figures are there.
async function showAll() {
  await showHeatMap();
  await showAgreement();
  for (const name of Object.keys(figures.items)) {
    if (["heat-map", "agreement"].includes(name)) continue;
    await new Promise((resume) => requestIdleCallback(resume, { timeout: 500 }));
    await embed(name);
  }
  document.documentElement.dataset.figures = "ready";
}
showAll();
