// What a config key does to a metric: a scatter of two variables, and all of them side by side.

const scatter = { x: null, y: null };
const brushes = new Map(); // variable -> [from, to] in parts of its axis

function configBar() {
  const names = variables();
  const config = names.filter((name) => name.startsWith("config "));
  if (!names.includes(scatter.x)) scatter.x = firstAcross(config) ?? names[0];
  if (!names.includes(scatter.y)) scatter.y = state.page.metric;
  const options = names.map((name) => [name, name]);
  const set = (side) => (value) => {
    scatter[side] = value;
    repaintAll();
  };
  fill("scatter-bar", select("across", options, scatter.x, set("x")), select("up", options, scatter.y, set("y")));
  at("config").hidden = state.runs.size < 2 || config.length === 0;
}

// What says most of a metric before anybody has chosen: a key of numbers, which is no seed.
function firstAcross(config) {
  const runs = [...state.runs.values()];
  const others = config.filter((name) => !SEED.test(name));
  return others.find((name) => axisOf(runs, name)?.words === null) ?? others[0] ?? config[0];
}

// [low, high] of an axis with room at its ends.
function roomy(axis) {
  if (axis.words) return [axis.low - 0.5, axis.high + 0.5];
  return rangeOf([axis.low, axis.high], axis.log);
}

function paintScatter(self) {
  return (pen, width, height) => {
    const groups = drawnGroups();
    const runs = groups.flatMap(runsOf);
    const [x, y] = [axisOf(runs, scatter.x), axisOf(runs, scatter.y)];
    self.points = [];
    if (!x || !y) return;
    const box = axes(pen, width, height, {
      x: roomy(x), y: roomy(y), xName: scatter.x, xLog: x.log, yLog: y.log, xWords: x.words, yWords: y.words,
      yFormat: PERCENT.test(scatter.y) ? percent : short,
    });
    for (const group of groups) {
      for (const run of runsOf(group)) {
        const [a, b] = [x.of(run), y.of(run)];
        if (!Number.isFinite(a) || !Number.isFinite(b) || valueOf(run, scatter.x) === undefined || valueOf(run, scatter.y) === undefined) continue;
        const [left, top] = [box.xScale.to(a), box.yScale.to(b)];
        pen.fillStyle = colourOf(group);
        pen.globalAlpha = state.focus && state.focus !== group.name ? 0.2 : 0.85;
        dot(pen, left, top, 5);
        self.points.push({ left, top, run, colour: colourOf(group) });
      }
    }
    pen.globalAlpha = 1;
  };
}

const GAP = 118; // pixels between two axes
const SEED = /(^|[ .])(random_|manual_)?seed$/;

function parallelVariables() {
  const config = tellingKeys().filter((key) => !SEED.test(key)).map((key) => `config ${key}`);
  return [...config.slice(0, 11), state.page.metric];
}

function paintParallel(self) {
  return (pen, width, height) => {
    const runs = drawnGroups().flatMap(runsOf);
    const found = parallelVariables().map((name) => ({ name, axis: axisOf(runs, name) })).filter(({ axis }) => axis);
    const [top, bottom, left, right] = [44, height - 16, 50, width - 60];
    const columns = found.map(({ name, axis }, i) => ({
      name, axis,
      x: found.length > 1 ? left + (i * (right - left)) / (found.length - 1) : width / 2,
      scale: scaleOf(axis.low, axis.high === axis.low ? axis.low + 1 : axis.high, bottom, top, axis.log, 4),
    }));
    Object.assign(self, { columns, top, bottom, traces: [] });
    const last = columns[columns.length - 1];
    for (const run of runs) {
      if (columns.some(({ name }) => valueOf(run, name) === undefined)) continue;
      const path = columns.map(({ axis, scale, x }) => [x, scale.to(axis.of(run))]);
      const inside = columns.every(({ name }, i) => {
        const range = brushes.get(name);
        return !range || (path[i][1] >= range[0] && path[i][1] <= range[1]);
      });
      const part = (bottom - path[path.length - 1][1]) / (bottom - top);
      const colour = ramp(last.name === state.page.metric && state.page.lower ? 1 - part : part);
      self.traces.push({ run, path, colour, inside });
    }
    for (const { path, colour, inside, run } of self.traces) {
      pen.globalAlpha = !inside ? 0.08 : self.near && self.near !== run ? 0.2 : 0.9;
      pen.strokeStyle = colour;
      pen.lineWidth = self.near === run ? 3 : 1.6;
      pen.beginPath();
      path.forEach(([x, y], i) => (i ? pen.bezierCurveTo(x - (x - path[i - 1][0]) / 2, path[i - 1][1], x - (x - path[i - 1][0]) / 2, y, x, y) : pen.moveTo(x, y)));
      pen.stroke();
    }
    pen.globalAlpha = 1;
    columns.forEach((column, i) => paintColumn(pen, column, i, top, bottom, (right - left) / Math.max(columns.length - 1, 1)));
  };
}

function paintColumn(pen, { name, axis, x, scale }, index, top, bottom, gap) {
  pen.strokeStyle = theme.quiet;
  pen.lineWidth = 1;
  line(pen, x, top, x, bottom);
  pen.fillStyle = theme.text;
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  const text = name.replace(/^config /, "");
  pen.fillText(clip(text, Math.max(Math.floor(gap / 6), 12)), x, index % 2 ? 28 : 12);
  pen.fillStyle = theme.quiet;
  pen.textAlign = "right";
  const format = PERCENT.test(name) ? percent : short;
  const marks = axis.words ? axis.words.map((_, i) => i) : axis.low === axis.high ? [axis.low] : scale.ticks;
  const every = Math.ceil(marks.length / 12);
  marks.forEach((value, i) => i % every || pen.fillText(clip(axis.words ? axis.words[value] : format(value), 9), x - 5, scale.to(value)));
  const range = brushes.get(name);
  if (!range) return;
  pen.fillStyle = theme.accent;
  pen.globalAlpha = 0.3;
  pen.fillRect(x - 6, range[0], 12, range[1] - range[0]);
  pen.globalAlpha = 1;
}

// The lines of text that say which run a mark is of.
function describe(run, names, colour) {
  const value = (name) => {
    const found = valueOf(run, name);
    return typeof found === "number" ? short(found, 5) : String(found);
  };
  return [[colour, run.name], ...names.map((name) => [null, `${name.replace(/^config /, "")}: ${value(name)}`])];
}

function addScatter() {
  const self = surface(at("scatter"), 320, () => {}, "one variable against another");
  self.paint = paintScatter(self);
  const near = (event) => {
    const [x, y] = place(event, self);
    const found = (self.points || []).map((point) => [Math.hypot(point.left - x, point.top - y), point]).sort(([a], [b]) => a - b)[0];
    return found && found[0] < 20 ? found[1] : null;
  };
  self.canvas.addEventListener("pointermove", (event) => {
    const point = near(event);
    self.canvas.style.cursor = point ? "pointer" : "";
    showTip(self, ...place(event, self), point ? describe(point.run, [scatter.x, scatter.y], point.colour) : []);
  });
  self.canvas.addEventListener("pointerleave", () => { self.tip.hidden = true; });
  self.canvas.addEventListener("click", (event) => near(event) && openDetails([near(event).run.id]));
}

function addParallel() {
  const self = surface(at("parallel"), 320, () => {}, "config keys and the metric of every run");
  self.paint = paintParallel(self);
  self.plot.style.minWidth = `${GAP * Math.max(parallelVariables().length, 2)}px`;
  let brushed = null; // [variable, where it began]
  self.canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event, self);
    const column = (self.columns || []).find((each) => Math.abs(each.x - x) < 14);
    if (!column || event.pointerType !== "mouse") return;
    brushed = [column.name, y];
    brushes.delete(column.name);
    self.canvas.setPointerCapture(event.pointerId);
  });
  self.canvas.addEventListener("pointermove", (event) => {
    const [x, y] = place(event, self);
    if (brushed && Math.abs(y - brushed[1]) > 4) brushes.set(brushed[0], [Math.min(y, brushed[1]), Math.max(y, brushed[1])]);
    const distance = ({ path }) => Math.min(...path.map(([a, b], i) => {
      const [c, d] = path[i + 1] || [a, b];
      if (x < a || x > c) return Infinity;
      const part = (x - a) / (c - a || 1);
      return Math.abs(b + (d - b) * part * part * (3 - 2 * part) - y);
    }));
    const found = (self.traces || []).filter(({ inside }) => inside).map((each) => [distance(each), each]).sort(([p], [q]) => p - q)[0];
    const near = !brushed && found && found[0] < 12 ? found[1] : null;
    self.near = near && near.run;
    self.repaint();
    showTip(self, x, y, near ? describe(near.run, self.columns.map(({ name }) => name), near.colour) : []);
  });
  self.canvas.addEventListener("pointerup", () => { brushed = null; self.repaint(); });
  self.canvas.addEventListener("dblclick", () => { brushes.clear(); self.repaint(); });
  self.canvas.addEventListener("pointerleave", () => { self.near = null; self.tip.hidden = true; self.repaint(); });
  return self;
}
