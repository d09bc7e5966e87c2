// The panel with all details of a span.

function headOf(span, title, { zoom, close }) {
  return make("header", {},
    make("span", { class: `kind ${span.type}` }),
    make("h2", { tabindex: -1 }, title),
    make("button", { class: "quiet", title: "zoom to this span (z)", click: () => zoom(span) }, "zoom"),
    make("button", { class: "quiet", title: "close (Esc)", "aria-label": "close the details", click: close }, "×"));
}

function factsOf(facts) {
  return make("dl", { class: "facts" }, ...facts.filter(([, value]) => value).map(([name, value, title]) => make("div", { title }, make("dt", {}, name), make("dd", {}, value))));
}

// For spans that share a row: their statistics, and the longest of them.
function detailsOfGroup(group, { goTo, zoom, close }) {
  return [
    headOf(group, `${group.name} ${group.range}`, { zoom, close }),
    factsOf([["spans", count(group.spans.length)], ["p50", duration(group.median)], ["p95", duration(group.p95)], ["max", duration(group.longest)], ["total", duration(group.took)]]),
    longestOf("Longest", group.spans, goTo, 12)];
}

function longestOf(title, spans, goTo, most) {
  const slow = [...spans].sort((one, other) => other.took - one.took).slice(0, most);
  return section(title, ...slow.map((span) => make("button", { class: "jump", click: () => goTo(span) }, make("span", { class: `kind ${span.type}` }), make("span", { class: "name" }, nameOf(span)), make("span", { class: "took" }, duration(span.took)))));
}

// A span's name, with what distinguishes it from others of this name.
function nameOf(span) {
  const [index, visit] = [span.get("fan_out.index"), span.type === "node" ? span.get("node.visit") : undefined];
  return `${span.name}${index === undefined ? "" : ` [${index}]`}${visit > 1 ? ` visit ${visit}` : ""}`;
}

function detailsOf(span, { goTo, find, zoom, close }) {
  const facts = [["begins at", `+${duration(span.start)}`, new Date(span.trace.start.getTime() + span.start / 1e6).toISOString()],
    ["took", span.goesOn ? "not ended" : duration(span.took), `${count(span.took)} ns`],
    ["self", duration(span.self), "time in which no child span was open"],
    ["on path", span.trace.critical.has(span) ? duration(lengthOf(span.trace.critical.get(span))) : "", "its own part of the critical path"],
    ["share", `${((span.took / span.trace.took) * 100).toFixed(1)} %`, "of the whole trace"]];
  const panel = [
    headOf(span, span.name, { zoom, close }),
    errorSection(span, goTo),
    make("p", { class: "marks" }, ...marksOf(span).filter(({ error }) => !error).map(({ look, text, title }) => make("span", { class: `mark ${look}`, title }, text))),
    factsOf(facts),
    ...llmSections(span),
    ...valueSections(span),
  ];
  if (span.message && span.status !== "error") panel.push(make("p", { class: "message" }, span.message));
  const shown = span.status === "error" && span.events.findLast(([name]) => name === "exception"); // its stack is shown above
  if (span.events.length) panel.push(section("Events", ...span.events.map((event) => eventOf(span, event, event === shown))));
  const above = messagesOf(span).length ? isMessage : isValue; // are shown above already
  panel.push(section("Attributes", table(sorted(span.attributes.filter(([name]) => !above(name)))), span.pairs.length ? copyButton("copy as JSON", () => JSON.stringify(Object.fromEntries(span.attributes), null, 2)) : ""));
  if (span.links.length) panel.push(section("Links", ...span.links.map((link) => linkOf(link, goTo, find))));
  if (span.children.length) panel.push(longestOf(`Longest of ${plural(span.children.length, "child").replace("childs", "children")}`, span.children, goTo, 5));
  panel.push(section("Ids", table([["trace", span.trace.id], ["span", span.id], ["parent", span.parent?.id ?? span.parentId ?? "none"], ["scope", span.scope], ["kind", ["unspecified", "internal", "server", "client", "producer", "consumer"][span.kind] ?? String(span.kind)], ["status", span.status]])));
  if (span.resourcePairs.length) panel.push(make("details", {}, make("summary", {}, "Resource"), table(named(span.resourcePairs))));
  return panel.filter(Boolean);
}

function section(title, ...content) {
  return make("section", {}, make("h3", {}, title), ...content);
}

// Long values are put below short ones.
function sorted(attributes) {
  const long = ([, value]) => textOf(value).length > 120;
  return [...attributes.filter((each) => !long(each)), ...attributes.filter(long)];
}

// Attributes sorted by name; pocket_plug's without their common prefix.
function table(attributes) {
  if (!attributes.length) return make("p", { class: "none" }, "none");
  const rows = attributes.map(([name, value]) => {
    const ours = name.startsWith("pocket_plug.");
    const text = textOf(value);
    const long = text.includes("\n") || text.length > 120;
    return make("tr", {}, make("th", { scope: "row", title: name }, ours ? make("span", { class: "ours" }, "pocket_plug.") : "", ours ? name.slice(12) : name),
      make("td", {}, make(long ? "pre" : "code", long ? { tabindex: 0 } : {}, text), copyButton("⧉", () => text, name)));
  });
  return make("table", {}, make("tbody", {}, ...rows));
}

// A value as text for people; JSON in a string is formatted.
function textOf(value) {
  if (Array.isArray(value)) return value.every((each) => typeof each === "string") ? value.map((each) => each.replaceAll("\t", " → ")).join("\n") : JSON.stringify(value, null, 1);
  if (value !== null && typeof value === "object") return JSON.stringify(value, null, 2);
  if (typeof value === "string" && /^\s*[[{]/.test(value)) {
    try {
      return JSON.stringify(JSON.parse(value), null, 2);
    } catch {
      return value; // it only looked like JSON
    }
  }
  return String(value);
}

function eventOf(span, [name, time, numbers], isShown) {
  const attributes = named(numbers);
  const get = (key) => attributes.find(([each]) => each === key)?.[1];
  const stack = isShown ? "" : get("exception.stacktrace");
  const rest = attributes.filter(([key]) => !key.startsWith("exception."));
  return make("div", { class: "happened" },
    make("p", {}, make("b", {}, get("exception.type") ?? name), ` at +${duration(time)}`, make("span", { class: "word" }, ` (${duration(Math.max(0, time - span.start))} into the span)`)),
    get("exception.message") ? make("p", { class: "said" }, String(get("exception.message"))) : "",
    stack ? make("pre", { class: "frames", tabindex: 0 }, String(stack)) : "",
    stack ? copyButton("copy the stack", () => String(stack)) : "",
    rest.length ? table(rest) : "");
}

function linkOf([traceId, spanId, numbers], goTo, find) {
  const target = find(traceId, spanId);
  return make("div", { class: "happened" },
    target ? make("button", { class: "jump", click: () => goTo(target) }, "↗ ", make("span", { class: "name" }, `${target.name}, ${target.trace.start.toLocaleString()}`)) : make("p", {}, "to a span that is not in this page"),
    table([["trace", traceId], ["span", spanId], ...named(numbers)]));
}

function copyButton(text, content, what = "") {
  const button = make("button", { class: "copy", title: what ? `copy ${what}` : undefined, "aria-label": what ? `copy ${what}` : undefined, click: async () => {
    button.textContent = (await copy(content())) ? "copied" : "not copied";
    setTimeout(() => (button.textContent = text), 1200);
  } }, text);
  return button;
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { // the Clipboard API isn't there for files, or not allowed: copy a selection instead
    const area = make("textarea", { class: "offscreen", readonly: true }, text);
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    return done;
  }
}
