// The critical path: what a run's duration is made of. From its end backwards: what ended last before, in it what ended last, and so on.

// Of each span on the path of a trace's run: the parts of the time, from and to, that were its own there. In sum they are the run's duration.
function criticalPath(trace) {
  const parts = new Map();
  const endOf = (span) => (span.goesOn ? trace.took : span.end);
  const waiting = trace.root ? [[trace.root, endOf(trace.root)]] : [];
  while (waiting.length) {
    const [span, end] = waiting.pop();
    const own = [];
    let now = end;
    for (const child of [...span.children].sort((one, other) => endOf(other) - endOf(one))) {
      const ended = Math.min(endOf(child), endOf(span)); // what goes on behind its parent's end didn't hold it up
      if (ended > now || child.start >= now) continue; // beside what is on the path already
      if (ended < now) own.push([ended, now]);
      waiting.push([child, ended]);
      now = child.start;
    }
    if (now > span.start) own.push([span.start, now]);
    parts.set(span, own);
  }
  return parts;
}

// The parts of a row: those of its span, of its inner run, or of all spans in it. None: it isn't on the path.
function criticalOf(row) {
  const spans = row instanceof Group ? row.spans : [row, innerOf(row)];
  const found = spans.map((span) => span && row.trace.critical.get(span)).filter(Boolean);
  return found.length ? found.flat() : null;
}

// The same parts, sorted, those that lie closer than so much together in one.
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
