// Where the time of an answer went: a bar, and the same in words.

import { element } from "./elements.js";

// class, what people call it, the server's field; in the order in which they happen
const STAGES = [
  ["wait", "waiting", "queue_ms"],
  ["text", "text", "tokenize_ms"],
  ["prepare", "picture", "preprocess_ms"],
  ["vision", "vision", "vision_ms"],
  ["prefill", "prefill", "prefill_ms"],
  ["decode", "decode", "decode_ms"],
];
const LEAST_MS = { wait: 1 }; // what is shorter is not shown: 0.05 where nothing else is said

/** The bar of one answer's times. */
export function timesOf(timings, usage) {
  const all = timings.queue_ms + timings.total_ms;
  const bar = element("div", { class: "bar", "aria-hidden": "true" });
  const legend = element("ul", { class: "legend small", "aria-label": "Where the time went" });
  for (const [kind, name, field] of STAGES) {
    const ms = timings[field];
    if (ms < (LEAST_MS[kind] ?? 0.05)) continue;
    const part = element("span", { class: kind });
    part.style.flexGrow = ms; // by script: the policy takes no style attribute
    bar.append(part);
    legend.append(element("li", {}, element("i", { class: kind, "aria-hidden": "true" }), `${name} `, element("b", {}, `${digits(ms)} ms`)));
  }
  const words = [`${digits(all)} ms in all`, `first token after ${digits(timings.queue_ms + timings.first_token_ms)} ms`];
  const cached = usage.prompt_tokens_details.cached_tokens;
  words.push(`${usage.prompt_tokens} tokens read${cached ? `, ${cached} of them known` : ""}, ${usage.completion_tokens} written`);
  return element("div", { class: "times" }, bar, legend, element("p", { class: "small" }, words.join(" · ")));
}

const digits = (ms) => (ms < 10 ? ms.toFixed(1) : Math.round(ms).toLocaleString("en"));
