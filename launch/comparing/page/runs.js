// The runs, and which of them a reader looks at.

const state = {
  page: null, // what is said of all runs
  runs: new Map(), // id -> what is said of one
  live: false,
  search: "",
  hidden: new Set(), // names of groups
  focus: null, // name of the group that is pointed at
  axis: "step",
  smoothing: 0, // part of the axis
  log: false,
  spread: true, // mean and band instead of each run
  zoom: null, // [from, to] on the axis
  rows: "groups",
  sort: null, // { column, descending }
  columns: new Map(), // name of a column -> whether it was asked for
};

const seen = new Map(); // name of a group -> its colour, which stays when the order changes
function colourOf(group) {
  const further = `hsl(${Math.round(seen.size * 137.5) % 360} 50% 50%)`; // far from those before it
  if (!seen.has(group.name)) seen.set(group.name, state.page.colours[seen.size] ?? further);
  return seen.get(group.name);
}

// The runs of a group that match the search.
function runsOf(group) {
  return group.runs.map((id) => state.runs.get(id)).filter((run) => run && matches(run));
}

const shownGroups = () => state.page.groups.filter((group) => runsOf(group).length > 0);
const drawnGroups = () => shownGroups().filter((group) => !state.hidden.has(group.name));
const shownRuns = () => shownGroups().flatMap(runsOf);

const TERM = /^([^<>=!:]+)(>=|<=|!=|=|>|<|:)(.+)$/;

// All words must match: part of name, status, tags or note; or key=value, key>value, tag:value.
function matches(run) {
  return state.search.toLowerCase().split(/\s+/).filter(Boolean).every((word) => {
    const [, key, sign, wanted] = TERM.exec(word) || [];
    const value = key === undefined ? undefined : lookUp(run, key);
    if (value === undefined) {
      return [run.name, run.status, run.note, run.id, ...run.tags].some((text) => text.toLowerCase().includes(word));
    }
    const [ours, theirs] = [toNumber(value), toNumber(wanted)];
    const numeric = !Number.isNaN(ours) && !Number.isNaN(theirs);
    const text = String(value).toLowerCase();
    if (sign === ":") return text.includes(wanted);
    if (sign === "=") return numeric ? ours === theirs : text === wanted;
    if (sign === "!=") return numeric ? ours !== theirs : text !== wanted;
    if (!numeric) return false;
    return { ">": ours > theirs, "<": ours < theirs, ">=": ours >= theirs, "<=": ours <= theirs }[sign];
  });
}

// The value of a config key, a metric or a fact that a reader calls by its whole name or its end.
function lookUp(run, key) {
  if (key === "tag" || key === "tags") return run.tags.join(" ");
  if (key === "status" || key === "name" || key === "note") return run[key];
  const ends = (name) => [name, name.split(".").pop(), name.split("/").pop()].some((part) => part.toLowerCase() === key);
  const config = Object.keys(run.config).find(ends);
  if (config !== undefined) return run.config[config];
  const metric = [state.page.metric, ...Object.keys(run.metrics)].find((name) => name in run.metrics && ends(name));
  return metric === undefined ? undefined : run.metrics[metric][0];
}

// Config keys of which at least two values are known: a run that lacks a key says nothing of it.
function tellingKeys() {
  const values = (key) => [...state.runs.values()].map((run) => valueOf(run, `config ${key}`)).filter((value) => value !== undefined);
  return state.page.differing.filter((key) => new Set(values(key)).size > 1);
}

// The variables that a run may be placed by: config keys that tell runs apart, and metrics.
function variables() {
  const names = new Set(shownRuns().flatMap((run) => Object.keys(run.metrics)).filter((name) => !name.startsWith("gradients/")));
  const metric = state.page.metric;
  const metrics = [metric, ...[...names].filter((name) => name !== metric)];
  return [...tellingKeys().map((key) => `config ${key}`), ...metrics];
}

function valueOf(run, variable) {
  if (variable.startsWith("config ")) {
    const key = variable.slice(7);
    return run.config[key] ?? run.facts[key];
  }
  const found = run.metrics[variable];
  if (!found) return undefined;
  const best = variable === state.page.metric && state.page.by === "best";
  return found[best ? (state.page.lower ? 1 : 2) : 0] ?? undefined;
}

// How values lie on an axis: numbers, on a log scale if they span much, or one place for each word.
function axisOf(runs, variable) {
  const values = runs.map((run) => valueOf(run, variable)).filter((value) => value !== undefined);
  const numbers = values.map(toNumber);
  if (!values.length) return null;
  if (numbers.every(Number.isFinite)) {
    const [low, high] = [Math.min(...numbers), Math.max(...numbers)];
    return { of: (run) => toNumber(valueOf(run, variable)), low, high, log: low > 0 && high / low >= 30, words: null };
  }
  const words = [...new Set(values.map(String))].sort();
  return { of: (run) => words.indexOf(String(valueOf(run, variable))), low: 0, high: words.length - 1, log: false, words };
}
