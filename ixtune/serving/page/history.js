// Earlier questions, in this browser's storage only.

import { answerNodes } from "./answers.js";
import { button, byId, counted, element } from "./dom.js";

const STORE = "ixtune.history";
const MOST = 50;
const MOST_CHARACTERS = 20_000; // of one answer

export class History {
  constructor(again) {
    this.again = again; // receives a question to ask again
    this.records = read();
    byId("clear").addEventListener("click", () => this.#keep([]));
    this.show();
  }

  add(record) {
    const answers = record.answers.map((one) => ({ ...one, text: one.text.slice(0, MOST_CHARACTERS) }));
    this.#keep([{ ...record, answers }, ...this.records].slice(0, MOST));
  }

  // Newest first, without the first `visible`, which are on the page anyway.
  show(visible = 0) {
    this.visible = visible;
    const earlier = this.records.slice(visible);
    byId("history").hidden = !this.records.length;
    byId("kept").textContent = `${counted(this.records.length, "question")}, kept in this browser only, without the images.`;
    byId("earlier").replaceChildren(...earlier.map((record) => this.#entry(record)));
  }

  #entry(record) {
    const when = new Date(record.at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
    const about = [when, ...record.names].join(" · ");
    const summary = element("summary", {}, element("span", { class: "asked" }, record.question), element("span", { class: "quiet" }, about));
    const entry = element("details", { class: "entry" }, summary);
    entry.addEventListener("toggle", () => {
      if (entry.childElementCount > 1) return; // built once
      const columns = record.answers.map((one) =>
        element("section", { class: "column" }, element("h3", {}, one.model), element("div", { class: "answer" }, ...answerNodes(one.text)), element("p", { class: "quiet" }, one.state === "done" ? "" : one.state)),
      );
      entry.append(element("div", { class: "columns" }, ...columns), button("Ask again", () => this.again(record.question)));
    });
    return entry;
  }

  #keep(records) {
    this.records = records;
    for (;;) {
      try {
        localStorage.setItem(STORE, JSON.stringify(this.records));
        break;
      } catch {
        if (!this.records.length) break; // no storage: the history lasts as long as the page
        this.records = this.records.slice(0, -1);
      }
    }
    this.show(Math.min(this.visible, records.length));
  }
}

function read() {
  try {
    const found = JSON.parse(localStorage.getItem(STORE) ?? "[]");
    return Array.isArray(found) ? found.filter(isRecord) : [];
  } catch {
    return [];
  }
}

function isRecord(one) {
  return typeof one?.question === "string" && Array.isArray(one.names) && Array.isArray(one.answers);
}
