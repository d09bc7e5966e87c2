// The table of a trace's spans by name: number, durations, own time, errors; compared with another trace if one is chosen.

const MOST_NAMES = 500; // how many rows the table has at most

// The statistics of each span name of a trace.
function byName(trace) {
  const found = new Map();
  for (const span of trace.tree) {
    if (span.goesOn) continue; // open spans don't count, as in the terminal's table
    const key = span.name;
    if (!found.has(key)) found.set(key, { key, name: span.name, type: span.type, nameNumber: span.nameNumber, count: 0, took: [], total: 0, self: 0, path: 0, errors: 0 });
    const of = found.get(key);
    of.count += 1;
    of.errors += span.failed && span.error.own;
    of.took.push(span.took);
    of.total += span.took;
    of.self += span.self;
    of.path += lengthOf(trace.critical.get(span) ?? EMPTY);
  }
  for (const of of found.values()) Object.assign(of, spread(of.took));
  return found;
}

// Median, 95th percentile and maximum.
function spread(took) {
  const sorted = Float64Array.from(took).sort();
  const last = sorted.length - 1;
  return { median: sorted[rounded(last * 0.5)] ?? 0, p95: sorted[rounded(last * 0.95)] ?? 0, longest: sorted[last] ?? 0 };
}

// Rounds a half to the even number, as Python does, so that `pocket-plug trace stats` shows the same.
function rounded(number) {
  const near = Math.round(number);
  return number % 1 === 0.5 && near % 2 ? near - 1 : near;
}

const NONE = { count: 0, total: 0, self: 0, path: 0, errors: 0, median: 0, p95: 0, longest: 0 };
const signed = (text, value) => (value > 0 ? `+${text}` : value < 0 ? `−${text}` : "0");
const TIME = { show: duration, difference: (value) => signed(duration(Math.abs(value)), value) };
const NUMBER = { show: count, difference: (value) => signed(count(Math.abs(value)), value) };
const COLUMNS = [["count", "Count", NUMBER], ["median", "p50", TIME], ["p95", "p95", TIME], ["longest", "Max", TIME], ["total", "Total", TIME], ["self", "Self", TIME], ["path", "On path", TIME], ["errors", "Errors", NUMBER]];
const COMPARED = ["count", "median", "total", "errors"];

class NamesView {
  constructor({ onPick }) {
    this.onPick = onPick;
    this.place = document.getElementById("by-name");
    this.choice = document.getElementById("compare");
    this.choice.addEventListener("change", () => this.compare(traceById.get(this.choice.value) ?? null));
  }

  show(trace, others) {
    this.trace = trace;
    this.choice.replaceChildren(make("option", { value: "none" }, "no other"), ...others.map((other) => make("option", { value: other.id }, choiceOf(other))));
    this.choice.parentElement.hidden = !others.length;
    this.compare(null);
  }

  compare(other) {
    this.other = other;
    this.choice.value = other?.id ?? "none";
    [this.by, this.down] = [other ? "difference total" : "total", true];
    const [own, its] = [byName(this.trace), other ? byName(other) : new Map()];
    this.lines = [...new Set([...own.keys(), ...its.keys()])].map((key) => this.line(own.get(key), its.get(key)));
    this.columns = other ? COMPARED.flatMap((key) => this.compared(COLUMNS.find(([each]) => each === key))) : COLUMNS.map(([key, title, { show }]) => ({ key, title, show }));
    this.draw();
  }

  line(own, its) {
    const line = { ...(its ?? {}), ...NONE, ...(own ?? {}), here: Boolean(own) };
    for (const key of Object.keys(NONE)) {
      line[`other ${key}`] = (its ?? NONE)[key];
      line[`difference ${key}`] = line[key] - (its ?? NONE)[key];
    }
    return line;
  }

  // Three columns: for this trace, for the other one, and the difference.
  compared([key, title, { show, difference }]) {
    return [{ key, title, show }, { key: `other ${key}`, title: `${title}, other`, show }, { key: `difference ${key}`, title: `Δ ${title}`, show: difference, difference: true }];
  }

  sort(key) {
    [this.by, this.down] = [key, this.by === key ? !this.down : key !== "name"];
    this.draw();
    this.place.querySelector(`[data-column="${key}"] button`).focus();
  }

  sorted() {
    const { by, down } = this;
    const size = (line) => (by.startsWith("difference") ? Math.abs(line[by]) : line[by]);
    const order = by === "name" ? (one, other) => (one.name < other.name ? -1 : 1) : (one, other) => size(one) - size(other);
    return [...this.lines].sort((one, other) => (down ? -1 : 1) * order(one, other));
  }

  draw() {
    const head = (key, title) => make("th", { scope: "col", "data-column": key, "aria-sort": this.by === key ? (this.down ? "descending" : "ascending") : "none" }, make("button", { class: "quiet", click: () => this.sort(key) }, title));
    const rows = this.sorted().slice(0, MOST_NAMES).map((line) => make("tr", { class: line.errors ? "bad" : "" },
      make("th", { scope: "row" }, line.here ? make("button", { class: "quiet", title: "show these spans only", click: () => this.onPick(line) }, make("span", { class: `kind ${line.type}` }), line.name) : make("span", { class: "absent", title: "not in this trace" }, make("span", { class: `kind ${line.type}` }), line.name)),
      ...this.columns.map(({ key, show, difference }) => make("td", { "data-of": key, class: difference ? (line[key] > 0 ? "more" : line[key] < 0 ? "less" : "") : key.endsWith("errors") && line[key] ? "bad" : "" }, show(line[key])))));
    this.place.replaceChildren(
      make("thead", {}, make("tr", {}, head("name", "Name"), ...this.columns.map(({ key, title }) => head(key, title)))),
      make("tbody", {}, ...rows));
    const more = this.lines.length - rows.length;
    document.getElementById("more-names").textContent = more > 0 ? `and ${plural(more, "other name")}` : "";
  }
}
