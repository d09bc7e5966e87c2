// The graph of a run: its nodes and edges in layers, from left to right, with the taken edges marked.

// The visits and taken edges of some runs of one graph: of one run, or of all items of a fan-out. `earlier`: the previous executions
// of a resumed run, whose path is also shown.
function chartOf(runs, earlier = []) {
  const nodes = new Map();
  const edges = new Map();
  const node = (name, type) => {
    if (!nodes.has(name)) nodes.set(name, { name, type: type ?? "node", visits: [], turns: [], items: 0, failedItems: 0, retries: 0, inner: [] });
    return nodes.get(name);
  };
  const edge = (source, action, target) => {
    const key = JSON.stringify([source, action, target]);
    if (!edges.has(key)) edges.set(key, { source, action, target, times: 0 });
    return edges.get(key);
  };
  for (const text of list(runs[0].get("graph.nodes"))) {
    const [name, type] = text.split("\t");
    node(name, type);
  }
  for (const text of list(runs[0].get("graph.edges"))) {
    const [source, action, target] = text.split("\t");
    if (target === undefined) continue;
    node(source);
    node(target);
    edge(source, action, target);
  }
  const declared = nodes.size > 0;
  const ends = new Map(); // where runs ended, and how often
  for (const run of runs) {
    let turn = 0;
    let latest = null;
    for (let at = run.order + 1; at <= run.last; at++) {
      const span = run.trace.tree[at];
      if (span.owner !== run || span.type !== "node") continue;
      const name = String(span.get("node.name") ?? span.name.replace(/^node /, ""));
      const visited = node(name, span.get("node.type"));
      turn += 1;
      visited.visits.push(span);
      visited.turns.push(turn);
      visited.retries += span.retries;
      for (const child of span.children) {
        if (child.type === "run") visited.inner.push(child);
        if (child.type !== "item") continue;
        visited.items += 1;
        visited.inner.push(...child.children.filter((each) => each.type === "run"));
      }
      visited.items += Number(span.get("fan_out.suppressed")) || 0;
      visited.failedItems += Number(span.get("fan_out.failed")) || 0;
      const next = span.get("node.next");
      if (typeof next === "string") {
        node(next);
        const taken = edge(name, String(span.get("node.action") ?? "default"), next);
        taken.times += 1;
      }
      latest = { name, span, next };
    }
    if (latest && !latest.next) ends.set(latest.name, (ends.get(latest.name) ?? 0) + 1);
  }
  for (const span of earlier.flatMap((run) => run.trace.tree.filter((each) => each.owner === run && each.type === "node"))) {
    const [name, next] = [String(span.get("node.name")), span.get("node.next")];
    node(name, span.get("node.type")).earlier = true;
    if (typeof next !== "string") continue;
    node(next);
    edge(name, String(span.get("node.action") ?? "default"), next).earlier = true;
  }
  const all = [...nodes.values()];
  const began = all.filter((each) => each.turns.includes(1)); // where the runs began: each branch of a gather elsewhere
  const first = began.length ? began : all.slice(0, 1);
  return { nodes: all, edges: [...edges.values()], first, start: declared ? all[0] : first[0], ends };
}

function list(value) {
  return Array.isArray(value) ? value.map(String) : [];
}

// The worst outcome of a node's visits.
function outcomeOf(node) {
  const found = new Set(node.visits.map((span) => (span.failed ? "failed" : span.goesOn ? "running" : (span.get("node.outcome") ?? "ok"))));
  return ["failed", "interrupted", "suspended", "cancelled", "running", "fallback", "ok"].find((outcome) => found.has(outcome)) ?? (found.size ? "ok" : node.earlier ? "earlier" : "unvisited");
}

const SIGNS = { failed: "✗", failure: "✗", timeout: "◷", suspended: "‖", cancelled: "⊘", interrupted: "!", running: "…", "not ended": "…", fallback: "⤵", ok: "✓", success: "✓", earlier: "✓", unvisited: "" };

// ---------------------------------------------------------------- layers
const HEIGHT = 44; // of a node
const ROW = 68;
const LANE = 30; // the height of an edge that crosses a layer

// Puts nodes into layers by their longest distance from the start, without back edges. Sets x and y of all.
function layOut(chart) {
  const { nodes, edges } = chart;
  const byName = new Map(nodes.map((node) => [node.name, node]));
  const from = new Map(nodes.map((node) => [node.name, []]));
  for (const edge of edges) from.get(edge.source).push(edge);
  markBackEdges(chart, from);

  const order = topological(nodes, edges);
  for (const node of nodes) node.layer = 0;
  for (const node of order) {
    for (const edge of from.get(node.name)) {
      const target = byName.get(edge.target);
      if (!edge.back) target.layer = Math.max(target.layer, node.layer + 1);
    }
  }
  const layers = [];
  const place = (item, layer) => (layers[layer] ??= []).push(item);
  for (const node of order) place(node, node.layer);
  for (const edge of edges) { // an edge across several layers gets a place in each
    if (edge.back) continue;
    const [source, target] = [byName.get(edge.source), byName.get(edge.target)];
    edge.via = [];
    let before = source;
    for (let layer = source.layer + 1; layer < target.layer; layer++) {
      const lane = { lane: true, before, after: target };
      if (before.lane) before.after = lane;
      edge.via.push(lane);
      place(lane, layer);
      before = lane;
    }
  }
  sortLayers(layers, edges, byName);

  let x = 46;
  layers.forEach((layer, number) => {
    const width = Math.max(...layer.map((item) => (item.lane ? 0 : widthOf(item))));
    const height = layer.reduce((sum, item) => sum + roomOf(item), 0);
    let y = -height / 2;
    for (const item of layer) {
      item.width = item.lane ? width : widthOf(item);
      item.x = x + width / 2;
      item.y = y + roomOf(item) / 2;
      y += roomOf(item);
    }
    const labels = edges.filter((edge) => !edge.back && byName.get(edge.source).layer === number).map((edge) => labelOf(edge).length);
    x += width + Math.max(46, Math.max(0, ...labels) * 6.2 + 30);
  });
  straighten(layers, edges, byName);
}

function widthOf(node) {
  return Math.min(230, Math.max(96, shortened(node.name).length * 7.6 + 56, belowOf(node).length * 6.1 + 44));
}

// The second line of a node's box.
function belowOf(node) {
  const what = kindOf(node);
  const took = node.visits.reduce((sum, span) => sum + span.took, 0);
  return node.visits.length ? [duration(took), what].filter(Boolean).join(" · ") : what || (node.earlier ? "earlier execution" : "not visited");
}

function kindOf({ type, items }) {
  return type === "fan_out" ? (items ? plural(items, "item") : "fan-out") : type === "graph" ? "graph" : "";
}

function roomOf(item) {
  return item.lane ? LANE : ROW;
}

function shortened(text) {
  return text.length > 22 ? `${text.slice(0, 21)}…` : text;
}

function labelOf(edge) {
  return `${edge.action === "default" ? "" : shortened(edge.action)}${times(edge.times)}`.trim();
}

// The back edges, by a depth-first walk: their target is on the path to them. Not recursive, since graphs may be deep.
function markBackEdges({ nodes, start, edges }, from) {
  const state = new Map(); // 1: on the path, 2: done
  for (const edge of edges) edge.back = edge.source === edge.target;
  for (const root of [start, ...nodes]) {
    if (!root || state.has(root.name)) continue;
    const way = [[root.name, 0]];
    state.set(root.name, 1);
    while (way.length) {
      const step = way.at(-1);
      const edge = from.get(step[0])[step[1]++];
      if (!edge) {
        state.set(step[0], 2);
        way.pop();
      } else if (state.get(edge.target) === 1) edge.back = true;
      else if (!state.has(edge.target)) {
        state.set(edge.target, 1);
        way.push([edge.target, 0]);
      }
    }
  }
}

function topological(nodes, edges) {
  const before = new Map(nodes.map((node) => [node.name, 0]));
  const byName = new Map(nodes.map((node) => [node.name, node]));
  for (const edge of edges) if (!edge.back) before.set(edge.target, before.get(edge.target) + 1);
  const order = nodes.filter((node) => before.get(node.name) === 0);
  for (let at = 0; at < order.length; at++) {
    for (const edge of edges) {
      if (edge.back || edge.source !== order[at].name) continue;
      before.set(edge.target, before.get(edge.target) - 1);
      if (before.get(edge.target) === 0) order.push(byName.get(edge.target));
    }
  }
  return order;
}

// Moves each item to the middle of its neighbours in the next layer, forwards and backwards, so that few edges cross.
function sortLayers(layers, edges, byName) {
  const neighbours = neighboursOf(layers, edges, byName);
  for (let sweep = 0; sweep < 4; sweep++) {
    const side = sweep % 2;
    for (const layer of side ? [...layers].reverse() : layers) {
      layer.forEach((item, at) => (item.at = at));
    }
    for (const layer of side ? [...layers].reverse() : layers) {
      const middle = (item) => {
        const bound = neighbours.get(item)[side];
        return bound.length ? bound.reduce((sum, other) => sum + other.at, 0) / bound.length : item.at;
      };
      const wanted = new Map(layer.map((item) => [item, middle(item)]));
      layer.sort((one, other) => wanted.get(one) - wanted.get(other) || one.at - other.at);
      layer.forEach((item, at) => (item.at = at));
    }
  }
}

function neighboursOf(layers, edges, byName) {
  const neighbours = new Map(layers.flat().map((item) => [item, [[], []]]));
  for (const edge of edges) {
    if (edge.back) continue;
    const way = [byName.get(edge.source), ...edge.via, byName.get(edge.target)];
    for (let at = 1; at < way.length; at++) {
      neighbours.get(way[at])[0].push(way[at - 1]);
      neighbours.get(way[at - 1])[1].push(way[at]);
    }
  }
  return neighbours;
}

// Moves items towards the height of those in the layer before, without changing their order.
function straighten(layers, edges, byName) {
  const neighbours = neighboursOf(layers, edges, byName);
  for (const layer of layers) {
    const wanted = layer.map((item) => {
      const bound = neighbours.get(item)[0];
      return bound.length ? bound.reduce((sum, other) => sum + other.y, 0) / bound.length : item.y;
    });
    layer.forEach((item, at) => {
      const above = layer[at - 1];
      item.y = above ? Math.max(wanted[at], above.y + (roomOf(above) + roomOf(item)) / 2) : wanted[at];
    });
    const shift = layer.reduce((sum, item, at) => sum + wanted[at] - item.y, 0) / layer.length;
    for (const item of layer) item.y += shift;
  }
}

// ---------------------------------------------------------------- the drawing
// Draws a chart. `pick(node)` is called when a node is chosen, `open(node)` to show its inner run.
function draw(chart, { pick, open, outcome, many }) {
  layOut(chart);
  const byName = new Map(chart.nodes.map((node) => [node.name, node]));
  const ways = make("g");
  const labels = make("g");
  const boxes = make("g", { role: "group", "aria-label": "nodes of the graph" });
  let [top, bottom, right] = [Infinity, -Infinity, 0];
  const cover = (x, upper, lower) => {
    top = Math.min(top, upper);
    bottom = Math.max(bottom, lower);
    right = Math.max(right, x);
  };
  for (const node of chart.nodes) cover(node.x + node.width / 2, node.y - HEIGHT / 2 - 18, node.y + HEIGHT / 2 + 6);
  const floor = bottom;
  let lowered = 0;
  const twins = new Map(); // edges between the same two nodes, one below the other; a taken one is straight
  for (const edge of [...chart.edges].sort((one, other) => other.times - one.times)) {
    const key = JSON.stringify([edge.source, edge.target]);
    twins.set(key, [...(twins.get(key) ?? []), edge]);
  }
  const sorted = [...chart.edges].sort((one, other) => one.times - other.times); // taken edges are drawn on top
  for (const edge of sorted) {
    const [source, target] = [byName.get(edge.source), byName.get(edge.target)];
    const twin = twins.get(JSON.stringify([edge.source, edge.target])).indexOf(edge);
    let path, label;
    if (edge.back) {
      const depth = floor + 30 + 26 * lowered++; // the curve goes three quarters of the way down
      const [sx, tx] = source === target ? [source.x + 18, source.x - 18] : [source.x + 10 * twin, target.x + 10 * twin];
      path = `M${sx} ${source.y + HEIGHT / 2}C${sx} ${depth} ${tx} ${depth} ${tx} ${target.y + HEIGHT / 2 + 5}`;
      const lowest = ((source.y + target.y + HEIGHT) / 2) * 0.25 + depth * 0.75;
      label = [(sx + tx) / 2, lowest + 13 + widthOfWay(edge) / 2];
      cover(0, top, label[1] + 4);
    } else {
      const points = [[source.x + source.width / 2, source.y], ...edge.via.flatMap((lane) => [[lane.x - lane.width / 2, lane.y], [lane.x + lane.width / 2, lane.y]]), [target.x - target.width / 2 - 5, target.y]];
      path = `M${points[0].join(" ")}`;
      for (let at = 1; at < points.length; at++) {
        const [[x, y], [toX, toY]] = [points[at - 1], points[at]];
        const middle = (x + toX) / 2;
        const bow = at === 1 ? twin * 30 : 0;
        path += at % 2 ? `C${middle} ${y + bow} ${middle} ${toY + bow} ${toX} ${toY}` : `L${toX} ${toY}`;
      }
      const [[x, y], [toX, toY]] = points;
      const raised = 5 + widthOfWay(edge) / 2;
      const lowered = twin * 30 * 0.75; // the curve goes three quarters of the way down
      label = edge.via.length ? [edge.via[0].x, edge.via[0].y - raised] : [(x + toX) / 2, (y + toY) / 2 - raised + lowered];
      cover(0, top, Math.max(y, toY) + lowered + 6);
    }
    const taken = edge.times > 0 || edge.earlier;
    const width = taken ? widthOfWay(edge) : 1.2;
    const says = `${edge.source} → ${edge.target} by ${edge.action}: ${edge.times ? `taken ${plural(edge.times, "time")}` : edge.earlier ? "taken in an earlier execution" : "not taken"}`;
    ways.append(titled(make("path", { d: path, class: `way ${taken ? "taken" : "idle"}`, "stroke-width": width, "marker-end": `url(#${taken ? "tip" : "idle-tip"})`, "data-way": `${edge.source}>${edge.action}>${edge.target}`, "data-times": edge.times }), says));
    const text = labelOf(edge);
    if (text) labels.append(make("text", { x: label[0], y: label[1], class: `way-label ${taken ? "taken" : "idle"}` }, text));
  }
  for (const { x, y, width, layer } of chart.first) {
    const from = layer ? [x, y - HEIGHT / 2 - 26] : [x - width / 2 - 34, y]; // from above, if another node is to the left
    const line = layer ? `M${x} ${from[1]}V${y - HEIGHT / 2 - 5}` : `M${from[0]} ${y}H${x - width / 2 - 5}`;
    ways.append(make("circle", { cx: from[0], cy: from[1], r: 5, class: "begin" }), make("path", { d: line, class: "way taken", "stroke-width": 2, "marker-end": "url(#tip)" }));
    cover(0, from[1] - 8, from[1]);
  }
  for (const [name, ended] of chart.ends) {
    const { x, y, width, layer } = byName.get(name);
    const alone = !chart.nodes.some((other) => other.layer === layer + 1 && Math.abs(other.y - y) < HEIGHT);
    const bad = ["failure", "timeout"].includes(outcome);
    const to = alone ? [x + width / 2 + 40, y] : [x + width / 2 + 16, y - HEIGHT / 2 - 14];
    const line = alone ? `M${x + width / 2} ${y}H${to[0] - 12}` : `M${x + width / 2 - 8} ${y - HEIGHT / 2}Q${x + width / 2 - 4} ${to[1]} ${to[0] - 11} ${to[1]}`;
    ways.append(make("path", { d: line, class: "way taken", "stroke-width": 2 }));
    ways.append(titled(make("circle", { cx: to[0], cy: to[1], r: 10, class: `end ${bad ? "bad" : outcome === "success" ? "" : "blue"}` }), `the run ended here${outcome ? `: ${outcome}` : ""}${times(ended)}`));
    labels.append(make("text", { x: to[0], y: to[1] + 4, class: "end-sign" }, SIGNS[outcome] ?? "■"));
    if (many) labels.append(make("text", { x: to[0], y: to[1] + 24, class: "way-label taken" }, `×${count(ended)}`));
    cover(to[0] + 14, to[1] - 14, to[1] + (many ? 28 : 14));
  }
  chart.nodes.forEach((node, at) => boxes.append(box(node, at === 0, pick, open, many)));
  const size = [right + 16, bottom - top + 12];
  const drawing = make("svg", { viewBox: `0 ${top - 4} ${size[0]} ${size[1]}`, width: size[0], height: size[1], role: "group", "aria-label": "graph with the path taken" }, tips(), ways, boxes, labels);
  drawing.style.minWidth = `${size[0] * 0.7}px`; // smaller text couldn't be read
  return drawing;
}

// The more often an edge was taken, the thicker it is.
function widthOfWay({ times: taken }) {
  return taken ? Math.min(2 + Math.log2(taken) * 0.6, 5) : 2;
}

function box(node, first, pick, open, many) {
  const { x, y, width, visits, type } = node;
  const outcome = outcomeOf(node);
  const left = x - width / 2;
  const upper = y - HEIGHT / 2;
  const rect = (dx, dy, name) => make("rect", { x: left + dx, y: upper + dy, width, height: HEIGHT, rx: 7, class: name });
  const retries = node.retries ? `retried ${plural(node.retries, "time")}` : "";
  const says = [node.name, outcome, plural(visits.length, "visit"), retries, visits.length ? belowOf(node) : kindOf(node)].filter(Boolean).join(", ");
  const group = titled(make("g", { // its title has the whole name, which may be shortened in the box
    class: `place ${outcome}`, role: "button", tabindex: first ? 0 : -1, "data-node": node.name,
    click: () => pick(node),
    dblclick: () => open(node),
    keydown: (event) => {
      if (event.key === "Enter" || event.key === " ") pick(node);
      else if (event.key === "o") open(node);
      else return;
      event.preventDefault();
      event.stopPropagation();
    },
  }), says);
  if (type === "fan_out") group.append(rect(6, -6, "behind"), rect(3, -3, "behind"));
  group.append(rect(0, 0, "box"));
  if (type === "graph") group.append(make("rect", { x: left + 3, y: upper + 3, width: width - 6, height: HEIGHT - 6, rx: 5, class: "inner" }));
  const sign = SIGNS[outcome];
  group.append(make("text", { x: left + 13, y: y + 5, class: "sign" }, sign));
  group.append(make("text", { x: left + (sign ? 28 : 13), y: y - 3, class: "name" }, shortened(node.name)));
  group.append(make("text", { x: left + (sign ? 28 : 13), y: y + 13, class: "second" }, belowOf(node)));
  const badges = [];
  if (visits.length > 1) badges.push(["", `×${count(visits.length)}`]);
  if (node.retries) badges.push(["warn", `↻${count(node.retries)}`]);
  if (node.failedItems) badges.push(["bad", `✗${count(node.failedItems)}`]);
  let at = left + width - 2;
  for (const [look, text] of badges) {
    const wide = text.length * 7 + 10;
    at -= wide;
    group.append(make("rect", { x: at, y: upper - 9, width: wide - 1, height: 17, rx: 8.5, class: `badge ${look}` }), make("text", { x: at + (wide - 1) / 2, y: upper + 3.5, class: `badge-text ${look}` }, text));
  }
  if (!many && node.turns.length) {
    const turns = node.turns.length > 2 ? `${node.turns[0]} … ${node.turns.at(-1)}` : node.turns.join(" · ");
    const raised = type === "fan_out" ? 10 : 4;
    group.append(make("text", { x: left + 2, y: upper - raised, class: "turn" }, turns));
  }
  if (node.inner.length) {
    group.append(titled(make("text", { x: left + width - 13, y: y - 2, class: "open", click: (event) => { event.stopPropagation(); open(node); } }, "⤢"), `open ${node.name} (o)`));
  }
  return group;
}

function titled(element, text) {
  const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
  title.textContent = text;
  element.append(title);
  return element;
}

function tips() {
  const tip = (id) => make("marker", { id, viewBox: "0 0 8 8", refX: 4, refY: 4, markerWidth: 9, markerHeight: 9, markerUnits: "userSpaceOnUse", orient: "auto" }, make("path", { d: "M0 0.5L7.5 4L0 7.5z", class: id }));
  return make("defs", {}, tip("tip"), tip("idle-tip"));
}
