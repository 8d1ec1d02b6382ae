"""The command that compares runs: its table, its files, its page in a browser, its guide."""

from __future__ import annotations

import csv
import json
import math
import re
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

import pytest
import wandb

from launch.compare import main
from tests.support.browser import Browser
from tests.support.processes import ROOT, Finished, launch, start
from tests.support.sample_runs import rows, write_offline, write_run
from tests.support.wandb_server import wandb_environment, wandb_run, wandb_server

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
    assert "91.00 %" in alone
    assert " *" not in alone.split("Differences")[0], "one seed each may be luck"
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
        (["no/*/such"], "no runs match"),
        (["empty"], "empty"),
        (["broken"], "not a readable JSON file"),
        (["runs/lr0.1-s0", "--metric=accuracy"], "Did you mean 'eval/accuracy'?"),
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


# ------------------------------------------------------------------ the page


@pytest.fixture(scope="module")
def page(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    Image.new("RGB", (40, 30), "teal").save(folder / "runs/lr0.1-s0/mistakes.png")
    note = {"note": NASTY, "tags": ["paper", NASTY[:40]]}
    (folder / "runs/lr0.3-s0/notes.json").write_text(json.dumps(note))
    path = tmp_path_factory.mktemp("page") / "report.html"
    compare("runs/*", "--html", path, cwd=folder)
    return path


def text_of(browser: Browser, selector: str) -> list[str]:
    found: list[str] = browser.evaluate(
        f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)"
    )
    return found


def press(browser: Browser, text: str, inside: str = "main") -> None:
    """Click the button that says so."""
    browser.evaluate(
        f"[...document.querySelectorAll('{inside} button')]"
        f".find((e) => e.textContent.trim() === {text!r}).click()"
    )


PAINTED = """[...document.querySelectorAll("canvas")].filter((e) => e.clientWidth).map((e) => {
  const copy = document.createElement("canvas");
  [copy.width, copy.height] = [e.width, e.height];
  const pen = copy.getContext("2d", { willReadFrequently: true });
  pen.drawImage(e, 0, 0);
  const { data } = pen.getImageData(0, 0, e.width, e.height);
  return new Set(new Uint32Array(data.buffer)).size; })"""
"""How many colours there are on each canvas."""


@pytest.mark.process
def test_the_page_works_in_a_browser_without_a_network(page: Path, tmp_path: Path) -> None:
    """Law: all is drawn, wide and narrow, light and dark; nothing is fetched, nothing goes wrong,
    and no text of a run becomes markup."""
    browser = Browser(tmp_path / "profile")
    try:
        for width, dark in ((1280, False), (390, True)):
            browser.open(page.as_uri(), width=width, dark=dark)
            browser.wait_for(f"{PAINTED}.length >= 9 && {PAINTED}.every((n) => n > 3)")
            assert len(text_of(browser, "#panels-main canvas")) == 5
            rows = text_of(browser, "#table tbody tr")
            assert [
                row.startswith(name) for row, name in zip(rows, ("lr0.1", "lr0.3"), strict=True)
            ]
            assert text_of(browser, "#table .best")[0].startswith("91.00 ± 1.00 %")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
            background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark
        use_the_page(browser)
        assert browser.errors == []
        assert all(r.startswith(("file:", "data:")) for r in browser.requests), browser.requests
        assert browser.evaluate("document.querySelectorAll('script').length") == 2
        pictures = browser.evaluate("[...document.images].map((e) => e.naturalWidth)")
        assert pictures == [40], "the one in a run's directory, and none out of a text"
        long = "very_long_name_" + "x" * 65
        browser.open(odd_page(tmp_path, long).as_uri(), width=390)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        assert browser.evaluate("[...document.querySelectorAll('.name')].at(-1).title") == long
        assert browser.evaluate("[...document.querySelectorAll('.name')].at(-1).clientWidth") > 99
        known = "the numbers of a key, though one run has no config, and a word is another key's"
        assert browser.evaluate("scatter.x") == "config optimizer.lr", known
    finally:
        browser.close()


def odd_page(folder: Path, long: str) -> Path:
    """A page of runs of which one has a long name and maps of its layers, and one no config."""
    records = layers(rows(30, accuracy=0.5))
    write_run(folder / "odd/a", config={"a": {"word": "x"}})
    write_run(folder / "odd/b", records, config={"name": long, "optimizer": {"lr": 0.5}})
    (write_run(folder / "odd/c") / "config.yaml").unlink()
    assert main([str(folder / "odd"), "--html", str(folder / "odd.html")]) == 0
    return folder / "odd.html"


def use_the_page(browser: Browser) -> None:
    """Search, sort, choose, smooth, hide, open."""
    lines = "linesOf(state.page.panels[0]).map((e) => [e.ys.length, e.label || null, !!e.band])"
    shown, panel = browser.evaluate(lines), ("train/loss", "eval/loss")
    assert [label for _, label, band in shown if band] == [
        f"{name} · {key}, mean of 3" for name in ("lr0.1", "lr0.3") for key in panel
    ]  # fmt: skip
    last = "linesOf(state.page.panels[0])[0].ys.at(-1)"
    before = browser.evaluate(last)
    for label in ("time", "3 %", "log", "each run"):
        press(browser, label)
    assert len(browser.evaluate(lines)) == 6 * 3, "as recorded and smoothed, and evaluated"
    assert browser.evaluate(last.replace("[0].ys", "[1].ys")) != before
    smooth = "smooth([1, 2, 3, 4], {}, 2).map((x) => x && Number(x.toFixed(6)))"
    assert browser.evaluate(smooth.format("[3, null, 3, 3]")) == [3, None, 3, 3]
    kept = math.exp(-0.5)
    assert browser.evaluate(smooth.format("[0, 0, 0, 1]"))[3] == pytest.approx(
        (1 - kept) / (1 - kept**3), abs=1e-5
    ), "values that lie further back weigh less, and there is no bias at the start"
    press(browser, "lr0.1 (3 seeds)")
    assert len(browser.evaluate(lines)) == 9, "one of two groups is hidden"
    press(browser, "every run")
    assert len(text_of(browser, "#table tbody tr")) == 6
    press(browser, "run", "#table")
    press(browser, "run", "#table")
    assert text_of(browser, "#table tbody .name")[0] == "lr0.3-s2"
    for typed, count in (("lr=0.3", 3), ("seed>=1 accuracy>0.9", 2), ("tag:paper", 1), ("", 6)):
        browser.evaluate(
            "(() => { const box = document.querySelector('#results-bar input');"
            f"box.value = {typed!r}; box.dispatchEvent(new Event('input')); }})()"
        )
        assert len(text_of(browser, "#table tbody tr")) == count, typed
    assert "seed" in text_of(browser, "#table thead th")
    assert "world size" not in text_of(browser, "#table thead th"), "it is the same in all"
    press(browser, "lr0.3-s0", "#table")
    [details] = text_of(browser, "dialog")
    assert NASTY in details
    assert "optimizer.lr" in details


@pytest.mark.process
def test_the_page_refers_to_nothing_outside_of_it(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert escape(NASTY) in markup, "for who has no JavaScript"
    markup = markup.replace(escape(NASTY), "")
    assert not re.search(r"https?://|//cdn|@import|\bsrc=", markup)
    assert "default-src &#x27;none&#x27;" in markup
    assert "unsafe" not in markup
    assert "width=device-width" in markup
    assert "onerror" not in markup
    data, script = re.findall(r"<script[^>]*>(.*?)</script>", text, flags=re.S)
    assert "<" not in data, "data stays in its script"
    assert "innerHTML" not in script
    json.loads(data)


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
