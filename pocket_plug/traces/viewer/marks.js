// What a row shows of a span: its marks, and the look of its bar.

// The marks: short texts, each with an explanation and a severity.
function marksOf(span) {
  const marks = [];
  const add = (look, text, title = "", error = false) => marks.push({ look, text, title, error });
  const error = String(span.get("error.type") ?? (span.status === "error" ? "error" : ""));
  const short = error.slice(error.lastIndexOf(".") + 1);
  const outcome = span.get("run.outcome") ?? span.get("node.outcome");
  if (span.goesOn) add("blue", "… not ended", "it is running, or its end was not recorded");
  if (span.failed) add("bad", `✗ ${short}`, span.message, true);
  else if (span.status === "error") {
    const delay = span.get("retry.delay");
    add("warn", `↻ ${short}${delay > 0 ? `, again in ${duration(delay * 1e9)}` : ""}`, `${span.message} (retried)`, true);
  }
  if (span.get("attempt") > 1) add("warn", `#${span.get("attempt")}`, `attempt ${span.get("attempt")}`);
  if (outcome === "fallback") add("warn", "⤵ fallback", "the fallback's result was used instead of the failed one");
  if (outcome === "timeout") add("bad", "◷ timeout", "the run's time limit was reached");
  if (outcome === "cancelled") add("grey", "⊘ cancelled", error);
  else if (error && span.status !== "error" && outcome !== "suspended") add("grey", `⊘ ${short}`, error);
  if (outcome === "suspended") add("blue", "‖ suspended", "waits for an answer or a time");
  if (span.get("run.resumed") === true) add("blue", "▸ resumed", "continues from an earlier execution's checkpoint");
  if (span.get("interrupted")) add("bad", "! interrupted", "the process was ended by a signal");
  const events = (name) => span.events.filter((event) => event[0] === `pocket_plug.${name}`).length;
  if (events("conflict")) add("warn", `⇄ conflict${times(events("conflict"))}`, "another writer changed the same entry meanwhile; retried");
  if (events("clean_up_failed")) add("warn", "! clean-up failed", "see the span's events");
  const tokens = tokensText(usageOf(span));
  if (tokens) add("grey", `${tokens} tokens`, String(modelOf(span) ?? ""));
  const [items, suppressed] = [span.get("fan_out.items"), span.get("fan_out.suppressed")];
  if (suppressed) add("grey", `${count(items - suppressed)} of ${plural(items, "item")} shown`, "the slowest, the failed, the retried and a sample have spans");
  if (span.links.length) add("blue", `↗ link${times(span.links.length)}`, "links to another span, see the details");
  if (typeof span.parentId === "string") add("grey", "parent elsewhere", "its parent span is not on this page");
  if (span.get("store.hit") === false) add("grey", "miss", "there was no entry with this key");
  if (span.get("node.visit") > 1 && span.type === "node") add("grey", `visit ${span.get("node.visit")}`);
  return marks;
}

// The look of a span's bar.
function lookOf(span) {
  if (span.failed) return "bad";
  if (span.status === "error" || span.get("node.outcome") === "fallback") return "warn";
  if ((span.get("run.outcome") ?? span.get("node.outcome")) === "cancelled") return "grey";
  return "";
}
