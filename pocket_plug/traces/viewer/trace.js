// The data from Python, made into spans that know their parent, their children and their place in the tree.

const data = JSON.parse(document.getElementById("data").textContent);

const keys = new Map(data.texts.map((text, number) => [text, number]));
const keysOfOurs = new Map(); // by the name without "pocket_plug."

const EMPTY = Object.freeze([]); // most spans have no children, events or links

function keyOf(name) {
  if (!keysOfOurs.has(name)) keysOfOurs.set(name, keys.get(`pocket_plug.${name}`) ?? keys.get(name));
  return keysOfOurs.get(name);
}

const STATUS = ["unset", "ok", "error"];

// A span. Its data stays in the trace's columns and is looked up there, so that many spans can be made fast.
class Span {
  constructor(trace, number) {
    this.trace = trace;
    this.number = number;
    this.parent = null;
    this.children = EMPTY;
    this.order = -1; // its place in the tree, depth first; `last` is the place of its last descendant
    this.depth = 0;
    this.type = typeOf(this);
    this.run = null; // the span of the run that it belongs to
    this.owner = null; // the run, node or item right above
  }

  get id() {
    return this.trace.columns.ids[this.number];
  }

  // Identifies it among the rows of the page.
  get key() {
    return this.order;
  }

  get nameNumber() {
    return this.trace.columns.names[this.number];
  }

  get name() {
    return data.texts[this.nameNumber];
  }

  get scope() {
    return data.texts[this.trace.columns.scopes[this.number]];
  }

  get kind() {
    return this.trace.columns.kinds[this.number];
  }

  get start() {
    return this.trace.columns.starts[this.number];
  }

  get took() {
    return Math.max(this.trace.columns.took[this.number], 0);
  }

  get end() {
    return this.start + this.took;
  }

  get goesOn() {
    return this.trace.columns.took[this.number] < 0;
  }

  get status() {
    return STATUS[this.trace.columns.status[this.number]];
  }

  // The parent's number if it is in this trace, else its id.
  get parentId() {
    return this.trace.columns.parents[this.number];
  }

  // Numbers into data.pairs.
  get pairs() {
    return this.trace.columns.attributes[this.number];
  }

  get resourcePairs() {
    return data.resources[this.trace.columns.resources[this.number]];
  }

  get message() {
    return this.trace.columns.more[this.number]?.message ?? "";
  }

  get events() {
    return this.trace.columns.more[this.number]?.events ?? EMPTY;
  }

  get links() {
    return this.trace.columns.more[this.number]?.links ?? EMPTY;
  }

  // The value of an attribute, by its name without "pocket_plug." or whole.
  get(name) {
    const key = keyOf(name);
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

  // Its error as Python found it: type, message, the frame to look at first, the number of its stack; null if it didn't fail.
  // `own`: it failed finally, with an error that was raised in it.
  get error() {
    return this.trace.columns.more[this.number]?.error ?? null;
  }

  // Was an error raised in it, which made it fail or was retried?
  get errorArose() {
    return this.error !== null && (this.error.own || !this.failed);
  }

  // How often this node was retried.
  get retries() {
    return this.get("node.retries") ?? Math.max(0, (this.get("node.attempts") ?? 1) - 1);
  }

  // Nanoseconds in which none of its children was open.
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

// The type of a span: run, node, item, phase, store, or foreign.
function typeOf(span) {
  if (span.scope === "pocket_plug.phase") return "phase";
  if (span.scope === "pocket_plug.store") return "store";
  if (span.scope !== "pocket_plug.graph") return "foreign";
  if (span.name.startsWith("run ")) return "run";
  return span.name.startsWith("item ") || span.get("fan_out.index") !== undefined ? "item" : "node";
}

class Trace {
  constructor(columns) {
    this.columns = columns;
    this.id = columns.id;
    this.start = new Date(Number(BigInt(columns.start) / 1000000n));
    this.spans = columns.ids.map((_, number) => new Span(this, number));
    this.tree = plant(this.spans);
    this.took = this.spans.reduce((latest, span) => Math.max(latest, span.end), 1);
    this.failed = this.spans.filter((span) => span.failed);
    this.errors = this.failed.filter((span) => span.error.own).length + sum(this.spans, "fan_out.suppressed_failed");
    this.runs = this.tree.filter((span) => span.type === "run");
    this.root = this.runs[0] ?? this.tree[0];
    this.retries = Math.max(sum(this.runs.filter((run) => ![...run.above()].some(({ type }) => type === "run")), "run.retries"), this.spans.reduce((total, span) => total + span.retries, 0));
    this.runId = String(this.root?.get("run.id") ?? "");
    this.title = String(this.root?.get("graph.name") ?? this.root?.name ?? "empty trace");
    this.outcome = this.root?.get("run.outcome") ?? (this.root?.goesOn ? "not ended" : this.failed.length ? "failure" : "");
    this.service = String(named(this.root?.resourcePairs ?? []).find(([name]) => name === "service.name")?.[1] ?? "");
  }

  // The critical path, computed on first use.
  get critical() {
    return (this.path ??= criticalPath(this));
  }
}

function sum(spans, name) {
  return spans.reduce((total, span) => total + (Number(span.get(name)) || 0), 0);
}

// Puts spans below their parents; returns them depth first. A cycle of parents is cut.
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
      if (parent.children === EMPTY) parent.children = [];
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
