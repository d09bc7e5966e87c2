// The page: the chosen trace, run and span, and the reader's actions.

const newestFirst = (one, other) => (BigInt(one.start) < BigInt(other.start) ? 1 : -1);
const traces = data.traces.filter((raw) => raw.ids.length).sort(newestFirst).map((raw) => new Trace(raw));
const traceById = new Map(traces.map((trace) => [trace.id, trace]));
let trace = null;

const views = new Views({ onChange: (view) => onView(view) });
const names = new NamesView({ onPick: (line) => onlyThese(line) });
const waterfall = new Waterfall({
  onSelect: (span) => selected(span),
  onOpen: (span) => openDetails(span),
  onView: () => drawTools(),
});

// ---------------------------------------------------------------- traces
function show(next, span = null) {
  trace = next;
  document.title = `${trace.title} · ${trace.outcome || duration(trace.took)}`;
  drawHead();
  at("levels").replaceChildren(make("option", { value: "" }, "fold to …"), ...[...new Set(trace.tree.map((each) => each.depth))].sort((one, other) => one - other).slice(0, 12).map((depth) => make("option", { value: depth }, `level ${depth + 1}`)));
  drawScopes();
  closeDetails();
  chart = null;
  showGraph(trace.runs.length ? [trace.runs[0]] : []);
  waterfall.show(trace);
  onView(views.now);
  const first = span ?? firstFailure(trace);
  if (first) goTo(first);
}

// A view is filled when it is first shown.
function onView(view) {
  at("tools").hidden = view !== "waterfall";
  if (!trace) return;
  if (view === "names" && names.trace !== trace) names.show(trace, traces.filter((other) => other !== trace));
  if (view === "failures") at("failures").replaceChildren(...errorsView(trace, goTo).filter(Boolean));
  if (view === "waterfall" && waterfall.selected) waterfall.reveal(waterfall.selected);
}

function drawHead() {
  at("title").textContent = trace.title;
  const outcome = at("outcome");
  outcome.textContent = trace.outcome ? `${SIGNS[trace.outcome] ?? ""} ${trace.outcome}` : "";
  outcome.className = `outcome ${{ failure: "bad", timeout: "bad", interrupted: "bad", success: "good", cancelled: "grey" }[trace.outcome] ?? "blue"}`;
  outcome.hidden = !trace.outcome;
  at("run-id").textContent = trace.runId || trace.id;
  const usage = usageOfTrace(trace);
  const steps = trace.root?.get("run.steps");
  const figures = [["took", duration(trace.took)], ["steps", steps === undefined ? "" : count(steps)], ["spans", count(trace.spans.length)],
    ["errors", trace.errors ? make("button", { title: "the errors, by type and place", click: () => views.show("failures") }, count(trace.errors)) : "0", "bad"], ["retries", trace.retries ? count(trace.retries) : "", "warn"],
    ["tokens", tokensText(usage)], ["cost", costText(usage.cost)], ["service", trace.service], ["began", zonedTime(trace.start)]];
  at("figures").replaceChildren(...figures.filter(([, value]) => value).map(([name, value, look]) => make("div", { class: look }, make("dt", {}, name), make("dd", {}, value))));
  at("traces").value = trace.id;
  at("traces").hidden = at("older").hidden = at("newer").hidden = traces.length < 2;
  at("older").disabled = trace === traces.at(-1);
  at("newer").disabled = trace === traces[0];
  drawExecutions();
}

const TO_THE_SECOND = { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const TIME_FORMAT = new Intl.DateTimeFormat([], TO_THE_SECOND);

function shortTime(date) {
  return TIME_FORMAT.format(date);
}

// With the zone, and the year unless it is this one: others may read the page, and later.
function zonedTime(date) {
  const year = date.getFullYear() === new Date().getFullYear() ? undefined : "numeric";
  return new Intl.DateTimeFormat([], { ...TO_THE_SECOND, year, timeZoneName: "short" }).format(date);
}

// The label of a trace in the list of traces.
function choiceOf({ start, title, outcome, took }) {
  return `${shortTime(start)} · ${title} · ${SIGNS[outcome] ?? ""} ${outcome || "?"} · ${duration(took)}`;
}

// A resumed durable run has a trace for each execution: a line with all of them, found by the run's id.
function drawExecutions() {
  const same = trace.runId ? traces.filter((other) => other.runId === trace.runId).reverse() : [];
  at("executions").hidden = same.length < 2;
  at("executions").replaceChildren(make("span", {}, `${same.length} executions of this run`), ...same.map((other, number) => make("button", { class: "step", "aria-current": other === trace ? "step" : undefined, title: other.start.toLocaleString(), click: () => show(other) }, `${number + 1} ${SIGNS[other.outcome] ?? ""} ${other.outcome || "?"}`)));
}

function goTo(span) {
  if (span.trace !== trace) show(span.trace);
  waterfall.select(span);
  openDetails(span, false);
}

function find(traceId, spanId) {
  return traceById.get(traceId)?.spans.find((span) => span.id === spanId);
}

// ---------------------------------------------------------------- spans
function selected(span) {
  if (!span) return closeDetails();
  if (!at("details").hidden) fillDetails(span);
  const run = span.type === "run" ? span : span.run;
  if (run && !graphRuns.includes(run)) showGraph([run]);
  const [first] = span instanceof Group ? span.spans : [span];
  highlight(first);
  remember(first);
}

function openDetails(span, focus = true) {
  fillDetails(span);
  at("details").hidden = false;
  document.body.classList.add("with-details");
  if (waterfall.selected) waterfall.reveal(waterfall.selected); // the rows have less space now
  if (focus) at("details").querySelector("h2").focus({ preventScroll: true });
}

function fillDetails(span) {
  const details = span instanceof Group ? detailsOfGroup : detailsOf;
  at("details").replaceChildren(...details(span, { goTo, find, zoom: (each) => waterfall.zoomTo(each), close: closeDetails }));
  at("details").scrollTop = 0;
}

function closeDetails() {
  const focused = at("details").contains(document.activeElement);
  at("details").hidden = true;
  document.body.classList.remove("with-details");
  if (focused) at("rows").focus();
}

// The URL names the span, so that a reader can send a link together with the file.
function remember(span) {
  try {
    history.replaceState(null, "", `#${span.trace.id}/${span.id}`);
  } catch {
    // a page without a URL
  }
}

// ---------------------------------------------------------------- filters
function drawScopes() {
  const names = Object.keys(SCOPES).filter((name) => trace.spans.some((span) => SCOPES[name].includes(span.type)));
  at("scopes").replaceChildren(...names.map((name) => make("button", { class: "chip", "data-scope": name, click: () => {
    if (!waterfall.hidden.delete(name)) waterfall.hidden.add(name);
    waterfall.filter();
  } }, make("span", { class: `kind ${SCOPES[name].at(name === "graph" ? 1 : 0)}` }), name)));
}

function drawTools() {
  const { rows, matches, hidden } = waterfall;
  for (const chip of at("scopes").children) chip.setAttribute("aria-pressed", String(!hidden.has(chip.dataset.scope)));
  at("errors").setAttribute("aria-pressed", String(waterfall.errorsOnly));
  at("path").setAttribute("aria-pressed", String(waterfall.showsPath));
  at("by-duration").setAttribute("aria-pressed", String(waterfall.tree.byDuration));
  at("only").hidden = !waterfall.only;
  at("only").textContent = waterfall.only ? `${waterfall.only.name} ×` : "";
  at("found").textContent = waterfall.kept ? `${count(matches)} of ${plural(trace.tree.length, "span")}` : rows.length < trace.tree.length ? `${plural(rows.length, "row")} of ${count(trace.tree.length)}` : "";
  at("nothing").hidden = rows.length > 0;
  at("zoom").hidden = !waterfall.zoomed;
}

function onlyThese(line) {
  waterfall.only = line;
  waterfall.filter();
  if (line) views.show("waterfall");
}

function search(text) {
  waterfall.query = text;
  waterfall.filter();
}

function errorsOnly() {
  waterfall.errorsOnly = !waterfall.errorsOnly;
  waterfall.filter();
}

function markPath() {
  waterfall.showsPath = !waterfall.showsPath;
  waterfall.arrange();
}

function byDuration() {
  waterfall.tree.byDuration = !waterfall.tree.byDuration;
  waterfall.arrange();
  if (waterfall.selected) waterfall.reveal(waterfall.selected);
}

function clearFilters() {
  at("search").value = waterfall.query = "";
  waterfall.errorsOnly = false;
  waterfall.only = null;
  waterfall.hidden.clear();
  waterfall.filter();
}

// ---------------------------------------------------------------- keys
const KEYS = [
  ["↑ ↓ j k", "the previous or next span", null],
  ["← →", "fold or to the parent, unfold or to the children", null],
  ["Enter", "details of the span; in the graph: the node's spans", null],
  ["Esc", "close the details, clear the search", null],
  ["/", "search", () => at("search").focus()],
  ["e", "errors only", errorsOnly],
  ["c", "mark the critical path", markPath],
  ["d", "children by duration or by time", byDuration],
  ["n", "the next error", () => waterfall.nextError(1)],
  ["p", "the previous error", () => waterfall.nextError(-1)],
  ["z", "zoom to the span", () => waterfall.zoomTo(waterfall.selected)],
  ["0", "the whole time", () => waterfall.zoom(0, trace.took)],
  ["+", "unfold all", () => waterfall.foldTo(Infinity)],
  ["-", "fold all", () => waterfall.foldTo(0)],
  ["*", "fold or unfold with all siblings", () => waterfall.foldSiblings()],
  ["1 … 9", "fold to a level", null],
  ["v", "the next view: waterfall, table, errors", () => views.next()],
  ["g", "show or hide the graph", () => foldGraph()],
  ["[", "the previous trace", () => step(1)],
  ["]", "the next trace", () => step(-1)],
  ["t", "light or dark", nextTheme],
  ["?", "these shortcuts", () => at("keys").showModal()],
];

function step(by) {
  const next = traces[traces.indexOf(trace) + by];
  if (next) show(next);
}

function escape() {
  if (at("search").value || waterfall.query) {
    at("search").value = "";
    search("");
    at("rows").focus();
  } else closeDetails();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || at("keys").open || !trace) return;
  if (event.key === "Escape") return escape();
  if (event.target.matches("input, select, textarea")) {
    if (event.target === at("search") && ["ArrowDown", "Enter"].includes(event.key)) {
      event.preventDefault();
      search(at("search").value);
      at("rows").focus();
    }
    return;
  }
  const action = KEYS.find(([key]) => key === event.key)?.[2];
  if (/^[1-9]$/.test(event.key)) waterfall.foldTo(Number(event.key) - 1);
  else if (action) action();
  else if (event.key === "Enter" && event.target === document.body && waterfall.selected) openDetails(waterfall.selected);
  else if (["j", "k"].includes(event.key) || (["ArrowDown", "ArrowUp"].includes(event.key) && event.target === document.body)) {
    if (!at("details").contains(event.target)) at("rows").focus();
    waterfall.key(event);
    return;
  } else return;
  event.preventDefault();
});

// ---------------------------------------------------------------- clicks
function listen() {
  let typed = null;
  at("search").addEventListener("input", () => {
    clearTimeout(typed);
    typed = setTimeout(() => search(at("search").value), trace.tree.length > 5000 ? 120 : 0);
  });
  const clicks = { errors: errorsOnly, only: () => onlyThese(null), path: markPath, "by-duration": byDuration, clear: clearFilters, theme: nextTheme, older: () => step(1), newer: () => step(-1), help: () => at("keys").showModal(), "fold-graph": () => foldGraph(), "unfold-all": () => waterfall.foldTo(Infinity), "fold-all": () => waterfall.foldTo(0), zoom: () => waterfall.zoom(0, trace.took) };
  for (const [id, act] of Object.entries(clicks)) at(id).addEventListener("click", act);
  at("run-id").addEventListener("click", () => copy(at("run-id").textContent));
  at("traces").addEventListener("change", () => show(traceById.get(at("traces").value)));
  at("levels").addEventListener("change", () => {
    if (at("levels").value !== "") waterfall.foldTo(Number(at("levels").value));
    at("levels").value = "";
  });
  addEventListener("beforeprint", () => waterfall.render(true));
  addEventListener("afterprint", () => waterfall.render());
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => waterfall.drawOverview());
  splitter();
}

// The border between names and bars is moved by dragging or by the arrow keys.
function splitter() {
  const bar = at("splitter");
  let share = 42;
  const set = (percent) => {
    share = Math.max(15, Math.min(80, percent));
    at("waterfall").style.setProperty("--label", `${share}%`);
    bar.setAttribute("aria-valuenow", Math.round(share));
    if (trace) waterfall.drawTime();
  };
  bar.addEventListener("pointerdown", (event) => bar.setPointerCapture(event.pointerId));
  bar.addEventListener("pointermove", (event) => {
    if (!bar.hasPointerCapture(event.pointerId)) return;
    const { left, width } = at("columns").getBoundingClientRect();
    set(((event.clientX - left) / width) * 100);
  });
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -2, ArrowRight: 2 }[event.key];
    if (!by) return;
    event.preventDefault();
    set(share + by);
  });
}

function start() {
  listen();
  views.show("waterfall");
  setTheme(storedTheme());
  at("keys").querySelector("dl").append(...KEYS.map(([key, what]) => make("div", {}, make("dt", {}, ...key.split(" ").map((each) => make("kbd", {}, each))), make("dd", {}, what))));
  at("traces").append(...traces.map((each) => make("option", { value: each.id }, choiceOf(each))));
  if (!traces.length) {
    document.body.classList.add("empty");
    at("title").textContent = "No traces";
    return;
  }
  const [traceId, spanId] = location.hash.slice(1).split("/");
  const wanted = find(traceId, spanId);
  show(wanted?.trace ?? traces[0], wanted);
}

start();
