"use strict";
// Draws what is in #data. Names come from users: they reach the page as text, never as markup.

const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;
const touch = matchMedia("(pointer: coarse)").matches;
const state = { axis: "step", weight: 0, log: false, hidden: new Set() };
const charts = []; // functions that draw one chart again

const byId = (id) => document.getElementById(id);
const colour = (name) => getComputedStyle(root).getPropertyValue(name).trim();
// Plotly reads a little HTML in its labels.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
const tail = (text, most) => (text.length > most ? "…" + text.slice(1 - most) : text);

function element(tag, text, className) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---------------------------------------------------------------- drawing

function layout(extra) {
  const line = colour("--line");
  const axis = { gridcolor: line, linecolor: line, zerolinecolor: line, automargin: true };
  return Object.assign({
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: colour("--text"), size: 12, family: "system-ui, sans-serif" },
    margin: { l: 48, r: 12, t: 8, b: 40 }, showlegend: false, hovermode: "closest",
    dragmode: touch ? false : "zoom", // dragging scrolls the page of a phone
    hoverlabel: { namelength: -1, font: { size: 12 } },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent") },
  }, extra, {
    xaxis: Object.assign({}, axis, extra.xaxis), yaxis: Object.assign({}, axis, extra.yaxis),
  });
}

const config = {
  responsive: true, displaylogo: false, displayModeBar: touch ? false : "hover",
  modeBarButtons: [["toImage", "resetScale2d"]],
};

function draw(place, traces, extra) {
  Plotly.react(place, traces, layout(extra), config);
}

// Exponential moving average without the bias of its start; gaps stay gaps.
function smooth(values, weight) {
  let mean = 0, count = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    count += 1;
    return mean / (1 - weight ** count);
  });
}

// ---------------------------------------------------------------- curves

const longest = Math.max(0, ...data.runs.map((run) => run.seconds || 0));
const [unit, unitSeconds] = longest > 7200 ? ["h", 3600] : longest > 300 ? ["min", 60] : ["s", 1];
const titles = { step: "step", epoch: "epoch", time: `training time (${unit})` };

function positions(series) {
  if (state.axis !== "time") return series[state.axis];
  return series.time.map((seconds) => (seconds === null ? null : seconds / unitSeconds));
}

function tracesOf(run, key) {
  const series = run.series[key.name];
  if (!series || state.hidden.has(run.group)) return [];
  const smoothed = state.weight > 0 && !key.held_out && series.value.length > 2;
  const trace = {
    type: "scatter", x: positions(series), y: series.value, name: plain(run.name),
    mode: key.held_out || series.value.length < 3 ? "lines+markers" : "lines",
    line: { color: colour(`--c${run.group % 8}`), width: 2, dash: key.held_out ? "dash" : "solid" },
    marker: { size: 5 }, opacity: data.groups[run.group].count > 1 ? 0.75 : 1,
    hovertemplate: `%{y:.5g}<br>${titles[state.axis]} %{x:,.5~g}<extra>%{fullData.name}</extra>`,
  };
  if (!smoothed) return [trace];
  const raw = Object.assign({}, trace, { opacity: 0.2, hoverinfo: "skip", hovertemplate: undefined });
  return [raw, Object.assign({}, trace, { y: smooth(series.value, state.weight) })];
}

function addChart(panel, grid) {
  const card = element("div", undefined, "card");
  const place = element("div", undefined, "plot");
  const keys = element("p", undefined, "key");
  if (panel.main) {
    for (const key of panel.keys) keys.append(element("span", key.name, key.held_out ? "held-out" : ""));
  }
  card.append(element("h3", panel.title), keys, place);
  grid.append(card);
  charts.push(() => {
    const traces = data.runs.flatMap((run) => panel.keys.flatMap((key) => tracesOf(run, key)));
    draw(place, traces, {
      xaxis: { title: { text: titles[state.axis], font: { size: 12 } } },
      yaxis: {
        type: state.log ? "log" : "linear", tickformat: panel.percent && !state.log ? ".0%" : "",
        range: state.log ? undefined : flatRange(traces),
      },
      uirevision: `${state.axis}${state.log}`,
    });
  });
}

// Around a constant Plotly shows one unit up and down: a learning rate would seem to be 0.
function flatRange(traces) {
  const levels = new Set(traces.flatMap((trace) => trace.y).filter((value) => value !== null));
  const [level] = levels;
  return levels.size === 1 && level > 0 ? [0, 2 * level] : undefined;
}

function addTools() {
  for (const button of byId("axis").children) {
    const axis = button.dataset.axis;
    button.disabled = !data.axes.includes(axis);
    button.addEventListener("click", () => { state.axis = axis; markAxis(); drawAll(); });
  }
  byId("smoothing").addEventListener("input", (event) => {
    state.weight = Number(event.target.value);
    byId("weight").textContent = state.weight;
    drawAll();
  });
  byId("log").addEventListener("change", (event) => { state.log = event.target.checked; drawAll(); });
  data.groups.forEach((group, index) => {
    const button = element("button", group.count > 1 ? `${group.name} (${group.count} seeds)` : group.name);
    button.type = "button";
    button.style.setProperty("--swatch", `var(--c${index % 8})`);
    button.setAttribute("aria-pressed", "true");
    button.addEventListener("click", () => {
      const show = state.hidden.delete(index);
      if (!show) state.hidden.add(index);
      button.setAttribute("aria-pressed", String(show));
      drawAll();
    });
    byId("legend").append(button);
  });
  markAxis();
}

function markAxis() {
  for (const button of byId("axis").children) {
    button.setAttribute("aria-pressed", String(button.dataset.axis === state.axis));
  }
}

// ---------------------------------------------------------------- layers

function addLayers() {
  const runs = data.runs.filter((run) => run.layers.length);
  if (!runs.length) return;
  byId("layers").hidden = false;
  const chooseRun = byId("layer-run"), chooseKind = byId("layer-kind");
  runs.forEach((run, index) => chooseRun.append(new Option(run.name, index)));
  const offerKinds = () => {
    chooseKind.replaceChildren(...runs[chooseRun.value].layers.map((map, i) => new Option(map.title, i)));
  };
  offerKinds();
  chooseRun.addEventListener("change", () => { offerKinds(); drawMap(); });
  chooseKind.addEventListener("change", () => drawMap());
  const drawMap = () => {
    const map = runs[chooseRun.value].layers[chooseKind.value];
    const narrow = innerWidth < 600;
    draw(byId("layer-map"), [{
      type: "heatmap", x: map.steps, y: map.names.map((_, row) => row), z: map.log10,
      customdata: map.names.map((name) => map.steps.map(() => plain(name))),
      colorscale: "Viridis", hoverongaps: false,
      colorbar: { title: { text: "log10" }, thickness: 12, tickfont: { size: 11 } },
      hovertemplate: "%{customdata}<br>step %{x}<br>10^%{z:.2f}<extra></extra>",
    }], {
      height: 90 + 20 * map.names.length,
      xaxis: { title: { text: "step" }, showgrid: false },
      yaxis: {
        autorange: "reversed", showgrid: false, tickfont: { size: narrow ? 9 : 11 },
        tickvals: map.names.map((_, row) => row),
        ticktext: map.names.map((name) => plain(tail(name, narrow ? 14 : 40))),
      },
    });
  };
  charts.push(drawMap);
}

// ---------------------------------------------------------------- confusion matrices

function mostConfused(run) {
  const pairs = [];
  run.confusion.forEach((row, truth) => row.forEach((count, guess) => {
    if (truth !== guess && count > 0) pairs.push([count, truth, guess]);
  }));
  pairs.sort((a, b) => b[0] - a[0]);
  const name = (index) => run.classes[index];
  return pairs.slice(0, 3).map(([n, truth, guess]) => `${name(truth)} taken for ${name(guess)}: ${n}`);
}

function addConfusion() {
  for (const run of data.runs.filter((run) => run.confusion.length)) {
    byId("confusion").hidden = false;
    const card = element("div", undefined, "card"), place = element("div");
    card.append(element("h3", run.name), element("p", mostConfused(run).join("; "), "quiet"), place);
    byId("confusion").querySelector(".grid").append(card);
    const size = run.confusion.length;
    const shares = run.confusion.map((row) => {
      const total = row.reduce((sum, count) => sum + count, 0);
      return row.map((count) => (total ? count / total : 0));
    });
    const indices = run.classes.map((_, index) => index);
    const labels = run.classes.map((name) => plain(tail(name, 12)));
    const ticks = size <= 40 ? { tickvals: indices, ticktext: labels, tickangle: size > 12 ? -90 : "auto" } : {};
    charts.push(() => draw(place, [{
      type: "heatmap", x: indices, y: indices, z: shares, zmin: 0, zmax: 1, showscale: false, xgap: 1, ygap: 1,
      customdata: run.confusion.map((row, truth) => row.map((count, guess) =>
        [plain(run.classes[truth]), plain(run.classes[guess]), count])),
      text: run.confusion, texttemplate: size <= 12 ? "%{text}" : "", textfont: { size: 11 },
      colorscale: [[0, colour("--page")], [1, colour("--accent")]],
      hovertemplate: "true %{customdata[0]}<br>predicted %{customdata[1]}<br>%{customdata[2]} (%{z:.1%})<extra></extra>",
    }], {
      height: 380, margin: { l: 40, r: 8, t: 8, b: 40 },
      xaxis: Object.assign({ title: { text: "predicted" }, showgrid: false, zeroline: false }, ticks),
      yaxis: Object.assign({ title: { text: "true", standoff: 12 }, autorange: "reversed", showgrid: false, zeroline: false }, ticks, { tickangle: 0 }),
    }));
  }
}

// ---------------------------------------------------------------- light and dark

const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;
try { chosen = localStorage.getItem("theme"); } catch { /* a browser may refuse it to files */ }

function applyTheme() {
  const theme = chosen || (system.matches ? "dark" : "light");
  root.dataset.theme = theme;
  root.style.colorScheme = theme;
  byId("theme").textContent = theme === "dark" ? "Light" : "Dark";
}

function drawAll() { for (const chart of charts) chart(); }

byId("theme").addEventListener("click", () => {
  chosen = root.dataset.theme === "dark" ? "light" : "dark";
  try { localStorage.setItem("theme", chosen); } catch { /* then it lasts as long as the page */ }
  applyTheme();
  drawAll();
});
system.addEventListener("change", () => { applyTheme(); drawAll(); });

// ---------------------------------------------------------------- start

applyTheme();
addTools();
for (const panel of data.panels.filter((panel) => panel.main)) addChart(panel, byId("charts"));
const more = data.panels.filter((panel) => !panel.main);
byId("more").hidden = !more.length;
addLayers();
addConfusion();
drawAll();
byId("more").addEventListener("toggle", () => { // a chart in a closed part of the page has no size
  if (!byId("more").open || byId("more").dataset.drawn) return;
  byId("more").dataset.drawn = "yes";
  for (const panel of more) addChart(panel, byId("more").querySelector(".grid"));
  drawAll();
});
