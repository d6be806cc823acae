// Images and documents to ask about: choose, drop, paste; pages of a PDF; crop grid and token counts of each.

import { button, byId, counted, element, shape, thousands } from "./dom.js";
import { layout } from "./server.js";

const PREVIEW = 900; // pixels
const PAGES_DRAWN = 6;
const PARTS = {
  global_view: "global view",
  global_newlines: "newlines of the global view",
  separator: "separator",
  crops: "crops",
  crop_newlines: "newlines of the crops",
};

export class Images {
  constructor(view, problem) {
    this.view = view; // returns { model, hd_num }
    this.problem = problem;
    this.sources = [];
    this.#listen();
  }

  get tokens() {
    return this.sources.reduce((sum, source) => sum + source.tokens, 0);
  }

  // The image_url values of all chosen images and pages.
  get urls() {
    return this.sources.flatMap((source) => source.urls);
  }

  get names() {
    return this.sources.map((source) => source.title);
  }

  get files() {
    return this.sources.flatMap((source) => source.runs.map((run) => ({ name: source.name, type: source.type, run })));
  }

  async add(files) {
    this.problem("");
    for (const file of files) {
      let address;
      try {
        address = await dataAddress(file);
      } catch {
        this.problem(`${file.name}: this file cannot be read.`);
        continue;
      }
      const source = new Source(file, address, this);
      this.sources.push(source);
      byId("images").append(source.figure);
      await source.open();
    }
  }

  remove(source) {
    source.close();
    this.sources = this.sources.filter((one) => one !== source);
    this.update();
  }

  refresh() {
    this.problem("");
    for (const source of this.sources) source.draw();
  }

  update() {
    const several = this.sources.length > 1 ? ` in ${counted(this.sources.length, "file")}` : "";
    byId("bill").textContent = this.sources.length ? `${counted(this.tokens, "image token")}${several}` : "";
  }

  #listen() {
    const drop = byId("drop");
    const input = byId("files");
    input.addEventListener("change", () => {
      this.add([...input.files]);
      input.value = "";
    });
    // a file dropped outside the zone would replace the page
    addEventListener("dragover", (event) => {
      event.preventDefault();
      drop.classList.add("over");
    });
    addEventListener("dragleave", (event) => {
      if (event.relatedTarget === null) drop.classList.remove("over");
    });
    addEventListener("drop", (event) => {
      event.preventDefault();
      drop.classList.remove("over");
      this.add([...event.dataTransfer.files]);
    });
    addEventListener("paste", (event) => {
      const files = [...(event.clipboardData?.files ?? [])];
      if (!files.length) return; // text goes where it was pasted
      event.preventDefault();
      this.add(files);
    });
  }
}

class Source {
  constructor(file, address, images) {
    this.name = file.name || "image.png";
    this.type = file.type || (/\.pdf$/i.test(this.name) ? "application/pdf" : "image/png");
    this.address = address;
    this.images = images;
    this.pages = 0; // 0 for an image
    this.chosen = new Set([1]);
    this.tokens = 0;
    this.body = element("div", { class: "views" });
    this.chooser = element("div", { class: "pages", role: "group", "aria-label": `Pages of ${this.name}` });
    const remove = button("Remove", () => this.images.remove(this), { "aria-label": `Remove ${this.name}` });
    const heading = element("figcaption", {}, element("span", { class: "name" }, this.name), remove);
    this.figure = element("figure", { class: "source" }, heading, this.chooser, this.body);
  }

  get isDocument() {
    return this.type === "application/pdf";
  }

  // Runs of chosen pages, such as 2-5; null stands for an image.
  get runs() {
    if (!this.pages) return [null];
    const runs = [];
    for (const page of [...this.chosen].sort((a, b) => a - b)) {
      if (runs.length && runs.at(-1)[1] === page - 1) runs.at(-1)[1] = page;
      else runs.push([page, page]);
    }
    return runs;
  }

  get urls() {
    return this.runs.map((run) => this.address + fragment(run));
  }

  get title() {
    if (!this.pages) return this.name;
    const pages = this.runs.map(([first, last]) => (first === last ? first : `${first}-${last}`)).join(", ");
    return `${this.name}, page ${pages}`;
  }

  async open() {
    if (this.isDocument) {
      const all = await this.#ask({ image: this.address });
      if (!all) return;
      this.pages = all.pages.length;
      this.#showChooser(all.pages);
    }
    await this.draw();
  }

  close() {
    this.waiting?.abort();
    this.figure.remove();
  }

  async draw() {
    this.waiting?.abort();
    const waiting = (this.waiting = new AbortController());
    this.figure.setAttribute("aria-busy", "true");
    const pages = [];
    for (const url of this.urls) {
      const found = await this.#ask({ image: url, preview: PREVIEW }, waiting.signal);
      if (waiting.signal.aborted) return;
      if (!found) break;
      pages.push(...found.pages);
    }
    this.figure.removeAttribute("aria-busy");
    if (!pages.length) return;
    this.tokens = pages.reduce((sum, page) => sum + page.tokens, 0);
    this.body.replaceChildren(...pages.slice(0, PAGES_DRAWN).map((page) => drawing(page, this.name)));
    if (pages.length > PAGES_DRAWN) {
      this.body.append(element("p", { class: "quiet" }, `and ${counted(pages.length - PAGES_DRAWN, "more page")}`));
    }
    this.images.update();
  }

  async #ask(body, signal) {
    const { model, hd_num } = this.images.view();
    try {
      return await layout({ ...body, model, ...(hd_num ? { hd_num } : {}) }, signal);
    } catch (error) {
      if (error.name === "AbortError") return null;
      this.tokens = 0;
      this.images.problem(`${this.name}: ${error.message}`);
      if (!this.body.childElementCount) this.images.remove(this);
      return null;
    }
  }

  #showChooser(pages) {
    if (pages.length < 2) return;
    this.chooser.replaceChildren(
      ...pages.map(({ tokens }, at) => {
        const number = at + 1;
        const toggle = button(String(number), () => this.#toggle(number), {
          "aria-pressed": String(this.chosen.has(number)),
          "aria-label": `Page ${number}, ${counted(tokens, "token")}`,
        });
        return toggle;
      }),
    );
  }

  #toggle(number) {
    if (!this.chosen.delete(number)) this.chosen.add(number);
    if (!this.chosen.size) this.chosen.add(number); // one page at least
    [...this.chooser.children].forEach((toggle, at) => {
      toggle.setAttribute("aria-pressed", String(this.chosen.has(at + 1)));
    });
    this.draw();
  }
}

export const fragment = (run) => {
  if (!run) return "";
  return run[0] === run[1] ? `#page=${run[0]}` : `#page=${run[0]}-${run[1]}`;
};

// Draw an image as the model gets it: resized, padded, with the borders of its crops.
function drawing(page, name) {
  const { final_width: width, final_height: height, rows, cols } = page;
  const line = Math.max(width, height) / 350;
  const numbers = [];
  for (let row = 0; row < rows; row += 1) {
    for (let column = 0; column < cols; column += 1) {
      const [x, y] = [(column * width) / cols, (row * height) / rows];
      const text = String(row * cols + column + 1);
      const size = Math.max(width, height) / 36;
      numbers.push(
        shape("rect", { class: "tab", x, y, width: size * (0.7 + 0.55 * text.length), height: size * 1.25 }),
        shape("text", { class: "tab-text", x: x + size * 0.35, y: y + size * 0.98, "font-size": size }, text),
      );
    }
  }
  const lines = [];
  for (let column = 0; column <= cols; column += 1) {
    const x = (column * width) / cols;
    lines.push([x, 0, x, height]);
  }
  for (let row = 0; row <= rows; row += 1) {
    const y = (row * height) / rows;
    lines.push([0, y, width, y]);
  }
  const where = page.page ? `page ${page.page} of ${name}` : name;
  const described = `${where}: ${counted(page.crops, "crop")}, ${rows} × ${cols}`;
  const grid = ["casing", "border"].flatMap((kind) =>
    lines.map(([x1, y1, x2, y2]) =>
      shape("line", { class: kind, x1, y1, x2, y2, "stroke-width": kind === "casing" ? 2 * line : line }),
    ),
  );
  const image = shape("image", {
    href: page.preview,
    x: page.pad_left,
    y: page.pad_top,
    width: page.resized_width,
    height: page.resized_height,
    preserveAspectRatio: "none",
  });
  const { pad_left: left, pad_top: top, pad_right: right, pad_bottom: bottom } = page;
  const pads = [
    { x: 0, y: 0, width: left, height },
    { x: width - right, y: 0, width: right, height },
    { x: left, y: 0, width: width - left - right, height: top },
    { x: left, y: height - bottom, width: width - left - right, height: bottom },
  ].map((side) => shape("rect", { class: "pad", ...side }));
  const view = `${-line} ${-line} ${width + 2 * line} ${height + 2 * line}`;
  const svg = shape("svg", { class: "grid", viewBox: view, role: "img", "aria-label": described }, image, ...pads, ...grid, ...numbers);
  return element("div", { class: "view" }, svg, bill(page));
}

function bill(page) {
  const rows = Object.entries(page.token_parts)
    .filter(([, count]) => count)
    .map(([part, count]) => {
      const title = part === "crops" ? counted(page.crops, "crop") : (PARTS[part] ?? part);
      return element("tr", {}, element("td", {}, title), element("td", { class: "number" }, thousands(count)));
    });
  const size = `${page.width} × ${page.height} pixels, ${page.rows} × ${page.cols} crops`;
  const title = `${page.page ? `Page ${page.page}: ` : ""}${counted(page.tokens, "token")}`;
  const notes = page.notes.map((note) => element("p", { class: "quiet" }, note));
  const table = element("table", { class: "bill" }, element("tbody", {}, ...rows));
  return element("details", { class: "cost" }, element("summary", {}, `${title} · ${size}`), table, ...notes);
}

function dataAddress(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.addEventListener("load", () => {
      // some systems have no MIME type for HEIC or TIFF files; the server checks the content
      resolve(reader.result.replace(/^data:(?:application\/octet-stream)?(?=;|,)/, "data:image/png"));
    });
    reader.addEventListener("error", () => reject(reader.error));
    reader.readAsDataURL(file);
  });
}
