// The table: a row for each group or run, columns to choose, sorted by a click.

// All columns there are: those of the ranking first, then whatever else is known of a run.
function allColumns() {
  const { page } = state;
  const given = page.columns.map((column, index) => ({
    ...column,
    cell: (row) => (row.run ? page.rows[row.run.id] : row.group.cells)[index],
  }));
  const taken = new Set(page.columns.map(({ name }) => name.split("\u00a0")[0]));
  const runs = [...state.runs.values()];
  const metrics = new Set(runs.flatMap((run) => Object.keys(run.metrics)).filter((name) => !name.startsWith("gradients/") && !taken.has(`final ${name}`)));
  const keys = new Set(runs.flatMap((run) => Object.keys(run.config)).filter((key) => !taken.has(key)));
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;
  const extra = (name, kind, text) => ({ name, kind, shown: false, cell: (row) => text(row.run ? [row.run] : runsOf(row.group)) });
  return [
    ...given,
    extra("read from", "fact", (members) => [members.map((run) => run.id).join(", "), null, false]),
    extra("note", "fact", (members) => [members.map((run) => run.note).filter(Boolean).join("; "), null, false]),
    ...[...metrics].map((name) => extra(`final ${name}`, "metric", (members) => {
      const values = members.map((run) => run.metrics[name]?.[0]).filter((value) => value !== null && value !== undefined);
      return values.length ? [short(mean(values)), mean(values), false] : ["-", null, false];
    })),
    ...[...keys].map((key) => extra(key, "config", (members) => [[...new Set(members.map((run) => run.config[key] ?? "-"))].join(", "), null, false])),
  ];
}

const isShown = (column) => state.columns.get(column.name) ?? column.shown;

function rowsShown() {
  const alone = state.rows === "runs";
  return shownGroups().flatMap((group) => (alone ? runsOf(group).map((run) => ({ group, run })) : [{ group, run: null }]));
}

// What a cell is sorted by: its number, the number its text says, or the text.
function sortKey([text, value]) {
  const found = value ?? toNumber(text);
  return Number.isNaN(found) ? text.toLowerCase() : found;
}

function sorted(rows, columns) {
  const column = state.sort && columns.find(({ name }) => name === state.sort.column);
  if (!state.sort || (!column && state.sort.column !== "run")) return rows;
  const key = column ? (row) => sortKey(column.cell(row)) : (row) => (row.run || row.group).name.toLowerCase();
  const missing = (value) => value === "-" || value === "";
  const sign = state.sort.descending ? -1 : 1;
  return rows.map((row) => [key(row), row]).sort(([a], [b]) => {
    if (missing(a) || missing(b)) return missing(a) - missing(b);
    if (typeof a !== typeof b) return typeof a === "number" ? -1 : 1;
    return sign * (a < b ? -1 : a > b ? 1 : 0);
  }).map(([, row]) => row);
}

function header(name, title) {
  const direction = state.sort?.column === name ? (state.sort.descending ? "descending" : "ascending") : null;
  const turn = () => {
    if (state.sort?.column !== name) state.sort = { column: name, descending: false };
    else state.sort = state.sort.descending ? null : { column: name, descending: true };
    showTable();
  };
  return element("th", { scope: "col", "aria-sort": direction }, element("button", { type: "button", onclick: turn }, title));
}

function swatch(group) {
  const off = state.hidden.has(group.name);
  const label = `${off ? "show" : "hide"} the curves of ${group.name}`;
  const found = element("button", { class: off ? "swatch off" : "swatch", type: "button", "aria-label": label, title: label, onclick: () => toggle(group) });
  found.style.background = found.style.borderColor = colourOf(group);
  return found;
}

function toggle(group) {
  if (!state.hidden.delete(group.name)) state.hidden.add(group.name);
  showTable();
  showLegend();
  repaintAll();
}

function row(each, columns) {
  const { group, run } = each;
  const name = (run || group).name;
  const members = run ? [run] : runsOf(group);
  const tags = [...new Set(members.flatMap((member) => member.tags))].map((tag) => element("span", { class: "tag" }, tag));
  const open = element("button", { class: "name", type: "button", title: name, onclick: () => openDetails(members.map(({ id }) => id)) }, name);
  const point = (focus) => () => {
    state.focus = focus;
    repaintAll();
  };
  return element("tr", { onmouseenter: point(group.name), onmouseleave: point(null) },
    element("th", { scope: "row" }, swatch(group), open, ...tags),
    ...columns.map((column) => {
      const [text, , best] = column.cell(each);
      const word = column.name === "status" ? element("span", { class: `dot ${text.split(",")[0].replace(/[^a-z]/g, "")}` }) : null;
      return element("td", { class: best ? "best" : null, title: text }, word, text);
    }));
}

function showTable() {
  const columns = allColumns().filter(isShown);
  const rows = sorted(rowsShown(), columns);
  const head = element("tr", {}, header("run", "run"), ...columns.map(({ name }) => header(name, name)));
  fill("table", element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows.map((each) => row(each, columns)))));
  const total = state.rows === "runs" ? state.runs.size : state.page.groups.length;
  at("count").textContent = rows.length === total ? "" : `${rows.length} of ${total}; the ranking is that of all`;
  at("seeds").hidden = !state.page.groups.some((group) => group.runs.length > 1);
  const lines = [state.page.explain, ...state.page.notes];
  fill("notes", ...lines.filter(Boolean).map((text) => element("p", { class: "quiet" }, text)));
}

// The list of columns; it stays open while columns come and go.
function columnPicker() {
  const list = element("div", {});
  const search = element("input", { type: "search", placeholder: "find a column", "aria-label": "find a column", oninput: () => show() });
  const show = () => {
    const found = allColumns().filter(({ name }) => name.toLowerCase().includes(search.value.toLowerCase()));
    fill(list, ...found.slice(0, 200).map((column) => checkbox(column.name, isShown(column), (wanted) => {
      state.columns.set(column.name, wanted);
      showTable();
    })));
  };
  const picker = element("details", { class: "picker", ontoggle: show }, element("summary", {}, "columns ▾"), element("div", {}, search, list));
  document.addEventListener("click", (event) => { if (!picker.contains(event.target)) picker.open = false; });
  return picker;
}

function resultsBar() {
  const search = element("input", { type: "search", value: state.search, placeholder: "search: name, tag:x, lr>0.01, status=running", "aria-label": "search runs", oninput: () => {
    state.search = search.value;
    refresh();
  } });
  fill("results-bar", search,
    element("span", { id: "seeds", hidden: true }, choice("rows", [["groups", "seeds together"], ["runs", "every run"]], state.rows, (value) => { state.rows = value; showTable(); })),
    columnPicker(), element("span", { class: "quiet", id: "count", role: "status" }));
}

function showLegend() {
  const names = shownGroups().map((group) => {
    const off = state.hidden.has(group.name);
    const mark = element("span", { class: off ? "swatch off" : "swatch" });
    mark.style.background = mark.style.borderColor = colourOf(group);
    const count = group.runs.length > 1 ? ` (${group.runs.length} seeds)` : "";
    return element("button", { class: off ? "off" : null, type: "button", "aria-pressed": String(!off), onclick: () => toggle(group) }, mark, `${group.name}${count}`);
  });
  fill("legend", ...names);
}
