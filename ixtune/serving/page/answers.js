// One question and its answers: a column for each model, filled as the tokens arrive.

import { curl, python } from "./code.js";
import { button, counted, element, thousands } from "./dom.js";
import { parsed, table } from "./json_table.js";
import { hasKey } from "./server.js";

const DONE_FOR_MS = 1500;

export class Exchange {
  constructor(asked, models) {
    this.columns = models.map((model) => new Column({ ...asked, model }));
    this.asked = asked;
    this.node = element(
      "article",
      { class: "exchange" },
      element("h2", { class: "asked" }, asked.question),
      element("p", { class: "quiet" }, [...asked.names, asked.settings.hd_num && `hd_num ${asked.settings.hd_num}`].filter(Boolean).join(" · ")),
      element("div", { class: "columns" }, ...this.columns.map((column) => column.node)),
    );
  }

  // What the history keeps.
  get record() {
    const answers = this.columns.map(({ asked, text, state }) => ({ model: asked.model, text, state }));
    return { at: Date.now(), question: this.asked.question, names: this.asked.names, answers };
  }
}

class Column {
  constructor(asked) {
    this.asked = asked;
    this.text = "";
    this.state = "waiting";
    this.body = element("div", { class: "answer", "aria-busy": "true" });
    this.figures = element("p", { class: "quiet figures" }, "waiting …");
    this.tools = element("div", { class: "row tools" });
    const heading = element("h3", {}, asked.model);
    this.node = element("section", { class: "column", "aria-label": `Answer of ${asked.model}` }, heading, this.body, this.figures, this.tools);
  }

  start() {
    this.began = performance.now();
    this.shown = document.createTextNode("");
    this.body.append(this.shown);
  }

  add(chunk) {
    const choice = chunk.choices[0];
    if (choice?.delta.content) {
      if (!this.text) this.first = performance.now() - this.began;
      this.text += choice.delta.content;
      this.shown.data = this.text.trimStart();
      this.figures.textContent = "answering …";
    }
    if (choice?.finish_reason) this.finish = choice.finish_reason;
    if (chunk.usage) this.usage = chunk.usage;
  }

  // `state` is done, stopped or failed.
  end(state, message = "") {
    this.state = state;
    this.text = this.text.trim();
    this.body.removeAttribute("aria-busy");
    this.body.classList.toggle("failed", state === "failed");
    this.figures.textContent = state === "failed" ? "" : figuresOf(this);
    if (state === "failed") this.body.replaceChildren(element("p", { class: "problem" }, message));
    else this.body.replaceChildren(...answerNodes(this.text));
    this.tools.replaceChildren(
      copying("Copy answer", () => this.text, this.text === ""),
      copying("curl", () => curl(this.asked, hasKey())),
      copying("Python", () => python(this.asked, hasKey())),
    );
  }
}

// An answer as text, and if it is JSON as a table with a button for the text.
export function answerNodes(text) {
  const value = parsed(text);
  if (value === null) return [element("p", { class: "text" }, text || "(no text)")];
  const drawn = element("div", { class: "scroll" }, table(value));
  const plain = element("pre", { class: "text", hidden: true }, JSON.stringify(value, null, 2));
  const change = button("Show JSON", () => {
    plain.hidden = !plain.hidden;
    drawn.hidden = !drawn.hidden;
    change.textContent = plain.hidden ? "Show JSON" : "Show table";
  });
  return [drawn, plain, change];
}

function figuresOf({ usage, finish, state, first, began }) {
  const seconds = (performance.now() - began) / 1000;
  const found = [];
  if (state === "stopped") found.push("stopped");
  if (finish === "length") found.push("cut off by the maximum of new tokens");
  if (usage) {
    const details = usage.prompt_tokens_details ?? {};
    const cached = details.cached_tokens ? ", images from the cache" : "";
    found.push(`${counted(usage.prompt_tokens, "token")} in${cached}`, `${thousands(usage.completion_tokens)} out`);
  }
  if (first !== undefined) found.push(`first token after ${(first / 1000).toFixed(2)} s, all after ${seconds.toFixed(2)} s`);
  return found.join(" · ");
}

function copying(title, text, disabled = false) {
  const made = button(title, async () => {
    const done = await copied(text());
    made.textContent = done ? "Copied" : "Copying failed";
    setTimeout(() => (made.textContent = title), DONE_FOR_MS);
  }, { disabled });
  return made;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // without https, this is the only clipboard that browsers offer
    const field = element("textarea", { class: "hidden", readonly: true });
    field.value = text;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}
