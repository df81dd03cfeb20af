// Shows one upstream example: its tokens, coloured by how their losses changed, what the task trains
// on, its forgetting by every task, and the examples that the same tasks make the model forget.
// The constants page and state are those of example_browser.js, which follows in the same module.
// Text from data is only ever set as textContent.

// A token has its full colour from this change on, and a line below it from half a nat on.
const FULL_COLOUR = 3;
const LINE_BELOW = 0.5;
const LARGEST_CHANGES = 5;
const PIECE = 20000;

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className !== undefined) made.className = className;
  return made;
}

// A text of megabytes is laid out in pieces, and only those on the screen.
function quotation(text) {
  if (text.length <= PIECE) return element("blockquote", text);
  const quote = element("blockquote");
  for (let start = 0; start < text.length; ) {
    let end = Math.min(start + PIECE, text.length);
    // The halves of a character outside the basic plane stay together.
    if (/[\ud800-\udbff]/.test(text[end - 1])) end += 1;
    quote.append(element("div", text.slice(start, end), "piece"));
    start = end;
  }
  return quote;
}

function showExample() {
  const panel = control("example");
  const position = positions.get(state.example);
  panel.hidden = state.example === "";
  panel.replaceChildren();
  if (panel.hidden) return;
  panel.append(element("h4", state.example));
  if (position === undefined) {
    panel.append(element("p", "This example is not among those that the page shows."));
    return;
  }
  const example = page.examples[position];
  const about = [example.domain, example.split, state.model].filter((part) => part !== "");
  panel.append(element("p", about.join(" · ")));
  const task = taskOfTokens(position);
  const columns = element("div", undefined, "example-columns");
  columns.append(textColumn(example, task), ...trainingColumn(state.task || task));
  panel.append(columns);
  panel.append(element("h5", `Forgetting by task (${page.unit})`), taskList(position));
  panel.append(element("h5", "Forgotten by the same tasks"), neighbourList(position));
}

// ---- tokens

function storedTokens() {
  return page.tokens.models[state.model] ?? { texts: {}, before: {}, after: {} };
}

function tasksWithTokens(id) {
  const { after } = storedTokens();
  return Object.keys(after).filter((task) => id in after[task]);
}

// The chosen task, or else the task with token losses that makes the model forget the example most.
function taskOfTokens(position) {
  const tasks = tasksWithTokens(page.examples[position].id);
  if (state.task !== "") return tasks.includes(state.task) ? state.task : "";
  const values = page.forgetting[state.model][position];
  const value = (task) => values[page.tasks[state.model].indexOf(task)] ?? -Infinity;
  return tasks.sort((one, other) => value(other) - value(one))[0] ?? "";
}

function textColumn(example, task) {
  const column = element("div");
  if (task === "") {
    if (example.text !== "") column.append(quotation(example.text), ...noTokens(example));
    return column;
  }
  const tokens = tokensOf(example.id, task);
  const detail = element("p", "Point at a token, or move with the arrow keys.", "token-detail");
  detail.setAttribute("role", "status");
  column.append(
    element("h5", `Tokens before and after the fine-tune on ${task}`),
    legend(),
    tokenText(tokens, detail),
    detail,
    largestChanges(tokens),
  );
  const whole = element("details");
  whole.append(element("summary", "The whole text"), quotation(example.text));
  column.append(whole);
  return column;
}

function tokensOf(id, task) {
  const { texts, before, after } = storedTokens();
  return texts[id].map((text, number) => {
    const first = before[id][number];
    const last = after[task][id][number];
    if (first === null || last === null) return { text, change: null };
    const nats = (steps) => steps / page.tokens.per_nat;
    return { text, before: nats(first), after: nats(last), change: nats(last - first) };
  });
}

function tokenText(tokens, detail) {
  const box = element("div", undefined, "tokens");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "Tokens of the example. The arrow keys move from token to token.");
  for (const token of tokens) {
    const span = element("span", token.text, "token");
    span.tabIndex = box.childElementCount === 0 ? 0 : -1;
    if (token.change !== null) {
      const strength = Math.min(1, Math.abs(token.change) / FULL_COLOUR);
      span.style.setProperty("--strength", `${Math.round(strength * 75)}%`);
      span.dataset.change = token.change > 0 ? "rise" : "fall";
      span.classList.toggle("large", Math.abs(token.change) >= LINE_BELOW);
    }
    for (const event of ["focus", "mouseenter"]) {
      span.addEventListener(event, () => (detail.textContent = describeToken(token)));
    }
    box.append(span);
  }
  box.addEventListener("keydown", moveAmongTokens);
  return box;
}

function moveAmongTokens(event) {
  const spans = [...event.currentTarget.children];
  const present = spans.indexOf(event.target);
  const last = spans.length - 1;
  const next = { ArrowRight: present + 1, ArrowLeft: present - 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  const span = spans[Math.min(last, Math.max(0, next))];
  spans[present].tabIndex = -1;
  span.tabIndex = 0;
  span.focus();
}

function describeToken(token) {
  if (token.change === null) return `“${token.text}”: read, but not scored`;
  const factor = Math.exp(Math.abs(token.change));
  const probability = `${factor.toFixed(1)} times ${token.change > 0 ? "less" : "more"} probable`;
  const values = `before ${token.before.toFixed(2)}, after ${token.after.toFixed(2)}`;
  return `“${token.text}”: ${values}, change ${signed(token.change)} nats, ${probability}`;
}

function signed(value) {
  return `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;
}

function legend() {
  const line = element("p", undefined, "token-legend");
  const kinds = [["rise", "loss rose: forgotten"], ["fall", "loss fell"]];
  for (const [change, label] of kinds) {
    const swatch = element("span", label, "token large");
    swatch.dataset.change = change;
    swatch.style.setProperty("--strength", "75%");
    line.append(swatch, " ");
  }
  line.append(`Full colour from ${FULL_COLOUR} nats, a line below from ${LINE_BELOW} nats.`);
  return line;
}

function largestChanges(tokens) {
  const rises = tokens.filter((token) => token.change > 0);
  rises.sort((one, other) => other.change - one.change);
  const line = element("p", "Largest rises (nats): ");
  const largest = rises.slice(0, LARGEST_CHANGES);
  largest.forEach((token, number) => {
    // A line break would part the list.
    const text = token.text.replaceAll("\n", "⏎");
    line.append(number ? " · " : "", element("q", text), ` ${signed(token.change)}`);
  });
  return line;
}

function noTokens(example) {
  const tasks = tasksWithTokens(example.id);
  const { after } = storedTokens();
  if (Object.keys(after).length === 0) {
    // Of a Z that was measured elsewhere, no token losses are expected.
    if (!(state.model in page.tokens.models)) return [];
    const reason = "They were measured by an older version of lethe, or with token_examples: 0.";
    return [element("p", `The rows of this model have no token losses. ${reason}`)];
  }
  const line = element("p", "Token losses are stored for the ");
  line.append(`${page.tokens.examples} most forgotten examples of each task. `);
  line.append(tasks.length ? "This example has them in: " : "This example has none.");
  for (const task of tasks) line.append(taskLink(task), " ");
  const ofTask = Object.keys(after[state.task] ?? {});
  if (ofTask.length === 0) return [line];
  const others = element("p", `Examples with token losses in ${state.task}: `);
  for (const id of ofTask) others.append(exampleLink(id), " ");
  return [line, others];
}

// ---- what surrounds the text

function trainingColumn(task) {
  const texts = page.training[task] ?? [];
  if (texts.length === 0) return [];
  const column = element("div");
  column.append(element("h5", `${task} trains on`));
  for (const text of texts) column.append(element("blockquote", text));
  return [column];
}

function taskLink(task) {
  const link = element("a", task);
  link.href = `#${address({ task })}`;
  return link;
}

function exampleLink(id) {
  const link = element("a", id);
  link.href = `#${address({ example: id })}`;
  return link;
}

function taskList(position) {
  const values = page.forgetting[state.model][position];
  const known = page.tasks[state.model].map((task, number) => [task, values[number]]);
  known.sort((one, other) => (other[1] ?? -Infinity) - (one[1] ?? -Infinity));
  const largest = Math.max(1e-9, ...values.map((value) => Math.abs(value ?? 0)));
  const withTokens = tasksWithTokens(page.examples[position].id);
  const list = element("ol");
  for (const [task, value] of known) {
    const item = element("li");
    const bar = element("meter");
    bar.max = largest;
    bar.value = Math.max(0, value ?? 0);
    bar.title = `${task}: ${format(value)}`;
    item.append(bar, " ", format(value), " ", taskLink(task));
    if (withTokens.includes(task)) item.append(" ", element("small", "tokens"));
    if (task === state.task) item.classList.add("chosen");
    list.append(item);
  }
  return list;
}

function neighbourList(position) {
  const list = element("ul");
  for (const neighbour of page.neighbours[state.model][position]) {
    const example = page.examples[neighbour];
    const item = element("li");
    const start = element("small", example.text.slice(0, 100));
    item.append(exampleLink(example.id), ` ${example.domain} `, start);
    list.append(item);
  }
  return list;
}
