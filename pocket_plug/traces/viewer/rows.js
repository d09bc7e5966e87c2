// The rows of the waterfall: which spans have their own row, which share one, in which order, and which are folded.

const ALIKE = 5; // if a name has this many siblings besides the first, they share a row
const OPEN_AT_FIRST = 400; // rows

// Siblings of one name that share a row until it is unfolded. The waterfall treats a group like a span.
class Group {
  constructor(spans) {
    const [first] = spans;
    this.spans = this.children = spans;
    this.trace = first.trace;
    this.parent = first.parent;
    this.run = first.type === "run" ? first.parent?.run : first.run;
    this.key = `alike-${first.order}`;
    this.name = first.name;
    this.type = first.type;
    this.start = first.start;
    this.end = spans.reduce((latest, span) => Math.max(latest, span.end), 0);
    this.took = spans.reduce((total, span) => total + span.took, 0);
    Object.assign(this, spread(spans.map((span) => span.took)));
  }

  // The range of visits or items, or else their number.
  get range() {
    const [first, last] = [this.spans[0], this.spans.at(-1)];
    if (this.type === "item") return `[${first.get("fan_out.index")}–${last.get("fan_out.index")}]`;
    const visits = this.type === "node" ? [first, last].map((span) => span.get("node.visit")) : [];
    return visits.every(Boolean) && visits.length ? `visits ${visits.join("–")}` : `×${count(this.spans.length)}`;
  }
}

// The run of a nested graph that shares the row of its node or item, which has nothing else below it.
function innerOf(row) {
  return (row.type === "node" || row.type === "item") && row.children.length === 1 && row.children[0].type === "run" ? row.children[0] : null;
}

class Rows {
  constructor(trace) {
    this.trace = trace;
    this.roots = trace.tree.filter((span) => !span.parent);
    this.folded = new Set();
    this.opened = new Set(); // unfolded groups: groups are folded at first
    this.byDuration = false;
    this.grouped = new Map(); // by span: the rows below it
    this.groups = new Map(); // by span: the group that it is in
    this.wrong = new Uint8Array(trace.tree.length); // by order: is there an error in it?
    for (const span of trace.tree) {
      if (span.status !== "error" && !span.goesOn) continue;
      for (let above = span; above && !this.wrong[above.order]; above = above.parent) this.wrong[above.order] = 1;
    }
  }

  // ---------------------------------------------------------------- children
  // The rows directly below a row, or at the top. Failed spans, and the first span of each name, always have their own row.
  below(row, apart = false) {
    if (row instanceof Group) return row.spans;
    const above = row && (innerOf(row) ?? row);
    const children = above ? above.children : this.roots;
    if (apart || children.length <= ALIKE) return children;
    if (!this.grouped.has(above)) this.grouped.set(above, this.group(children));
    return this.grouped.get(above);
  }

  group(children) {
    const alike = new Map();
    for (const span of children) {
      const key = `${span.type} ${span.name}`;
      if (!alike.has(key)) alike.set(key, []);
      else if (!this.wrong[span.order]) alike.get(key).push(span);
    }
    for (const spans of alike.values()) {
      if (spans.length < ALIKE) continue;
      const group = new Group(spans);
      for (const span of spans) this.groups.set(span, group);
    }
    const rows = children.map((span) => this.groups.get(span) ?? span);
    return [...new Set(rows)];
  }

  // All rows that can hide a row when folded: its group, the row above it, and so on.
  *around(row) {
    for (let each = row; each; each = each.parent) {
      if (each !== row) yield each;
      if (each.parent) this.below(each.parent);
      const group = this.groups.get(each);
      if (group) yield group;
    }
  }

  // ---------------------------------------------------------------- folding
  isFolded(row) {
    return row instanceof Group ? !this.opened.has(row) : this.folded.has(row);
  }

  fold(row, open = false) {
    if (row instanceof Group) this.opened[open ? "add" : "delete"](row);
    else if (open) this.folded.delete(row);
    else if (this.below(row).length) this.folded.add(row);
  }

  // Unfolds all that hides a row.
  uncover(row) {
    for (const each of this.around(row)) this.fold(each, true);
  }

  // Folds all rows from a level on, and unfolds those above.
  foldTo(level) {
    for (let [rows, depth] = [this.below(null), 0]; rows.length; depth++) {
      for (const row of rows) this.fold(row, depth < level);
      rows = rows.flatMap((row) => this.below(row));
    }
  }

  // Deep levels of a large trace are folded, except those that lead to an error.
  foldAtFirst() {
    let rows = this.below(null);
    for (let [seen, depth] = [rows.length, 0]; rows.length; depth++) {
      const next = rows.flatMap((row) => (row instanceof Group ? [] : this.below(row)));
      seen += next.length;
      if (seen > OPEN_AT_FIRST && depth > 0) { // the rows directly below the top are always shown
        for (const row of rows) this.fold(row);
        break;
      }
      rows = next;
    }
    for (const span of this.trace.failed.slice(0, 20)) this.uncover(span);
  }

  // ---------------------------------------------------------------- the list
  // The rows that are neither folded nor filtered out, each with its level. If a scope is hidden, the rows below move up.
  list(kept, isHidden) {
    const [rows, levels] = [[], []];
    const [waiting, depths] = [[], []];
    const put = (row, level) => {
      let below = this.below(row, kept !== null);
      if (this.byDuration) below = [...below].sort((one, other) => other.took - one.took);
      for (let at = below.length; at--; ) {
        waiting.push(below[at]);
        depths.push(level);
      }
    };
    put(null, 0);
    while (waiting.length) {
      const [row, level] = [waiting.pop(), depths.pop()];
      if (kept && !kept[row.order]) continue;
      if (isHidden(row)) put(row, level);
      else {
        rows.push(row);
        levels.push(level);
        if (!this.isFolded(row)) put(row, level + 1);
      }
    }
    return [rows, levels];
  }
}
