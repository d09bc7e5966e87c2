// The search: by a text in names and attributes, or by duration.

const UNITS = { ns: 1, us: 1e3, "µs": 1e3, ms: 1e6, s: 1e9, min: 60e9, h: 3600e9 };

// Does a span's name, attributes, message or events contain a text? Or for `>100ms`: did it take longer? Each distinct name and
// attribute is searched once.
function matcher(word) {
  const [, sign, number, unit] = /^([<>≤≥]=?)(\d+(?:\.\d+)?)(ns|us|µs|ms|s|min|h)$/.exec(word) ?? [];
  if (sign) {
    const limit = Number(number) * UNITS[unit];
    return "<≤".includes(sign[0]) ? (span) => !span.goesOn && span.took <= limit : (span) => span.took >= limit;
  }
  const has = (text) => String(text).toLowerCase().includes(word);
  const texts = data.texts.map(has);
  const pairs = data.pairs.map(([key, value]) => has(`${data.texts[key]}=${typeof value === "object" ? JSON.stringify(value) : value}`));
  const any = (numbers) => numbers.some((number) => pairs[number]);
  return (span) => texts[span.nameNumber] || any(span.pairs) || has(span.message) || span.id === word || span.events.some((event) => has(event[0]) || any(event[2]));
}
