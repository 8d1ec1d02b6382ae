"""Sites: what a file may say, and what becomes of it in the words of Slurm."""

from __future__ import annotations

import os
import subprocess
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from configs.errors import InputError
from launch.submitting.site_script import sbatch_options, site_script
from launch.submitting.sites import CHECKOUT, EXAMPLE, Site, make_site, read_site
from tests.support.processes import ROOT

LOGS = Path("/scratch/my logs")


def example(name: str | None) -> Site:
    return read_site(name, ROOT / EXAMPLE)[1]


def test_the_example_names_every_key_and_its_default_is_a_site() -> None:
    text = (ROOT / EXAMPLE).read_text()
    assert {item.name for item in fields(Site) if f" {item.name}:" not in text} == set()
    assert read_site(None, ROOT / EXAMPLE)[0] == "cpu"


def test_a_site_in_the_words_of_sbatch() -> None:
    assert sbatch_options(example("gpu"), "long") == [
        "--job-name=long",
        "--nodes=2",
        "--ntasks-per-node=8",
        "--cpus-per-task=12",
        "--time=24:00:00",
        "--signal=B:USR1@180",
        "--partition=gpu",
        "--account=my_project",
        "--qos=normal",
        "--gres=gpu:h100:8",
        "--mail-user=me@example.org",
        "--mail-type=END,FAIL,REQUEUE",
        "--exclusive",
        "--constraint=ib",
    ]
    assert "--mem=16G" in sbatch_options(example("cpu"), "long")
    assert "--gres=gpu:4" in sbatch_options(example("apptainer"), "long")


def test_a_site_in_the_words_of_the_script() -> None:
    """Variables before the lines that may use them; setup is left as it stands."""
    assert site_script("gpu", example("gpu"), LOGS).splitlines()[1:] == [
        "logs='/scratch/my logs'",
        "patience_seconds=180",
        "export NCCL_SOCKET_IFNAME=ib0",
        "export GLOO_SOCKET_IFNAME=ib0",
        "export NCCL_IB_HCA=mlx5",
        "export WANDB_MODE=offline",
        "module load cuda/12.8",
        "source ~/miniconda3/etc/profile.d/conda.sh",
        "conda activate convoy",
        "export MASTER_ADDR=$(hostname)-ib",
        "python=python",
        'mkdir -p -- "$logs/$SLURM_JOB_ID"',
        'srun_options=(--output="$logs/$SLURM_JOB_ID/rank%t.log" --open-mode=append)',
        "srun_options+=(--cpu-bind=cores)",
    ]


def test_a_container_has_the_checkout_and_the_logs_in_it() -> None:
    assert site_script("a", example("apptainer"), LOGS).splitlines()[-1] == (
        'inside=(apptainer exec --bind "$PWD" --bind "$logs" --pwd "$PWD" '
        "--nv --bind /scratch:/scratch /shared/images/pytorch.sif)"
    )
    assert site_script("p", example("pyxis"), LOGS).splitlines()[-5:] == [
        "srun_options+=(--container-image='nvcr.io#nvidia/pytorch:25.06-py3'",
        '    --container-mounts="$PWD:$PWD,$logs:$logs",/scratch:/scratch',
        '    --container-workdir="$PWD")',
        "check_config() { :; } # launch/submit.py has",
        "summarize() { :; }",
    ]


def test_variables_are_text_and_yaml_s_true_is_one() -> None:
    site = make_site({"environment": {"A": 1, "B": True, "C": "x y"}}, "here")
    assert site.environment == {"A": "1", "B": "1", "C": "x y"}
    assert "export C='x y'" in site_script("s", site, LOGS).splitlines()


ODD = ["~/a b", "$SCRATCH/x.sif:/x", "${SCRATCH}y", 'a$(id)`id`"$5\\', "a~b", "it's", "$", ""]


@pytest.mark.process
def test_home_and_variables_are_those_of_the_job_and_nothing_else_is_the_shell_s() -> None:
    """Law: in every key whose words the job's shell reads."""
    site = make_site(
        {
            "environment": {f"ODD{i}": text for i, text in enumerate(ODD)},
            "srun": ODD,
            "mounts": ODD,
            "container": "apptainer",
            "image": ODD[1],
            "python": ODD[0],
        },
        "here",
    )
    expected = ["/home/me/a b", "/s p/x.sif:/x", "/s py", *ODD[3:]]
    shown = 'printf "%s\n" "$python" "${srun_options[@]:2}" "${inside[@]:8}"'
    shown += "".join(f' "$ODD{i}"' for i in range(len(ODD)))
    script = "mkdir() { :; }\n" + site_script("s", site, LOGS) + shown
    job = {"PATH": os.environ["PATH"], "HOME": "/home/me", "SCRATCH": "/s p", "SLURM_JOB_ID": "1"}
    done = subprocess.run(["bash", "-eu"], input=script, env=job, capture_output=True, text=True)
    mounts = [word for mount in expected for word in ("--bind", mount)]
    said = [expected[0], *expected, *mounts, expected[1], *expected]
    assert done.stdout.splitlines() == said, done.stderr


def test_where_logs_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the checkout unless that is an absolute folder; a variable is known before the job."""
    assert make_site({}, "here").logs_folder == CHECKOUT / "slurm_logs"
    assert make_site({"logs": "/scratch/x"}, "here").logs_folder == Path("/scratch/x")
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert make_site({"logs": "$SCRATCH/x"}, "here").logs_folder == Path("/scratch/me/x")
    with pytest.raises(InputError, match=r"here.logs: given .*, expected variables that are set"):
        make_site({"logs": "$NOT_SET_HERE/x"}, "here")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"partitoin": "x"}, "unknown key 'partitoin'.*Did you mean 'partition'"),
        ({"time": 86400}, "here.time: given 86400, expected text. Put it in quotes"),
        ({"nodes": 0}, "here.nodes: given 0, expected 1 or more"),
        ({"nodes": True}, "here.nodes: given True, expected a whole number"),
        ({"ranks_per_node": 0}, "here.ranks_per_node: given 0"),
        ({"setup": "module load cuda"}, "here.setup: given .*, expected a list of texts"),
        ({"environment": {"A B": "1"}}, "here.environment: given 'A B'"),
        ({"environment": ["A=1"]}, "here.environment: .*expected a mapping"),
        ({"container": "docker", "image": "x"}, "expected one of apptainer, pyxis"),
        ({"container": "pyxis"}, "expected container and image, or neither"),
        (["partition"], "expected a mapping of keys under it"),
    ],
)
def test_what_a_site_may_not_say(content: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_site(content, "here")


def test_where_sites_are_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any file there are Slurm's defaults, and no other site."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("launch.submitting.sites.CHECKOUT", tmp_path)
    assert read_site(None, None) == ("defaults", Site())
    with pytest.raises(InputError, match=r"--site: given 'gpu', expected a file .*sites\.yaml"):
        read_site("gpu", None)
    (tmp_path / "convoy").mkdir()
    file = tmp_path / "convoy" / "sites.yaml"
    file.write_text("sites: {one: {nodes: 3}}\n")
    assert read_site(None, None) == ("one", Site(nodes=3))
    with pytest.raises(InputError, match="--site: given 'gpu', expected one of one"):
        read_site("gpu", None)
    file.write_text("sites: {one: {}, two: {}}\n")
    with pytest.raises(InputError, match="default: expected one of one, two"):
        read_site(None, None)
    file.write_text("sites: {1: {nodes: 2}}\ndefault: 1\n")
    assert read_site(None, None) == read_site("1", None) == ("1", Site(nodes=2))
    file.write_text("sites: {one: {}}\ndefault: [one]\n")
    with pytest.raises(InputError, match=r"default: given \['one'\], expected one of one"):
        read_site(None, None)
    for wrong in ("one: {nodes: 3}\n", "sites: []\n", "sites: {a: {}}\nmore: 1\n"):
        file.write_text(wrong)
        with pytest.raises(InputError, match=r"given .*, expected the keys sites and default"):
            read_site(None, None)
