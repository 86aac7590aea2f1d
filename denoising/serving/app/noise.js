// The noise of an image as the service has measured it: its strength against brightness, and what neighbours share.

const CHANNELS = ["red", "green", "blue"];
const SVG = Object.assign(document.createElement("template"), { innerHTML: "<svg></svg>" }).content.firstChild.namespaceURI;

export function noiseFigures({ curve, correlation, neighbour, kind }) {
  if (!curve || kind === "none") return [];
  const figures = [figure(strengthPlot(curve), "Strength against brightness, both 0 to 255")];
  if (correlation) figures.push(figure(correlationMap(correlation, neighbour), "Shared with the pixels around"));
  return figures;
}

// For each channel the variance in 0..1 is a * brightness + b.
function strengthPlot(curve) {
  const sigma = ([a, b], x) => 255 * Math.sqrt(Math.max(a * x + b, 0));
  const top = niceTop(Math.max(...curve.flatMap((line) => [sigma(line, 0), sigma(line, 1)])));
  const width = 150, height = 100, left = 22;
  const plot = svg("svg", { viewBox: `0 0 ${left + width + 2} ${height + 16}`, role: "img",
    "aria-label": `Strength of the noise from ${sigma(curve[0], 0).toFixed(1)} in black to ${sigma(curve[0], 1).toFixed(1)} in white` });
  for (const share of [0, 0.5, 1]) {
    const y = 6 + height * (1 - share) * 0.94;
    plot.append(svg("line", { class: "grid", x1: left, x2: left + width, y1: y, y2: y }),
      svg("text", { x: left - 4, y: y + 3, "text-anchor": "end" }, String(+(top * share).toFixed(1))));
  }
  plot.append(svg("text", { x: left, y: height + 14 }, "black"), svg("text", { x: left + width, y: height + 14, "text-anchor": "end" }, "white"));
  curve.forEach((line, channel) => {
    const points = Array.from({ length: 33 }, (_, n) =>
      `${(left + (width * n) / 32).toFixed(1)},${(6 + height * (1 - sigma(line, n / 32) / top) * 0.94).toFixed(1)}`);
    plot.append(svg("polyline", { class: `curve ${curve.length === 3 ? CHANNELS[channel] : "grey"}`, points: points.join(" ") }));
  });
  return plot;
}

// Rows of numbers in -1..1; the middle is the pixel itself.
function correlationMap(rows, neighbour) {
  const side = 16, size = side * rows.length;
  const map = svg("svg", { viewBox: `0 0 ${size} ${size}`, role: "img",
    "aria-label": `Correlation with the next pixel: ${Number(neighbour).toFixed(2)}` });
  rows.forEach((row, y) => row.forEach((value, x) => {
    const cell = svg("rect", { class: value < 0 ? "less" : "more", x: side * x + 1, y: side * y + 1, width: side - 2, height: side - 2, rx: 2,
      "fill-opacity": Math.max(Math.abs(value), 0.06).toFixed(2) });
    cell.append(svg("title", {}, value.toFixed(2)));
    map.append(cell);
  }));
  return map;
}

function niceTop(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 0.1)));
  return power * [1, 2, 4, 5, 10].find((factor) => factor * power >= value);
}

function figure(content, caption) {
  const made = document.createElement("figure");
  made.append(content, document.createElement("figcaption"));
  made.lastChild.textContent = caption;
  return made;
}

function svg(tag, attributes, text = "") {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text) made.textContent = text;
  return made;
}
