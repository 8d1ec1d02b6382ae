"""The command that compares runs: its table, its files, its page in a browser, its guide."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
import wandb

from launch.compare import main
from launch.comparing.curve_charts import smooth, thin
from tests.support.processes import ROOT, Finished, launch, start
from tests.support.sample_runs import rows, write_offline, write_run
from tests.support.wandb_server import wandb_environment, wandb_run, wandb_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NASTY = """<img src=x onerror=alert(1)></script><script>alert(1)</script>"&[red]%{x}$a$"""


def compare(*arguments: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> Finished:
    """The command to its good end."""
    finished = launch("launch/compare.py", *arguments, cwd=cwd, env=env)
    assert finished.status == 0, finished.output[-3000:]
    return finished


def layers(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same records with gradient statistics of two parameters."""
    for record in records:
        for name, value in (("first.weight", 0.5), ("second.bias", 0.001)):
            record[f"gradients/{name}/norm"] = value
            record[f"gradients/{name}/update_ratio"] = value / 100
    return records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/: three seeds of two configs, one of them evaluated, with gradients, and badly named."""
    root = tmp_path_factory.mktemp("compare")
    for lr, base in ((0.1, 0.90), (0.3, 0.80)):
        for seed in (0, 1, 2):
            config = {"seed": seed, "optimizer": {"lr": lr}, "note": NASTY if lr == 0.3 else ""}
            records = layers(rows(30, accuracy=base + seed / 100))
            write_run(root / f"runs/lr{lr}-s{seed}", records, config=config)
    evaluation = {"confusion_matrix": [[8, 2], [1, 9]], "classes": [NASTY, "dog"]}
    (root / "runs/lr0.1-s0/evaluation.json").write_text(json.dumps(evaluation))
    return root


# ------------------------------------------------------------------ the table


@pytest.mark.process
def test_the_table_says_which_is_better_and_why(folder: Path) -> None:
    out = compare("runs/*", cwd=folder).stdout
    assert "91.00 ± 1.00 % *" in out
    assert "81.00 ± 1.00 %" in out
    assert re.search(r"p = 0\.000\d+, significant", out)
    assert "Welch's t-test" in out
    for word in ("01234567", "2 x NVIDIA H100", "completed", "optimizer.lr", "0, 1, 2", "500"):
        assert word in out
    alone = compare("runs/lr0.1-s0", "runs/lr0.1-s1", "--no-group", cwd=folder).stdout
    assert "91.00 % *" in alone
    assert "±" not in alone
    by_loss = compare("runs/*", "--metric=eval/loss", "--by=final", cwd=folder).stdout
    assert "final eval/loss, lower is better" in by_loss


@pytest.mark.process
def test_few_seeds_are_warned_of(folder: Path) -> None:
    names = [f"runs/lr{lr}-s{seed}" for lr in (0.1, 0.3) for seed in (0, 1)]
    assert "few seeds" in compare(*names, cwd=folder).stdout


@pytest.mark.process
def test_a_real_run_is_compared_with_its_wandb_files_while_it_goes_on(
    small: Callable[..., list[str]], tmp_path: Path
) -> None:
    """Law: what a run has recorded so far is read from its directory and from W&B's files alike."""
    env = wandb_environment(tmp_path / "home")
    options = ("--train.epochs=100000", "--logging.progress=off", "--logging.wandb.mode=offline")
    going = start([sys.executable, str(ROOT / "launch/train.py"), *small("a", *options)], env=env)
    try:
        deadline = time.monotonic() + 60
        while not sum(path.stat().st_size for path in tmp_path.glob("a/wandb/*/*.wandb")) > 30_000:
            assert going.poll() is None, going.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        arguments = ["a", "a/wandb/offline-run-*", "--json=a.json"]
        out = compare(*arguments, cwd=tmp_path, env=env).stdout
    finally:
        going.send_signal(signal.SIGTERM)
        going.communicate(timeout=60)
    assert out.count("running") == 4, "in the table, and in a note for each"
    assert "a seed occurs twice" in out, "both are one experiment"
    ours, theirs = json.loads((tmp_path / "a.json").read_text())["runs"]
    assert ours["config"] == theirs["config"]
    assert ours["metrics"].keys() == theirs["metrics"].keys()


@pytest.mark.process
def test_an_offline_run_of_another_script_is_compared_with_a_run(tmp_path: Path) -> None:
    env = wandb_environment(tmp_path / "home")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in env.items():
            patch.setenv(name, value)
        history = [{"loss": 1 / (i + 1), "val_acc": 0.5 + i / 100} for i in range(10)]
        theirs = write_offline(tmp_path, history, name="theirs", config={"optimizer": {"lr": 9}})
    write_run(tmp_path / "ours")
    out = compare(tmp_path / "ours", theirs, "--metric=val_acc").stdout
    assert "59.00 %" in out
    assert re.search(r"optimizer\.lr", out)
    assert "9" in out


@pytest.mark.process
def test_a_server_is_asked_for_runs(tmp_path: Path) -> None:
    server_runs = [wandb_run(name, rows(3), group="study", tags=["paper"]) for name in ("a", "b")]
    write_run(tmp_path / "local")
    with wandb_server(server_runs) as server:
        env = wandb_environment(tmp_path / "home", server.url, "0123456789" * 4)
        finished = compare(tmp_path / "local", "team/project", "--filter-group=study", env=env)
    for name in ("run a", "run b", "local"):
        assert name in finished.stdout


# ------------------------------------------------------------------ refusals


@pytest.mark.process
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing-here"], "there is no run at 'nothing-here'"),
        (["runs"], "is not a run"),
        (["no/*/such"], "no runs match"),
        (["empty"], "empty"),
        (["broken"], "not a readable JSON file"),
        (["runs/lr0.1-s0", "--metric=acc"], "--metric: given 'acc'"),
        (["runs/lr0.1-s0", "--csv=missing/a.csv"], "--csv"),
        (["runs/lr0.1-s0", "--filter-tag=t"], "--filter-tag"),
        (["team/project/abc"], "WANDB_API_KEY"),
    ],
)
def test_bad_input_is_one_message_and_status_2(
    folder: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    if not (folder / "empty").exists():
        write_run(folder / "empty", [])
        (write_run(folder / "broken") / "summary.json").write_text("{")
    env = wandb_environment(tmp_path / "home")
    finished = launch("launch/compare.py", *arguments, cwd=folder, env=env)
    assert finished.status == 2, finished.output
    assert message in finished.stderr
    assert finished.stderr.count("error:") == 1
    assert "Traceback" not in finished.output


# ------------------------------------------------------------------ files


@pytest.mark.process
def test_csv_and_json_hold_the_numbers(folder: Path, tmp_path: Path) -> None:
    compare("runs/*", "--csv", tmp_path / "a.csv", "--json", tmp_path / "a.json", cwd=folder)
    with (tmp_path / "a.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["name"] for row in found[:3]] == ["lr0.1-s0", "lr0.1-s1", "lr0.1-s2"]
    assert [float(row["best eval/accuracy"]) for row in found[:3]] == [0.9, 0.91, 0.92]
    assert {row["best_chosen_on"] for row in found} == {"test"}
    assert {row["config note"] for row in found} == {"", NASTY}
    content = json.loads((tmp_path / "a.json").read_text())
    first, second = content["groups"]
    assert (first["name"], first["count"], first["p"]) == ("lr0.1", 3, None)
    assert first["mean"] == pytest.approx(0.91)
    assert second["difference_to_best"] == pytest.approx(-0.1)
    assert 0 < second["p"] < 0.001
    assert content["runs"][0]["metrics"]["train/loss"] == {
        "final": 1 / 300, "best": 1 / 300, "best_step": 300
    }  # fmt: skip


@pytest.mark.process
def test_a_number_that_json_lacks_is_null(tmp_path: Path) -> None:
    records = [{"step": 1, "eval/accuracy": 0.5, "x": float("nan")}]
    write_run(tmp_path / "a", records)
    compare(tmp_path / "a", "--json", tmp_path / "a.json", "--html", tmp_path / "a.html")

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=refuse)
    assert content["runs"][0]["metrics"]["x"] == {"final": None, "best": None, "best_step": None}


@pytest.mark.process
def test_the_picture_is_one(folder: Path, tmp_path: Path) -> None:
    from PIL import Image

    compare("runs/*", "--png", tmp_path / "a.png", cwd=folder)
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size[0] >= 1500
        colours = picture.convert("RGB").getcolors(1 << 20)
    assert colours is not None
    assert len(colours) > 50, "curves in two colours, not an empty page"


def test_long_curves_keep_their_extremes() -> None:
    """Law: thinning never hides a spike, and keeps both ends."""
    points = [{"step": step, "a": 0.0} for step in range(10_001)]
    points[5003]["a"], points[7001]["a"] = 9.0, -9.0
    kept = thin(points, "a", 100)
    assert len(kept) <= 100
    assert {9.0, -9.0} <= {point["a"] for point in kept}
    assert (kept[0]["step"], kept[-1]["step"]) == (0, 10_000)
    assert thin(points[:50], "a", 100) == points[:50]


def test_smoothing_has_no_bias_at_the_start_and_keeps_gaps() -> None:
    """Law: a constant stays what it is, from its first point on."""
    assert smooth([3.0] * 5, 0.9) == pytest.approx([3.0] * 5)
    assert smooth([1.0, 5.0], 0.0) == [1.0, 5.0]
    assert smooth([1.0, 5.0], 0.5) == pytest.approx([1.0, (0.25 * 1 + 0.5 * 5) / 0.75], rel=1e-5)
    gap = smooth([1.0, float("nan"), 1.0], 0.5)
    assert (gap[0], gap[2]) == (1.0, 1.0)
    assert math.isnan(gap[1])


# ------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    compare("runs/*", "--html", path, cwd=folder)
    return path


PROBE = """
<script>
addEventListener("load", () => setTimeout(async () => {
  const say = () => ({
    plots: document.querySelectorAll(".plotly-graph-div > .plot-container").length,
    panels: curves.querySelectorAll(".scatterlayer").length,
    lines: curves.querySelectorAll(".scatterlayer .trace").length,
    maps: document.querySelectorAll(".heatmaplayer image").length,
    network: performance.getEntriesByType("resource").map((e) => e.name)
      .filter((name) => /^https?:/.test(name)),
    title: [...curves.querySelectorAll("[class$=title]")].map((e) => e.textContent).join(" "),
    scale: curves._fullLayout.yaxis.type,
    last: curves.data.map((trace) => trace.y[trace.y.length - 1]),
    width: document.documentElement.scrollWidth, window: document.documentElement.clientWidth,
    images: document.images.length, alerts: window.alerts, errors: window.errors,
  });
  const curves = document.querySelector(".plotly-graph-div");
  const press = (label) => [...curves.querySelectorAll(".updatemenu-button")]
    .find((button) => button.textContent === label).dispatchEvent(new MouseEvent("click"));
  const before = say();
  for (const label of ["by time", "0.9", "log scale"]) press(label);
  const name = curves.querySelector(".legendtoggle");
  for (const kind of ["mousedown", "mouseup"]) {
    name.dispatchEvent(new MouseEvent(kind, { bubbles: true, view: window }));
  }
  await new Promise((done) => setTimeout(done, 1500));
  const result = { before, after: say() };
  if (window.parent !== window) parent.postMessage(result, "*");
  else document.title = "PROBE" + JSON.stringify(result);
}, 500));
</script>
"""
WATCH = """<script>
window.errors = []; window.alerts = 0; window.alert = () => { window.alerts += 1; };
addEventListener("error", (e) => window.errors.push(e.message));
addEventListener("securitypolicyviolation", (e) => window.errors.push("CSP " + e.blockedURI));
for (const kind of ["error", "warn"]) {
  console[kind] = (...words) => window.errors.push(words.join(" "));
}
</script>"""
FRAME = """<body style="margin:0"><iframe src="page.html"
  style="border:0;width:WIDTHpx;height:800px"></iframe><script>addEventListener("message",
  (e) => { document.title = "PROBE" + JSON.stringify(e.data); });</script>"""


@pytest.fixture
def browse(page: Path, tmp_path: Path) -> Iterator[Callable[..., dict[str, Any]]]:
    """Open the page in a real browser, use it, and tell what was seen before and after."""
    if CHROMIUM is None:
        pytest.skip("CHROMIUM IS NOT INSTALLED: the report was not opened in a browser")

    def open_page(width: int = 1280) -> dict[str, Any]:
        text = page.read_text(encoding="utf-8").replace("<head>", "<head>" + WATCH, 1)
        head, end, tail = text.rpartition("</body>")
        (tmp_path / "page.html").write_text(head + PROBE + end + tail, encoding="utf-8")
        # A frame, because a headless global batch is never narrower than 500 pixels.
        (tmp_path / "frame.html").write_text(FRAME.replace("WIDTH", str(width)))
        command = [
            CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic",
            "--no-first-run", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", f"--user-data-dir={tmp_path / f'profile-{width}'}",
            "--virtual-time-budget=10000", f"--window-size={max(width, 500)},900", "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
        found = re.search(r"<title>PROBE(.*?)</title>", done.stdout, re.S)
        assert found, done.stderr[-3000:]
        result: dict[str, Any] = json.loads(unescape(found[1]))
        return result

    yield open_page
    shutil.rmtree(tmp_path)


@pytest.mark.process
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_works_in_a_browser_without_a_network(
    browse: Callable[..., dict[str, Any]], width: int
) -> None:
    """Law: all is drawn, nothing is fetched, nothing goes wrong, and nothing is wider than it."""
    seen = browse(width)
    before, after = seen["before"], seen["after"]
    assert before["plots"] == 3, "the curves, the gradients and the confusion matrix"
    assert before["panels"] == 5
    # Five training curves of a run are drawn twice: as recorded, and to be smoothed.
    assert before["lines"] == 6 * (5 * 2 + 2)
    assert before["maps"] == 2
    assert after["lines"] == before["lines"] / 2, "one of two groups is hidden"
    assert "step" in before["title"]
    assert "training time (s)" in after["title"]
    assert (before["scale"], after["scale"]) == ("linear", "log")
    changed = [a != b for a, b in zip(before["last"], after["last"], strict=True)]
    assert 0 < sum(changed) <= 6 * 5, "training curves are smoothed, and nothing else"
    for state in (before, after):
        assert state["errors"] == []
        assert state["network"] == []
        assert (state["alerts"], state["images"]) == (0, 0), "text of a config became markup"
        assert state["width"] <= state["window"] <= width


@pytest.mark.process
def test_the_page_refers_to_nothing_outside_of_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert escape(NASTY) in markup
    markup = markup.replace(escape(NASTY), "")
    assert not re.search(r"https?://|//cdn|@import|\bsrc=", markup)
    assert "default-src 'none'" in markup
    assert "width=device-width" in markup
    assert text.count("plotly.js v") == 1, "plotly is in the page once"
    assert "onerror" not in markup
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.S)
    assert not any("<img" in script for script in scripts[1:]), "data stays in its script"


# ------------------------------------------------------------------ the guide


@pytest.mark.process
def test_every_command_of_the_guide_works(folder: Path, tmp_path: Path) -> None:
    """Law: docs/compare.md shows commands that do what they say."""
    text = (ROOT / "docs/compare.md").read_text(encoding="utf-8")
    commands = re.findall(r"^    (python launch/compare\.py .*)$", text, re.M)
    assert len(commands) >= 8
    shutil.copytree(folder / "runs", tmp_path / "runs")
    for name, source in (("a", "lr0.1-s0"), ("b", "lr0.3-s0")):
        (tmp_path / "runs" / source).rename(tmp_path / "runs" / name)
    online = [wandb_run("run_id", rows(3), group="study", tags=["paper"])]
    with wandb_server(online) as server, pytest.MonkeyPatch.context() as patch:
        env = wandb_environment(tmp_path / "home", server.url, "0123456789" * 4)
        for name, value in env.items():
            patch.setenv(name, value)
        patch.chdir(tmp_path)
        write_offline(tmp_path / "runs/b", rows(4))
        for command in commands:
            assert main(shlex.split(command)[2:]) == 0, command
        wandb.teardown()
    for name in ("report.html", "curves.png", "runs.csv", "runs.json"):
        assert (tmp_path / name).stat().st_size > 500
