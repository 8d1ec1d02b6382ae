// Curves: a panel for each kind of metric, all over the same axis.

const WIDTHS = [[0, "none"], [0.01, "1 %"], [0.03, "3 %"], [0.1, "10 %"]]; // parts of the axis
const HELD_OUT = /(^|[^a-z0-9])(eval|test|val|valid|validation|dev)([^a-z0-9]|$)/i;
const PERCENT = /(^|[^a-z0-9])(accuracy|acc|f1)([^a-z0-9]|$)/i;
const AXIS_NAMES = { step: "step", epoch: "epoch", time: "training time (s)" };
const spreads = new Map(); // what `spreadOf` found, until a run changes
const panels = new Map(); // title -> { card, chart, panel }

// A metric of a run as two lists, kept until the run changes: where it stands, and its values.
function curve(run, key, axis) {
  run.made ??= new Map();
  const name = `${axis} ${key}`;
  if (!run.made.has(name)) {
    const [moves, ys] = run.curves[key];
    let step = 0;
    const steps = moves.map((move) => (step += move));
    const known = axis === "step" || (run.knots[axis] || []).length > 0;
    const xs = axis === "step" ? steps : steps.map((at) => between(run.knots.step, run.knots[axis], at));
    run.made.set(name, known ? { xs, ys } : null);
  }
  return run.made.get(name);
}

// The value at a place between two neighbours; beyond the ends, on the line through the last two.
function between(xs, ys, at) {
  if (xs.length < 2) return ys[0];
  let [low, high] = [0, xs.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] <= at) low = middle;
    else high = middle;
  }
  if (ys[low] === null || ys[high] === null) return ys[low] ?? ys[high];
  return ys[low] + ((ys[high] - ys[low]) * (at - xs[low])) / (xs[high] - xs[low] || 1);
}

// Exponential moving average over a width of the axis, without the bias of its start; a gap stays a
// gap. A value weighs the same however many lie beside it: those of a long run are not all drawn.
function smooth(xs, ys, width) {
  if (width === 0) return ys;
  let [sum, weights, last] = [0, 0, null];
  return ys.map((value, i) => {
    if (value === null || xs[i] === null) return value;
    const kept = last === null ? 0 : Math.exp((last - xs[i]) / width);
    const weight = last === null ? 1e-9 : 1 - kept;
    [sum, weights, last] = [kept * sum + weight * value, kept * weights + weight, xs[i]];
    return weights > 0 ? sum / weights : value;
  });
}

// Mean and sample standard deviation of several lines, where at least half of them are.
function spreadOf(lines) {
  const all = [...new Set(lines.flatMap((each) => each.xs))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / 600);
  const found = { xs: [], ys: [], low: [], high: [] };
  const dense = lines.map(({ xs, ys }) => {
    const kept = xs.map((x, i) => [x, ys[i]]).filter(([, y]) => y !== null);
    return [kept.map(([x]) => x), kept.map(([, y]) => y)];
  }).filter(([xs]) => xs.length);
  all.forEach((x, i) => {
    if (i % every && i + 1 < all.length) return;
    const values = dense.filter(([xs]) => x >= xs[0] && x <= xs[xs.length - 1]).map(([xs, ys]) => between(xs, ys, x));
    if (!values.length || 2 * values.length < lines.length) return;
    const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
    const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0);
    const deviation = values.length > 1 ? Math.sqrt(squares / (values.length - 1)) : 0;
    for (const [name, value] of Object.entries({ xs: x, ys: mean, low: mean - deviation, high: mean + deviation })) found[name].push(value);
  });
  return found;
}

// Held-out metrics are dashed; where there are several of a kind, they are told apart as well.
function dashOf(panel, key) {
  const held = HELD_OUT.test(key);
  const place = panel.keys.filter((other) => HELD_OUT.test(other) === held).indexOf(key);
  return (held ? [1, 2, 3] : [0, 3, 2])[place % 3];
}

// What a panel draws: lines, pale ones behind those that are smoothed, and bands.
function linesOf(panel) {
  const found = [];
  const [low, high] = exact(drawnGroups().flatMap(runsOf).flatMap((run) => run.knots[state.axis] ?? []));
  for (const group of drawnGroups()) {
    const faded = state.focus !== null && state.focus !== group.name;
    panel.keys.forEach((key) => {
      const dash = dashOf(panel, key);
      const runs = runsOf(group).filter((run) => run.curves[key] && curve(run, key, state.axis));
      const held = HELD_OUT.test(key);
      const smoothing = held ? 0 : state.smoothing * (high - low);
      const raw = runs.map((run) => ({ run, ...curve(run, key, state.axis) }));
      const common = { colour: colourOf(group), dash, group, dots: held, faded };
      const suffix = panel.keys.length > 1 ? ` · ${key}` : "";
      if (state.spread && runs.length > 1) {
        const name = JSON.stringify([key, state.axis, runs.map(({ id }) => id)]);
        if (!spreads.has(name)) spreads.set(name, spreadOf(raw));
        const mean = spreads.get(name);
        if (mean.xs.length) {
          const label = `${group.name}${suffix}, mean of ${runs.length}`;
          found.push({ ...common, ...mean, ys: smooth(mean.xs, mean.ys, smoothing), band: true, label, dots: held && mean.xs.length < 40 });
        }
        return;
      }
      for (const { run, xs, ys } of raw) {
        if (smoothing && ys.length > 2) found.push({ ...common, xs, ys, behind: true });
        found.push({ ...common, xs, ys: smooth(xs, ys, smoothing), label: `${run.name}${suffix}`, dots: held && xs.length < 40 });
      }
    });
  }
  return found;
}

function paintPanel(self, panel) {
  return (pen, width, height) => {
    const lines = linesOf(panel);
    const log = state.log && lines.some(({ ys }) => ys.some((value) => value > 0));
    const zoom = state.zoom;
    const inside = (x) => !zoom || (x >= zoom[0] && x <= zoom[1]);
    const x = zoom || exact(lines.flatMap(({ xs }) => [xs[0], xs[xs.length - 1]]));
    const levels = lines.flatMap(({ xs, ys, low, high }) => [ys, ...(low && !log ? [low, high] : [])].flatMap((list) => list.filter((_, i) => inside(xs[i]))));
    const yFormat = panel.keys.every((key) => PERCENT.test(key)) ? percent : short;
    const box = axes(pen, width, height, { x, y: rangeOf(levels, log), xName: AXIS_NAMES[state.axis], yFormat, yLog: log });
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top - 4, box.right - box.left + 5, box.bottom - box.top + 8);
    pen.clip();
    for (const each of lines) if (each.band && !each.faded) band(pen, box, each);
    for (const each of lines) trace(pen, box, { ...each, alpha: each.faded ? 0.12 : each.behind ? 0.25 : 0.95, width: each.band ? 2 : 1.5 });
    pen.restore();
    if (self.drag) {
      pen.fillStyle = theme.accent;
      pen.globalAlpha = 0.15;
      pen.fillRect(Math.min(...self.drag), box.top, Math.abs(self.drag[1] - self.drag[0]), box.bottom - box.top);
      pen.globalAlpha = 1;
    }
    Object.assign(self, { box, lines, yFormat });
  };
}

// The whole range, without air: an axis of steps ends where the runs do.
function exact(values) {
  const known = values.filter((value) => value !== null && value !== undefined);
  const [low, high] = [Math.min(...known), Math.max(...known)];
  if (!known.length) return [0, 1];
  return low === high ? [low - 0.5, high + 0.5] : [low, high];
}

function addPanel(panel, host) {
  const marks = panel.keys.map((key) => `${["──", "– –", "···", "–·–"][dashOf(panel, key)]} ${key}`);
  const caption = panel.keys.length > 1 || panel.keys[0] !== panel.title ? ` ${panel.keys.length > 1 ? marks.join("  ") : panel.keys[0]}` : "";
  const card = element("div", { class: "card" }, element("h3", {}, panel.title, element("small", {}, caption)));
  host.append(card);
  const chart = surface(card, 230, () => {}, panel.title);
  chart.paint = paintPanel(chart, panel);
  follow(chart);
  return { card, chart };
}

// The pointer shows values; dragging it along the axis zooms into all panels, a double click out.
function follow(self) {
  const { canvas } = self;
  const values = ([x, y]) => {
    if (!self.box || x < self.box.left || x > self.box.right) return [];
    const where = self.box.xScale.from(x);
    const found = self.lines.filter((each) => each.label && each.xs.length && !each.faded).map((each) => {
      const i = nearest(each.xs, where);
      const far = where < each.xs[0] - 0 || where > each.xs[each.xs.length - 1];
      return { each, value: each.ys[i], at: each.xs[i], distance: each.ys[i] === null ? Infinity : Math.abs(self.box.yScale.to(each.ys[i]) - y) + (far ? 40 : 0) };
    });
    found.sort((a, b) => a.distance - b.distance);
    const close = found.slice(0, 9);
    if (!close.length) return [];
    return [[null, `${state.axis} ${short(close[0].at, 6)}`], ...close.map(({ each, value }) => [each.colour, `${self.yFormat(value)}  ${each.label}`])];
  };
  canvas.addEventListener("pointermove", (event) => {
    const spot = place(event, self);
    if (self.drag) {
      self.drag[1] = spot[0];
      self.repaint();
    }
    showTip(self, ...spot, values(spot));
  });
  canvas.addEventListener("pointerleave", () => { self.tip.hidden = true; });
  canvas.addEventListener("pointerdown", (event) => {
    if (event.pointerType !== "mouse" || event.button) return;
    self.drag = [place(event, self)[0], place(event, self)[0]];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointerup", () => {
    const drag = self.drag;
    self.drag = null;
    if (drag && Math.abs(drag[1] - drag[0]) > 6) {
      state.zoom = drag.map((x) => self.box.xScale.from(Math.min(Math.max(x, self.box.left), self.box.right))).sort((a, b) => a - b);
      zoomed();
    }
  });
  canvas.addEventListener("dblclick", () => { state.zoom = null; zoomed(); });
}

function zoomed() {
  at("unzoom").hidden = state.zoom === null;
  repaintAll();
}

// Panels come and go with the metrics there are; those that stay are only painted again.
function showPanels() {
  const wanted = new Map(state.page.panels.map((panel) => [`${panel.kind} ${panel.title} ${panel.keys.join(" ")}`, panel]));
  for (const [name, { card }] of panels) {
    if (!wanted.has(name)) {
      card.remove();
      panels.delete(name);
    }
  }
  for (const [name, panel] of wanted) if (!panels.has(name)) panels.set(name, addPanel(panel, at(`panels-${panel.kind}`)));
  for (const kind of ["more", "system"]) at(kind).hidden = !state.page.panels.some((panel) => panel.kind === kind);
  if (!state.page.panels.some((panel) => panel.kind === "main")) at("more").open = true;
  at("curves").hidden = state.page.panels.length === 0;
}

function curvesBar() {
  const runs = [...state.runs.values()];
  const named = Object.keys(AXIS_NAMES).filter((axis) => axis === "step" || runs.some((run) => run.knots[axis]?.length));
  const several = state.page.groups.some((group) => group.runs.length > 1);
  const set = (name) => (value) => {
    state[name] = value;
    if (name === "axis") state.zoom = null;
    zoomed();
  };
  fill("curves-bar",
    choice("by", named.map((axis) => [axis, axis]), state.axis, set("axis")),
    choice("smoothing", WIDTHS, state.smoothing, set("smoothing")),
    choice("scale", [[false, "linear"], [true, "log"]], state.log, set("log")),
    several ? choice("seeds", [[true, "mean ± deviation"], [false, "each run"]], state.spread, set("spread")) : null,
    element("button", { id: "unzoom", type: "button", hidden: state.zoom === null, onclick: () => { state.zoom = null; zoomed(); } }, "show all"),
    element("span", { class: "quiet" }, "drag to zoom"));
}
