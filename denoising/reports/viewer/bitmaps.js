// A picture that is drawn at any size: itself, and smaller copies, each of half the size of the one before.
//
// Drawing the whole of 24 megapixels takes a browser a tenth of a second; drawing the copy that fits the screen takes
// a hundredth. Colour profiles are left aside, so that two files of the same numbers look the same.

const SMALLEST = 1024; // the longer side of the last copy

export class Bitmaps {
  constructor(levels) {
    this.levels = levels;
    this.width = levels[0].width;
    this.height = levels[0].height;
  }

  // From a Blob or an <img>.
  static async of(source) {
    const levels = [await createImageBitmap(source, { colorSpaceConversion: "none", premultiplyAlpha: "none" })];
    for (let last = levels[0]; Math.max(last.width, last.height) > SMALLEST; last = levels.at(-1)) {
      const size = { resizeWidth: Math.ceil(last.width / 2), resizeHeight: Math.ceil(last.height / 2) };
      levels.push(await createImageBitmap(last, { ...size, resizeQuality: "medium" }));
    }
    return new Bitmaps(levels);
  }

  // Draws what is visible; returns whether that is all (see Viewer).
  paint(context, place) {
    const bitmap = this.levels[levelFor(place.scale, this.levels.length)];
    const across = bitmap.width / this.width, down = bitmap.height / this.height;
    // Whole source pixels, one more than is visible on each side.
    const x0 = Math.max(0, Math.floor(place.x0 * across) - 1), x1 = Math.min(bitmap.width, Math.ceil(place.x1 * across) + 1);
    const y0 = Math.max(0, Math.floor(place.y0 * down) - 1), y1 = Math.min(bitmap.height, Math.ceil(place.y1 * down) + 1);
    if (x1 > x0 && y1 > y0) {
      const left = place.left + (x0 / across) * place.scale, top = place.top + (y0 / down) * place.scale;
      context.drawImage(bitmap, x0, y0, x1 - x0, y1 - y0,
        left, top, ((x1 - x0) / across) * place.scale, ((y1 - y0) / down) * place.scale);
    }
    return true;
  }

  // Gives the memory back at once.
  close() {
    for (const bitmap of this.levels) bitmap.close();
  }
}

// The smallest copy that still has a pixel for each of the screen's.
export function levelFor(scale, count) {
  return Math.min(Math.max(Math.floor(Math.log2(1 / scale)), 0), count - 1);
}
