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
