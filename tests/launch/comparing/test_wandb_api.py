"""Reading runs from a W&B server: wandb's own client against a small local one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import wandb

from configs.errors import InputError
from launch.comparing.run_sources import read_runs
from tests.support.sample_runs import Row, rows
from tests.support.wandb_server import Server, wandb_environment, wandb_run, wandb_server

METADATA = {"gpu_nvidia": [{"name": "NVIDIA H200"}, {"name": "NVIDIA H200"}]}


@pytest.fixture
def serve(
    wandb_stays_here: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Server]]:
    """Start a server that knows some runs; wandb's client talks to it and to nobody else."""
    with ExitStack() as servers:

        def start(*runs: Row, key: str = "0123456789" * 4) -> Server:
            server = servers.enter_context(wandb_server(list(runs)))
            for name, value in wandb_environment(tmp_path / "home", server.url, key).items():
                monkeypatch.setenv(name, value)
            return server

        yield start
        wandb.teardown()


def sample(run_id: str = "abc", **given: object) -> Row:
    config = {"optimizer": {"lr": 0.1}, "seed": 1, "git_commit": "abcdef0123", "world_size": 8}
    return wandb_run(run_id, rows(3, accuracy=0.8), config=config, metadata=METADATA, **given)


@pytest.mark.process
def test_a_run_of_a_server_is_read_whole(serve: Callable[..., Server]) -> None:
    """Law: the history is the complete one, not a sample, and facts come from config and files."""
    server = serve(sample(group="study", state="crashed"))
    for name in ("team/project/abc", "https://wandb.ai/team/project/runs/abc"):
        (run,), _ = read_runs([name])
        assert (run.name, run.source, run.status) == ("run abc", "team/project/abc", "crashed")
        assert run.config == {"optimizer.lr": 0.1, "seed": 1}
        assert (run.git_commit, run.world_size, run.group) == ("abcdef01", 8, "study")
        assert run.hardware == "2 x NVIDIA H200"
        assert [record["step"] for record in run.records] == [10, 20, 30]
        assert run.final("eval/accuracy") == 0.8
    assert all("sampledHistory" not in query for query, _ in server.asked)


@pytest.mark.process
def test_a_status_that_the_run_recorded_wins_once_it_has_ended(
    serve: Callable[..., Server],
) -> None:
    summary = {"status": "preempted"}
    serve(
        sample("ended", summary=summary), sample("going", summary=summary, state="running"),
        sample("other"),
    )  # fmt: skip
    runs, _ = read_runs([f"team/project/{name}" for name in ("ended", "going", "other")])
    assert [run.status for run in runs] == ["preempted", "running", "completed"]


@pytest.mark.process
def test_a_project_can_be_filtered_by_group_and_tag(serve: Callable[..., Server]) -> None:
    server = serve(
        sample("a", group="g"),
        sample("b", tags=["t"]),
        sample("c", group="g", tags=["t", "u"]),
        wandb_run("empty", []),
    )

    def found(**filters: str) -> list[str]:
        return [run.name for run in read_runs(["team/project"], **filters)[0]]

    assert found() == ["run a", "run b", "run c"]
    assert found(group="g") == ["run a", "run c"]
    assert found(tag="t") == ["run b", "run c"]
    assert found(group="g", tag="t") == ["run c"]
    sent = [json.loads(asked["filters"]) for query, asked in server.asked if "Runs(" in query]
    assert sent[-1] == {"group": "g", "tags": "t"}
    with pytest.raises(InputError, match="no runs with group 'nobody'"):
        found(group="nobody")


@pytest.mark.process
def test_steps_taken_again_after_a_restart_appear_once(serve: Callable[..., Server]) -> None:
    serve(wandb_run("abc", [*rows(5), *rows(3, first_step=30)]))
    (run,), _ = read_runs(["team/project/abc"])
    assert [record["step"] for record in run.records] == [10, 20, 30, 40, 50, 60]


@pytest.mark.process
def test_without_a_key_one_message_says_how_to_give_one(serve: Callable[..., Server]) -> None:
    serve(sample(), key="")
    with pytest.raises(InputError, match="WANDB_API_KEY"):
        read_runs(["team/project/abc"])


@pytest.mark.process
def test_a_run_that_is_not_there_or_empty_is_one_message(serve: Callable[..., Server]) -> None:
    serve(wandb_run("empty", []))
    with pytest.raises(InputError, match="cannot read team/project/missing"):
        read_runs(["team/project/missing"])
    with pytest.raises(InputError, match="team/project/empty is empty"):
        read_runs(["team/project/empty"])
