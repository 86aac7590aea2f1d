// A dialog in which the pictures of one entry of a page are seen closely, and from which one goes to the next.
//
//   const closer = new Closer({ entries, load, tools: [select], told });
//   closer.look(entry);
//
// `entries()` lists what can be seen, in order, and `load(entry)` brings { name, pictures } of one, as the Viewer takes them;
// `told(entry)` is called when another is seen, and with null at the end.
import { Bitmaps } from "./bitmaps.js";
import { Viewer, button, element } from "./viewer.js";

export class Closer {
  constructor({ entries, load, tools = [], told = () => {}, overlays = false }) {
    Object.assign(this, { entries, load, told, seen: null });
    this.dialog = element("dialog", { id: "closer", "aria-labelledby": "closer-name" });
    this.title = element("h2", { id: "closer-name" });
    const ways = element("span");
    ways.append(button("\u2190", () => this.step(-1), { "aria-label": "Previous image" }),
      button("\u2192", () => this.step(1), { "aria-label": "Next image" }));
    const head = element("header"), stage = element("div");
    head.append(this.title, ...tools, ways, button("Close", () => this.dialog.close()));
    this.dialog.append(head, stage);
    document.body.append(this.dialog);
    this.viewer = new Viewer(stage, { keys: this.dialog, help: [["Page up, down", "previous, next image"]], overlays });
    this.dialog.addEventListener("close", () => {
      this.seen = null;
      this.told(null);
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.key === "PageUp" || event.key === "PageDown") this.step(event.key === "PageUp" ? -1 : 1);
    });
  }

  async look(entry) {
    this.seen = entry;
    const { name, pictures } = await this.load(entry);
    if (this.seen !== entry) return; // another was asked for in the meantime
    this.title.textContent = name;
    if (!this.dialog.open) this.dialog.showModal();
    this.viewer.show(pictures);
    this.viewer.stage.focus();
    this.told(entry);
  }

  step(ways) {
    const others = this.entries(), next = others[others.indexOf(this.seen) + ways];
    if (next) this.look(next);
  }
}

// From the address of a file beside the page; null for none.
export async function pictureOf(source) {
  if (!source) return null;
  const image = new Image();
  image.src = source;
  await image.decode();
  return Bitmaps.of(image);
}

// A click on a link to a picture looks closely, unless it is to open the file itself.
export function isPlainClick(event) {
  return !event.ctrlKey && !event.metaKey && !event.shiftKey;
}
