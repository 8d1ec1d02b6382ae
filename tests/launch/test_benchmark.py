"""The benchmark command: its arithmetic on known numbers, its processes, and what it writes."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.measure import results
from benchmarks.measure.contenders import CONTENDERS, PEERS, TEXT, Contender, Settings, choose
from benchmarks.measure.growth import points
from benchmarks.measure.option_costs import OPTIONS, step_seconds, summarise
from benchmarks.measure.peers import compare, measure, show_peers
from benchmarks.measure.peers import summarise as summarise_runs
from benchmarks.measure.pictures import growth_figure, roofline_figure
from benchmarks.measure.processes import CommandFailed, run
from benchmarks.measure.roofline import describe_step, roofline_points
from benchmarks.measure.rounds import (
    collect,
    complete_rounds,
    interleaved,
    ratios,
    spread,
    steady,
)
from benchmarks.measure.run_times import compile_seconds, last_epoch_mean, read_run
from benchmarks.measure.seeds import moments
from benchmarks.measure.timed_runs import time_mlp_step
from benchmarks.run import parse
from configs.errors import InputError
from tests.support.processes import is_running, launch, python_command, start, wait

SETTINGS = Settings(epochs=1, threads=1, max_steps=3)
PNG = b"\x89PNG\r\n\x1a\n"


def line(*train_seconds: float, accuracy: float = 0.9) -> dict[str, Any]:
    """What a peer would print."""
    return {
        "train_seconds": list(train_seconds),
        "compile_seconds": 0.0,
        "first_step_seconds": 2.0,
        "test_accuracy": accuracy,
        "train_loss": 0.3,
        "peak_memory_bytes": 1 << 20,
        "extrapolated": False,
    }


RUN_KEYS = {*line(1.0), "name", "epochs", "steps", "threads", "ranks"}


def test_statistics_of_known_numbers() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == {"median": 2.5, "min": 1.0, "max": 10.0}
    assert spread([1.6, 2.4], 0) == {"median": 2, "min": 2, "max": 2}
    assert steady([9.0, 1.0, 3.0, 2.0]) == 2.0  # the first epoch warms up
    assert steady([9.0]) == 9.0


def test_ratios_are_taken_round_by_round() -> None:
    """Law: a round that is slow for everyone changes no ratio; medians divided would."""
    mine, theirs = [2.0, 40.0, 6.0], [1.0, 20.0, 2.0]
    assert ratios(mine, theirs) == {"median": 2.0, "min": 2.0, "max": 3.0}


def test_rounds_rotate() -> None:
    """Law: everyone once a round, and each round begins with the next one."""
    assert "".join(item for _, item in interleaved("abc", 4)) == "abcbcacababc"
    calls: list[str] = []
    said: list[str] = []
    found = collect("ab", 2, lambda item: calls.append(item) or len(calls), said.append)
    assert calls == ["a", "b", "b", "a"]
    assert found == [[1, 4], [2, 3]]
    assert said == ["round 1 of 2 done", "round 2 of 2 done"]


def test_a_benchmark_that_runs_out_of_time_keeps_its_complete_rounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Law: what is compared has seen the same rounds; without a whole one, what there is."""
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    assert "".join(item for _, item in interleaved("abc", 4, seconds=6)) == "abcbc"
    assert complete_rounds([[1, 2], [3], [4, 5]]) == [[1], [3], [4]]
    assert complete_rounds([[1], [2], []]) == [[1], [2], []]


def test_a_contender_that_had_no_turn_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr("benchmarks.measure.peers.measure", lambda item, settings: line(9.0, 3.0))
    chosen = choose("convoy,bare")
    first, second = compare(chosen, Settings(epochs=1, threads=1), 5, seconds=2)
    assert (first["status"], second["status"]) == ("measured", "skipped")
    assert second["reason"] == "no time was left for it"
    first, second = compare(chosen, Settings(epochs=1, threads=1), 5, seconds=4)
    assert len(first["runs"]) == len(second["runs"]) == 1


def test_a_result_compares_with_convoy() -> None:
    bare = next(item for item in CONTENDERS if item.name == "bare")
    runs = {"convoy": [line(5.0, 1.0), line(5.0, 2.0)], "bare": [line(9.0, 3.0), line(9.0, 4.0)]}
    found = summarise_runs(bare, runs)
    assert found["epoch_seconds"] == {"median": 3.5, "min": 3.0, "max": 4.0}
    assert found["first_epoch_seconds"]["median"] == 9.0
    assert found["ratio"] == {"median": 2.5, "min": 2.0, "max": 3.0}
    alone = summarise_runs(bare, {"bare": runs["bare"]})
    assert alone["ratio"] is None


def test_an_option_compares_with_its_own_reference() -> None:
    exact = next(option for option in OPTIONS if option.name == "exact, 2 ranks")
    found = summarise(exact, {"exact, 2 ranks": [4e-3, 6e-3], "fast, 2 ranks": [2e-3, 2e-3]})
    assert found["median_step_microseconds"] == 5000.0
    assert (found["ratio_median"], found["ratio_min"], found["ratio_max"]) == (2.5, 2.0, 3.0)


def write_run(folder: Path) -> Path:
    """Two epochs of 100 steps at 10 ms; 3 s of compiling first; 7 s of evaluation left out."""
    training = [
        {
            "step": step,
            "epoch": step / 100,
            "time": 1000 + 3 + step / 100 + (7 if step > 100 else 0),
            "elapsed_seconds": 3 + step / 100,
            "train/loss": 1.0 if step <= 100 else step / 100,
            "train/accuracy": 0.5,
        }
        for step in (40, 80, 120, 160, 200)
    ]
    evaluations = [
        {"step": 100, "epoch": 1.0, "time": 1011, "elapsed_seconds": 4.0, "eval/loss": 0.8},
        {"step": 200, "epoch": 2.0, "time": 1019, "elapsed_seconds": 5.0, "eval/loss": 0.6},
    ]
    records = sorted([*training, *evaluations], key=lambda record: record["elapsed_seconds"])
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(item) + "\n" for item in records))
    (folder / "summary.json").write_text(
        json.dumps({"step": 200, "eval/accuracy": 0.9, "eval/loss": 0.6})
    )
    return folder


def test_a_run_of_convoy_is_read_as_a_peer_is(tmp_path: Path) -> None:
    """Law: epochs are training time between evaluations, compiling is reported apart."""
    found = read_run(write_run(tmp_path / "run"), started_at=998.0)
    assert found["compile_seconds"] == pytest.approx(3.0)
    assert found["train_seconds"] == pytest.approx([1.0, 1.0])
    assert found["first_step_seconds"] == pytest.approx(5.4)
    assert (found["test_accuracy"], found["epochs"], found["steps"]) == (0.9, 2, 200)
    assert found["train_loss"] == pytest.approx((1.2 + 1.6 + 2.0) / 3)


def test_noise_is_not_taken_for_compiling() -> None:
    steps = [{"step": 50 * n, "elapsed_seconds": 0.05 * n + 0.04} for n in range(1, 5)]
    assert compile_seconds(steps) == 0.0
    assert compile_seconds(steps[:1]) == 0.0  # nothing to compare it with


def test_a_record_counts_for_its_steps() -> None:
    records = [{"step": 30, "epoch": 0.75, "x": 1.0}, {"step": 40, "epoch": 1.0, "x": 5.0}]
    assert last_epoch_mean(records, "x") == pytest.approx((30 * 1 + 10 * 5) / 40)


@pytest.mark.process
def test_the_memory_of_a_command_is_that_of_its_largest_process() -> None:
    """Law: a child that holds 800 MB is seen; its parent is not added."""
    code = "x = b'1' * 800_000_000"
    small = run([sys.executable, "-c", "pass"], threads=1)
    large = run([sys.executable, "-c", code], threads=1)
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    nested = run([sys.executable, "-c", inner], threads=1)
    assert large.peak_memory_bytes > 0.8e9
    assert nested.peak_memory_bytes == pytest.approx(large.peak_memory_bytes, rel=0.1)
    assert small.started_at < large.started_at


@pytest.mark.process
def test_a_command_that_fails_or_hangs_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match=r"(?s)status 3.*the reason"):
        run([sys.executable, "-c", "print('the reason'); raise SystemExit(3)"], threads=1)
    pid_file = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; "
        f"time.sleep(60)']); open({str(pid_file)!r}, 'w').write(str(p.pid)); time.sleep(60)"
    )
    with pytest.raises(CommandFailed, match="no end after 2 s"):
        run([sys.executable, "-c", code], threads=1, timeout_seconds=2)
    deadline = time.monotonic() + 10
    while is_running(int(pid_file.read_text())):
        assert time.monotonic() < deadline, "its child lives on"
        time.sleep(0.05)


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_benchmark_that_is_ended_takes_along_what_it_started(
    tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "peers.json"
    command = ("--only=convoy", "--rounds=1", "--epochs=1000", f"--output={output}")
    process = start(python_command("launch/benchmark.py", *command))
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (found := children.read_text().split()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it starts no run"
        time.sleep(0.05)
    process.send_signal(number)
    killed = number == signal.SIGKILL
    assert wait(process).status == (-number if killed else 128 + number)
    deadline = time.monotonic() + 120  # a killed one cannot wait: its run saves, and leaves
    while killed and is_running(int(found[0])) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(found[0]))
    assert not output.exists()


@pytest.mark.process
def test_threads_are_shared_by_the_ranks() -> None:
    settings = Settings(epochs=1, threads=2)
    assert [settings.threads_per_rank(ranks) for ranks in (1, 2, 4)] == [2, 1, 1]
    code = "import os; print('{\"threads\": ' + os.environ['OMP_NUM_THREADS'] + '}')"
    assert run([sys.executable, "-c", code], threads=2).last_json() == {"threads": 2}
    given = {"OMP_NUM_THREADS": "3"}
    assert run([sys.executable, "-c", code], threads=2, environment=given).last_json() == {
        "threads": 3
    }


def test_every_peer_has_a_program_and_every_program_a_contender() -> None:
    used = {item.program for item in (*CONTENDERS, *TEXT) if item.program}
    programs = {path.name for path in PEERS.glob("*.py") if "def main()" in path.read_text()}
    assert used == programs
    assert len({item.name for item in CONTENDERS}) == len(CONTENDERS)
    names = {item.name for item in CONTENDERS}
    assert {item.against for item in CONTENDERS} <= names


@pytest.mark.process
def test_missing_packages_and_failures_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """Law: who cannot take part is skipped with the extra to install, who fails is out."""
    absent = Contender(name="a", title="A", program="bare.py", needs=("no_such_package",))
    broken = Contender(name="b", title="B", program="no_such_program.py")
    results = compare((absent, broken), SETTINGS, 2)
    assert [item["status"] for item in results] == ["skipped", "failed"]
    assert "pip install -e '.[benchmark]'" in results[0]["reason"]
    show_peers(results)
    shown = capsys.readouterr().out
    assert "needs no_such_package" in shown
    assert "failed" in shown
    with pytest.raises(InputError, match="no_such_package"):
        compare((absent,), SETTINGS, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds=0"], "--rounds: given 0"),
        (["--growth", "--options"], "one of them at a time"),
        (["--growth", "--only=bare"], "a comparison of peers"),
        (["--output=result.txt"], "ends in .json"),
        (["--output=/proc/nowhere/x.json"], "--output"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments)


@pytest.mark.process
def test_an_unknown_contender_is_refused_before_anything_runs() -> None:
    finished = launch("launch/benchmark.py", "--only=convoi")
    assert finished.status == 2
    assert "Did you mean 'convoy'?" in finished.stderr
    assert "Traceback" not in finished.output


def test_quick_and_partial_runs_do_not_replace_the_committed_result() -> None:
    assert parse([]).output is not None
    assert parse(["--options"]).output.name == "options.json"
    assert parse(["--quick"]).output is None
    assert parse(["--only=bare"]).output is None
    assert [item.name for item in choose("bare,convoy")] == ["convoy", "bare"]


def test_matplotlib_is_asked_for_where_a_picture_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "find_spec", lambda name: None)
    assert parse(["--options"]).output is not None
    with pytest.raises(InputError, match="matplotlib is not installed"):
        parse([])


@pytest.mark.process
@pytest.mark.slow
def test_the_command_measures_and_writes(tmp_path: Path) -> None:
    """Law: one command gives a table, a JSON file with its machine and runs, and a picture."""
    output = tmp_path / "new" / "peers.json"
    finished = launch(
        "launch/benchmark.py",
        "--only=convoy,bare",
        "--rounds=1",
        "--epochs=1",
        "--max-steps=6",
        "--threads=1",
        f"--output={output}",
    )
    assert finished.status == 0, finished.output[-4000:]
    assert "Convoy" in finished.stdout
    assert "bare torch loop" in finished.stdout
    found = json.loads(output.read_text())
    assert found["settings"] == {
        "rounds": 1,
        "threads": 1,
        "epochs": 1,
        "device": "cpu",
        "max_steps": 6,
    }
    assert {"git_commit", "git_dirty", "cpu", "packages"} <= found["environment"].keys()
    assert {"torch", "jax", "lightning", "accelerate"} <= found["environment"]["packages"].keys()
    assert [item["name"] for item in found["contenders"]] == ["convoy", "bare"]
    for item in found["contenders"]:
        assert item["status"] == "measured"
        assert item["runs"][0].keys() >= RUN_KEYS
        assert item["runs"][0]["steps"] == 6
        assert item["epoch_seconds"]["median"] > 0
        assert item["ratio"]["median"] > 0
        assert 0.05 < item["test_accuracy"]["median"] < 1
        assert item["peak_memory_bytes"]["median"] > 100 * 2**20
    assert found["contenders"][0]["ratio"] == {"median": 1.0, "min": 1.0, "max": 1.0}
    assert output.with_suffix(".png").read_bytes().startswith(PNG)
    assert sorted(path.name for path in output.parent.iterdir()) == ["peers.json", "peers.png"]


def test_moments_of_known_numbers() -> None:
    found = moments([1.0, 2.0, 3.0])
    assert found["mean"] == 2.0
    assert found["standard_deviation"] == 1.0
    assert found["standard_error"] == pytest.approx(3**-0.5, abs=1e-6)
    assert (found["min"], found["max"]) == (1.0, 3.0)
    assert moments([5.0])["standard_deviation"] == 0.0


@pytest.mark.process
def test_a_recipe_is_trained_once_for_every_seed(idx_folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "small.yaml"
    recipe.write_text(
        f"data: {{dataset: idx, root: {idx_folder}}}\ntrain: {{epochs: 1, global_batch_size: 24}}\n"
    )
    output = tmp_path / "small.json"
    finished = launch(
        "launch/benchmark.py", "--seeds=2", f"--config={recipe}", f"--output={output}"
    )
    assert finished.status == 0, finished.output[-4000:]
    (found,) = json.loads(output.read_text())["recipes"]
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert len(found["course"]) == 1
    assert output.with_suffix(".png").exists()
    assert all(run["steps"] == 22 and run["train_seconds"] > 0 for run in found["runs"])
    accuracies = [run["test_accuracy"] for run in found["runs"]]
    assert found["test_accuracy"]["mean"] == pytest.approx(sum(accuracies) / 2, abs=1e-6)
    assert parse(["--seeds=20"]).output.name == "mnist_fast.json"


@pytest.mark.process
def test_a_run_with_an_option_and_one_of_another_shape_are_timed() -> None:
    assert 0 < step_seconds(OPTIONS[0], 6, 1) < 5
    assert 0 < time_mlp_step((16, 8), 8, steps=8, device="cpu", threads=1) < 5


def test_growth_never_asks_for_more_ranks_than_threads() -> None:
    assert {point.ranks for point in points(2)} == {1, 2}
    assert {point.ranks for point in points(1)} == {1}
    assert len({point.axis for point in points(4)}) == 4


def floors(scale: float = 1.0) -> dict[str, Any]:
    return {
        "products_fp32_microseconds": 400 * scale,
        "products_bf16_microseconds": 200 * scale,
        "adam_microseconds": 100 * scale,
        "products_flops": 60_000_000,
        "adam_flops": 3_000_000,
        "products_fp32_bytes": 4_000_000,
        "products_bf16_bytes": 2_000_000,
        "adam_bytes": 6_000_000,
        "bandwidth_bytes_per_second": 1e10,
        "peak_fp32_flops_per_second": 2e11,
        "peak_bf16_flops_per_second": 4e11,
    }


def test_steps_stand_against_the_floors_of_their_round(tmp_path: Path) -> None:
    """Law: a round in which all is twice as slow has the same ratio."""
    runs = [{"train_seconds": [0.01 * k], "epochs": 1, "steps": 10} for k in (1, 2)]
    step = describe_step("convoy", "fp32", [floors(), floors(2)], runs)
    assert step["ratio_to_floor"] == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert step["floor_microseconds"] == {"products": 600, "Adam": 150}
    assert step["step_microseconds"]["median"] == 1500
    both = {key: spread([value], 1) for key, value in floors().items()}
    found = {item["title"]: item for item in roofline_points(both, [step])}
    assert found["products, fp32"]["flops_per_second"] == 150_000_000_000
    assert found["products, bf16"]["flops_per_byte"] == 30
    assert found["Convoy"]["flops_per_byte"] == pytest.approx(6.3)
    result = {"floors": both, "steps": [step], "points": list(found.values())}
    roofline_figure(result).savefig(tmp_path / "roofline.png")
    rate = spread([10.0, 20.0])
    series = [{"title": "batch size", "points": [{"value": 16, "samples_per_second": rate}]}]
    growth_figure(series).savefig(tmp_path / "growth.png")
    for name in ("roofline.png", "growth.png"):
        assert (tmp_path / name).read_bytes().startswith(PNG)


@pytest.mark.process
def test_convoy_on_two_ranks_is_measured() -> None:
    contender = choose("convoy-2-ranks")[0]
    found = measure(contender, SETTINGS)
    assert found.keys() >= RUN_KEYS
    assert (found["ranks"], found["steps"]) == (2, 3)


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["options", "growth", "roofline"])
def test_the_other_measurements_end_to_end(kind: str, tmp_path: Path) -> None:
    output = tmp_path / f"{kind}.json"
    command = python_command(
        "launch/benchmark.py", f"--{kind}", "--quick", "--max-steps=60", f"--output={output}"
    )
    finished = wait(start(command, env={"OMP_NUM_THREADS": str(os.cpu_count())}), timeout=900)
    assert finished.status == 0, finished.output[-4000:]
    found = json.loads(output.read_text())
    assert found["environment"]["cpu_count"] == os.cpu_count()
    content = {"options": "results", "growth": "series", "roofline": "steps"}[kind]
    assert len(found[content]) >= 3
    assert output.with_suffix(".png").exists() == (kind != "options")
