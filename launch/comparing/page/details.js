// One run or a few: facts, config, metrics, and a note and tags that are kept in its directory.

function openDetails(ids) {
  const dialog = at("details");
  const close = element("button", { class: "close", type: "button", onclick: () => dialog.close() }, "close");
  fill(dialog, close, ...ids.slice(0, 1).flatMap((id) => describeRun(state.runs.get(id), ids)));
  if (!dialog.open) dialog.showModal();
}

function describeRun(run, ids) {
  const others = ids.length > 1
    ? select("run", ids.map((id) => [id, state.runs.get(id)?.name ?? id]), run.id, (id) => openDetails([id, ...ids.filter((other) => other !== id)]))
    : null;
  const facts = [["status", run.status_text], ...Object.entries(run.facts).filter(([, value]) => value !== null).map(([name, value]) => [name, String(value)])];
  const metrics = Object.entries(run.metrics).filter(([name]) => !name.startsWith("gradients/"));
  const search = element("input", { type: "search", placeholder: "find a key", "aria-label": "find a config key", oninput: () => showConfig() });
  const config = element("div");
  const showConfig = () => {
    const wanted = search.value.toLowerCase();
    const found = Object.entries(run.config).filter(([key, value]) => `${key} ${value}`.toLowerCase().includes(wanted));
    fill(config, rowsTable(found));
  };
  showConfig();
  return [
    element("h2", {}, run.name), others,
    ...run.notes.map((text) => element("p", { class: "warn" }, text)),
    element("h3", {}, "Note and tags"), state.live ? editor(run) : written(run),
    element("h3", {}, "Facts"), rowsTable(facts),
    element("h3", {}, "Metrics: final (lowest to highest)"),
    rowsTable(metrics.map(([name, [final, low, high]]) => [name, `${short(final, 5)}  (${short(low, 5)} to ${short(high, 5)})`])),
    element("h3", {}, "Config"), search, config,
  ].filter((part) => part !== null);
}

function written(run) {
  const tags = run.tags.map((tag) => element("span", { class: "tag" }, tag));
  return element("div", {}, element("p", { class: "note" }, run.note || (tags.length ? "" : "none")), ...tags);
}

function editor(run) {
  const note = element("textarea", { "aria-label": "note", placeholder: "what this run is about", maxLength: 10000 });
  note.value = run.note;
  const tags = element("input", { type: "text", "aria-label": "tags", placeholder: "tags, separated by commas" });
  tags.value = run.tags.join(", ");
  const said = element("span", { class: "quiet", role: "status" });
  const save = async () => {
    const content = { run: run.id, note: note.value, tags: tags.value.split(",").map((tag) => tag.trim()).filter(Boolean) };
    said.textContent = "saving";
    try {
      const answer = await fetch("note", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) });
      said.textContent = answer.ok ? "saved in notes.json" : `not saved: ${await answer.text()}`;
    } catch {
      said.textContent = "not saved: the command that serves this page has ended";
    }
  };
  return element("div", {}, note, tags, element("p", {}, element("button", { type: "button", onclick: save }, "save"), " ", said));
}
