"""A loss that is a mean over what counts: tokens that are there, weights of classes, masks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.errors import InputError
from configs.schema_model import TaskConfig
from configs.schema_training import PrecisionConfig, ScheduleConfig
from data.augment import as_is
from data.collate import pad
from data.facts import InputFacts
from data.loading.order import Plan
from data.normalize import Normalize
from data.samples import Batch, Example
from data.structures import split
from trainer.backward.autograd import AutogradPasses, LossModule
from trainer.checkpoints.state import Progress
from trainer.engines.engine import Engine
from trainer.objective.losses import check_mean, summed
from trainer.objective.meter import Meter
from trainer.objective.task import Task
from trainer.objective.tasks import build_task
from trainer.optim.schedule import PureSchedule, constant
from trainer.ranks.precision import build_precision
from trainer.ranks.runtime import Runtime
from trainer.step import TrainStep

CPU = torch.device("cpu")
VOCABULARY = 11
ENTROPY = "torch.nn.functional:cross_entropy"
Sentence = tuple[Tensor, Tensor]


class Tagger(nn.Module):
    """Logits for every token, `(B, VOCABULARY, L)`."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, 6)
        self.head = nn.Linear(6, VOCABULARY)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.words(tokens)).transpose(1, 2)


def sentences(lengths: list[int]) -> list[Sentence]:
    generator = torch.Generator().manual_seed(0)
    draw = [torch.randint(VOCABULARY, (2, n), generator=generator) for n in lengths]
    return [(tokens, tags) for tokens, tags in draw]


def gradient(task: Task, samples: list[Sentence], micro: int) -> tuple[list[Tensor], Meter]:
    """Of one step over all samples, cut into micro-batches that are padded by themselves."""
    torch.manual_seed(0)
    model = Tagger()
    plan = Plan(num_samples=len(samples), global_batch_size=len(samples), micro_batch_size=micro)
    precision = build_precision(PrecisionConfig(), CPU)
    normalize = Normalize(InputFacts(input_shape=(), num_classes=0), CPU)
    loss = LossModule(
        model,
        normalize=normalize,
        precision=precision,
        task=task,
        call=lambda module, inputs, targets: module(*inputs),
    )
    engine, meter = Engine(), Meter()
    engine.module = model
    engine.passes = AutogradPasses(loss, model, precision.scaler, Example(samples[0], pad))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    step = TrainStep(
        engine=engine,
        optimizer=optimizer,
        kernel=optimizer,
        schedule=PureSchedule(constant, ScheduleConfig(), 0.1, 1, plan.epoch_schedule),
        precision=precision,
        augment=as_is,
        average=None,
        meter=meter,
        progress=Progress(),
        clip_norm=None,
        runtime=Runtime(launcher="python", device=CPU),
    )
    global_batch = plan.global_batch(0)
    batches = (
        Batch(*split(pad(samples[part.start : part.stop])), part.size)
        for part in global_batch.micro_batches
    )
    step.differentiate(global_batch, batches, meter)
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], meter


def concatenated(samples: list[Sentence], **options: object) -> tuple[list[Tensor], float]:
    """What torch says of all tokens as one long sample."""
    torch.manual_seed(0)
    model = Tagger()
    tokens, tags = (torch.cat([sample[part] for sample in samples])[None] for part in (0, 1))
    loss = F.cross_entropy(model(tokens, tokens), tags, **options)  # type: ignore[arg-type]
    loss.backward()  # type: ignore[no-untyped-call]
    return [p.grad for p in model.parameters() if p.grad is not None], float(loss.detach())


@pytest.mark.parametrize("micro", [1, 2, 3, 6])
@pytest.mark.parametrize("loss", [ENTROPY, "tests.support.odd_losses:token_loss"])
def test_padding_and_cuts_do_not_move_the_gradient(loss: str, micro: int) -> None:
    """Law: the gradient is that of the mean over all tokens, not of a mean of means."""
    task = build_task(TaskConfig(name="loss", loss=loss), label_smoothing=0.0)
    samples = sentences([1, 9, 2, 2, 7, 1])
    found, meter = gradient(task, samples, micro)
    expected, value = concatenated(samples)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    totals = meter.collect(Runtime(launcher="python", device=CPU))
    assert totals.loss == pytest.approx(value, rel=1e-6)
    assert totals.count == 22


def test_a_micro_batch_that_is_ignored_whole_counts_nothing() -> None:
    task = build_task(TaskConfig(name="loss", loss=ENTROPY), label_smoothing=0.0)
    samples = sentences([3, 4, 5])
    samples[1][1].fill_(-100)
    found, _ = gradient(task, samples, 1)
    expected, _ = concatenated(samples)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)
    for _, tags in samples:
        tags.fill_(-100)
    found, _ = gradient(task, samples, 1)
    assert all(torch.equal(mine, torch.zeros_like(mine)) for mine in found)


def weighted() -> nn.Module:
    return nn.CrossEntropyLoss(
        weight=torch.arange(1.0, VOCABULARY + 1), ignore_index=3, label_smoothing=0.1
    )


def test_weights_of_classes_are_what_the_mean_is_over() -> None:
    """Law: as torch averages: over the weights of the targets."""
    task = Task(loss=summed(weighted()))
    samples = sentences([1, 9, 2, 2, 7, 1])
    for _, tags in samples:
        tags[tags == 3] = 4
    padded = [(tokens, F.pad(tags, (0, 0))) for tokens, tags in samples]
    found, _ = gradient(Task(loss=_with_padding(task)), padded, 2)
    expected, _ = concatenated(
        samples, weight=torch.arange(1.0, VOCABULARY + 1), label_smoothing=0.1
    )
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def _with_padding(task: Task) -> object:
    """The task's loss with padding at the index that it ignores."""
    return lambda outputs, targets: task.loss(outputs, targets.where(targets >= 0, 3))


def test_an_evaluation_is_the_mean_over_what_counts() -> None:
    """Law: sums of parts add up to those of the whole."""
    task = build_task(TaskConfig(name="loss", loss=ENTROPY), label_smoothing=0.0)
    outputs, targets = torch.randn(7, 5, 4), torch.randint(5, (7, 4))
    targets[:3] = -100
    whole = task.report(task.measure(outputs, targets).tolist())
    assert whole["loss"] == pytest.approx(float(F.cross_entropy(outputs, targets)))
    assert whole["count"] == 7
    parts = task.measure(outputs[:3], targets[:3]) + task.measure(outputs[3:], targets[3:])
    assert task.report(parts.tolist()) == pytest.approx(whole)
    nothing = task.report(task.measure(outputs[:3], targets[:3]).tolist())
    assert nothing["loss"] == 0.0


def test_a_weight_that_does_not_add_up_is_refused() -> None:
    values = [(torch.tensor(s), torch.tensor(w)) for s, w in ((6.0, 1.0), (2.0, 1.0), (4.0, 1.0))]
    with pytest.raises(InputError, match="a sum over samples and its weight"):
        check_mean(values, [6, 2, 4])
    check_mean([(torch.tensor(3.0 * n), torch.tensor(n)) for n in (6, 2, 4)], [6, 2, 4])


@pytest.mark.parametrize("over", ["samples", "targets", "next_targets"])
def test_a_model_may_compute_its_loss_itself(over: str) -> None:
    """Law: what it averages over is what its loss is weighted with."""
    task = build_task(
        TaskConfig(name="model_loss", kwargs={"mean_over": over}), label_smoothing=0.0
    )
    targets = torch.tensor([[1, 2, -100], [3, 4, 5]])
    loss, _, weight = task.learn({"loss": torch.tensor(0.5)}, targets)
    count = {"samples": 2, "targets": 5, "next_targets": 3}[over]
    assert float(loss) == 0.5 * count
    assert weight is None if over == "samples" else weight is not None and int(weight) == count
    nothing, _, none = task.learn({"loss": torch.tensor(float("nan"))}, targets * 0 - 100)
    assert over == "samples" or (float(nothing), int(none if none is not None else 1)) == (0.0, 0)


def test_lists_of_targets_do_not_tell_how_many_samples_there_are() -> None:
    """Law: a mean and the losses of samples count them, not the boxes of the first picture."""
    targets = [{"boxes": torch.zeros(n, 4)} for n in (3, 0, 5)]
    outputs = torch.tensor([1.0, 2.0, 6.0])
    own = build_task(TaskConfig(name="model_loss"), label_smoothing=0.0)
    for task, found in (
        (Task(loss=summed(lambda outputs, targets: outputs.mean())), outputs),
        (Task(loss=summed(lambda outputs, targets: outputs)), outputs),
        (own, {"loss": outputs.mean()}),
    ):
        assert float(task.learn(found, targets, 3)[0]) == 9.0
        assert task.report(task.measure(found, targets, 3).tolist())["loss"] == 3.0
