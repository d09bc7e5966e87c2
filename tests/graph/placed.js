// Places graphs as the page of traces does: its own graph.js, with a document that only notes what is made.
const fs = require("node:fs");
const vm = require("node:vm");

const made = [];
const make = (tag, attributes = {}, ...content) => {
  const element = { tag, attributes, content, style: {}, append: (...more) => content.push(...more) };
  made.push(element);
  return element;
};
const document = { createElementNS: () => ({}) };
const page = vm.createContext({ make, document, plural: String, count: String, duration: String, times: () => "", graphs: JSON.parse(fs.readFileSync(0, "utf8")) });
vm.runInContext(fs.readFileSync(process.argv[2], "utf8"), page);
const found = vm.runInContext(`
  belowOf = () => ""; // in a picture of no run nothing is said of visits
  graphs.map((graph) => {
    const nodes = graph.nodes.map((name) => ({ name, type: "node", visits: [], turns: [], items: 0, failedItems: 0, retries: 0, inner: [] }));
    const edges = graph.edges.map(([source, action, target]) => ({ source, action, target, times: 0 }));
    const chart = { nodes, edges, first: nodes.slice(0, 1), start: nodes[0], ends: new Map() };
    draw(chart, { pick() {}, open() {}, outcome: "", many: false });
    return { places: nodes.map(({ name, layer, x, y, width }) => [name, layer, x, y, width]) };
  })`, page);
const ways = made.filter((each) => each.attributes["data-way"]).map((each) => [each.attributes["data-way"], each.attributes.d]);
process.stdout.write(JSON.stringify({ graphs: found, ways }));
