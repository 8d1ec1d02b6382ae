"""A run can be used from its directory alone, and what is wrong with it is said in one message."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml

from configs.errors import InputError
from data.datasets import load_datasets
from data.normalize import Normalize
from launch.using.named_run import find_checkpoint
from launch.using.trained import load_trained, read_facts
from tests.support.checkpoints import sign
from tests.support.runs import latest_weights, records, train_here


@pytest.fixture
def run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy of the run to be damaged."""
    return Path(shutil.copytree(trained_run, tmp_path / "run", symlinks=True))


def test_the_module_has_the_saved_weights_and_is_ready_to_be_used(trained_run: Path) -> None:
    trained = load_trained(trained_run, checkpoint="latest")
    assert (trained.step, trained.weights) == (44, "raw")
    assert trained.checkpoint_name == "checkpoints/step_00000044"
    for name, value in latest_weights(trained_run).items():
        assert torch.equal(trained.module.state_dict()[name], value)
    assert not any(part.training for part in trained.module.modules())
    assert not any(parameter.requires_grad for parameter in trained.module.parameters())


def test_the_best_checkpoint_is_meant_unless_another_is_named(trained_run: Path) -> None:
    best = (trained_run / "checkpoints/best").resolve()
    latest = (trained_run / "checkpoints/latest").resolve()
    assert load_trained(trained_run).checkpoint == best
    for given, checkpoint, expected in (
        (trained_run, "best", best),
        (trained_run, "latest", latest),
        (trained_run, str(latest), latest),
        (latest, None, latest),
        (trained_run / "checkpoints/best", None, best),
    ):
        assert find_checkpoint(given, checkpoint) == (trained_run, expected)


def test_the_facts_of_the_data_have_every_bit(trained_run: Path) -> None:
    """Law: normalisation needs no training data, and is that of training."""
    trained = load_trained(trained_run)
    data = load_datasets(trained.config.data, seed=0)
    assert trained.facts == data.facts()
    assert trained.facts.dtype == "uint8"
    images = torch.randint(0, 256, (4, *data.input_shape), dtype=torch.uint8)
    normalize = Normalize(data, torch.device("cpu"))
    assert torch.equal(trained.normalize(images), normalize(images))


def test_an_older_run_finds_the_facts_from_its_data(run: Path) -> None:
    expected = read_facts(run)
    (run / "model.json").unlink()
    assert read_facts(run) == expected


def test_an_older_run_without_its_data_says_so(run: Path) -> None:
    (run / "model.json").unlink()
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("  root: ", "  root: /no/such/folder #"))
    with pytest.raises(InputError, match=r"/no/such/folder"):
        load_trained(run)


def test_a_run_that_evaluated_an_average_is_used_with_it(tmp_path: Path, idx_folder: Path) -> None:
    run = train_here(tmp_path, idx_folder, "--train.ema_decay=0.9", "--train.max_steps=9")
    trained = load_trained(run)
    saved = torch.load(trained.checkpoint / "trainer.pt", weights_only=True)["ema"]
    assert trained.weights == "average"
    for name, value in trained.module.state_dict().items():
        assert torch.equal(value, saved[name])
        assert not torch.equal(value, latest_weights(run)[name])


def test_a_run_whose_first_evaluation_is_to_come_is_used_with_its_latest(run: Path) -> None:
    (run / "checkpoints/best").unlink()
    assert load_trained(run).step == records(run)[-1]["step"]
    with pytest.raises(InputError, match="'best'"):
        load_trained(run, checkpoint="best")


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a run directory"):
        load_trained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="expected a run directory"):
        load_trained(tmp_path)


def test_a_run_that_never_saved_is_refused(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").mkdir()
    with pytest.raises(InputError, match="no checkpoint yet"):
        load_trained(run)


def test_a_wrong_checkpoint_is_refused_with_those_there_are(trained_run: Path) -> None:
    with pytest.raises(InputError, match=r"best, latest, step_"):
        load_trained(trained_run, checkpoint="newest")
    with pytest.raises(InputError, match="names a checkpoint already"):
        load_trained(trained_run / "checkpoints/best", checkpoint="latest")


@pytest.mark.parametrize("name", ["model.safetensors", "trainer.pt", "manifest.json"])
def test_a_damaged_checkpoint_is_refused_by_its_digest(run: Path, name: str) -> None:
    file = run / "checkpoints/best" / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"cannot be trusted: {name}"):
        load_trained(run)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"input_shape": [1, 9, 7]}', json.dumps({"input_shape": "x"})]
)
def test_damaged_facts_are_refused(run: Path, content: str) -> None:
    (run / "model.json").write_text(content)
    with pytest.raises(InputError, match=r"model\.json is not as it was written"):
        load_trained(run)


def test_weights_of_another_model_are_refused(run: Path) -> None:
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("- 24", "- 25"))
    with pytest.raises(InputError, match="do not fit the model"):
        load_trained(run)


def test_an_override_changes_how_it_runs_and_nothing_is_read_for_it(trained_run: Path) -> None:
    trained = load_trained(trained_run, overrides=["--precision.dtype=bf16", "--data.root=/none"])
    assert trained.precision.dtype is torch.bfloat16
    assert trained.config.data.root == "/none"


HOSTILE_FACTS = {
    "negative": {"input_shape": [-1, 9, 7]},
    "none": {"num_classes": -1},
    "huge": {"input_shape": [1, 10**9, 10**9]},
    "many classes": {"num_classes": 10**12},
    "more classes": {"num_classes": 10**9},
    "larger": {"input_shape": [1, 40_000, 40_000]},
    "too many means": {"mean": [0.1, 0.2], "std": [1.0, 1.0]},
    "infinite": {"std": [float("inf")]},
    "zero": {"scale": 0.0},
    "no type": {"dtype": "__class__"},
    "no number": {"num_classes": float("inf")},
    "a fit": {"fit": {"size": [-1, 4], "crop": 1.0}},
}


@pytest.mark.parametrize("what", HOSTILE_FACTS)
def test_facts_that_no_data_have_are_refused(run: Path, what: str) -> None:
    """Law: sizes that nobody has weights for take no memory, and end in one message."""
    path = run / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | HOSTILE_FACTS[what]))
    with pytest.raises(InputError, match="not as it was written"):
        load_trained(run)


@pytest.mark.parametrize(
    "kwargs",
    [
        "{hidden: [1000000000000]}",
        "{hidden: [100000, 100000, 100000]}",
        "{hidden: [-1]}",
        "{hidden: x}",
        "{hidden: {a: 1}}",
        "{hidden: [[1]]}",
        "{hidden: 9999999999999999999999999}",
    ],
)
def test_a_model_of_any_size_is_refused_before_it_takes_memory(run: Path, kwargs: str) -> None:
    change_model(run, kwargs)
    with pytest.raises(InputError):
        load_trained(run)


def test_a_model_of_any_depth_is_refused_as_it_grows(run: Path) -> None:
    change_model(run, "{depth: 1000000000, patch_size: 1, width: 8, heads: 2}", "vit")
    with pytest.raises(InputError, match=r"larger than its weights|model\.kwargs"):
        load_trained(run)


def change_model(run: Path, kwargs: str, name: str = "mlp") -> None:
    path = run / "config.yaml"
    content = yaml.safe_load(path.read_text())
    content["model"] = {"name": name, "kwargs": yaml.safe_load(kwargs)}
    path.write_text(yaml.safe_dump(content))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("ema", value) for value in ([1], {"layers.1.weight": "x"}, torch.ones(2), 1)),
        *(("buffers", value) for value in ([1], torch.ones(2), 1)),
    ],
)
def test_an_average_or_buffers_that_are_none_are_refused(
    run: Path, key: str, value: object
) -> None:
    checkpoint = (run / "checkpoints/best").resolve()
    state = torch.load(checkpoint / "trainer.pt", weights_only=True)
    torch.save(state | {key: value}, checkpoint / "trainer.pt")
    sign(checkpoint)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("ema_decay: null", "ema_decay: 0.9"))
    with pytest.raises(InputError):
        load_trained(run)


def test_a_name_too_long_for_a_file_is_no_run() -> None:
    with pytest.raises(InputError, match="expected a run directory"):
        find_checkpoint(Path("a" * 3000), None)
