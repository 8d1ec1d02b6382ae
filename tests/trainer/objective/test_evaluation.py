"""Every test sample counts exactly once, on any number of ranks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs.schema_training import PrecisionConfig
from data.datasets import ArrayDataset, Datasets
from data.loading.host_loader import HostLoader
from data.loading.loader import Loader
from data.loading.order import Plan
from data.loading.resident_loader import ResidentLoader
from data.normalize import Normalize
from trainer.networks.mlp import MLP
from trainer.objective.evaluation import Evaluation, evaluate
from trainer.objective.tasks import classification
from trainer.ranks.precision import build_precision
from trainer.ranks.runtime import Runtime

CPU = torch.device("cpu")
NUM_SAMPLES, BATCH = 10_007, 1_000
GENERATOR = torch.Generator().manual_seed(0)
DATA = ArrayDataset(
    torch.randint(0, 256, (NUM_SAMPLES, 1, 3, 2), generator=GENERATOR, dtype=torch.uint8),
    torch.randint(0, 5, (NUM_SAMPLES,), generator=GENERATOR),
)
FACTS = Datasets(
    train=DATA,
    test=DATA,
    input_shape=(1, 3, 2),
    num_classes=5,
    mean=(0.4,),
    std=(0.3,),
    scale=255.0,
)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return MLP((1, 3, 2), 5, hidden=(8,), dropout=dropout, batch_norm=True)


def make_loader(kind: str = "resident", *, device: torch.device = CPU) -> Loader:
    plan = Plan(num_samples=NUM_SAMPLES, global_batch_size=64)
    if kind == "resident":
        return ResidentLoader(DATA, {"test": DATA}, plan=plan, device=device)
    return HostLoader(DATA, {"test": DATA}, plan=plan, device=device, workers=0, prefetch_factor=2)


def run(
    module: nn.Module,
    loader: Loader,
    *,
    batch_size: int = BATCH,
    stop_at: int | None = None,
    device: torch.device = CPU,
) -> tuple[Evaluation | None, int]:
    """The result, and how often it asked whether to stop; the `stop_at`-th time it is told to."""
    asked = 0

    def interrupted() -> bool:
        nonlocal asked
        asked += 1
        return asked == stop_at

    result = evaluate(
        module,
        loader,
        "test",
        num_samples=NUM_SAMPLES,
        batch_size=batch_size,
        normalize=Normalize(FACTS, device),
        task=classification(),
        precision=build_precision(PrecisionConfig(), device),
        runtime=Runtime(launcher="python", device=device),
        interrupted=interrupted,
    )
    return result, asked


def expected_counts(module: nn.Module) -> tuple[float, int]:
    """Mean loss and correct predictions of the whole test set in one go."""
    module.eval()
    with torch.no_grad():
        logits = module(Normalize(FACTS, CPU)(DATA.inputs)).double()
    loss = float(F.cross_entropy(logits, DATA.targets))
    return loss, int((logits.argmax(1) == DATA.targets).sum())


@pytest.mark.parametrize("kind", ["resident", "host"])
@pytest.mark.parametrize("batch_size", [BATCH, NUM_SAMPLES, 20_000])
def test_the_counts_are_exact(kind: str, batch_size: int) -> None:
    module = network()
    result, _ = run(module, make_loader(kind), batch_size=batch_size)
    loss, correct = expected_counts(module)
    assert result is not None
    assert (result.correct, result.count) == (correct, NUM_SAMPLES)
    assert result.values["accuracy"] == correct / NUM_SAMPLES
    assert result.loss == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("stop_at", [None, 1, 4])
def test_the_module_is_left_in_the_mode_it_was_in(training: bool, stop_at: int | None) -> None:
    module = network().train(training)
    run(module, make_loader(), stop_at=stop_at)
    assert all(part.training is training for part in module.modules())


def test_the_module_is_left_in_its_mode_by_an_error_too() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(99, 5)).train()
    with pytest.raises(RuntimeError, match="shapes"):
        run(module, make_loader())
    assert module.training


@pytest.mark.parametrize("kind", ["resident", "host"])
@pytest.mark.parametrize("stop_at", [1, 2, 11])
def test_an_interrupted_evaluation_has_no_result_and_the_next_one_is_complete(
    kind: str, stop_at: int
) -> None:
    module, loader = network(), make_loader(kind)
    assert run(module, loader, stop_at=stop_at) == (None, stop_at)
    result, asked = run(module, loader)
    assert result is not None
    assert (result.correct, result.count) == (expected_counts(module)[1], NUM_SAMPLES)
    assert asked == 11  # once for every batch, so that all ranks ask equally often


def test_dropout_and_batch_statistics_are_off() -> None:
    module = network(dropout=0.9).train()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    first, second = run(module, make_loader())[0], run(module, make_loader())[0]
    assert first == second
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert first is not None
    assert first.correct == expected_counts(module)[1]


def test_an_evaluation_draws_no_random_numbers() -> None:
    module = network(dropout=0.9)
    state = torch.get_rng_state()
    run(module, make_loader("host"))
    assert torch.equal(torch.get_rng_state(), state)


def test_no_graph_is_recorded() -> None:
    """It would hold the activations of the whole test set."""
    module = network()
    recording = []
    module.register_forward_hook(lambda _, __, logits: recording.append(logits.requires_grad))
    run(module, make_loader())
    assert recording == [False] * 11


def test_training_goes_on_after_an_evaluation() -> None:
    """Nothing that inference mode made is left where autograd would find it."""
    module = network().train()
    run(module, make_loader())
    module(torch.randn(4, 1, 3, 2)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["resident", "host"])
def test_the_counts_on_the_gpu_are_those_on_the_cpu(gpu: torch.device, kind: str) -> None:
    module = network()
    loss, correct = expected_counts(module)
    result, _ = run(module.to(gpu), make_loader(kind, device=gpu), device=gpu)
    assert result is not None
    assert result.count == NUM_SAMPLES
    assert abs(result.correct - correct) <= 2  # ties in the last bit may fall otherwise
    assert result.loss == pytest.approx(loss, rel=1e-4)
