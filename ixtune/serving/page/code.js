// A request as a curl command and as Python, with file names instead of file contents.
// `asked` has model, question, system, files, and the other fields of the body in `settings`.

import { fragment } from "./images.js";

const base = () => new URL("v1", document.baseURI).href;

export function curl(asked, withKey) {
  const mark = crypto.randomUUID(); // stands for a file's content, and for nothing that the user wrote
  const addresses = asked.files.map(({ type, run }, at) => `data:${type};base64,${mark}-${at}-${fragment(run)}`);
  const body = { model: asked.model, messages: messages(asked, addresses), ...asked.settings };
  // the shell reads $, ` and \ in a here-document
  const text = JSON.stringify(body, null, 2).replace(/[\\$`]/g, "\\$&");
  const reads = asked.files.map(({ name }, at) => `FILE${at + 1}=$(base64 < ${quoted(name)} | tr -d '\\n')\n`);
  return [
    ...reads,
    `curl ${quoted(`${base()}/chat/completions`)} \\\n`,
    withKey ? '  -H "Authorization: Bearer $IXTUNE_API_KEY" \\\n' : "",
    "  -H 'Content-Type: application/json' --data-binary @- <<END\n",
    text.replaceAll(new RegExp(`${mark}-(\\d+)-`, "g"), (_, at) => `\${FILE${Number(at) + 1}}`),
    "\nEND\n",
  ].join("");
}

export function python(asked, withKey) {
  const { hd_num, ...known } = asked.settings;
  const system = `        {"role": "system", "content": ${literal(asked.system)}},\n`;
  const parts = asked.files.map(({ name, type, run }) => {
    const page = run ? ` + ${literal(fragment(run))}` : "";
    const url = `data_address(${literal(name)}, ${literal(type)})${page}`;
    return `                {"type": "image_url", "image_url": {"url": ${url}}},\n`;
  });
  const reader = [
    "def data_address(path, kind):\n",
    '    with open(path, "rb") as file:\n',
    '        return f"data:{kind};base64,{base64.b64encode(file.read()).decode()}"\n\n\n',
  ];
  return [
    asked.files.length ? "import base64\n" : "",
    withKey ? "import os\n" : "",
    asked.files.length || withKey ? "\n" : "",
    asked.files.length ? "from openai import OpenAI\n\n\n" : "from openai import OpenAI\n\n",
    ...(asked.files.length ? reader : []),
    `client = OpenAI(base_url=${literal(base())}, api_key=${withKey ? 'os.environ["IXTUNE_API_KEY"]' : '"none"'})\n`,
    "answer = client.chat.completions.create(\n",
    `    model=${literal(asked.model)},\n`,
    "    messages=[\n",
    asked.system ? system : "",
    '        {\n            "role": "user",\n            "content": [\n',
    ...parts,
    `                {"type": "text", "text": ${literal(asked.question)}},\n`,
    "            ],\n        },\n    ],\n",
    ...Object.entries(known).map(([name, value]) => `    ${name}=${literal(value)},\n`),
    hd_num ? `    extra_body={"hd_num": ${hd_num}},\n` : "",
    ")\nprint(answer.choices[0].message.content)\n",
  ].join("");
}

export function messages(asked, addresses) {
  const system = asked.system ? [{ role: "system", content: asked.system }] : [];
  const images = addresses.map((url) => ({ type: "image_url", image_url: { url } }));
  return [...system, { role: "user", content: [...images, { type: "text", text: asked.question }] }];
}

// A Python literal: JSON's texts and numbers are Python's too, its three names are not.
function literal(value) {
  if (value === null) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (Array.isArray(value)) return `[${value.map(literal).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  return `{${Object.entries(value).map(([name, inner]) => `${literal(name)}: ${literal(inner)}`).join(", ")}}`;
}

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
