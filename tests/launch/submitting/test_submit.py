"""launch/submit.py, with a program in the place of sbatch that writes down what it is given."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from configs.errors import InputError
from launch.submit import main
from launch.submitting.sites import CHECKOUT, EXAMPLE
from tests.support.processes import ROOT

SBATCH = """\
#!/bin/bash
printf '%q ' "$@" >>"$SAID"; echo >>"$SAID"
if [[ " $* " == *" --test-only "* ]]; then
    echo "sbatch: Job 1 to start at noon" >&2
    exit "${REFUSES:-0}"
fi
expr "$(grep -vc -e --test-only "$SAID")" + 40
"""


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sbatch writes what it is given."""
    program = tmp_path / "bin" / "sbatch"
    program.parent.mkdir()
    program.write_text(SBATCH)
    program.chmod(0o755)
    (tmp_path / "said").touch()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "said"


def calls(said: Path) -> list[list[str]]:
    """What was submitted; each time after a test of the same."""
    return [shlex.split(line) for line in said.read_text().splitlines() if "test-only" not in line]


def site(folder: Path) -> list[str]:
    return [f"--sites={ROOT / EXAMPLE}", f"--logs={folder / 'my logs'}"]


@pytest.mark.process
def test_a_run_is_tested_submitted_and_written_down(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*site(tmp_path), "--nodes=3", "--sbatch=--exclusive", "--after=7", "--after=8"]
    assert main([*options, "--name", "long", "--train.epochs", "3"]) == 0
    tested, submitted = (shlex.split(line) for line in said.read_text().splitlines())
    assert tested == ["--test-only", *submitted]
    logs = tmp_path / "my logs"
    for option in ("--nodes=3", "--exclusive", "--partition=main", "--dependency=afterany:7:8"):
        assert option in submitted
    assert f"--output={logs}/%x-%j.out" in submitted
    train = str(CHECKOUT / "slurm/train.sbatch")
    assert submitted[submitted.index(train) + 1 :] == ["--name", "long", "--train.epochs", "3"]
    shown = capsys.readouterr().out
    assert "sbatch: Job 1 to start at noon" in shown
    assert "job 41 on site cpu" in shown
    assert f'"{CHECKOUT / "runs/long"}"' in (logs / "41.json").read_text()


@pytest.mark.process
def test_a_dry_run_prints_a_script_that_does_the_same(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For a site with lines of shell and a container: bash takes them as they are meant."""
    options = [*site(tmp_path), "--site=gpu", "--name", "it's long", "--train.epochs=3"]
    assert main([*options, "--dry_run"]) == 0
    script = capsys.readouterr().out
    assert said.read_text() == ""
    assert not (tmp_path / "my logs").exists()
    subprocess.run(["bash", "-c", script], check=True, capture_output=True)
    (file,) = (tmp_path / "my logs").iterdir()
    written = file.read_text()
    assert main(options) == 0
    assert {path.name for path in file.parent.glob("site-*")} == {file.name}
    assert file.read_text() == written
    by_hand, by_command = calls(said)
    assert by_hand == by_command


@pytest.mark.process
def test_what_the_site_says_is_what_the_script_starts(said: Path, tmp_path: Path) -> None:
    """A line of train.sbatch with srun in front of it, word for word."""
    assert main([*site(tmp_path), "--site=apptainer", "--test_only"]) == 0
    assert len(said.read_text().splitlines()) == 1
    assert main([*site(tmp_path), "--site=apptainer"]) == 0
    (file,) = (tmp_path / "my logs").glob("site-*")
    line = 'printf "%s\\n" srun "${srun_options[@]}" "${inside[@]}" "$python"'
    done = subprocess.run(
        ["bash", "-euc", f"source {shlex.quote(str(file))}; {line}"],
        env=os.environ | {"SLURM_JOB_ID": "5"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    logs = tmp_path / "my logs"
    assert done.stdout.splitlines() == [
        *("srun", f"--output={logs}/5/rank%t.log", "--open-mode=append"),
        *("apptainer", "exec", "--bind", str(tmp_path), "--bind", str(logs)),
        *("--pwd", str(tmp_path), "--nv", "--bind", "/scratch:/scratch"),
        *("/shared/images/pytorch.sif", "python3"),
    ]
    assert (logs / "5").is_dir()


@pytest.mark.process
def test_a_chain_waits_for_the_job_before_and_starts_nothing_again(
    said: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*site(tmp_path), "--chain=3", "--after=9"]) == 0
    found = [[word for word in call if "dependency" in word] for call in calls(said)]
    assert found == [[f"--dependency=afterany:{jobs}"] for jobs in ("9", "9:41", "9:42")]
    assert "--summary 41 42 43" in capsys.readouterr().out
    assert main([*site(tmp_path), "--chain=3", "--after=9", "--dry_run"]) == 0
    script = capsys.readouterr().out
    assert script.count("CONVOY_MOST_RESTARTS=0 ") == 3
    by_command = calls(said)
    said.write_text("")
    subprocess.run(["bash", "-c", script], check=True, capture_output=True)
    assert calls(said) == by_command, "and by hand"


@pytest.mark.process
def test_arrays_of_seeds_and_of_lines(said: Path, tmp_path: Path) -> None:
    assert main([*site(tmp_path), "--seeds=0..2,5", "--jobs=2", "--name=study"]) == 0
    lines = tmp_path / "sweep.txt"
    lines.write_text("# rates\n\n--optimizer.lr 1e-3\n  --model.kwargs '{\"hidden\": [8]}'\n")
    assert main([*site(tmp_path), f"--sweep={lines}", "--train.epochs=1"]) == 0
    seeds, sweep = calls(said)
    assert "--array=0-2,5%2" in seeds
    assert seeds[-3:] == [str(CHECKOUT / "slurm/array.sbatch"), "--name=study", "--name=study"]
    assert "--array=1-2" in sweep
    assert sweep[-3:] == [str(lines), "--train.epochs=1", "--name=mnist"]
    logs = tmp_path / "my logs"
    assert re.findall(r"study_seed\d", (logs / "41.json").read_text()) == [
        f"study_seed{seed}" for seed in (0, 1, 2, 5)
    ]
    assert re.findall(r"mnist_\d", (logs / "42.json").read_text()) == ["mnist_1", "mnist_2"]


@pytest.mark.process
def test_what_slurm_refuses_is_not_submitted(
    said: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REFUSES", "1")
    with pytest.raises(InputError, match="Slurm refuses the job: sbatch: Job 1 to start at noon"):
        main(site(tmp_path))
    assert calls(said) == []
    assert not (tmp_path / "my logs").exists()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="sbatch: expected it on the PATH"):
        main(site(tmp_path))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--optimizer.lrr=1"], "Did you mean 'optimizer.lr'"),
        (["--site=gpus"], "--site: given 'gpus', expected one of cpu, gpu"),
        (["--seeds=0..2", "--sweep=x.txt"], "expected one of them"),
        (["--seeds=0..2", "--chain=2"], "--chain: expected neither"),
        (["--jobs=2"], "--jobs: expected --seeds or --sweep beside it"),
        (["--sweep=none.txt"], "cannot read the sweep file none.txt"),
        (["--sweep=a.yaml"], "python launch/sweep.py a.yaml --slurm"),
    ],
)
def test_what_is_refused_before_slurm_hears_of_it(
    options: list[str], words: str, said: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=words):
        main([*site(tmp_path), *options])
    assert said.read_text() == ""


def test_a_line_of_a_sweep_that_would_be_refused_is_named(said: Path, tmp_path: Path) -> None:
    lines = tmp_path / "sweep.txt"
    lines.write_text("--optimizer.lr 1e-3\n--optimizer.lrr 1e-3\n")
    with pytest.raises(InputError, match=r"sweep.txt, line 2: .*Did you mean 'optimizer.lr'"):
        main([*site(tmp_path), f"--sweep={lines}"])
    lines.write_text("--name 'half\n")
    with pytest.raises(InputError, match=r"cannot read .*No closing quotation"):
        main([*site(tmp_path), f"--sweep={lines}"])
    lines.write_text("# nothing\n")
    with pytest.raises(InputError, match="a line of overrides for each task"):
        main([*site(tmp_path), f"--sweep={lines}"])
