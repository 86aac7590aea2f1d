// The page: images come in, are shown and compared, and go out again.
import { Bitmaps } from "../../reports/viewer/bitmaps.js";
import { Viewer, button, element } from "../../reports/viewer/viewer.js";
import { denoise, follow, models, randomName } from "./api.js";
import { Mixture } from "./computed.js";
import { chosen, dropped, save, savedName } from "./files.js";
import { Items } from "./items.js";
import { PLAIN } from "./mix.js";
import { noiseFigures } from "./noise.js";
import { zip } from "./zip.js";

const MODELS = {
  auto: "Automatic", photo_deep: "Photo, best", photo: "Photo, the published network", photo_fast: "Photo, fast", gauss5_50: "Gaussian noise 5\u201350",
  gauss5_50_fast: "Gaussian noise 5\u201350, fast", gauss5_50_deep: "Gaussian noise 5\u201350, best", gauss25_deep: "Gaussian noise 25, best",
  best_model: "Gaussian noise 25", poisson30: "Poisson noise 30", poisson5_50_deep: "Poisson noise 5\u201350, best",
  grey_gauss5_50: "Grey images, Gaussian noise 5\u201350, fast", grey_gauss25: "Grey images, Gaussian noise 25",
  grey_gauss5_50_deep: "Grey images, Gaussian noise 5\u201350, best", grey_poisson5_50_deep: "Grey images, Poisson noise 5\u201350, best",
};
const SUFFIXES = { own: undefined, png: ".png", tiff: ".tif", jpeg: ".jpg" };
const MIXING = ["strength", "detail", "chroma"];
const KINDS = ["noisy", "denoised", "map"]; // of pictures
const GAINS = [1, 2, 4, 8, 16];
const $ = (id) => document.getElementById(id);

const items = new Items(changed);
const viewer = new Viewer($("viewer"), { keys: document, help: [["Page up, down", "previous, next image"]], overlays: true });
let current = null; // the item that is shown
let pictures = {}; // its bitmaps, and what they were made of
let settings = { model: "", fast: 0 }; // of the next images
let saving = null; // an AbortController, while all images are saved

// --- Images come in ---

function add(files) {
  const added = files.map(({ file, name }) => items.add(file, name, settings));
  $("empty").hidden = items.all.length > 0;
  $("work").hidden = !items.all.length;
  if (added.length && !current) choose(added[0]);
  say(added.length ? "" : "There are no images in it.");
}

async function take(transfer) {
  try {
    add(await dropped(transfer));
  } catch (error) {
    say(`The files cannot be read: ${error.message}`);
  }
}

for (const [id, input] of [["add", "files"], ["choose", "files"], ["add-folder", "folder"], ["choose-folder", "folder"]])
  $(id).addEventListener("click", () => $(input).click());
for (const id of ["files", "folder"]) $(id).addEventListener("change", () => add(chosen($(id))));
for (const name of ["dragenter", "dragover"])
  addEventListener(name, (event) => { event.preventDefault(); $("over").hidden = false; });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("over").hidden = true; });
addEventListener("drop", (event) => {
  event.preventDefault();
  $("over").hidden = true;
  take(event.dataTransfer);
});
addEventListener("paste", (event) => { if (event.clipboardData.files.length) take(event.clipboardData); });
addEventListener("beforeunload", (event) => { if (items.all.some((item) => items.isBusy(item))) event.preventDefault(); });

// The service says "image: too large" where it means the file that was sent, and "image.jpg: " of what it is to become.
function sentence(text) {
  const words = text.replace(/^image(\.\w+)?: /, "");
  return words[0].toUpperCase() + words.slice(1) + (/[.?!]$/.test(words) ? "" : ".");
}

function say(text) {
  $("said").textContent = text;
}

// --- The strip ---

function changed(item) {
  item.view ??= newThumb(item);
  const { row, mark, bar } = item.view;
  row.className = item.state;
  mark.textContent = { failed: "failed", cancelled: "cancelled", done: "done", waiting: "waiting" }[item.state] ?? "";
  bar.hidden = mark.textContent !== "";
  showProgress(bar, item.progress);
  if (item.noisy && !item.view.drawn) drawThumb(item);
  if (item === current) showItem();
  if (!items.isBusy(item)) tellState();
}

function newThumb(item) {
  const view = { row: element("li"), mark: element("span", { class: "mark" }), bar: element("progress", { "aria-label": `Progress of ${item.name}` }) };
  view.canvas = element("canvas", { width: 224, height: 134, "aria-hidden": "true" });
  view.thumb = button("", () => choose(item), { class: "thumb", title: item.name });
  view.thumb.append(view.canvas, element("span", { class: "title" }, item.name.split("/").at(-1)), view.mark);
  const drop = button("\u00d7", () => remove(item), { class: "drop", "aria-label": `Remove ${item.name}` });
  view.row.append(view.thumb, view.bar, drop);
  $("strip").append(view.row);
  return view;
}

async function drawThumb(item) {
  const { canvas } = item.view;
  item.view.drawn = true;
  const bitmap = await createImageBitmap(item.noisy, { resizeWidth: canvas.width, resizeQuality: "medium" });
  const scale = Math.max(canvas.width / bitmap.width, canvas.height / bitmap.height); // it fills the frame
  const [width, height] = [bitmap.width * scale, bitmap.height * scale];
  canvas.getContext("2d").drawImage(bitmap, (canvas.width - width) / 2, (canvas.height - height) / 2, width, height);
  bitmap.close();
}

function showProgress(bar, progress) {
  if (progress?.total) Object.assign(bar, { max: progress.total, value: progress.done });
  else bar.removeAttribute("value"); // it is at work, and nobody knows how far
}

function choose(item) {
  current = item;
  for (const other of items.all) other.view.thumb.setAttribute("aria-current", other === item);
  item?.view.row.scrollIntoView({ block: "nearest", inline: "nearest" });
  showItem();
}

function remove(item) {
  const at = items.all.indexOf(item);
  items.remove(item);
  item.view.row.remove();
  if (item === current) choose(items.all[Math.min(at, items.all.length - 1)] ?? null);
  $("empty").hidden = items.all.length > 0;
  $("work").hidden = !items.all.length;
  if (document.activeElement === document.body) current?.view.thumb.focus(); // its button is gone
  tellState();
}

function tellState() {
  showSaving();
  const count = (state) => items.all.filter((item) => item.state === state).length;
  const failed = count("failed"), done = count("done"), all = items.all.length;
  if (items.all.some((item) => items.isBusy(item))) return say(all > 1 ? `${done} of ${all} done` : "");
  say(failed ? `${done} of ${all} done, ${failed} failed` : all > 1 ? `${done} of ${all} done` : "");
}

addEventListener("keydown", (event) => {
  const step = { PageUp: -1, PageDown: 1 }[event.key], next = items.all[items.all.indexOf(current) + step];
  if (!step || !next || event.target.matches("input, select")) return;
  event.preventDefault();
  choose(next);
});

// --- The image that is shown ---

function showItem() {
  const item = current;
  if (!item) return;
  $("name").textContent = item.name;
  showState(item);
  showPanel(item);
  showPictures(item);
  if (viewer.overlaid) render(); // words about the overlay come before it does
}

function showState(item) {
  const { progress } = item, busy = items.isBusy(item);
  $("state").hidden = item.state === "done";
  $("state").className = item.state;
  $("state-text").textContent = wordsOf(item);
  $("state-progress").hidden = !busy;
  showProgress($("state-progress"), progress);
  $("cancel").hidden = !busy;
  $("retry").hidden = busy;
}

function wordsOf({ state, progress, error }) {
  if (state === "failed") return sentence(error);
  if (state !== "denoising" || !progress) return { waiting: "Waiting", reading: "Reading the image", denoising: "Denoising", cancelled: "Cancelled" }[state] ?? "";
  if (progress.state === "measuring") return "Measuring the noise";
  if (progress.state === "writing") return "Writing the image";
  if (progress.state === "waiting") return "Waiting for the network";
  const share = progress.done ? `, ${Math.floor((100 * progress.done) / progress.total)} %` : "";
  return `Denoising${share}${progress.seconds_left > 1 ? `, ${duration(progress.seconds_left)} left` : ""}`;
}

function duration(seconds) {
  return seconds < 90 ? `${Math.ceil(seconds)} s` : `${Math.round(seconds / 60)} min`;
}

// Decodes what is new of an item, and shows it.
async function showPictures(item) {
  if (pictures.item !== item) {
    for (const kind of KINDS) pictures[kind]?.close();
    pictures = { item };
    render();
  }
  const mine = pictures;
  for (const kind of KINDS) {
    const source = `${kind}Blob`, blob = (kind === "map" ? item.judged?.map : item[kind]) ?? undefined;
    if (mine[source] === blob) continue;
    mine[source] = blob;
    const bitmaps = blob ? await Bitmaps.of(blob) : null;
    if (pictures !== mine || mine[source] !== blob) return bitmaps?.close();
    mine[kind]?.close();
    mine[kind] = bitmaps;
    if (kind !== "map") mine.mixture = mine.denoised && mine.noisy ? new Mixture(mine.noisy, mine.denoised, item.mixing, Number(gain.value), () => viewer.update()) : null;
    render();
  }
}

function render() {
  const { noisy, mixture, map } = pictures;
  gain.hidden = viewer.mode !== "removed" || !mixture;
  viewer.show(!noisy ? null : { left: noisy, right: mixture?.shown ?? null, removed: mixture?.removed ?? null, overlay: map ?? null,
    said: wordsOfLoss(pictures.item?.judged),
    names: ["original", "denoised", "removed noise", "lost structure"] });
}

viewer.askOverlay = (anew) => items.judge(current, anew);

$("cancel").addEventListener("click", () => items.stop(current));
$("retry").addEventListener("click", () => items.again(current));

const gain = element("select", { id: "gain", "aria-label": "Amplification of the removed noise", hidden: "" });
gain.append(...GAINS.map((value) => element("option", { value }, `\u00d7 ${value}`)));
gain.value = "4";
viewer.extra.append(gain);
gain.addEventListener("change", () => pictures.mixture?.change(current.mixing, Number(gain.value)));
viewer.onMode = render;

// --- The panel ---

function showPanel(item) {
  const { model, why, analysis, mixing } = item;
  $("model").value = item.settings.model;
  $("fast").checked = Boolean(item.settings.fast);
  $("fast-row").hidden = item.settings.model !== "auto" || !hasFast();
  const reason = why ?? analysis?.why, taken = model ?? analysis?.model;
  $("why").textContent = item.settings.model === "auto" && taken ? `${labelOf(taken)}. ${reason ? sentence(reason) : ""}` : "";
  for (const name of MIXING) {
    $(name).value = mixing[name];
    $(name).disabled = item.state !== "done";
    $(`${name}-value`).value = `${Math.round(100 * mixing[name])} %`;
  }
  $("chroma-row").hidden = analysis?.channels === 1;
  showNoise(analysis);
  $("lost").textContent = wordsOfLoss(item.judged);
  showSaving();
}

let shownAnalysis = null;

function wordsOfLoss(judged) {
  if (!judged) return "";
  const { asked, error, lost, verdict, progress } = judged;
  const share = progress?.done ? `, ${Math.floor((100 * progress.done) / progress.total)} %` : "";
  if (asked) return `Looking for structure that was lost${share}`;
  return error ? sentence(error) : lost === null ? sentence(verdict) : `At full strength it ${verdict}.`;
}

function showNoise(analysis) {
  $("noise").hidden = !analysis;
  if (!analysis || analysis === shownAnalysis) return;
  shownAnalysis = analysis;
  $("noise-text").textContent = sentence(analysis.description);
  $("noise-figures").replaceChildren(...noiseFigures(analysis));
}

function labelOf(name) {
  return name === "none" ? "Nothing to do" : (MODELS[name] ?? name);
}

function hasFast() {
  return [...$("model").options].some((option) => option.value.endsWith("_fast"));
}

for (const name of MIXING) {
  $(name).addEventListener("input", () => {
    current.mixing[name] = Number($(name).value);
    $(`${name}-value`).value = `${Math.round(100 * current.mixing[name])} %`;
    mixed();
  });
}
$("reset").addEventListener("click", () => {
  Object.assign(current.mixing, PLAIN);
  mixed();
  showPanel(current);
});
$("to-all").addEventListener("click", () => {
  for (const item of items.all) {
    Object.assign(item.mixing, current.mixing);
    const { model, fast } = item.settings;
    if (model !== current.settings.model || fast !== current.settings.fast) items.again(item, current.settings);
  }
  say("All images have these settings.");
});

function mixed() {
  pictures.mixture?.change(current.mixing);
  render();
}

for (const id of ["model", "fast"]) {
  $(id).addEventListener("change", () => {
    const model = $("model").value;
    settings = { model, fast: Number(model === "auto" && $("fast").checked) };
    items.again(current, settings);
  });
}

// --- Images go out ---

function showSaving() {
  const done = items.all.filter((item) => item.state === "done");
  $("save").disabled = current?.state !== "done" || saving !== null;
  $("save-all").disabled = !done.length && !saving;
  $("to-all").hidden = items.all.length < 2;
  $("save-all").hidden = items.all.length < 2 && !saving;
  $("save-all").textContent = saving ? "Cancel" : `Save all${done.length ? ` ${done.length}` : ""} as zip`;
  $("quality-row").hidden = $("format").value !== "jpeg";
  $("quality-value").value = $("quality").value;
}

// The file as the service computes it: with the depth and all that lies beside the pixels.
async function resultOf(item, signal, what) {
  const job = randomName(), format = $("format").value, { strength, detail, chroma } = item.mixing;
  const options = { ...item.settings, strength, detail, chroma, format, job, ...(format === "jpeg" ? { quality: $("quality").value } : {}) };
  $("saving").textContent = what;
  const unfollow = follow(job, ({ done, total }) => {
    if (done) $("saving").textContent = `${what}, ${Math.floor((100 * done) / total)} %`;
  });
  try {
    const { blob } = await denoise(item.file, options, signal);
    return { blob, name: savedName(item.name, SUFFIXES[format]) };
  } finally {
    unfollow();
  }
}

async function withSaving(act) {
  saving = new AbortController();
  showSaving();
  try {
    $("saving").textContent = await act(saving.signal);
  } catch (error) {
    $("saving").textContent = error.name === "AbortError" ? "Cancelled." : sentence(error.message);
  } finally {
    saving = null;
    showSaving();
  }
}

$("save").addEventListener("click", () => withSaving(async (signal) => {
  const { blob, name } = await resultOf(current, signal, "Computing the file");
  save(blob, name);
  return `Saved ${name.split("/").at(-1)}.`;
}));

$("save-all").addEventListener("click", () => {
  if (saving) return saving.abort();
  withSaving(async (signal) => {
    const files = [], failed = [], done = items.all.filter((item) => item.state === "done");
    for (const item of done) {
      try {
        files.push(await resultOf(item, signal, `Computing ${files.length + failed.length + 1} of ${done.length}`));
      } catch (error) {
        if (error.name === "AbortError") throw error;
        failed.push(`${item.name}: ${sentence(error.message)}`); // a JPEG holds no transparency, say: the others are saved
      }
    }
    if (!files.length) throw new Error(failed[0]);
    save(await zip(files), "denoised.zip");
    return failed.length ? `Saved ${files.length} of ${done.length} images. ${failed.join(" ")}` : `Saved ${files.length} images.`;
  });
});
for (const id of ["format", "quality"]) $(id).addEventListener("input", showSaving);

// --- Start ---

async function begin() {
  try {
    const known = await models();
    $("model").append(...known.models.map(({ name }) => element("option", { value: name }, MODELS[name] ?? name)));
    $("model").value = settings.model = known.default;
  } catch (error) {
    say(error.message);
  }
}
begin();
