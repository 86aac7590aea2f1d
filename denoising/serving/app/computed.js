// Pictures that are computed from the noisy and the denoised one where they are seen: the result and what it removed.
import { levelFor } from "../../reports/viewer/bitmaps.js";
import { REACH, bandSamples, bandStrengths, isPlain, lumaOf, mix, removed, textureOf } from "./mix.js";

const SIDE = 384; // of a tile
const MAX_TILES = 120; // that are kept
const FRAME_MS = 9; // of computing in a frame; what is not done shows the tile of before
const SAMPLED = 96; // parts of a picture from which the strength of its noise is taken

// The noisy and the denoised picture with settings, of which `result` and `removed` can be painted; `ready()` is called when
// what was painted has to be painted anew.
export class Mixture {
  constructor(noisy, denoised, settings, gain, ready) {
    Object.assign(this, { noisy, denoised, settings: { ...settings }, gain, ready, strengths: null });
    this.scratch = [0, 1].map(() => new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true }));
    this.result = new Tiles(this, (part, tile) => this.resultOf(part, tile));
    this.removed = new Tiles(this, (part, tile) => this.removedOf(part, tile));
  }

  // Other settings, or another gain: what was computed is shown until it is computed anew.
  change(settings, gain = this.gain) {
    Object.assign(this, { settings: { ...settings }, gain });
    this.result.version += 1;
    this.removed.version += 1;
    this.ready();
  }

  // What there is to show, without computing where nothing is to be computed.
  get shown() {
    return isPlain(this.settings) ? this.denoised : this.result;
  }

  resultOf(part, tile) {
    const { noisy, denoised } = this.pixels(part, 0), image = new ImageData(part.width, part.height);
    mix(noisy, denoised, this.textureOf(part, tile), this.settings, image.data);
    return image;
  }

  removedOf(part, tile) {
    const result = this.resultOf(part, tile), { noisy } = this.pixels(part, 0);
    removed(noisy, result.data, this.gain, result.data);
    return result;
  }

  // The texture of a part, which is the same for all settings: the tile keeps it.
  textureOf(part, tile) {
    if (this.settings.detail * this.settings.strength === 0) return null;
    if (!this.strengths) return this.measure();
    if (!tile.texture) {
      const around = this.pixels(part, REACH);
      const plane = textureOf(lumaOf(around.noisy, around.denoised), around.width, around.height, this.strengths, part.level);
      tile.texture = inner(plane, around, part.width, part.height);
    }
    return tile.texture;
  }

  // Finds the strength of the bands of all of the picture, some parts in each frame; until then there is no texture.
  measure() {
    if (!this.measuring) this.measuring = this.measured();
    return null;
  }

  async measured() {
    await new Promise(requestAnimationFrame); // a tile is being filled, which must not count as filled with texture
    const samples = [];
    let end = performance.now() + FRAME_MS;
    for (const part of this.parts()) {
      samples.push(bandSamples(part));
      if (performance.now() < end) continue;
      await new Promise(requestAnimationFrame);
      end = performance.now() + FRAME_MS;
    }
    this.strengths = bandStrengths(samples);
    this.change(this.settings);
  }

  // The pixels of a part of both pictures with so much more on each side, where there is more.
  pixels({ level, x, y, width, height }, reach) {
    const { width: right, height: bottom } = this.noisy.levels[level];
    const x0 = Math.max(x - reach, 0), y0 = Math.max(y - reach, 0);
    const x1 = Math.min(x + width + reach, right), y1 = Math.min(y + height + reach, bottom);
    const [noisy, denoised] = [this.noisy, this.denoised].map((picture, n) => {
      const context = this.scratch[n], { canvas } = context;
      if (canvas.width < x1 - x0 || canvas.height < y1 - y0) Object.assign(canvas, { width: x1 - x0, height: y1 - y0 });
      context.drawImage(picture.levels[level], -x0, -y0);
      return context.getImageData(0, 0, x1 - x0, y1 - y0).data;
    });
    return { noisy, denoised, width: x1 - x0, height: y1 - y0, left: x - x0, top: y - y0 };
  }

  // Parts all over the picture; together all of it, if it is not too large.
  *parts() {
    const { width, height } = this.noisy, side = 128;
    const columns = Math.ceil(width / side), rows = Math.ceil(height / side), every = Math.max(1, (columns * rows) / SAMPLED);
    for (let n = 0; n < columns * rows; n += every) {
      const x = side * (Math.floor(n) % columns), y = side * Math.floor(Math.floor(n) / columns);
      const across = Math.min(side, width - x), down = Math.min(side, height - y);
      const part = this.pixels({ level: 0, x, y, width: across, height: down }, REACH);
      yield { ...part, inside: [part.left, part.top, part.left + across, part.top + down] };
    }
  }
}

// Without the margin.
function inner(plane, { width, left, top }, across, down) {
  const result = new Float32Array(across * down);
  for (let y = 0; y < down; y += 1) result.set(plane.subarray((top + y) * width + left, (top + y) * width + left + across), y * across);
  return result;
}

// Computes a picture where it is seen, in squares, some in each frame, and keeps them.
class Tiles {
  constructor(mixture, compute) {
    Object.assign(this, { mixture, compute, version: 0, tiles: new Map() });
    this.width = mixture.noisy.width;
    this.height = mixture.noisy.height;
  }

  paint(context, place) {
    const { levels } = this.mixture.noisy, level = levelFor(place.scale, levels.length), { width, height } = levels[level];
    const across = (this.width / width) * place.scale, down = (this.height / height) * place.scale;
    const end = performance.now() + FRAME_MS;
    let finished = true;
    this.mixture.denoised.paint(context, place); // where nothing is computed yet
    for (let y = Math.floor((place.y0 * place.scale) / down / SIDE) * SIDE; y < (place.y1 * place.scale) / down; y += SIDE) {
      for (let x = Math.floor((place.x0 * place.scale) / across / SIDE) * SIDE; x < (place.x1 * place.scale) / across; x += SIDE) {
        const w = Math.min(SIDE, width - x), h = Math.min(SIDE, height - y);
        if (w <= 0 || h <= 0) continue;
        const tile = this.tileAt(`${level} ${x} ${y}`);
        if (tile.version !== this.version) {
          if (performance.now() < end) this.fill(tile, { level, x, y, width: w, height: h });
          else finished = false;
        }
        if (!tile.canvas) continue;
        // Edges on whole pixels of the screen: tiles leave no seams.
        const x0 = Math.round(place.left + x * across), x1 = Math.round(place.left + (x + w) * across);
        const y0 = Math.round(place.top + y * down), y1 = Math.round(place.top + (y + h) * down);
        context.drawImage(tile.canvas, 0, 0, w, h, x0, y0, x1 - x0, y1 - y0);
      }
    }
    return finished;
  }

  tileAt(key) {
    const tile = this.tiles.get(key) ?? {};
    this.tiles.delete(key); // what was seen last is last
    this.tiles.set(key, tile);
    if (this.tiles.size > MAX_TILES) this.tiles.delete(this.tiles.keys().next().value);
    return tile;
  }

  fill(tile, part) {
    const { version } = this; // the settings may change meanwhile
    tile.canvas ??= new OffscreenCanvas(part.width, part.height);
    tile.canvas.getContext("2d").putImageData(this.compute(part, tile), 0, 0);
    tile.version = version;
  }
}
