// The graph above the views: the runs that it shows, its links to spans and nested graphs, and its highlights.

const MOST_NODES = 500; // graphs with more nodes aren't drawn

let graphRuns = []; // the runs that the graph shows
let chart = null;

function showGraph(runs) {
  graphRuns = runs;
  at("graph").hidden = !runs.length;
  if (!runs.length) return;
  const before = traces.slice(traces.indexOf(trace) + 1).filter((other) => trace.runId && other.runId === trace.runId);
  chart = chartOf(runs, runs[0] === trace.root ? before.map((other) => other.root) : []);
  const outcomes = new Set(runs.map((run) => run.get("run.outcome") ?? (run.goesOn ? "running" : "")));
  const outcome = ["failure", "timeout", "interrupted", "cancelled", "suspended", "running", "success"].find((each) => outcomes.has(each)) ?? "";
  const nodes = chart.nodes.length;
  const why = nodes > MOST_NODES ? `${count(nodes)} nodes are too many to draw; the table lists them.` : nodes ? "" : "No node of this run has a span.";
  at("drawing").replaceChildren(why ? make("p", { class: "none" }, why) : draw(chart, { pick, open: openInner, outcome, many: runs.length > 1 }));
  drawCrumbs();
  highlight(waterfall.selected);
  scrollGraphTo(...["failed", "interrupted", "suspended", "running", "cancelled", "fallback", "ok"].map((look) => at("drawing").querySelector(`.place.${look}`)));
}

// Scrolls a large graph, and nothing else, to the first of these nodes that exists.
function scrollGraphTo(...groups) {
  const group = groups.find(Boolean);
  if (!group) return;
  const [seen, box] = [at("drawing").getBoundingClientRect(), group.getBoundingClientRect()];
  if (box.left < seen.left || box.right > seen.right) at("drawing").scrollLeft += box.left - seen.left - (seen.width - box.width) / 2;
  if (box.top < seen.top || box.bottom > seen.bottom) at("drawing").scrollTop += box.top - seen.top - (seen.height - box.height) / 2;
}

// The path from the outermost run to this one, and this one's siblings in a fan-out.
function drawCrumbs() {
  const [run] = graphRuns;
  const way = [...run.above()].filter((span) => span.type === "run").reverse();
  const title = (each) => String(each.get("graph.name") ?? each.name);
  at("crumbs").replaceChildren(
    ...way.flatMap((each) => [make("button", { class: "quiet", click: () => showGraph([each]) }, title(each)), make("span", { "aria-hidden": "true" }, "›")]),
    make("b", { "aria-current": "page" }, title(run)));
  const inner = innerRuns(run);
  const place = inner.indexOf(run);
  const step = (by) => {
    const next = inner[(place + by + inner.length) % inner.length];
    showGraph([next]);
    waterfall.select(next);
  };
  const all = graphRuns.length > 1;
  at("siblings").replaceChildren(...(inner.length < 2 ? [] : [
    make("button", { class: "chip", "aria-pressed": String(all), title: "all runs of this fan-out together", click: () => showGraph(inner) }, `all ${count(inner.length)}`),
    make("button", { class: "quiet", "aria-label": "the previous run", click: () => step(all ? 0 : -1) }, "‹"),
    make("span", {}, all ? `– of ${count(inner.length)}` : `${count(place + 1)} of ${count(inner.length)}`),
    make("button", { class: "quiet", "aria-label": "the next run", click: () => step(all ? 0 : 1) }, "›")]));
}

// The runs of the same fan-out, or of the visits of the same node.
function innerRuns(run) {
  const node = run.owner?.type === "item" ? run.owner.owner : run.owner;
  if (!node) return [];
  return [...node.items.flatMap((item) => item.children), ...node.children].filter((span) => span.type === "run");
}

function pick(node) {
  if (!node.visits.length) return;
  const place = node.visits.indexOf(waterfall.selected);
  waterfall.select(node.visits[(place + 1) % node.visits.length]); // another click: its next visit
}

function openInner(node) {
  if (node.inner.length) showGraph(node.inner);
}

// Highlights the node of the selected span, here and in the rows.
function highlight(span) {
  if (!chart) return;
  for (const group of at("drawing").querySelectorAll(".place")) {
    const node = chart.nodes.find((each) => each.name === group.dataset.node);
    const inside = Boolean(span && node?.visits.some((visit) => visit.contains(span)));
    group.classList.toggle("selected", inside);
    group.setAttribute("aria-pressed", String(inside));
    if (inside) scrollGraphTo(group);
  }
}

at("drawing").addEventListener("keydown", (event) => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  const groups = [...at("drawing").querySelectorAll(".place")];
  const here = groups.indexOf(document.activeElement);
  if (!step || here < 0) return;
  event.preventDefault();
  const next = groups[(here + step + groups.length) % groups.length];
  groups[here].setAttribute("tabindex", -1);
  next.setAttribute("tabindex", 0);
  next.focus();
});

function foldGraph(open = at("drawing").hidden) {
  at("drawing").hidden = !open;
  at("fold-graph").setAttribute("aria-expanded", String(open));
  at("graph").classList.toggle("folded", !open);
}
