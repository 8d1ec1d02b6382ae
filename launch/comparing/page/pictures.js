// Maps of gradients, confusion matrices, mistakes and the pictures that lie in a run's directory.

const layers = { run: null, map: 0 };
const ROW = 18;

function layersBar() {
  const runs = shownRuns().filter((run) => run.layers);
  at("layers").hidden = runs.length === 0;
  if (!runs.length) return;
  if (!runs.some((run) => run.id === layers.run)) layers.run = runs[0].id;
  const { maps } = state.runs.get(layers.run).layers;
  layers.map = Math.min(layers.map, maps.length - 1);
  fill("layers-bar",
    select("run", runs.map((run) => [run.id, run.name]), layers.run, (value) => { layers.run = value; layersBar(); }),
    choice("of", maps.map(({ title }, i) => [i, title]), layers.map, (value) => { layers.map = value; repaintAll(); }));
  repaintAll();
}

function addLayers() {
  const self = surface(at("layers-map"), 200, () => {}, "gradients of each layer over the steps");
  self.paint = (pen, width) => {
    const run = state.runs.get(layers.run);
    if (!run?.layers) return;
    const { names, steps, maps } = run.layers;
    const height = names.length * ROW + 46;
    if (height !== self.height) {
      self.height = height;
      self.repaint();
      return;
    }
    const { rows } = maps[layers.map];
    const known = rows.flat().filter((value) => value !== null);
    const [low, high] = [Math.min(...known), Math.max(...known)];
    const left = Math.min(Math.max(...names.map((name) => pen.measureText(name).width)) + 10, width * 0.36);
    const cell = (width - left - 4) / steps.length;
    pen.textBaseline = "middle";
    names.forEach((name, i) => {
      pen.textAlign = "right";
      pen.fillStyle = theme.quiet;
      pen.fillText(ending(pen, name, left - 10), left - 6, i * ROW + ROW / 2);
      rows[i].forEach((value, j) => {
        if (value === null) return;
        pen.fillStyle = ramp((value - low) / (high - low || 1));
        pen.fillRect(left + j * cell, i * ROW, Math.ceil(cell), ROW - 1);
      });
    });
    pen.fillStyle = theme.quiet;
    pen.textBaseline = "top";
    pen.textAlign = "left";
    pen.fillText(`step ${short(steps[0])}`, left, height - 42);
    pen.textAlign = "right";
    pen.fillText(short(steps[steps.length - 1]), width - 4, height - 42);
    key(pen, left, height - 20, Math.min(160, width - left - 4), low, high);
    self.find = ([x, y]) => {
      const [i, j] = [Math.floor(y / ROW), Math.floor((x - left) / cell)];
      if (!names[i] || j < 0 || j >= steps.length) return [];
      const value = rows[i][j];
      return [[null, names[i]], [null, `step ${short(steps[j], 7)}: ${value === null ? "nothing, or not finite" : short(10 ** value, 3)}`]];
    };
  };
  hover(self);
}

// The colours of a logarithmic map, from its lowest to its highest value.
function key(pen, left, top, width, low, high) {
  for (let i = 0; i < width; i += 1) {
    pen.fillStyle = ramp(i / width);
    pen.fillRect(left + i, top, 1.5, 6);
  }
  pen.fillStyle = theme.quiet;
  pen.textAlign = "left";
  pen.fillText(short(10 ** low, 2), left, top + 8);
  pen.textAlign = "right";
  pen.fillText(short(10 ** high, 2), left + width, top + 8);
}

// The end of a text, which tells parameters apart, as far as there is room.
function ending(pen, text, room) {
  let found = text;
  while (found.length > 4 && pen.measureText(found).width > room) found = `…${found.slice(2)}`;
  return found;
}

function hover(self) {
  self.canvas.addEventListener("pointermove", (event) => {
    const spot = place(event, self);
    showTip(self, ...spot, self.find ? self.find(spot) : []);
  });
  self.canvas.addEventListener("pointerleave", () => { self.tip.hidden = true; });
}

function addConfusion(host, { classes, support, pairs }) {
  const count = classes.length;
  const self = surface(host, 340, () => {}, "confusion matrix");
  const counts = new Map(pairs.map(([truth, guess, value]) => [truth * count + guess, value]));
  self.paint = (pen, width, height) => {
    const longest = Math.max(...classes.map((name) => pen.measureText(clip(name, 12)).width));
    const left = count <= 40 ? longest + 24 : 20;
    const bottom = height - (count <= 40 ? 40 : 20);
    const [cell, tall] = [(width - left - 4) / count, bottom / count];
    for (const [truth, guess, value] of pairs) {
      const part = value / Math.max(support[truth], 1);
      pen.globalAlpha = 0.08 + 0.92 * part;
      pen.fillStyle = theme.accent;
      pen.fillRect(left + guess * cell, truth * tall, Math.max(cell - 1, 0.5), Math.max(tall - 1, 0.5));
      pen.globalAlpha = 1;
      if (count > 12) continue;
      pen.fillStyle = part > 0.55 ? theme.card : theme.text;
      pen.textAlign = "center";
      pen.textBaseline = "middle";
      pen.fillText(short(value), left + (guess + 0.5) * cell, (truth + 0.5) * tall);
    }
    pen.fillStyle = theme.quiet;
    pen.textBaseline = "middle";
    classes.forEach((name, i) => {
      if (count > 40) return;
      pen.textAlign = "right";
      if (tall > 8 || i % 2 === 0) pen.fillText(clip(name, 12), left - 6, (i + 0.5) * tall);
      pen.textAlign = "center";
      const room = Math.max(Math.floor(cell / 6), 1);
      pen.fillText(name.length <= room ? name : clip(name, Math.max(room, 2)), left + (i + 0.5) * cell, bottom + 10);
    });
    pen.textAlign = "right";
    pen.fillText("predicted", width - 4, height - 8);
    self.find = ([x, y]) => {
      const [truth, guess] = [Math.floor(y / tall), Math.floor((x - left) / cell)];
      if (!classes[truth] || !classes[guess] || guess < 0) return [];
      const value = counts.get(truth * count + guess) || 0;
      return [[null, `true ${classes[truth]}`], [null, `predicted ${classes[guess]}`], [null, `${value} (${percent(value / Math.max(support[truth], 1))})`]];
    };
  };
  hover(self);
}

// The pairs of classes that are taken for each other most often.
function mostConfused({ classes, pairs }) {
  const wrong = pairs.filter(([truth, guess]) => truth !== guess).slice(0, 3);
  return wrong.map(([truth, guess, count]) => `${classes[truth]} taken for ${classes[guess]}: ${count}`).join("; ");
}

function evaluationCard(run) {
  const card = element("div", { class: "card" }, element("h3", {}, run.name));
  if (run.confusion) {
    card.append(element("p", { class: "quiet" }, mostConfused(run.confusion)));
    addConfusion(card, run.confusion);
  }
  if (run.mistakes.length) {
    const head = ["no.", "true", "predicted", "confidence"].map((name) => element("th", { scope: "col" }, name));
    const rows = run.mistakes.map((entry) => element("tr", {}, ...entry.map((text) => element("td", {}, text))));
    card.append(element("div", { class: "scroll mistakes" }, element("table", {}, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...rows))));
  }
  for (const name of run.pictures) {
    if (run.confusion && name === "confusion_matrix.png") continue;
    const address = run.embedded ? run.embedded[name] : `picture?${new URLSearchParams({ run: run.id, name })}`;
    card.append(element("h3", {}, element("small", {}, name)), element("img", { src: address, alt: `${name} of ${run.name}` }));
  }
  return card;
}

let evaluatedNow = "";
// Cards of runs that have something to show; drawn anew only if that has changed.
function showEvaluations() {
  const runs = shownRuns().filter((run) => run.confusion || run.mistakes.length || run.pictures.length);
  at("evaluations").hidden = runs.length === 0;
  const now = JSON.stringify(runs.map((run) => [run.id, run.name, run.confusion, run.mistakes, run.pictures]));
  if (now === evaluatedNow) return;
  evaluatedNow = now;
  const host = at("evaluated");
  fill(host);
  for (const run of runs) {
    const card = evaluationCard(run);
    host.append(card);
  }
  repaintAll();
}
