// Two pictures of one scene, compared: zoom, pan, a split line, side by side, and what lies between the two.
//
//   const viewer = new Viewer(element, { keys: document });
//   viewer.show({ left, right, removed, overlay, names: ["original", "denoised", "removed noise", "lost structure"] });
//
// They are anything with `width`, `height` and `paint(context, place)`, such as Bitmaps; all but `left` may be null. The
// overlay lies over all but the original where it is wanted, and may be of fewer pixels; `said` are words about it, which
// others read out. A place says which part of the picture is seen (x0..x1, y0..y1 in its pixels), where on the canvas
// its corner lies (left, top) and how large its pixels are there (scale). `paint` returns false where it needs further
// frames to finish.

const LARGEST = 32; // screen pixels to a pixel
const SHARP = 2; // from here on pixels are shown as squares
const NEAR = { mouse: 8, pen: 12, touch: 22 }; // pixels from the split line at which it is gripped
const HELP = [
  ["F", "fit"], ["1, 2, 4", "100, 200, 400 %"], ["+ \u2212", "closer, farther"], ["Arrows", "move the picture"],
  ["S", "split line"], ["D", "side by side"], ["R", "the difference"], [", .", "move the split line"],
  ["O or Space", "hold for the original"],
];
const OVERLAY_HELP = ["L", "show or hide what lies over the picture"];
const POINTERS = "Wheel or pinch zooms, dragging moves, a double click goes to 100 % and back.";

export class Viewer {
  // `keys` is where keys are listened for, `help` lists those of the page itself, and `overlays` says whether there will be
  // any; `askOverlay`, where it is set, is called when one is wanted that there is not,
  // with whether somebody has just asked for it; `onMode` is called after another
  // mode was chosen.
  constructor(root, { keys = root, help = [], overlays = false } = {}) {
    this.pictures = null;
    this.onMode = () => {};
    this.askOverlay = null;
    this.names = ["original", "denoised", "difference", "overlay"];
    this.view = { scale: 1, x: 0, y: 0 }; // screen pixels to a pixel, and the pixel in the middle
    this.fitted = true;
    this.mode = "split";
    this.split = 0.5; // of the stage's width
    this.holding = false;
    this.overlaid = false;
    this.pointers = new Map();
    this.build(root, [...HELP, ...(overlays ? [OVERLAY_HELP] : []), ...help], overlays);
    this.listen(keys);
    this.update();
  }

  // --- What is on the page ---

  build(root, help, overlays) {
    root.classList.add("viewer");
    this.stage = element("div", { class: "stage", tabindex: 0, role: "group", "aria-label": "The picture. Press ? for keys." });
    this.canvas = element("canvas", { role: "img" });
    this.context = this.canvas.getContext("2d");
    this.line = element("div", { class: "line" });
    this.range = element("input", { type: "range", min: 0, max: 100, step: 0.5, "aria-label": "Split line, in percent" });
    this.tags = ["left", "right"].map((side) => element("span", { class: `tag ${side}`, "aria-hidden": "true" }));
    this.said = element("span", { class: "tag said", "aria-hidden": "true" });
    this.stage.append(this.canvas, this.range, this.line, ...this.tags, this.said);

    this.help = element("dialog", { class: "help", "aria-label": "Keys" });
    const list = element("dl");
    for (const [key, what] of help) list.append(element("dt", {}, key), element("dd", {}, what));
    list.append(element("dt", {}, "?"), element("dd", {}, "this list"));
    this.help.append(list, element("p", {}, POINTERS), button("Close", () => this.help.close()));

    this.sizes = [["Fit", () => this.fit(), "F"], ["100 %", () => this.zoomTo(1), "1"], ["200 %", () => this.zoomTo(2), "2"]]
      .map(([text, act, key]) => button(text, act, { "aria-keyshortcuts": key, "aria-pressed": "false" }));
    this.percent = element("output", { class: "percent", "aria-label": "Size" });
    this.modes = [["split", "Split", "S"], ["side", "Side by side", "D"], ["removed", "Difference", "R"]]
      .map(([mode, text, key]) => button(text, () => this.choose(mode), { "data-mode": mode, "aria-keyshortcuts": key }));
    this.hold = button("Original", () => {}, { "aria-keyshortcuts": "O", title: "Hold to see the original (O)" });
    this.over = button("Overlay", () => this.setOverlaid(!this.overlaid), { class: "over", "aria-keyshortcuts": "L" });
    this.over.hidden = !overlays;
    this.bar = element("div", { class: "tools", role: "toolbar", "aria-label": "View" });
    this.extra = element("span", { class: "group" }); // for whoever uses the viewer
    this.bar.append(group(...this.sizes, this.percent), group(...this.modes), group(this.hold, this.over), this.extra,
      group(button("?", () => this.help.showModal(), { "aria-label": "Keys", "aria-keyshortcuts": "?" })));
    root.append(this.bar, this.stage, this.help);
  }

  listen(keys) {
    const { stage, hold } = this;
    keys.addEventListener("keydown", (event) => this.onKey(event));
    addEventListener("keyup", (event) => { if (event.code === "KeyO" || event.code === "Space") this.setHolding(false); });
    addEventListener("blur", () => this.setHolding(false));
    hold.addEventListener("pointerdown", () => this.setHolding(true));
    for (const end of ["pointerup", "pointercancel", "pointerleave"]) hold.addEventListener(end, () => this.setHolding(false));
    stage.addEventListener("pointerdown", (event) => this.onDown(event));
    stage.addEventListener("pointermove", (event) => this.onMove(event));
    for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, (event) => this.onUp(event));
    stage.addEventListener("wheel", (event) => this.onWheel(event), { passive: false });
    stage.addEventListener("dblclick", (event) => {
      if (this.fitted) this.zoomTo(1, ...this.pointOf(event));
      else this.fit();
    });
    this.range.addEventListener("input", () => this.setSplit(this.range.value / 100));
    new ResizeObserver(() => this.paint()).observe(stage); // in the same frame: a canvas of another size is stretched
  }

  // --- What others call ---

  // Shows other pictures; the part in view is kept where the size is the same.
  show(pictures) {
    const before = this.pictures?.left;
    this.pictures = pictures;
    if (this.overlaid && pictures?.right && !pictures.overlay) this.askOverlay?.(false);
    if (before?.width !== pictures?.left.width || before?.height !== pictures?.left.height) this.fitted = true;
    this.update();
  }

  choose(mode) {
    if (mode === "removed" && !this.pictures?.removed) return;
    this.mode = mode;
    this.onMode();
    this.update();
  }

  setSplit(share) {
    this.split = Math.min(Math.max(share, 0), 1);
    this.update();
  }

  setHolding(holding) {
    if (this.holding === holding) return;
    this.holding = holding;
    this.update();
  }

  setOverlaid(overlaid) {
    if (!this.pictures?.overlay && !(this.askOverlay && this.pictures?.right)) return;
    this.overlaid = overlaid;
    if (overlaid && !this.pictures.overlay) this.askOverlay(true);
    this.update();
  }

  fit() {
    this.fitted = true;
    this.update();
  }

  // So many screen pixels to a pixel; the point (x, y) of the canvas, or the middle, stays where it is.
  zoomTo(scale, x, y) {
    if (!this.pictures) return;
    const pane = this.paneAt(x), { view } = this;
    const fromX = (x ?? pane.middle) - pane.middle, fromY = (y ?? this.canvas.height / 2) - this.canvas.height / 2;
    const next = Math.min(Math.max(scale, Math.min(this.fitScale(), 1) / 2), LARGEST);
    view.x += fromX / view.scale - fromX / next;
    view.y += fromY / view.scale - fromY / next;
    view.scale = next;
    this.fitted = false;
    this.update();
  }

  // Moves the picture by so many screen pixels.
  pan(dx, dy) {
    this.view.x -= dx / this.view.scale;
    this.view.y -= dy / this.view.scale;
    this.fitted = false;
    this.update();
  }

  // --- Keys and pointers ---

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.pictures || this.help.open) return;
    const { target } = event, slides = target.matches?.("input[type=range]");
    if (target.closest?.("select, textarea, dialog:not(:has(.viewer))")) return;
    if (event.code === "Space" && target.closest?.("button, a, input")) return;
    const far = 80 * devicePixelRatio;
    const act = {
      f: () => this.fit(), 0: () => this.fit(), 1: () => this.zoomTo(1), 2: () => this.zoomTo(2), 4: () => this.zoomTo(4),
      "+": () => this.zoomTo(this.view.scale * 1.25), "=": () => this.zoomTo(this.view.scale * 1.25),
      "-": () => this.zoomTo(this.view.scale / 1.25),
      s: () => this.choose("split"), d: () => this.choose("side"), r: () => this.choose("removed"),
      l: () => this.setOverlaid(!this.overlaid),
      o: () => this.setHolding(true), " ": () => this.setHolding(true), "?": () => this.help.showModal(),
      ",": () => this.setSplit(this.split - 0.02), ".": () => this.setSplit(this.split + 0.02),
      ...(slides ? {} : {
        arrowleft: () => this.pan(far, 0), arrowright: () => this.pan(-far, 0),
        arrowup: () => this.pan(0, far), arrowdown: () => this.pan(0, -far),
      }),
    }[event.key.toLowerCase()];
    if (!act) return;
    event.preventDefault();
    act();
  }

  onDown(event) {
    if (!this.pictures || event.button) return;
    this.stage.setPointerCapture(event.pointerId);
    const [x, y] = this.pointOf(event);
    this.pointers.set(event.pointerId, { x, y });
    const reach = NEAR[event.pointerType] ?? NEAR.mouse;
    this.gripped = this.pointers.size === 1 && !this.line.hidden
      && Math.abs(x - this.split * this.canvas.width) < reach * devicePixelRatio;
  }

  onMove(event) {
    const pointer = this.pointers.get(event.pointerId);
    if (!pointer) return;
    const [x, y] = this.pointOf(event);
    const others = [...this.pointers.values()].filter((other) => other !== pointer);
    if (others.length) {
      const other = others[0];
      const spread = (a) => Math.hypot(a.x - other.x, a.y - other.y) || 1;
      this.pan((x - pointer.x) / 2, (y - pointer.y) / 2);
      this.zoomTo((this.view.scale * spread({ x, y })) / spread(pointer), (x + other.x) / 2, (y + other.y) / 2);
    } else if (this.gripped) this.setSplit(x / this.canvas.width);
    else if (x !== pointer.x || y !== pointer.y) this.pan(x - pointer.x, y - pointer.y);
    Object.assign(pointer, { x, y });
  }

  onUp(event) {
    this.pointers.delete(event.pointerId);
    this.gripped = false;
  }

  onWheel(event) {
    if (!this.pictures) return;
    event.preventDefault();
    const lines = event.deltaMode ? 30 : 1;
    const speed = event.ctrlKey ? 0.01 : 0.0015; // a pinch on a touchpad arrives as a wheel with Ctrl, in small steps
    this.zoomTo(this.view.scale * Math.exp(-event.deltaY * lines * speed), ...this.pointOf(event));
  }

  // Where on the canvas, in its own pixels.
  pointOf(event) {
    const box = this.stage.getBoundingClientRect();
    return [(event.clientX - box.left) * devicePixelRatio, (event.clientY - box.top) * devicePixelRatio];
  }

  // --- Drawing ---

  update() {
    this.frame ??= requestAnimationFrame(() => {
      this.frame = null;
      this.paint();
    });
  }

  // The parts of the canvas and what is seen in each.
  panes() {
    const { width } = this.canvas, { left, right, removed } = this.pictures;
    const whole = (picture) => [{ picture, x0: 0, x1: width, middle: width / 2 }];
    if (this.holding || !right) return whole(left);
    if (this.mode === "removed" && removed) return whole(removed);
    if (this.mode === "side") {
      const half = Math.round(width / 2);
      return [{ picture: left, x0: 0, x1: half - 1, middle: width / 4 }, { picture: right, x0: half + 1, x1: width, middle: (3 * width) / 4 }];
    }
    const at = Math.round(this.split * width);
    return [{ picture: left, x0: 0, x1: at, middle: width / 2 }, { picture: right, x0: at, x1: width, middle: width / 2 }];
  }

  paneAt(x) {
    const panes = this.panes();
    return panes.find((pane) => x >= pane.x0 && x < pane.x1) ?? panes[0];
  }

  fitScale() {
    const { left } = this.pictures, { width, height } = this.canvas;
    const across = this.panes()[0].middle * 2; // half of the width where two stand side by side
    return Math.min((across || width) / left.width, height / left.height, SHARP * devicePixelRatio);
  }

  // Keeps the picture in view.
  settle() {
    const { view, canvas, pictures: { left } } = this;
    if (this.fitted) Object.assign(view, { scale: this.fitScale(), x: left.width / 2, y: left.height / 2 });
    const halves = [(this.panes()[0].middle / view.scale), canvas.height / 2 / view.scale];
    for (const [name, size, half] of [["x", left.width, halves[0]], ["y", left.height, halves[1]]])
      view[name] = 2 * half >= size ? size / 2 : Math.min(Math.max(view[name], half), size - half);
  }

  paint() {
    const { canvas, context, stage, view } = this;
    const width = Math.round(stage.clientWidth * devicePixelRatio), height = Math.round(stage.clientHeight * devicePixelRatio);
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    this.describe();
    if (!this.pictures || !width || !height) return context.clearRect(0, 0, width, height);
    this.settle();
    context.clearRect(0, 0, width, height);
    context.imageSmoothingEnabled = view.scale < SHARP;
    let finished = true;
    for (const pane of this.panes()) {
      const left = Math.round(pane.middle - view.x * view.scale), top = Math.round(height / 2 - view.y * view.scale);
      const place = { scale: view.scale, left, top,
        x0: Math.max((pane.x0 - left) / view.scale, 0), x1: Math.min((pane.x1 - left) / view.scale, pane.picture.width),
        y0: Math.max(-top / view.scale, 0), y1: Math.min((height - top) / view.scale, pane.picture.height) };
      context.save();
      context.beginPath();
      context.rect(pane.x0, 0, pane.x1 - pane.x0, height);
      context.clip();
      if (pane.x1 > pane.x0) {
        finished = pane.picture.paint(context, place) && finished;
        if (this.overlaid && pane.picture !== this.pictures.left) this.paintOverlay(context, place);
      }
      context.restore();
    }
    this.percent.textContent = `${Math.round(100 * view.scale)} %`;
    const pressed = [this.fitted, !this.fitted && view.scale === 1, !this.fitted && view.scale === 2];
    this.sizes.forEach((size, n) => size.setAttribute("aria-pressed", pressed[n]));
    if (!finished) this.update();
  }

  // It may be of fewer pixels than the picture.
  paintOverlay(context, { scale, left, top, x0, x1, y0, y1 }) {
    const { overlay, left: { width } } = this.pictures;
    const ratio = (overlay?.width ?? 0) / width;
    overlay?.paint(context, { scale: scale / ratio, left, top, x0: x0 * ratio, x1: x1 * ratio, y0: y0 * ratio, y1: y1 * ratio });
  }

  // What the page says about the view.
  describe() {
    const { pictures, mode, tags } = this;
    this.names = pictures?.names ?? this.names;
    const { names } = this, both = pictures?.right && !this.holding;
    const removed = both && mode === "removed" && pictures.removed;
    this.line.hidden = this.range.hidden = !both || mode !== "split";
    this.line.style.left = `${100 * this.split}%`;
    this.range.value = 100 * this.split;
    tags[0].textContent = removed ? names[2] : names[0];
    tags[1].textContent = names[1];
    tags[0].hidden = !pictures || (both && mode === "split" && this.split < 0.1);
    tags[1].hidden = !both || Boolean(removed) || (mode === "split" && this.split > 0.9);
    if (!pictures) this.percent.textContent = "";
    const seen = !pictures ? "" : removed ? names[2] : both ? `${names[0]} and ${names[1]}` : names[0];
    this.said.textContent = pictures?.said ?? "";
    this.said.hidden = !pictures?.said || !this.overlaid || !both;
    const marked = this.overlaid && both && pictures.overlay ? `, with ${names[3]}` : "";
    this.canvas.setAttribute("aria-label", `${seen || "no picture"}${marked}`);
    for (const choice of this.modes) {
      choice.setAttribute("aria-pressed", choice.dataset.mode === mode);
      choice.disabled = !pictures?.right || (choice.dataset.mode === "removed" && !pictures.removed);
    }
    for (const tool of [...this.sizes, this.hold]) tool.disabled = !pictures;
    this.hold.setAttribute("aria-pressed", this.holding);
    this.over.disabled = !pictures?.right || !(pictures.overlay || this.askOverlay);
    this.over.setAttribute("aria-pressed", this.overlaid && !this.over.disabled);
    this.over.textContent = capital(names[3] ?? "overlay");
    this.hold.textContent = capital(names[0]);
  }
}

// --- Elements ---

export function element(tag, attributes = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.textContent = text;
  return made;
}

export function button(text, act, attributes = {}) {
  const made = element("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", act);
  return made;
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function group(...members) {
  const made = element("span", { class: "group" });
  made.append(...members);
  return made;
}
