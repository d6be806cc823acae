// The page: models, question, answers.

import { Exchange } from "./answers.js";
import { messages } from "./code.js";
import { byId, element } from "./dom.js";
import { History } from "./history.js";
import { Images } from "./images.js";
import { models as listModels, Problem, stream, useKey } from "./server.js";

let models = [];
let running = null; // the AbortController of the answers that are being generated
let shown = 0; // exchanges on the page
let hdNumIsOwn = false; // whether the user has chosen it
let drawnFor = ""; // model and hd_num that the images were drawn for

const images = new Images(() => ({ model: chosen()[0] ?? models[0].id, hd_num: number("hd_num") }), problem);
const history = new History((question) => {
  byId("question").value = question;
  byId("question").focus();
});

function problem(message) {
  byId("problem").textContent = message;
  byId("problem").hidden = message === "";
}

const number = (id) => (byId(id).value.trim() === "" ? undefined : Number(byId(id).value));
const chosen = () => [...document.querySelectorAll("#models input:checked")].map((box) => box.value);

async function connect() {
  try {
    models = await listModels();
  } catch (error) {
    if (error.status !== 401) {
      byId("about").textContent = "";
      problem(error.message);
      return;
    }
    byId("about").textContent = "";
    if (!byId("unlock").hidden) problem(error.message);
    byId("unlock").hidden = false;
    byId("key").focus();
    return;
  }
  problem("");
  byId("unlock").hidden = true;
  byId("about").textContent = `${models.map((one) => one.id).join(", ")} · up to ${models[0].max_context.toLocaleString("en")} tokens`;
  const first = models[0].id;
  const base = models.find((one) => !one.adapter)?.id;
  byId("models").append(
    ...models.map((one) =>
      element(
        "label",
        {},
        element("input", { type: "checkbox", value: one.id, checked: one.id === first || one.id === base }),
        ` ${one.id}`,
      ),
    ),
  );
  followModel();
  document.querySelector("main").hidden = false;
  byId("question").focus();
}

// Use the training hd_num of the first chosen model, unless the user has set one.
function followModel() {
  const model = models.find((one) => one.id === chosen()[0]) ?? models[0];
  if (!hdNumIsOwn) byId("hd_num").value = model.hd_num;
  byId("send").disabled = !chosen().length || running !== null;
  const view = `${chosen()[0]} ${byId("hd_num").value}`;
  if (view !== drawnFor) images.refresh();
  drawnFor = view;
}

function requestOf(question) {
  const form = byId("form").value;
  const settings = { max_tokens: number("max_tokens"), hd_num: number("hd_num") };
  if (number("temperature")) settings.temperature = number("temperature");
  if (form === "json_object") settings.response_format = { type: form };
  if (form === "json_schema") {
    let schema;
    try {
      schema = JSON.parse(byId("schema").value);
    } catch (error) {
      throw new Problem(`The JSON schema cannot be read: ${error.message}`);
    }
    settings.response_format = { type: form, json_schema: { name: "answer", schema, strict: true } };
  }
  return { question, system: byId("system").value.trim(), files: images.files, names: images.names, settings };
}

async function ask() {
  const question = byId("question").value.trim();
  if (!question || running || !chosen().length) return;
  problem("");
  let asked;
  try {
    asked = requestOf(question);
  } catch (error) {
    problem(error.message);
    return;
  }
  const exchange = new Exchange(asked, chosen());
  byId("answers").prepend(exchange.node);
  running = new AbortController();
  busy(true);
  const content = messages(asked, images.urls);
  await Promise.all(exchange.columns.map((column) => answer(column, content, running.signal)));
  running = null;
  busy(false);
  shown += 1;
  history.visible = shown;
  history.add(exchange.record);
}

async function answer(column, content, signal) {
  column.start();
  const body = { model: column.asked.model, messages: content, ...column.asked.settings, stream: true };
  try {
    for await (const chunk of stream({ ...body, stream_options: { include_usage: true } }, signal)) column.add(chunk);
    column.end("done");
  } catch (error) {
    if (error.name === "AbortError") column.end("stopped");
    else column.end("failed", error.message);
  }
}

function busy(is) {
  byId("stop").disabled = !is;
  byId("send").disabled = is || !chosen().length;
  byId("said").textContent = is ? "Answering" : "The answer is complete";
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
byId("stop").addEventListener("click", () => running?.abort());
byId("question").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  ask();
});
addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
byId("models").addEventListener("change", followModel);
byId("hd_num").addEventListener("change", () => {
  hdNumIsOwn = byId("hd_num").value !== "";
  followModel();
});
byId("form").addEventListener("change", () => {
  byId("schema_field").hidden = byId("form").value !== "json_schema";
});
byId("unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  connect();
});

connect();
