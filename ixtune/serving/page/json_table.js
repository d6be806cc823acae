// JSON as tables.

import { element } from "./dom.js";

const MAX_DEPTH = 6;

// Parse a text as an object or list; null if it is neither.
export function parsed(text) {
  const start = text.trimStart().charAt(0);
  if (start !== "{" && start !== "[") return null;
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

export function table(value, depth = 0) {
  if (value === null || typeof value !== "object") return cell(value);
  if (depth > MAX_DEPTH) return element("code", {}, JSON.stringify(value));
  if (Array.isArray(value)) return list(value, depth);
  const entries = Object.entries(value);
  if (!entries.length) return element("span", { class: "quiet" }, "{}");
  const rows = entries.map(([key, inner]) =>
    element("tr", {}, element("th", { scope: "row" }, key), element("td", {}, table(inner, depth + 1))),
  );
  return element("table", { class: "json" }, element("tbody", {}, ...rows));
}

function list(values, depth) {
  if (!values.length) return element("span", { class: "quiet" }, "[]");
  const records = values.every((value) => value !== null && typeof value === "object" && !Array.isArray(value));
  if (!records) {
    const items = values.map((value) => element("li", {}, table(value, depth + 1)));
    return element("ol", { class: "json" }, ...items);
  }
  const columns = [...new Set(values.flatMap((value) => Object.keys(value)))];
  const head = element("tr", {}, ...columns.map((name) => element("th", { scope: "col" }, name)));
  const rows = values.map((value) =>
    element("tr", {}, ...columns.map((name) => element("td", {}, name in value ? table(value[name], depth + 1) : ""))),
  );
  return element("table", { class: "json" }, element("thead", {}, head), element("tbody", {}, ...rows));
}

function cell(value) {
  if (value === null || typeof value === "boolean") return element("span", { class: "quiet" }, String(value));
  return document.createTextNode(String(value));
}
