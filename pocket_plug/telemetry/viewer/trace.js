// The data: what Python wrote, made into spans that know their parent, their children and their place in the tree.

const data = JSON.parse(document.getElementById("data").textContent);

const keys = new Map(data.texts.map((text, number) => [text, number]));

class Span {
  constructor(trace, raw) {
    const [id, parent, name, scope, kind, start, took, status, attributes, resource, more = {}] = raw;
    this.trace = trace;
    this.id = id;
    this.nameNumber = name;
    this.name = data.texts[name];
    this.scope = data.texts[scope];
    this.kind = kind;
    this.start = start;
    this.end = start + (took ?? 0);
    this.goesOn = took === null;
    this.status = ["unset", "ok", "error"][status];
    this.pairs = attributes; // numbers into data.pairs
    this.resourcePairs = resource;
    this.message = more.message ?? "";
    this.events = more.events ?? [];
    this.links = more.links ?? [];
    this.parentId = parent; // a number where the parent is here, else its id
    this.parent = null;
    this.children = [];
    this.order = -1; // its place in the tree, depth first; `last` is that of its last descendant
    this.depth = 0;
    this.type = typeOf(this);
    this.run = null; // the span of the run that it belongs to
    this.owner = null; // the run, node or item right above
  }

  get took() {
    return this.end - this.start;
  }

  // The value of an attribute, by its name without "pocket_plug." or whole.
  get(name) {
    const key = keys.get(`pocket_plug.${name}`) ?? keys.get(name);
    if (key === undefined) return undefined;
    for (const pair of this.pairs) if (data.pairs[pair][0] === key) return data.pairs[pair][1];
    return undefined;
  }

  get attributes() {
    return named(this.pairs);
  }

  get willRetry() {
    return this.get("attempt.will_retry") === true;
  }

  get failed() {
    return this.status === "error" && !this.willRetry;
  }

  // How often this node's work was tried again.
  get retries() {
    return this.get("node.retries") ?? Math.max(0, (this.get("node.attempts") ?? 1) - 1);
  }

  // Nanoseconds in which none of its children was under way.
  get self() {
    let busy = 0;
    let until = this.start;
    for (const child of this.children) { // sorted by start
      const end = Math.min(child.end, this.end);
      if (end > until) {
        busy += end - Math.max(until, child.start);
        until = end;
      }
    }
    return Math.max(0, this.took - busy);
  }

  // The children of this node's visit that are items of a fan-out.
  get items() {
    return this.children.filter((child) => child.type === "item");
  }

  *above() {
    for (let span = this.parent; span; span = span.parent) yield span;
  }

  contains(other) {
    return this.trace === other.trace && this.order <= other.order && other.order <= this.last;
  }
}

function named(numbers) {
  return numbers.map((number) => [data.texts[data.pairs[number][0]], data.pairs[number][1]]);
}

// What a span is of: run, node, item, phase, store, or foreign.
function typeOf(span) {
  if (span.scope === "pocket_plug.phase") return "phase";
  if (span.scope === "pocket_plug.store") return "store";
  if (span.scope !== "pocket_plug.graph") return "foreign";
  if (span.name.startsWith("run ")) return "run";
  return span.name.startsWith("item ") || span.get("fan_out.index") !== undefined ? "item" : "node";
}

class Trace {
  constructor({ id, start, spans }) {
    this.id = id;
    this.start = new Date(Number(BigInt(start) / 1000000n));
    this.spans = spans.map((raw) => new Span(this, raw));
    this.byId = new Map(this.spans.map((span) => [span.id, span]));
    this.tree = plant(this.spans);
    this.took = this.spans.reduce((latest, span) => Math.max(latest, span.end), 1);
    this.failed = this.spans.filter((span) => span.failed);
    this.errors = this.failed.filter(isOwnError).length + sum(this.spans, "fan_out.suppressed_failed");
    this.runs = this.tree.filter((span) => span.type === "run");
    this.root = this.runs[0] ?? this.tree[0];
    this.retries = Math.max(sum(this.runs.filter((run) => ![...run.above()].some(({ type }) => type === "run")), "run.retries"), this.spans.reduce((total, span) => total + span.retries, 0));
    this.runId = String(this.root?.get("run.id") ?? "");
    this.title = String(this.root?.get("graph.name") ?? this.root?.name ?? "empty trace");
    this.outcome = this.root?.get("run.outcome") ?? (this.root?.goesOn ? "running" : this.failed.length ? "failure" : "");
    this.service = String(named(this.root?.resourcePairs ?? []).find(([name]) => name === "service.name")?.[1] ?? "");
  }
}

// Is it a failed span's own error, none that came from below? A foreign span may not say what its error was.
function isOwnError(span) {
  const kinds = span.children.filter((child) => child.failed).map((child) => child.get("error.type"));
  return !kinds.includes(span.get("error.type")) && !kinds.includes(undefined);
}

function sum(spans, name) {
  return spans.reduce((total, span) => total + (Number(span.get(name)) || 0), 0);
}

// Puts spans below their parents; gives them depth first. Where parents form a ring, it is cut.
function plant(spans) {
  const tree = [];
  const put = (root) => {
    const waiting = [root];
    while (waiting.length) {
      const span = waiting.pop();
      const above = span.parent;
      span.order = span.last = tree.length;
      span.depth = above ? above.depth + 1 : 0;
      span.owner = above && (["run", "node", "item"].includes(above.type) ? above : above.owner);
      span.run = span.type === "run" ? span : above && above.run;
      tree.push(span);
      for (let at = span.children.length; at--; ) waiting.push(span.children[at]);
    }
  };
  for (const span of spans) {
    const parent = typeof span.parentId === "number" ? spans[span.parentId] : null;
    if (parent && parent !== span) {
      span.parent = parent;
      parent.children.push(span);
    }
  }
  for (const span of spans) if (!span.parent) put(span);
  for (const span of spans) {
    if (span.order >= 0) continue;
    span.parent.children.splice(span.parent.children.indexOf(span), 1);
    span.parent = null;
    put(span);
  }
  for (let at = tree.length; at--; ) {
    const { parent, last } = tree[at];
    if (parent && parent.last < last) parent.last = last;
  }
  return tree;
}

// What is to be seen at a glance: short texts, each with what it means and how grave it is.
function marksOf(span) {
  const marks = [];
  const add = (look, text, title = "") => marks.push({ look, text, title });
  const error = String(span.get("error.type") ?? (span.status === "error" ? "error" : ""));
  const short = error.slice(error.lastIndexOf(".") + 1);
  const outcome = span.get("run.outcome") ?? span.get("node.outcome");
  if (span.goesOn) add("blue", "… goes on", "has not ended, or its end was not recorded");
  if (span.failed) add("bad", `✗ ${short}`, span.message);
  else if (span.status === "error") {
    const delay = span.get("retry.delay");
    add("warn", `↻ ${short}${delay > 0 ? `, again in ${duration(delay * 1e9)}` : ""}`, `${span.message} (tried again)`);
  }
  if (span.get("attempt") > 1) add("warn", `#${span.get("attempt")}`, `attempt ${span.get("attempt")}`);
  if (outcome === "fallback") add("warn", "⤵ fallback", "the fallback's result took the place of the failed one");
  if (outcome === "timeout") add("bad", "◷ timeout", "the run's time was up");
  if (outcome === "cancelled") add("grey", "⊘ cancelled", error);
  else if (error && span.status !== "error" && outcome !== "suspended") add("grey", `⊘ ${short}`, error);
  if (outcome === "suspended") add("blue", "‖ suspended", "waits for an answer");
  if (span.get("run.resumed") === true) add("blue", "▸ resumed", "goes on with what an earlier execution left");
  if (span.get("interrupted")) add("bad", "! interrupted", "the process was told to end");
  const events = (name) => span.events.filter((event) => event[0] === `pocket_plug.${name}`).length;
  if (events("conflict")) add("warn", `⇄ conflict${times(events("conflict"))}`, "another wrote the same meanwhile; tried again");
  if (events("clean_up_failed")) add("warn", "! clean-up failed", "see the span's events");
  const [items, suppressed] = [span.get("fan_out.items"), span.get("fan_out.suppressed")];
  if (suppressed) add("grey", `${count(items - suppressed)} of ${plural(items, "item")} shown`, "the slowest, the failed, the retried and a sample have spans");
  if (span.links.length) add("blue", `↗ link${times(span.links.length)}`, "belongs to another span, see the details");
  if (typeof span.parentId === "string") add("grey", "parent elsewhere", "its parent's span is not in this page");
  if (span.get("store.hit") === false) add("grey", "miss", "nothing under this key");
  if (span.get("node.visit") > 1 && span.type === "node") add("grey", `visit ${span.get("node.visit")}`);
  return marks;
}

// How a span's bar looks.
function lookOf(span) {
  if (span.failed) return "bad";
  if (span.status === "error" || span.get("node.outcome") === "fallback") return "warn";
  if ((span.get("run.outcome") ?? span.get("node.outcome")) === "cancelled") return "grey";
  return "";
}

// ---------------------------------------------------------------- texts
function count(number) {
  return Number(number).toLocaleString("en");
}

function times(number) {
  return number > 1 ? ` ×${count(number)}` : "";
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// Nanoseconds as one reads them.
function duration(ns) {
  if (ns === 0) return "0";
  if (ns < 1e3) return `${Math.round(ns)} ns`;
  if (ns < 999.5e3) return `${Math.round(ns / 1e3)} µs`;
  if (ns < 999.5e6) return `${(ns / 1e6).toFixed(ns < 1e8 ? 1 : 0)} ms`;
  if (ns < 60e9) return `${(ns / 1e9).toFixed(2)} s`;
  const minutes = Math.floor(ns / 60e9);
  return minutes < 60 ? `${minutes} min ${Math.floor(ns / 1e9) % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// An element, or with a namespace one of SVG. What comes from traces is put in as text only.
function make(tag, attributes = {}, ...content) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false && value !== "") element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...content.filter((each) => each !== null && each !== undefined && each !== ""));
  return element;
}

const SVG = new Set(["svg", "g", "path", "rect", "circle", "text", "defs", "marker"]);
