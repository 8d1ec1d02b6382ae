"""Where ranks meet that no agent brings together."""

from __future__ import annotations

import socket

import pytest

from trainer.ranks import rendezvous
from trainer.ranks.launcher import LaunchedRank
from trainer.ranks.rendezvous import _first_host, _knock, meeting_point


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node[03-05,9],other", "node03"),
        ("node7", "node7"),
        ("node7,node8", "node7"),
        ("gpu-a[1,4-6]", "gpu-a1"),
        ("rack-1-node[001-128]", "rack-1-node001"),
        ("host.example.org,other", "host.example.org"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_host_of_a_slurm_node_list_is_found(nodelist: str, first: str) -> None:
    assert _first_host(nodelist) == first


@pytest.mark.parametrize(
    ("launcher", "env", "expected"),
    [
        ("torchrun", {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, ("a", 1)),
        ("srun", {"MASTER_ADDR": "a", "MASTER_PORT": "1"}, ("a", 1)),
        ("srun", {"SLURM_NODELIST": "n[2-3]", "SLURM_JOB_ID": "40007"}, ("n2", 24007)),
        (
            "srun",
            {"SLURM_NODELIST": "n2", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"},
            ("n2", 22001),
        ),
        ("srun", {"SLURM_NODELIST": "n[2-3]", "MASTER_PORT": "29400"}, ("n2", 29400)),
    ],
)
def test_ranks_meet_where_the_launcher_says_or_on_the_first_node(
    launcher: str, env: dict[str, str], expected: tuple[str, int]
) -> None:
    assert meeting_point(LaunchedRank(launcher=launcher, world_size=2), env) == expected


def test_ranks_meet_where_srun_was_called_if_the_first_node_has_no_address() -> None:
    env = {"SLURM_NODELIST": "no-such-host.invalid", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.7"}
    srun = LaunchedRank(launcher="srun", world_size=2)
    assert meeting_point(srun, env | {"MASTER_PORT": "1"}) == ("192.0.2.7", 1)


def test_a_launcher_that_has_died_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: a port at which nobody listens any more says so."""
    monkeypatch.setattr(rendezvous, "REFUSALS", 1)
    with socket.create_server(("127.0.0.1", 0)) as launcher:
        host, port = launcher.getsockname()
        _knock(host, port, 30)
    with pytest.raises(RuntimeError, match=f"the launcher at 127.0.0.1:{port} is gone"):
        _knock(host, port, 30)
