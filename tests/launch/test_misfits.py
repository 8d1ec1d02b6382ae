"""What a batch gives and a model, a loss or a function takes: one message where they do not fit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from configs.errors import InputError
from tests.support.odd_runs import arguments, run
from tests.support.processes import launch
from tests.support.runs import latest_weights

HERE = "tests.support.misfits"
PADDED = "--data.collate=data.collate:pad"
NAMED = "--data.kwargs={named: true}"


def options(*more: str) -> tuple[str, ...]:
    return (f"--data.dataset={HERE}:words", "--train.epochs=1", *more)


@pytest.mark.parametrize(
    ("model", "more", "words"),
    [
        (
            "OneInput",
            (PADDED,),
            r"inputs of the model \(.*not tuple\): given '\(\(1, 2\) int64, \(1, 2\) bool\)', "
            r"expected what OneInput\.forward\(ids\) takes.*--model\.forward",
        ),
        (
            "Three",
            (PADDED,),
            r"missing .*: given '\(\(1, 2\) int64, .*expected what Three\.forward\(ids, mask, more",
        ),
        (
            "Masked",
            (PADDED, NAMED),
            r"inputs of the model \(missing a required argument: 'mask'\): given '{ids: .*"
            r"attention_mask: .*expected what Masked\.forward\(ids, mask\) takes",
        ),
        (
            "Other",
            (PADDED, NAMED),
            r"inputs of the model \(.*not dict\): given '{ids: .*Other\.forward\(tokens\)",
        ),
        (
            "OneInput",
            (PADDED, f"--model.forward={HERE}:wrongly"),
            r"inputs of the model \(OneInput\.forward\(\) takes 2 .*--model\.forward",
        ),
        (
            "OneInput",
            (PADDED, f"--model.forward={HERE}:of_one"),
            r"model\.forward: given .of_one\(batch\), called with 2 .*\(model, batch\) -> outputs",
        ),
        ("OneInput", (f"--data.collate={HERE}:wrongly",), r"data\.collate: given .wrongly\(model,"),
        (
            "OneInput",
            (PADDED, "--task.name=loss", f"--task.loss={HERE}:loss_of_outputs"),
            r"task\.loss: given .loss_of_outputs\(outputs\), called with 2 .*\(outputs, targets\)",
        ),
        (
            "Masked",
            (PADDED, "--task.name=loss", f"--task.loss={HERE}:loss_inside"),
            r"outputs of the model for task\.name=loss \(.* at misfits\.py:\d+ `return outputs\[",
        ),
        (
            "Masked",
            (PADDED, f"--task.metrics=[{HERE}:WrongMetric]"),
            r"task\.metrics .*: given .sums\(outputs\), called with 2 .*`sums\(outputs, targets\)`",
        ),
        (
            "Masked",
            (PADDED, f"--task.metrics=[{HERE}:NarrowMetric]"),
            r"task\.metrics NarrowMetric: given '2 sums', expected 1, its width",
        ),
        ("Masked", (PADDED, f"--logging.hook={HERE}:wrongly"), r"logging\.hook: given .wrongly\("),
    ],
)
def test_what_does_not_fit_is_said_with_both_sides_before_the_first_step(
    model: str, more: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as refused:
        run(tmp_path, f"{HERE}:{model}", *options(*more))
    assert re.search(words, str(refused.value)), str(refused.value)
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]


def test_what_fits_is_called_as_the_batch_says(tmp_path: Path) -> None:
    """Law: by place, by name and by a function of the user's alike."""
    ways = {
        "place": ("Masked", PADDED),
        "name": ("Masked", PADDED, NAMED, f"--model.forward={HERE}:by_name"),
    }
    found = [
        latest_weights(run(tmp_path / name, f"{HERE}:{model}", *options(*more)))
        for name, (model, *more) in ways.items()
    ]
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value)


def test_a_mistake_deep_in_the_model_keeps_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="missing 2 required positional arguments"):
        run(tmp_path, f"{HERE}:Deep", *options(PADDED))


def test_what_a_model_is_not_given_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        run(tmp_path, f"{HERE}:OneInput", *options(PADDED, NAMED))
    assert "OneInput.forward(ids) is not given attention_mask of a batch" in caplog.text


@pytest.mark.process
def test_two_ranks_say_it_once_and_leave_with_status_2(tmp_path: Path) -> None:
    command = arguments(tmp_path, f"{HERE}:OneInput", *options(PADDED))
    alone = launch("launch/train.py", *command)
    assert alone.status == 2, alone.output
    both = launch("launch/train.py", *command, ranks=2)
    for output in (alone.output, both.output):
        assert output.count("error: inputs of the model") == 1
        assert "one_input" not in output.lower().partition("error: inputs")[0], "no traceback"
        assert "in forward" not in output
    assert not [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
