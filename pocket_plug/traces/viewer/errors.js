// Errors: where each was raised, grouped by type and by the place in the user's code.

const MOST_GROUPS = 200; // how many groups are listed

// A frame from Python's data.
const frameFrom = ([file, line, name, users]) => ({ file: data.texts[file], line, name: data.texts[name], users });

function placeOf({ file, line }) {
  return `${file.slice(Math.max(file.lastIndexOf("/"), file.lastIndexOf("\\")) + 1)}${line ? `:${line}` : ""}`;
}

// The span in which a span's error was raised: one below it, or itself.
function originOf(span) {
  while (!span.error.own) {
    const handed = span.children.filter((child) => child.failed && [undefined, span.get("error.type")].includes(child.get("error.type")));
    if (!handed.length) break; // parents form a cycle
    span = handed.reduce((first, child) => (child.end < first.end ? child : first));
  }
  return span;
}

// Where to look first: the first error that made the run fail, or else the first that was handled.
function firstFailure(trace) {
  const own = trace.failed.filter((span) => span.error.own).sort((one, other) => one.end - other.end);
  return own.find((span) => [...span.above()].every((above) => above.failed)) ?? own[0];
}

// Errors grouped by type and place, in this order: those that made the run fail, those that weren't retried, then by number.
function groupsOfErrors(trace) {
  const groups = new Map();
  for (const span of trace.tree) {
    if (!span.errorArose) continue;
    const { type, message } = span.error;
    const at = span.error.at && frameFrom(span.error.at);
    const key = JSON.stringify([type, at?.file ?? span.name, at?.line]);
    if (!groups.has(key)) groups.set(key, { type, at, message, spans: [], failed: 0 });
    groups.get(key).spans.push(span);
    groups.get(key).failed += span.failed;
  }
  const first = firstFailure(trace);
  return [...groups.values()].sort((one, other) => other.spans.includes(first) - one.spans.includes(first) || Boolean(other.failed) - Boolean(one.failed) || other.spans.length - one.spans.length);
}

// The list of these groups. A click goes to the group's first span, each further one to its next.
function errorsView(trace, goTo) {
  const suppressed = sum(trace.spans, "fan_out.suppressed_failed");
  const groups = groupsOfErrors(trace);
  const list = groups.slice(0, MOST_GROUPS).map(({ type, at, message, spans, failed }) => {
    let turn = -1;
    const where = make("span", { class: "turn" });
    const retried = spans.length - failed;
    const next = () => {
      turn = (turn + 1) % spans.length;
      where.textContent = spans.length > 1 ? `${count(turn + 1)} of ${count(spans.length)}` : "";
      goTo(spans[turn]);
    };
    return make("li", {}, make("button", { class: "problem", title: spans.length > 1 ? "go to the first one; click again for the next" : "go to the span", click: next },
      make("span", { class: "line" }, make("b", {}, type), at ? make("code", { title: `${at.file}:${at.line}` }, `${placeOf(at)}${at.name && ` in ${at.name}`}`) : "",
        failed ? make("span", { class: "mark bad" }, `✗ ${plural(failed, "error")}`) : "", retried ? make("span", { class: "mark warn" }, `↻ ${count(retried)} retried`) : "", where),
      message ? make("span", { class: "line said" }, message) : "",
      make("span", { class: "line word" }, [...new Set(spans.map((span) => span.name))].slice(0, 5).join(", "))));
  });
  return [
    list.length ? make("ul", {}, ...list) : make("p", { class: "none" }, "No span of this trace failed."),
    groups.length > MOST_GROUPS ? make("p", { class: "none" }, `and ${count(groups.length - MOST_GROUPS)} other places`) : "",
    suppressed ? make("p", { class: "none" }, `${plural(suppressed, "item")} failed and ${suppressed === 1 ? "has" : "have"} no span.`) : "",
  ];
}

// The error at the head of a span's details: type, message, the user's frame, then all frames and the stack, folded.
function errorSection(span, goTo) {
  if (span.status !== "error") return "";
  const origin = span.failed ? originOf(span) : span;
  const { type, message } = origin.error;
  const at = origin.error.at && frameFrom(origin.error.at);
  const stack = data.pairs[origin.error.stack]?.[1] ?? "";
  const frames = (data.frames[origin.error.stack] ?? []).map(frameFrom);
  const frameOf = (frame, first) => make("p", { class: `frame ${frame.users ? "users" : ""}` }, make(first ? "b" : "span", { class: "mono", title: frame.file }, placeOf(frame)), frame.name ? make("span", {}, " in ", make("span", { class: "mono" }, frame.name)) : "", first ? make("span", { class: "path" }, frame.file) : "");
  const first = frames.findLastIndex((frame) => frame.file === at.file && frame.line === at.line && frame.name === at.name);
  const others = frames.filter((_, number) => number !== first);
  return make("section", { class: `error ${span.failed ? "bad" : "warn"}` },
    make("h3", {}, `${span.failed ? "✗" : "↻"} ${type}`, span.failed ? "" : make("span", { class: "word" }, " retried")),
    message ? make("p", { class: "said" }, message) : "",
    at ? frameOf(at, true) : "",
    others.length ? make("details", {}, make("summary", {}, `${plural(others.length, "other frame")}`), ...others.reverse().map((frame) => frameOf(frame, false))) : "",
    stack ? make("details", {}, make("summary", {}, "the whole stack"), make("pre", { class: "stack", tabindex: 0 }, stack)) : "",
    make("p", { class: "does" },
      origin === span ? "" : make("button", { class: "chip", click: () => goTo(origin) }, `raised in ${origin.name} ›`),
      copyButton("copy the error", () => stack || [type, message].filter(Boolean).join(": "))));
}
