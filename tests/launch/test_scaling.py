"""`--project-scaling`: real ranks are timed, and what follows is written down."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.measure.scaling_bench import add_scaling_arguments, choose_link, project_scaling
from benchmarks.measure.scaling_model import Fit, Link, ring
from configs.errors import InputError
from launch.measure_link import main as measure_link
from launch.measure_link import sizes

Arguments = Callable[..., list[str]]


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_scaling_arguments(parser)
    return parser.parse_args(["--project-scaling", *argv])


@pytest.mark.process
@pytest.mark.slow
def test_two_ranks_and_one_become_a_prediction(
    small: Arguments, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The predictions follow from the figures that are written beside them."""
    config, *options = small("run", "--train.global_batch_size=4")
    output = tmp_path / "results/scaling.json"
    status = project_scaling(
        parse(
            f"--scaling-config={config.partition('=')[2]}",
            f"--scaling-options={shlex.join(options)}",
            "--scaling-steps=40",
            "--scaling-largest-mb=0.0625",
            f"--scaling-output={output}",
        )
    )
    assert status == 0
    found = json.loads(output.read_text())
    assert found["messages"]["ranks"] == 2
    assert found["messages"]["backend"] == "gloo"
    assert [item["bytes"] for item in found["messages"]["all_reduce"]] == [1024, 4096, 16384, 65536]
    assert all(item["seconds"] > 0 for item in found["messages"]["all_reduce"])
    # (63 x 24 + 24) + (24 x 16 + 16) + (16 x 5 + 5) float32 numbers.
    assert found["gradient_bytes"] == 4 * (1536 + 400 + 85)
    assert list(found["steps"]) == ["4", "1"]
    link = Link(**found["link"])
    assert found["fit"]["link"] == found["link"]
    assert [item["ranks"] for item in found["weak"]] == [2**power for power in range(11)]
    assert [item["ranks"] for item in found["strong"]] == [1, 2, 4]
    for item in found["weak"] + found["strong"]:
        expected = ring(link, item["ranks"], found["gradient_bytes"])
        assert item["all_reduce"] == pytest.approx(expected)
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in output.parent.iterdir()} == {"scaling.json", "scaling.png"}
    printed = capsys.readouterr().out
    assert "1,024" in printed
    assert "Assumed" in printed


def test_a_given_link_replaces_what_was_measured() -> None:
    """Either figure alone, or both, in Gbit/s and microseconds."""
    fit = Fit(Link(1e-5, 1e9), 0.0)
    assert choose_link(None, None, fit) == fit.link
    assert choose_link(100, None, fit) == Link(1e-5, 12.5e9)
    assert choose_link(None, 5, fit) == Link(5e-6, 1e9)
    assert choose_link(100, 5, None) == Link(5e-6, 12.5e9)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--link-gbps=0", "--link-gbps: given 0.0, expected a number above 0"),
        ("--link-latency-us=-1", "--link-latency-us"),
        ("--scaling-ranks=1", "--scaling-ranks: given 1, expected 2 or more"),
        ("--scaling-steps=3", "--scaling-steps"),
        ("--scaling-largest-mb=0", "--scaling-largest-mb: given 0.0, expected 0.002 or more"),
    ],
)
def test_impossible_arguments_are_refused(option: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        project_scaling(parse(option))


def test_sizes_grow_by_four_to_the_largest() -> None:
    assert sizes(1 << 16) == [1 << 10, 1 << 12, 1 << 14, 1 << 16]
    assert sizes(3000) == [1024, 3000]


def test_one_rank_alone_measures_no_link(tmp_path: Path) -> None:
    output = tmp_path / "link.json"
    with pytest.raises(InputError, match="number of ranks: given 1, expected 2 or more"):
        measure_link([f"--output={output}"])
    assert not output.exists()
