// The critical path: the spans that a run's duration consists of. Walks back from the run's end: to the child that ended last before,
// in it to its child that ended last, and so on.

// For each span on the critical path: its own time there, as intervals. Their sum over all spans is the run's duration.
function criticalPath(trace) {
  const parts = new Map();
  const endOf = (span) => (span.goesOn ? trace.took : span.end);
  const waiting = trace.root ? [[trace.root, endOf(trace.root)]] : [];
  while (waiting.length) {
    const [span, end] = waiting.pop();
    const own = [];
    let now = end;
    for (const child of [...span.children].sort((one, other) => endOf(other) - endOf(one))) {
      const ended = Math.min(endOf(child), endOf(span)); // a child's time after its parent's end didn't delay the parent
      if (ended > now || child.start >= now) continue; // parallel to a span on the path
      if (ended < now) own.push([ended, now]);
      waiting.push([child, ended]);
      now = child.start;
    }
    if (now > span.start) own.push([span.start, now]);
    parts.set(span, own);
  }
  return parts;
}

// The intervals of a row: of its span, its inner run, or all its spans. Empty if none is on the path.
function criticalOf(row) {
  const spans = row instanceof Group ? row.spans : [row, innerOf(row)];
  const found = spans.map((span) => span && row.trace.critical.get(span)).filter(Boolean);
  return found.length ? found.flat() : null;
}

// The same intervals, sorted; those closer together than a limit are merged.
function merged(parts, gap) {
  const found = [];
  for (const [from, to] of [...parts].sort(([one], [other]) => one - other)) {
    const last = found.at(-1);
    if (last && from - last[1] < gap) last[1] = Math.max(last[1], to);
    else found.push([from, to]);
  }
  return found;
}

function lengthOf(parts) {
  return parts.reduce((sum, [from, to]) => sum + to - from, 0);
}
