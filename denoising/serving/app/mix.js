// Strength, detail and chroma: what denoising/imaging/detail.py computes, for a part of a picture at a time.
//
// Pixels are RGBA in 0..255, as a canvas has them; with a margin around the part for the texture, which depends on
// REACH pixels to each side. `settings` are { strength, detail, chroma }, each 0..1.

const LUMA = [0.299, 0.587, 0.114];
const SPLINE = [1 / 16, 4 / 16, 6 / 16]; // and back
const THRESHOLDS = [2, 1.5, 1]; // of the bands from fine to coarse, in units of their own strength
const GRID = 4; // of the pixels that the median is taken from
export const REACH = 2 * (1 + 2 + 4);

export const PLAIN = { strength: 1, detail: 0, chroma: 1 };

export function isPlain({ strength, detail, chroma }) {
  return strength === 1 && detail === 0 && chroma === 1;
}

// The result for pixels of one size, written into a clamped array `out`; `texture` may be null.
export function mix(noisy, denoised, texture, { strength, detail, chroma }, out) {
  const ofLuma = 1 - strength, ofColour = 1 - strength * chroma, ofTexture = strength * detail;
  for (let i = 0, n = 0; i < noisy.length; i += 4, n += 1) {
    const r = noisy[i] - denoised[i], g = noisy[i + 1] - denoised[i + 1], b = noisy[i + 2] - denoised[i + 2];
    const luma = LUMA[0] * r + LUMA[1] * g + LUMA[2] * b;
    const back = (ofLuma - ofColour) * luma + (texture ? ofTexture * texture[n] : 0);
    out[i] = Math.floor(denoised[i] + back + ofColour * r + 0.5);
    out[i + 1] = Math.floor(denoised[i + 1] + back + ofColour * g + 0.5);
    out[i + 2] = Math.floor(denoised[i + 2] + back + ofColour * b + 0.5);
    out[i + 3] = 255;
  }
  return out;
}

// What was removed, amplified around mid-grey.
export function removed(noisy, result, gain, out) {
  for (let i = 0; i < noisy.length; i += 4) {
    for (let channel = i; channel < i + 3; channel += 1) out[channel] = 128 + gain * (noisy[channel] - result[channel]);
    out[i + 3] = 255;
  }
  return out;
}

// The brightness of what was removed, in 0..255.
export function lumaOf(noisy, denoised) {
  const luma = new Float32Array(noisy.length / 4);
  for (let i = 0, n = 0; n < luma.length; i += 4, n += 1)
    luma[n] = LUMA[0] * (noisy[i] - denoised[i]) + LUMA[1] * (noisy[i + 1] - denoised[i + 1]) + LUMA[2] * (noisy[i + 2] - denoised[i + 2]);
  return luma;
}

// A plane smoothed by the spline, whose taps stand `step` pixels apart; it goes on by reflection past its borders.
function smoothed(plane, width, height, step) {
  const across = new Float32Array(plane.length), result = new Float32Array(plane.length);
  const columns = Int32Array.from({ length: 5 * width }, (_, n) => reflected(Math.floor(n / 5) + ((n % 5) - 2) * step, width));
  for (let y = 0, start = 0; y < height; y += 1, start += width) {
    for (let x = 0, tap = 0; x < width; x += 1, tap += 5) {
      across[start + x] = SPLINE[0] * (plane[start + columns[tap]] + plane[start + columns[tap + 4]])
        + SPLINE[1] * (plane[start + columns[tap + 1]] + plane[start + columns[tap + 3]]) + SPLINE[2] * plane[start + columns[tap + 2]];
    }
  }
  for (let y = 0, start = 0; y < height; y += 1, start += width) {
    const [a, b, c, d, e] = [-2, -1, 0, 1, 2].map((tap) => width * reflected(y + tap * step, height));
    for (let x = 0; x < width; x += 1) {
      result[start + x] = SPLINE[0] * (across[a + x] + across[e + x]) + SPLINE[1] * (across[b + x] + across[d + x])
        + SPLINE[2] * across[c + x];
    }
  }
  return result;
}

function reflected(at, length) {
  if (length === 1) return 0;
  const period = 2 * (length - 1), folded = ((at % period) + period) % period;
  return Math.min(folded, period - folded);
}

// The three bands of a plane from fine to coarse, and what is left of it after them.
function bands(luma, width, height) {
  const found = [];
  for (const step of [1, 2, 4]) {
    const smooth = smoothed(luma, width, height, step);
    found.push(luma.map((value, n) => value - smooth[n]));
    luma = smooth;
  }
  return [found, luma];
}

// What stands out of the noise in a plane of brightness that was removed.
//
// `strengths` are those of the picture's bands. In a copy of 1 / 2^level of its size the bands are those that much
// coarser: the first is what the next one was.
export function textureOf(luma, width, height, strengths, level = 0) {
  const [found, texture] = bands(luma, width, height);
  found.forEach((band, j) => {
    const threshold = j + level < 3 ? THRESHOLDS[j + level] * strengths[j + level] : 0;
    for (let n = 0; n < band.length; n += 1) {
      const value = band[n];
      texture[n] += value > threshold ? value - threshold : value < -threshold ? value + threshold : 0;
    }
  });
  return texture;
}

// The absolute values of each band on the grid, of a part { noisy, denoised, width, height, inside } of a picture: `inside`
// is [x0, y0, x1, y1] without the margin, and its corner lies on the grid of the whole picture.
export function bandSamples({ noisy, denoised, width, height, inside: [x0, y0, x1, y1] }) {
  const [found] = bands(lumaOf(noisy, denoised), width, height);
  return found.map((band) => {
    const sample = [];
    for (let y = y0; y < y1; y += GRID)
      for (let x = x0; x < x1; x += GRID) sample.push(Math.abs(band[y * width + x]));
    return sample;
  });
}

// The strength of each band of what was removed, from the samples of several parts.
export function bandStrengths(samples) {
  return THRESHOLDS.map((_, j) => median(Float32Array.from(samples.flatMap((sample) => sample[j]))) / 0.6745);
}

function median(values) {
  values.sort();
  const half = values.length >> 1;
  return values.length % 2 ? values[half] : (values[half - 1] + values[half]) / 2;
}
