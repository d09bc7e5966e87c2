// The waterfall: spans as rows in tree order, each with a bar on the time axis. Only the visible rows are in the document.

const SCOPES = { graph: ["run", "node", "item"], phase: ["phase"], store: ["store"], other: ["foreign"] };

class Waterfall {
  constructor({ onSelect, onOpen, onView }) {
    this.onSelect = onSelect;
    this.onOpen = onOpen;
    this.onView = onView;
    this.body = document.getElementById("rows");
    this.sizer = document.getElementById("sizer");
    this.grid = document.getElementById("grid");
    this.axis = document.getElementById("axis");
    this.overview = document.getElementById("overview");
    this.window = document.getElementById("window");
    this.query = "";
    this.errorsOnly = false;
    this.showsPath = false; // the critical path
    this.only = null; // a row of the table, if only its spans are shown
    this.hidden = new Set(); // names of SCOPES
    this.shown = new Map(); // by row number: its element
    this.body.addEventListener("scroll", () => this.later());
    this.body.addEventListener("keydown", (event) => this.key(event));
    this.body.addEventListener("focus", () => this.selected || this.select(this.rows[0]));
    this.zoomByDragging(document.getElementById("time"));
    new ResizeObserver(() => this.resized()).observe(this.body);
    this.resized();
  }

  show(trace) {
    this.trace = trace;
    const byDuration = this.tree?.byDuration ?? false;
    this.tree = new Rows(trace);
    this.tree.byDuration = byDuration;
    this.selected = null;
    this.range = [0, trace.took];
    this.only = this.unfiltered = null;
    this.tree.foldAtFirst();
    this.body.scrollTop = 0;
    this.filter();
    this.drawTime();
  }

  // ---------------------------------------------------------------- filtering
  // Keeps the spans that match, and those above them. Setting a filter unfolds all.
  filter() {
    const words = this.query.toLowerCase().split(/\s+/).filter(Boolean);
    const active = words.length > 0 || this.errorsOnly || this.only !== null;
    if (active && !this.unfiltered) [this.unfiltered, this.tree.folded] = [this.tree.folded, new Set()];
    if (!active && this.unfiltered) {
      [this.tree.folded, this.unfiltered] = [this.unfiltered, null];
      if (this.selected) this.tree.uncover(this.selected);
    }
    const { tree } = this.trace;
    this.kept = null;
    this.matches = tree.length;
    if (active) {
      const tests = words.map(matcher);
      const { only } = this;
      if (only) tests.unshift((span) => span.nameNumber === only.nameNumber);
      this.kept = new Uint8Array(tree.length); // 2: matches, 1: is above one
      this.matches = 0;
      for (const span of tree) {
        if (this.isHidden(span) || (this.errorsOnly && span.status !== "error") || !tests.every((test) => test(span))) continue;
        this.matches += 1;
        this.kept[span.order] = 2;
        for (let above = span.parent; above && !this.kept[above.order]; above = above.parent) this.kept[above.order] = 1;
      }
    }
    this.arrange();
  }

  isHidden(span) {
    return this.hidden.size > 0 && [...this.hidden].some((name) => SCOPES[name].includes(span.type));
  }

  arrange() {
    [this.rows, this.levels] = this.tree.list(this.kept, (row) => this.isHidden(row));
    this.places = new Map(this.rows.map((row, place) => [row, place]));
    this.rows.forEach((row, place) => innerOf(row) && this.places.set(innerOf(row), place));
    if (this.selected && !this.places.has(this.selected)) {
      const visible = [...this.tree.around(this.selected)].find((above) => this.places.has(above)) ?? null;
      if (visible || !this.kept) this.select(visible ?? this.rows[0] ?? null, { scroll: false });
    }
    this.redraw();
    this.onView();
  }

  toggle(row, open = this.tree.isFolded(row)) {
    this.tree.fold(row, open);
    this.arrange();
  }

  foldTo(level) {
    this.tree.foldTo(level);
    this.arrange();
    this.reveal(this.selected);
  }

  foldSiblings() {
    const siblings = this.tree.below(this.selected?.parent ?? null);
    const open = siblings.some((row) => this.tree.isFolded(row));
    for (const row of siblings) this.tree.fold(row, open);
    this.arrange();
  }

  // ---------------------------------------------------------------- selection
  select(span, { scroll = true } = {}) {
    if (span && !this.places?.has(span) && scroll) this.uncover(span);
    const former = this.selected;
    this.selected = span;
    for (const each of [former, span]) {
      const place = each && this.places.get(each);
      const row = this.shown.get(place);
      if (row) this.mark(row, this.rows[place]);
    }
    this.render();
    if (span && scroll) this.reveal(span);
    if (span) this.body.setAttribute("aria-activedescendant", `row-${this.rows[this.places.get(span)]?.key}`);
    else this.body.removeAttribute("aria-activedescendant");
    this.onSelect(span);
  }

  // Makes a row for a span that is folded or filtered out.
  uncover(span) {
    this.tree.uncover(span);
    if (this.kept && !this.kept[span.order]) {
      this.kept[span.order] = 1;
      for (const above of span.above()) this.kept[above.order] ||= 1;
    }
    for (const [name, types] of Object.entries(SCOPES)) if (types.includes(span.type)) this.hidden.delete(name);
    this.arrange();
  }

  reveal(span) {
    const place = this.places.get(span);
    if (place === undefined) return;
    const [top, height] = [place * this.rowHeight, this.body.clientHeight];
    const above = this.body.scrollTop - top;
    const below = top + this.rowHeight - (this.body.scrollTop + height);
    if (Math.max(above, below) > 2 * this.rowHeight) this.body.scrollTop = top - height / 2; // far away: scroll so that the rows around it are visible
    else if (above > 0) this.body.scrollTop = top;
    else if (below > 0) this.body.scrollTop += below;
    this.render();
  }

  move(steps) {
    const place = this.places.get(this.selected) ?? -1;
    this.select(this.rows[Math.max(0, Math.min(this.rows.length - 1, place + steps))] ?? null);
  }

  // The next span with an error or a retry, from the selected one on; after the end it continues at the beginning. Spans whose
  // error was raised below them are skipped.
  nextError(step) {
    const wrong = this.trace.tree.filter((span) => span.errorArose);
    if (!wrong.length) return;
    const here = this.selected?.order ?? -1;
    const next = step > 0 ? wrong.find((span) => span.order > here) : wrong.findLast((span) => span.order < here);
    this.select(next ?? wrong.at(step > 0 ? 0 : -1));
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const span = this.rows[this.places.get(this.selected)];
    const page = Math.max(1, Math.floor(this.body.clientHeight / this.rowHeight) - 1);
    const steps = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (steps !== undefined) this.move(steps);
    else if (event.key === "ArrowRight" && span) {
      if (this.tree.isFolded(span)) this.toggle(span, true);
      else if (this.tree.below(span).length) this.move(1);
    } else if (event.key === "ArrowLeft" && span) {
      const above = [...this.tree.around(span)].find((each) => this.places.has(each));
      if (this.tree.below(span).length && !this.tree.isFolded(span)) this.toggle(span, false);
      else if (above) this.select(above);
    } else if (event.key === "Enter" && span) this.onOpen(span);
    else if (event.key === " " && span) this.toggle(span);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  // ---------------------------------------------------------------- drawing rows
  resized() {
    const size = `${this.body.clientWidth} ${this.body.clientHeight}`;
    if (size === this.size) return;
    this.size = size;
    this.rowHeight = parseFloat(getComputedStyle(this.body).getPropertyValue("--row")) || 26;
    this.body.parentElement.style.setProperty("--scrollbar", `${this.body.offsetWidth - this.body.clientWidth}px`);
    if (!this.trace) return;
    this.redraw();
    this.drawTime();
  }

  redraw() {
    this.sizer.style.height = `${this.rows.length * this.rowHeight}px`;
    this.body.setAttribute("aria-rowcount", this.rows.length);
    for (const row of this.shown.values()) row.remove();
    this.shown.clear();
    this.render();
  }

  later() {
    this.waiting ??= requestAnimationFrame(() => {
      this.waiting = null;
      this.render();
    });
  }

  render(all = false) {
    const first = all ? 0 : Math.max(0, Math.floor(this.body.scrollTop / this.rowHeight) - 8);
    const last = all ? Math.min(this.rows.length, 3000) : Math.min(this.rows.length, first + Math.ceil(this.body.clientHeight / this.rowHeight) + 16);
    const active = this.places.get(this.selected); // kept in the document, so that assistive technology still reads it
    for (const [place, row] of this.shown) {
      if ((place < first || place >= last) && place !== active) {
        row.remove();
        this.shown.delete(place);
      }
    }
    const fresh = document.createDocumentFragment();
    for (let place = first; place < last; place++) if (!this.shown.has(place)) fresh.append(this.row(place));
    if (active !== undefined && !this.shown.has(active)) fresh.append(this.row(active));
    this.sizer.append(fresh);
  }

  row(place) {
    const span = this.rows[place];
    const level = this.levels[place];
    const open = !this.tree.isFolded(span);
    const below = this.tree.below(span).length > 0;
    const row = make("div", { role: "row", id: `row-${span.key}`, class: "row", "data-span": span.id, "aria-rowindex": place + 1, "aria-level": level + 1, "aria-expanded": below ? String(open) : undefined });
    row.style.transform = `translateY(${place * this.rowHeight}px)`;
    row.style.setProperty("--level", Math.min(level, 24));
    const path = this.showsPath ? criticalOf(span) : null;
    if (path) row.classList.add("critical");
    const twisty = make("span", { class: `twisty ${below ? (open ? "open" : "closed") : ""}`, "aria-hidden": "true", click: (event) => { event.stopPropagation(); this.select(span, { scroll: false }); this.toggle(span); } });
    const label = make("div", { class: "label", role: "gridcell" }, twisty, make("span", { class: `kind ${span.type}`, title: span.type }), ...(span instanceof Group ? this.labelOfGroup(span) : this.labelOf(span, open)),
      path ? make("span", { class: "mark path", title: "its own part of the critical path" }, `◆ ${duration(lengthOf(path))}`) : "");
    row.append(label, make("div", { class: "took", role: "gridcell" }, span.goesOn ? "…" : duration(span.took)), this.bar(span, path));
    row.addEventListener("click", () => this.select(span, { scroll: false }));
    row.addEventListener("dblclick", () => this.onOpen(span));
    this.mark(row, span);
    this.shown.set(place, row);
    return row;
  }

  labelOf(span, open) {
    const [word, rest] = wordOf(span);
    const index = span.get("fan_out.index");
    const action = span.type === "node" ? span.get("node.action") : undefined;
    const inner = innerOf(span);
    return [
      make("span", { class: "name", title: span.name }, word && make("span", { class: "word" }, `${word} `), rest, index === undefined ? "" : make("span", { class: "word" }, ` [${index}]`)),
      inner ? make("span", { class: "mark grey", title: `${inner.name}, a nested graph` }, "graph") : "",
      action && action !== "default" ? make("span", { class: "action", title: `action ${action}` }, `→ ${action}`) : "",
      open || !span.children.length ? "" : make("span", { class: "inside", title: "spans folded away" }, count(span.last - span.order)),
      ...marksOf(span).map(({ look, text, title }) => make("span", { class: `mark ${look}`, title }, text))];
  }

  labelOfGroup(group) {
    const [word, rest] = wordOf(group);
    return [
      make("span", { class: "name", title: group.name }, word && make("span", { class: "word" }, `${word} `), rest, make("span", { class: "word" }, ` ${group.range}`)),
      make("span", { class: "inside", title: "spans in one row" }, count(group.spans.length)),
      make("span", { class: "mark grey" }, `max ${duration(group.longest)} · p95 ${duration(group.p95)}`)];
  }

  mark(row, span) {
    const selected = span === this.rows[this.places.get(this.selected)];
    row.classList.toggle("selected", selected);
    row.classList.toggle("above", this.kept?.[span.order] === 1 && this.kept[innerOf(span)?.order] !== 2);
    row.setAttribute("aria-selected", String(selected));
  }

  bar(span, path) {
    const track = make("div", { class: "track", role: "gridcell", "aria-label": `begins at ${duration(span.start)}` });
    const [begin, end] = this.range;
    const whole = end - begin;
    const stop = span.goesOn ? this.trace.took : span.end;
    if (stop < begin || span.start > end) {
      track.append(make("span", { class: `aside ${stop < begin ? "before" : "after"}` }, stop < begin ? "‹" : "›"));
      return track;
    }
    const left = Math.max(0, (span.start - begin) / whole);
    const width = Math.min(1, (stop - begin) / whole) - left;
    const bar = make("div", { class: `bar ${span.type} ${span instanceof Group ? "alike" : lookOf(span)} ${span.goesOn ? "goes-on" : ""}` });
    bar.style.left = `min(${left * 100}%, 100% - 2px)`;
    bar.style.width = `${width * 100}%`;
    track.append(bar);
    for (const [from, to] of merged(path ?? EMPTY, whole / 500)) {
      if (to < begin || from > end) continue;
      const part = make("div", { class: "part-of-path" });
      part.style.left = `${(Math.max(0, from - begin) / whole) * 100}%`;
      part.style.width = `${((Math.min(to, end) - Math.max(from, begin)) / whole) * 100}%`;
      track.append(part);
    }
    for (const [name, time] of span.events ?? EMPTY) {
      if (time < begin || time > end) continue;
      const dot = make("span", { class: "event", title: `${name} at ${duration(time)}` });
      dot.style.left = `${((time - begin) / whole) * 100}%`;
      track.append(dot);
    }
    return track;
  }

  // ---------------------------------------------------------------- time
  zoom(begin, end) {
    const least = Math.min(100, this.trace.took);
    const middle = (begin + end) / 2;
    const half = Math.max(end - begin, least) / 2;
    this.range = [Math.max(0, middle - half), Math.min(this.trace.took, middle + half)];
    this.redraw();
    this.drawTime();
    this.onView();
  }

  zoomTo(span) {
    if (!span) return;
    const room = Math.max((span.end - span.start) * 0.04, 50);
    this.zoom(span.start - room, span.end + room);
  }

  get zoomed() {
    return this.range[0] > 0 || this.range[1] < this.trace.took;
  }

  drawTime() {
    const [begin, end] = this.range;
    const width = this.axis.clientWidth;
    if (!width) return;
    const step = niceStep((end - begin) / Math.max(2, Math.floor(width / 110)));
    this.axis.replaceChildren();
    this.grid.replaceChildren();
    for (let time = Math.ceil(begin / step) * step; time <= end; time += step) {
      const at = `${((time - begin) / (end - begin)) * 100}%`;
      const tick = make("span", { class: "tick" }, (end - time) / (end - begin) * width > 40 ? tickText(time, step) : "");
      const line = make("span");
      tick.style.left = line.style.left = at;
      this.axis.append(tick);
      this.grid.append(line);
    }
    this.drawOverview();
  }

  // The whole trace in small, to see where the load and the errors are.
  drawOverview() {
    const { tree, took } = this.trace;
    const [width, height] = [this.overview.clientWidth, this.overview.clientHeight];
    const scale = window.devicePixelRatio || 1;
    this.overview.width = width * scale;
    this.overview.height = height * scale;
    const paint = this.overview.getContext("2d");
    paint.scale(scale, scale);
    const colours = {}; // a canvas can't use CSS variables
    for (const name of ["run", "node", "item", "phase", "store", "foreign", "bad", "warn-bar"]) {
      this.overview.style.color = `var(--${name})`;
      colours[name] = getComputedStyle(this.overview).color;
    }
    const thick = Math.max(1, Math.min(3, height / tree.length));
    const looks = new Map(Object.keys(colours).map((look) => [look, []])); // errors last, so that they are on top
    for (const span of tree) looks.get(span.status !== "error" ? span.type : span.failed ? "bad" : "warn-bar").push(span);
    for (const [look, spans] of looks) {
      const wrong = look === "bad" || look === "warn-bar";
      paint.globalAlpha = wrong ? 1 : 0.55;
      paint.fillStyle = colours[look];
      let drawn = [-1, -1, -1];
      for (const span of spans) {
        const [x, y, wide] = [(span.start / took) * width, (span.order / tree.length) * (height - thick), Math.max(1, (span.took / took) * width)];
        if (Math.abs(drawn[0] - x) + Math.abs(drawn[1] - y) + Math.abs(drawn[2] - wide) < 0.5) continue; // at the same place as the last one
        drawn = [x, y, wide];
        paint.fillRect(x, y, wide, wrong ? Math.max(thick, 2) : thick);
      }
    }
    this.window.hidden = !this.zoomed;
    this.window.style.left = `${(this.range[0] / took) * 100}%`;
    this.window.style.width = `${((this.range[1] - this.range[0]) / took) * 100}%`;
  }

  // Dragging over the overview chooses a part of the whole time; over the axis, a part of the visible time.
  zoomByDragging(place) {
    const brush = document.getElementById("brush");
    let from = null;
    const share = (event) => {
      const { left, width } = place.getBoundingClientRect();
      return Math.max(0, Math.min(1, (event.clientX - left) / width));
    };
    place.addEventListener("pointerdown", (event) => {
      from = { at: share(event), range: event.target === this.axis || this.axis.contains(event.target) ? this.range : [0, this.trace.took] };
      place.setPointerCapture(event.pointerId);
    });
    place.addEventListener("pointermove", (event) => {
      if (!from) return;
      const at = share(event);
      brush.hidden = false;
      brush.style.left = `${Math.min(from.at, at) * 100}%`;
      brush.style.width = `${Math.abs(at - from.at) * 100}%`;
    });
    place.addEventListener("pointerup", (event) => {
      const to = share(event);
      if (from && Math.abs(to - from.at) > 0.005) {
        const [begin, end] = from.range;
        const times = [from.at, to].sort((one, other) => one - other).map((at) => begin + at * (end - begin));
        this.zoom(...times);
      }
      from = null;
      brush.hidden = true;
    });
    place.addEventListener("pointercancel", () => ([from, brush.hidden] = [null, true]));
    place.addEventListener("dblclick", () => this.zoom(0, this.trace.took));
  }
}

// The word for a span's type, and the rest of its name.
function wordOf(span) {
  const space = span.name.indexOf(" ");
  if (span.type === "foreign" || space < 0) return ["", span.name];
  return [span.name.slice(0, space), span.name.slice(space + 1)];
}

function niceStep(least) {
  const power = 10 ** Math.floor(Math.log10(Math.max(least, 1)));
  return power * [1, 2, 5, 10].find((factor) => factor * power >= least);
}

// A time on the axis, in the unit of the step, so that neighbours differ.
function tickText(time, step) {
  if (time === 0) return "0";
  const [unit, size] = time >= 1e9 ? ["s", 1e9] : time >= 1e6 ? ["ms", 1e6] : time >= 1e3 ? ["µs", 1e3] : ["ns", 1];
  const digits = Math.max(0, Math.ceil(-Math.log10(step / size) - 1e-9));
  return `${(time / size).toFixed(Math.min(digits, 6))} ${unit}`;
}
