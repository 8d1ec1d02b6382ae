// Canvases with axes: scales, ticks, the line that follows the pointer, lines with bands.

const surfaces = new Set();

// A canvas that is painted again when its width or the colours of the page change.
function surface(host, height, paint, label) {
  const canvas = element("canvas", { role: "img", "aria-label": label });
  const tip = element("div", { class: "tip", hidden: true });
  const plot = element("div", { class: "plot" }, canvas, tip);
  host.append(plot);
  const self = { canvas, tip, plot, height, width: 0, paint };
  self.repaint = () => {
    if (!plot.isConnected) {
      surfaces.delete(self);
      observer.disconnect();
      return;
    }
    self.width = plot.clientWidth;
    if (!self.width) return; // in a closed part of the page
    const scale = window.devicePixelRatio || 1;
    canvas.width = Math.round(self.width * scale);
    canvas.height = Math.round(self.height * scale);
    canvas.style.height = `${self.height}px`;
    const pen = canvas.getContext("2d");
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.font = "11px system-ui, sans-serif";
    pen.lineJoin = "round";
    self.paint(pen, self.width, self.height);
  };
  const observer = new ResizeObserver(() => plot.clientWidth !== self.width && self.repaint());
  observer.observe(plot);
  surfaces.add(self);
  return self;
}

// Show lines of text beside the pointer; a line is [colour or null, text].
function showTip(self, x, y, lines) {
  fill(self.tip, ...lines.map(([colour, text]) => {
    const mark = colour ? element("i") : null;
    if (mark) mark.style.background = colour;
    return element("div", {}, mark, text);
  }));
  self.tip.hidden = lines.length === 0;
  const { offsetWidth, offsetHeight } = self.tip;
  const right = x + 14 + offsetWidth < self.width;
  self.tip.style.left = `${Math.max(right ? x + 14 : x - 14 - offsetWidth, 0)}px`;
  self.tip.style.top = `${Math.max(Math.min(y - 10, self.height - offsetHeight), -40)}px`;
}

function place(event, self) {
  const box = self.canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw * 0.999);
  const first = Math.ceil(low / step - 1e-9);
  const places = Array.from({ length: 12 }, (_, i) => Number(((first + i) * step).toPrecision(12)));
  return places.filter((value) => value <= high + step * 1e-9);
}

function logTicks(low, high, count) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(Math.ceil((last - first) / Math.max(count, 1)), 1);
  const marks = (parts, step) => {
    const found = [];
    for (let i = first; i <= last && found.length < 999; i += step) found.push(...parts.map((part) => Number(`${part}e${i}`)));
    return found.filter((value) => value >= low * 0.999 && value <= high * 1.001);
  };
  const fitting = [[1, 2, 5], [1, 3], [1]].map((parts) => marks(parts, 1)).find((found) => found.length > 1 && found.length <= count + 2);
  return fitting ?? marks([1], every);
}

// From values to pixels and back.
function scaleOf(low, high, start, end, log, count) {
  const [into, out] = log ? [Math.log10, (value) => 10 ** value] : [Number, Number];
  const [a, b] = [into(low), into(high)];
  const span = b - a || 1;
  return {
    low, high, log,
    to: (value) => start + ((into(value) - a) / span) * (end - start),
    from: (pixel) => out(a + ((pixel - start) / (end - start)) * span),
    ticks: log ? logTicks(low, high, count) : ticks(low, high, count),
  };
}

// The range of some values with a little air; a single value stands between zero and its double.
function rangeOf(values, log) {
  let [low, high] = [Infinity, -Infinity];
  for (const value of values) {
    if (value !== null && (!log || value > 0)) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
  }
  if (low > high) return log ? [0.1, 1] : [0, 1];
  if (high - low < 1e-9 * Math.max(Math.abs(low), Math.abs(high))) low = high; // but for rounding
  if (log) return low === high ? [low / 2, high * 2] : [low / (high / low) ** 0.04, high * (high / low) ** 0.04];
  if (low === high) return low === 0 ? [-1, 1] : [Math.min(0, 2 * low), Math.max(0, 2 * low)];
  const air = (high - low) * 0.04;
  return [low - air, high + air];
}

// Grid, labels and the names of the axes; returns the scales of the box that is left.
function axes(pen, width, height, { x, y, xName, yFormat = short, xLog = false, yLog = false, xWords, yWords }) {
  const top = 6;
  const bottom = height - 34;
  const yScale = scaleOf(y[0], y[1], bottom, top, yLog, 5);
  const yTicks = yWords ? yWords.map((_, i) => i) : yScale.ticks;
  const yText = (value) => clip(yWords ? yWords[value] : yFormat(value), 14);
  const left = Math.max(...yTicks.map((value) => pen.measureText(yText(value)).width), 10) + 12;
  const right = width - 8;
  const xScale = scaleOf(x[0], x[1], left, right, xLog, Math.max(Math.floor((right - left) / 75), 2));
  pen.lineWidth = 1;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const value of yTicks) {
    const at = Math.round(yScale.to(value)) + 0.5;
    pen.strokeStyle = theme.grid;
    line(pen, left, at, right, at);
    pen.fillStyle = theme.quiet;
    pen.fillText(yText(value), left - 6, at);
  }
  pen.textBaseline = "top";
  let free = -Infinity;
  for (const value of xWords ? xWords.map((_, i) => i) : xScale.ticks) {
    const at = Math.round(xScale.to(value)) + 0.5;
    const text = clip(xWords ? xWords[value] : short(value), 12);
    const half = pen.measureText(text).width / 2;
    pen.strokeStyle = theme.grid;
    line(pen, at, top, at, bottom);
    if (at - half < free) continue;
    free = at + half + 8;
    pen.textAlign = at + half > width ? "right" : "center";
    pen.fillText(text, at + half > width ? width : at, bottom + 5);
  }
  pen.textAlign = "right";
  pen.fillText(xName, right, bottom + 20);
  pen.strokeStyle = theme.line;
  line(pen, left, bottom + 0.5, right, bottom + 0.5);
  return { xScale, yScale, left, right, top, bottom };
}

function line(pen, x1, y1, x2, y2) {
  pen.beginPath();
  pen.moveTo(x1, y1);
  pen.lineTo(x2, y2);
  pen.stroke();
}

const clip = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
const DASHES = [[], [6, 4], [1.5, 3], [8, 3, 2, 3]]; // whole, dashed, dotted, both

// One line; a value of null is a gap, and a point without neighbours a dot.
function trace(pen, box, { xs, ys, colour, dash = 0, width = 1.6, alpha = 1, dots = false }) {
  pen.strokeStyle = pen.fillStyle = colour;
  pen.globalAlpha = alpha;
  pen.lineWidth = width;
  pen.setLineDash(DASHES[dash % DASHES.length]);
  pen.beginPath();
  const marks = [];
  let drawing = false;
  for (let i = 0; i < xs.length; i += 1) {
    const gone = ys[i] === null || xs[i] === null || (box.yScale.log && ys[i] <= 0);
    if (!gone) {
      const [x, y] = [box.xScale.to(xs[i]), box.yScale.to(ys[i])];
      if (drawing) pen.lineTo(x, y);
      else pen.moveTo(x, y);
      const alone = !drawing && (i + 1 === ys.length || ys[i + 1] === null);
      if (dots || alone) marks.push([x, y]);
    }
    drawing = !gone;
  }
  pen.stroke();
  pen.setLineDash([]);
  for (const [x, y] of marks) dot(pen, x, y, 2.6);
  pen.globalAlpha = 1;
}

function dot(pen, x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

// The area between two lines.
function band(pen, box, { xs, low, high, colour }) {
  const inside = (value) => box.yScale.to(box.yScale.log ? Math.max(value, box.yScale.low) : value);
  pen.fillStyle = colour;
  pen.globalAlpha = 0.18;
  pen.beginPath();
  xs.forEach((x, i) => pen[i ? "lineTo" : "moveTo"](box.xScale.to(x), inside(high[i])));
  for (let i = xs.length - 1; i >= 0; i -= 1) pen.lineTo(box.xScale.to(xs[i]), inside(low[i]));
  pen.closePath();
  pen.fill();
  pen.globalAlpha = 1;
}

// The index of the value closest to another in a list that grows.
function nearest(values, wanted) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < wanted) low = middle;
    else high = middle;
  }
  return Math.abs(values[low] - wanted) <= Math.abs(values[high] - wanted) ? low : high;
}

let painting = false;
// Paint everything once before the next frame.
function repaintAll() {
  if (painting) return;
  painting = true;
  requestAnimationFrame(() => {
    painting = false;
    for (const each of surfaces) each.repaint();
  });
}
