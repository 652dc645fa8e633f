// The table of what is proven of a bundle.

import { element } from "./elements.js";

const WORDS = { passed: "within", failed: "OUTSIDE", reported: "no gate", skipped: "not checked" };

/** What the dialog shows of the server's answer. */
export function proofOf(proof) {
  const shown = [];
  if (proof.verify) {
    shown.push(element("p", { class: `verdict ${proof.verify.passed ? "passed" : "failed"}` }, first(proof.verify.verdict)));
    shown.push(table(`Measured by verify, with ${proof.runtime}${proof.verify.quick ? ", quickly" : ""}`, proof.verify.rows));
  } else {
    const line = element("code", {}, `tinyllava-edge verify BUNDLE --runtime ${proof.runtime} --checkpoint CHECKPOINT`);
    shown.push(element("p", {}, `Not verified with ${proof.runtime} on this machine. The server's owner can: `, line));
  }
  if (proof.export) shown.push(table("Measured by export, when the bundle was written", proof.export.rows));
  shown.push(parts(proof), hashes(proof));
  return shown;
}

/** Rows of one stage and variant stand together, below a row that names them. */
function table(caption, rows) {
  const made = element("table", { class: "proven" }, element("caption", {}, caption), head(["Metric", "Value", "Gate", "Result"], [1, 2]));
  let group = null;
  rows.forEach((row, index) => {
    const before = rows[index - 1];
    if (row.stage !== before?.stage || row.variant !== before.variant) {
      group = element("tbody", {}, element("tr", {}, title(row)));
      made.append(group);
    }
    group.append(line(row));
  });
  return made;
}

function title({ stage, variant, detail }) {
  const about = element("span", { class: "small" }, detail);
  return element("th", { scope: "rowgroup", colspan: 4 }, `${stage} ${variant} `, about);
}

function line({ metric, value, gate, status }) {
  return element(
    "tr",
    {},
    element("td", {}, metric),
    element("td", { class: "number" }, value === null ? "" : figure(value)),
    element("td", { class: "number" }, gate ? `${gate.kind === "max" ? "≤" : "≥"} ${figure(gate.limit)}` : ""),
    element("td", { class: `is-${status}` }, WORDS[status] ?? status),
  );
}

function parts(proof) {
  const body = element("tbody");
  for (const { part, name, status, bytes } of proof.variants) {
    const size = `${(bytes / 1e6).toFixed(1)} MB`;
    body.append(element("tr", {}, element("th", { scope: "row" }, part), element("td", {}, name), element("td", { class: "number" }, size), element("td", {}, status)));
  }
  return element("table", {}, element("caption", {}, "Variants in the bundle"), head(["Part", "Variant", "Size", "Status"], [2]), body);
}

function head(names, numbers) {
  const cells = names.map((name, index) => element("th", { scope: "col", ...(numbers.includes(index) ? { class: "number" } : {}) }, name));
  return element("thead", {}, element("tr", {}, ...cells));
}

function hashes({ source }) {
  const list = element("dl", { class: "facts small" });
  for (const [name, value] of [["made from", source.name], ["checkpoint", source.checkpoint_sha256], ["manifest", source.manifest_sha256]]) {
    list.append(element("dt", {}, name), element("dd", {}, value));
  }
  return list;
}

function figure(value) {
  if (typeof value === "string") return value.replace("inf", "∞");
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  if (size > 0.9 && size < 1) return value.toFixed(6);
  return size < 0.001 || size >= 1e6 ? value.toExponential(1) : String(Number(value.toPrecision(4)));
}

const first = (text) => text.charAt(0).toUpperCase() + text.slice(1);
