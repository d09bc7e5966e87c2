// Formats numbers and durations for people, and makes elements.

function count(number) {
  return Number(number).toLocaleString("en");
}

function times(number) {
  return number > 1 ? ` ×${count(number)}` : "";
}

function plural(number, word) {
  return `${count(number)} ${word}${number === 1 ? "" : "s"}`;
}

// A duration in nanoseconds, for people.
function duration(ns) {
  if (ns === 0) return "0";
  if (ns < 1e3) return `${Math.round(ns)} ns`;
  if (ns < 999.5e3) return `${Math.round(ns / 1e3)} µs`;
  if (ns < 999.5e6) return `${(ns / 1e6).toFixed(ns < 1e8 ? 1 : 0)} ms`;
  if (ns < 60e9) return `${(ns / 1e9).toFixed(2)} s`;
  const minutes = Math.floor(ns / 60e9);
  return minutes < 60 ? `${minutes} min ${Math.floor(ns / 1e9) % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// An HTML or SVG element with attributes, listeners and content. Data of traces is inserted as text only, never as markup.
function make(tag, attributes = {}, ...content) {
  const element = SVG.has(tag) ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value !== undefined && value !== false && value !== "") element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...content.filter((each) => each !== null && each !== undefined && each !== ""));
  return element;
}

const SVG = new Set(["svg", "g", "path", "rect", "circle", "text", "defs", "marker"]);

// An element of the page, by its id.
const at = (id) => document.getElementById(id);
