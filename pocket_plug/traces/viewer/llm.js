// Calls of language models: the model, its tokens and cost, and the messages as a conversation. Spans have them as attributes of
// OpenInference or of OpenTelemetry's gen_ai conventions; both are read into the same form.

function saidOf(span, ...names) {
  for (const name of names) if (span.get(name) !== undefined) return span.get(name);
  return undefined;
}

const FIGURES = {
  input: ["llm.token_count.prompt", "gen_ai.usage.input_tokens"],
  output: ["llm.token_count.completion", "gen_ai.usage.output_tokens"],
  cost: ["llm.cost.total"],
};

// The tokens in and out of a span, and its cost in dollars, as far as it has them.
function usageOf(span) {
  const usage = {};
  for (const [figure, names] of Object.entries(FIGURES)) {
    const value = Number(saidOf(span, ...names));
    if (Number.isFinite(value)) usage[figure] = value;
  }
  const parts = [span.get("llm.cost.prompt"), span.get("llm.cost.completion")].filter((part) => part !== undefined).map(Number);
  if (usage.cost === undefined && parts.length && parts.every(Number.isFinite)) usage.cost = parts.reduce((sum, part) => sum + part, 0);
  return usage;
}

// The usage of a whole trace. An agent's span may repeat the sum of the calls below it, so only the innermost span of a chain counts.
function usageOfTrace(trace) {
  const total = {};
  if (![...Object.values(FIGURES).flat(), "llm.cost.prompt", "llm.cost.completion"].some((name) => keys.has(name))) return total;
  const counted = trace.tree.map(() => new Set());
  for (let at = trace.tree.length; at--; ) {
    const span = trace.tree[at];
    for (const [figure, value] of Object.entries(usageOf(span))) {
      if (!counted[at].has(figure)) total[figure] = (total[figure] ?? 0) + value;
      counted[at].add(figure);
    }
    if (span.parent) for (const figure of counted[at]) counted[span.parent.order].add(figure);
  }
  return total;
}

function tokensText({ input, output }) {
  return [input === undefined ? "" : `${count(input)} in`, output === undefined ? "" : `${count(output)} out`].filter(Boolean).join(" · ");
}

function costText(cost) {
  return cost === undefined ? "" : `$${cost.toLocaleString("en", { maximumSignificantDigits: 4 })}`;
}

function modelOf(span) {
  return saidOf(span, "llm.model_name", "gen_ai.response.model", "gen_ai.request.model");
}

// ---------------------------------------------------------------- messages
const OPENINFERENCE = /^llm\.(input|output)_messages\.(\d+)\.message\.(.+)$/;
const GEN_AI = ["gen_ai.system_instructions", "gen_ai.input.messages", "gen_ai.output.messages"];

// Does the conversation show this attribute?
function isMessage(name) {
  return OPENINFERENCE.test(name) || GEN_AI.includes(name);
}

// The messages of a span: each with its role and its parts: texts, calls of tools, and their results.
function messagesOf(span) {
  const open = openInferenceMessages(span);
  return open.length ? open : genAiMessages(span);
}

function openInferenceMessages(span) {
  const messages = new Map(); // by direction and number
  for (const [name, value] of span.attributes) {
    const [, way, number, rest] = OPENINFERENCE.exec(name) ?? [];
    if (!way) continue;
    const key = `${way} ${number}`;
    if (!messages.has(key)) messages.set(key, { way, number: Number(number), said: new Map() });
    messages.get(key).said.set(rest, value);
  }
  return [...messages.values()].sort((one, other) => (one.way === other.way ? one.number - other.number : one.way === "input" ? -1 : 1)).map(({ way, said }) => {
    const role = String(said.get("role") ?? (way === "input" ? "user" : "assistant"));
    const parts = [];
    const result = role === "tool" || said.has("tool_call_id");
    if (said.get("content") !== undefined && said.get("content") !== "") parts.push(result ? { kind: "result", id: said.get("tool_call_id"), text: said.get("content") } : { kind: "text", text: said.get("content") });
    for (const [, each] of numbered(said, "contents")) parts.push({ kind: "text", text: each.get("message_content.text") ?? `(${each.get("message_content.type") ?? "content"}) ${each.get("message_content.image.image.url") ?? ""}` });
    for (const [, each] of numbered(said, "tool_calls")) parts.push({ kind: "call", id: each.get("tool_call.id"), name: each.get("tool_call.function.name"), text: each.get("tool_call.function.arguments") });
    return { way, role, name: said.get("name"), parts };
  });
}

// The attributes below `contents.0.…` and so on, by number.
function numbered(said, prefix) {
  const found = new Map();
  for (const [name, value] of said) {
    const [, number, rest] = /^(\d+)\.(.+)$/.exec(name.startsWith(`${prefix}.`) ? name.slice(prefix.length + 1) : "") ?? [];
    if (rest === undefined) continue;
    if (!found.has(Number(number))) found.set(Number(number), new Map());
    found.get(Number(number)).set(rest, value);
  }
  return [...found].sort(([one], [other]) => one - other);
}

function genAiMessages(span) {
  const [system, input, output] = GEN_AI.map((name) => parsed(span.get(name)));
  const of = (way, messages) => messages.filter((each) => each !== null && typeof each === "object").map(({ role, name, parts, content, finish_reason: end }) => ({ way, role: String(role ?? "user"), name, end, parts: (Array.isArray(parts) ? parts : [content]).map(partOf) }));
  return [...(system.length ? [{ way: "input", role: "system", parts: system.map(partOf) }] : []), ...of("input", input), ...of("output", output)];
}

// The value if it is a list, or the list that it has as JSON; else an empty list.
function parsed(value) {
  try {
    const list = typeof value === "string" ? JSON.parse(value) : value;
    return Array.isArray(list) ? list : [];
  } catch {
    return []; // it may be truncated; then it is shown among the attributes
  }
}

function partOf(part) {
  if (part === null || typeof part !== "object") return { kind: "text", text: part ?? "" };
  const { type, content, id, name } = part;
  if (type === "tool_call") return { kind: "call", id, name, text: part.arguments };
  if (type === "tool_call_response") return { kind: "result", id, text: part.response ?? part.result };
  if (type === "reasoning" || type === "thinking") return { kind: "thought", text: content };
  return { kind: "text", text: content ?? part };
}

// ---------------------------------------------------------------- elements
// The model, its usage and the conversation, at the top of a span's details.
function llmSections(span) {
  const [model, usage, messages] = [modelOf(span), usageOf(span), messagesOf(span)];
  const facts = [["model", model], ["provider", saidOf(span, "llm.provider", "gen_ai.provider.name")], ["tokens", tokensText(usage)], ["cost", costText(usage.cost)]].filter(([, value]) => value !== undefined && value !== "");
  return [
    facts.length ? factsOf(facts.map(([name, value]) => [name, String(value)])) : "",
    messages.length ? section("Conversation", make("ol", { class: "conversation" }, ...messages.map(messageOf))) : ""];
}

function messageOf({ way, role, name, end, parts }) {
  return make("li", { class: `message-of ${role === "assistant" ? "assistant" : role === "user" ? "user" : "other"}` },
    make("p", { class: "who" }, make("b", {}, role), name ? ` ${name}` : "", way === "output" ? make("span", { class: "word" }, ` answer${end ? `, ${end}` : ""}`) : ""),
    ...parts.map(({ kind, id, name: tool, text }) => make("div", { class: `part ${kind}` },
      kind === "text" ? "" : make("p", { class: "word" }, kind === "call" ? make("span", { class: "mono" }, `→ ${tool ?? "tool"}`) : kind === "result" ? "← result" : "thought", id ? make("span", { class: "mono" }, ` ${id}`) : ""),
      text === undefined || text === "" ? "" : make(kind === "text" || kind === "thought" ? "p" : "pre", kind === "text" || kind === "thought" ? { class: "text" } : { tabindex: 0 }, textOf(text)))));
}

// ---------------------------------------------------------------- input and output
const VALUES = { Input: /^(pocket_plug\.(run|node|phase)\.input|input\.value)$/, Output: /^(pocket_plug\.(run|node|phase)\.output|output\.value)$/ };

// Input and output, if they were captured. If both pocket_plug's and OpenInference's attribute have the value, it is shown once.
function valueSections(span) {
  if (messagesOf(span).length) return [];
  return Object.entries(VALUES).flatMap(([title, pattern]) => {
    const texts = new Set(span.attributes.filter(([name]) => pattern.test(name)).map(([, value]) => textOf(value)));
    return [...texts].map((text) => section(title, make("pre", { tabindex: 0 }, text), copyButton(`copy the ${title.toLowerCase()}`, () => text)));
  });
}

function isValue(name) {
  return Object.values(VALUES).some((pattern) => pattern.test(name));
}
