"""slurm/kubernetes.yaml: what this project and Kubernetes must agree on, field by field."""

from __future__ import annotations

import math

import yaml

from configs.load import load_config
from launch.entry import EXIT_BAD_INPUT
from tests.support.processes import ROOT
from trainer.ranks.launcher import detect
from trainer.ranks.stop_signals import EXIT_PREEMPTED

SERVICE, JOB = yaml.safe_load_all((ROOT / "slurm/kubernetes.yaml").read_text())
SPEC = JOB["spec"]
POD = SPEC["template"]["spec"]
(RANK,) = POD["containers"]
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"


def variables(index: int) -> dict[str, str]:
    """The environment of the pod with that completion index."""
    found = {}
    for item in RANK["env"]:
        read = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath")
        assert read in (None, INDEX)
        found[item["name"]] = str(index) if read else item["value"]
    return found


def test_every_pod_is_one_rank_of_the_run() -> None:
    assert SPEC["completionMode"] == "Indexed"
    assert SPEC["completions"] == SPEC["parallelism"] > 1
    ranks = [detect(variables(index)) for index in range(SPEC["completions"])]
    assert [rank.rank for rank in ranks] == list(range(SPEC["completions"]))
    assert {(rank.world_size, rank.local_rank) for rank in ranks} == {(SPEC["completions"], 0)}
    assert RANK["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_ranks_find_rank_0_by_its_name() -> None:
    """A pod of an indexed Job is called JOB-INDEX.SUBDOMAIN where a headless service has that name,
    which must lead to pods that are not ready yet."""
    job, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    assert POD["subdomain"] == service
    assert variables(0)["MASTER_ADDR"] == f"{job}-0.{service}"
    assert SERVICE["spec"]["clusterIP"] == "None"
    assert SERVICE["spec"]["publishNotReadyAddresses"] is True
    assert SERVICE["spec"]["selector"] == {"batch.kubernetes.io/job-name": job}


def test_exit_statuses_mean_there_what_they_mean_here() -> None:
    rules = SPEC["podFailurePolicy"]["rules"]
    codes = {rule["action"]: rule["onExitCodes"] for rule in rules if "onExitCodes" in rule}
    of_rank = {"containerName": RANK["name"], "operator": "In"}
    assert codes == {
        "FailJob": of_rank | {"values": [EXIT_BAD_INPUT]},
        "Ignore": of_rank | {"values": [EXIT_PREEMPTED]},
    }
    assert rules[-1] == {
        "action": "Ignore",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    # A failure policy takes pods that are not restarted in place, and replaced when they are gone.
    assert (POD["restartPolicy"], SPEC["podReplacementPolicy"]) == ("Never", "Failed")
    assert 1 <= SPEC["backoffLimit"] < math.inf
    assert POD["terminationGracePeriodSeconds"] > 30  # which is its default


def test_its_command_is_one_that_the_trainer_takes() -> None:
    program, script, *options = RANK["command"]
    assert (program, script) == ("python", "launch/train.py")
    config = load_config(options, prog="train", description="")
    mounts = {mount["mountPath"] for mount in RANK["volumeMounts"]}
    assert config.output_dir in mounts
    assert {mount["name"] for mount in RANK["volumeMounts"]} == {v["name"] for v in POD["volumes"]}
