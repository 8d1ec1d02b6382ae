// Starts the page, and follows the runs while the command that serves it goes on.

const POLL_MILLISECONDS = 1000;
const HIDDEN_MILLISECONDS = 5000;
let version = 0;
let built = false;
let pressed = false; // a click is two events on one element, which must not be replaced in between
let parallel = null;
let shape = ""; // what the bars above the charts depend on

// Take in what has changed: everything said of all runs, and the runs that are new or went on.
function receive(found) {
  if (found.page) state.page = found.page;
  for (const run of found.runs ?? []) {
    const before = state.runs.get(run.id);
    if (run.layers === undefined && before) run.layers = before.layers;
    state.runs.set(run.id, run);
  }
  const present = new Set(state.page.groups.flatMap((group) => group.runs));
  for (const id of state.runs.keys()) if (!present.has(id)) state.runs.delete(id);
  version = found.version ?? version;
  spreads.clear();
}

function refresh() {
  if (!built) build();
  const now = JSON.stringify([state.page.differing, state.page.metric, state.page.panels, state.page.groups.map(({ name, runs }) => [name, runs])]);
  if (now !== shape) {
    shape = now;
    curvesBar();
    configBar();
    parallel.plot.style.minWidth = `${GAP * Math.max(parallelVariables().length, 2)}px`;
  }
  at("main").hidden = state.runs.size === 0;
  fill("left-out", ...state.page.left_out.map((text) => element("p", { class: "warn" }, text)));
  showTable();
  showLegend();
  showPanels();
  layersBar();
  showEvaluations();
  repaintAll();
}

function build() {
  built = true;
  resultsBar();
  addScatter();
  parallel = addParallel();
  addLayers();
  at("table").addEventListener("mouseleave", () => {
    state.focus = null;
    repaintAll();
  });
  for (const name of ["pointerdown", "pointerup", "pointercancel"]) {
    document.addEventListener(name, () => { pressed = name === "pointerdown"; }, true);
  }
  for (const id of ["more", "system"]) at(id).addEventListener("toggle", repaintAll);
}

async function poll() {
  if (pressed) {
    setTimeout(poll, 100);
    return;
  }
  let found;
  try {
    const answer = await fetch(`data?since=${version}`, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    found = await answer.json();
  } catch {
    at("subtitle").textContent = "The command that serves this page has ended; what is shown is what it sent last.";
    setTimeout(poll, HIDDEN_MILLISECONDS);
    return;
  }
  setTimeout(poll, document.hidden ? HIDDEN_MILLISECONDS : POLL_MILLISECONDS);
  if (found.page) {
    receive(found);
    refresh();
  }
  const running = [...state.runs.values()].filter((run) => run.status === "running").length;
  const count = state.runs.size;
  const empty = count === 0 ? "no run has recorded anything yet" : `${count} run${count > 1 ? "s" : ""}, ${running} running`;
  at("subtitle").textContent = `${empty} · live, ${new Date().toLocaleTimeString()}`;
}

function start() {
  readTheme();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readTheme();
    repaintAll();
  });
  const found = JSON.parse(at("data").textContent);
  state.live = found.live;
  if (state.live) {
    at("subtitle").textContent = "reading the runs ...";
    poll();
    return;
  }
  at("subtitle").textContent = found.subtitle;
  receive(found);
  refresh();
}

start();
