"""Everything the doctor does with a run: its data, its model, and short trainings of copies."""

from __future__ import annotations

import hashlib
import socket
from dataclasses import replace

import torch

from configs.schema import RunConfig
from data.collate import choose_collate
from data.datasets import Datasets
from data.normalize import Normalize
from data.samples import Example
from launch.diagnosis.check_cluster import check_agreement
from launch.diagnosis.check_data import check_data
from launch.diagnosis.check_labels import FEWEST_TEST, Score, check_labels, score
from launch.diagnosis.check_loading import check_loading
from launch.diagnosis.check_model import check_model
from launch.diagnosis.check_training import check_training
from launch.diagnosis.data_sample import Looks, Sample, read_sample
from launch.diagnosis.findings import Finding
from launch.diagnosis.subject import Subject, collect, plan_alone
from launch.diagnosis.trial import Trial, run_trial
from trainer.checkpoints.initial_weights import load_weights, read_weights
from trainer.networks.models import build_model
from trainer.objective.model_loss import call_for
from trainer.objective.tasks import build_task
from trainer.ranks.collectives import gather_objects, raise_on_all_ranks
from trainer.ranks.drift import weight_digest
from trainer.ranks.load_data import load_data
from trainer.ranks.runtime import Runtime
from trainer.run_model import check_batch_norm

RATE_STEPS = 20
MOST_UNSEEN = 500
FIRST_SAMPLES = 32
AT_ONCE = 256


def check_run(config: RunConfig, runtime: Runtime, steps: int) -> list[Finding]:
    """Look at a run without touching its directory; every rank calls it.

    All ranks compare their data and initial weights; the rest is rank 0's.

    Args:
        config: The run.
        runtime: This rank among its peers.
        steps: Optimizer steps of each short training.

    Raises:
        InputError: On every rank alike, if the data or the model cannot be had.
    """
    data = load_data(config, runtime)
    findings = []
    if runtime.world_size > 1:
        facts = raise_on_all_ranks(runtime, lambda: _first_facts(config, data))
        findings.append(check_agreement(runtime, "same_start", facts))
    return findings + raise_on_all_ranks(
        runtime, lambda: _check_alone(config, runtime, data, steps) if runtime.is_main else []
    )


def _first_facts(config: RunConfig, data: Datasets) -> dict[str, str]:
    """Digests of the first samples and of the initial weights on this rank."""
    first = [data.train[index] for index in range(min(len(data.train), FIRST_SAMPLES))]
    model = build_model(
        config.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        seed=config.seed,
    )
    return {
        "samples": str(len(data.train)),
        "first samples": hashlib.sha256(repr(first).encode()).hexdigest()[:12],
        "initial weights": f"{weight_digest(model)[0].item():x}",
    }


def _check_alone(config: RunConfig, runtime: Runtime, data: Datasets, steps: int) -> list[Finding]:
    task = build_task(
        config.task, label_smoothing=config.train.label_smoothing, vocabulary=data.vocabulary
    )
    alike = not data.structure and config.data.collate is None
    looks = Looks(inputs=alike, classes=task.name == "classification")
    train = read_sample(data.train, looks)
    held_out = {name: read_sample(part, looks) for name, part in data.held_out.items()}
    findings = check_data(data, train, held_out, looks)
    test = held_out["test"]
    if any(f.check in ("label_range", "inputs") and f.level == "problem" for f in findings):
        return findings  # the model cannot be run on these
    model = build_model(
        config.model,
        input_shape=data.input_shape,
        num_classes=data.num_classes,
        seed=config.seed,
    ).to(runtime.device)
    if config.model.weights is not None:
        load_weights(model, read_weights(config.model.weights), config.model)
    check_batch_norm(model, plan_alone(config, data))
    batches, loading_seconds = collect(config, data, runtime.device, steps)
    example = Example(data.train[0], choose_collate(config.data))
    subject = Subject(
        config=config,
        data=data,
        model=model,
        task=task,
        call=call_for(task, model, example, config.model.forward),
        example=example,
        device=runtime.device,
        normalize=Normalize(data, runtime.device),
        batches=batches,
        loading_seconds=loading_seconds,
    )
    of_model = check_model(subject)
    of_labels = looks.inputs and looks.classes and not _are_ids(train)
    if len(of_model) == 1:  # it cannot take a step
        labels = [check_labels(data, train, test, None)] if of_labels else []
        return [*findings, *labels, *of_model]
    trial = run_trial(subject, lr=config.optimizer.lr, steps=steps, watched=True)
    plain = run_trial(subject, lr=config.optimizer.lr, steps=min(steps, RATE_STEPS))
    return [
        *findings,
        *([check_labels(data, train, test, _learned(subject, trial))] if of_labels else []),
        check_loading(subject, plain),
        *of_model,
        *check_training(subject, trial),
    ]


def _learned(subject: Subject, trial: Trial) -> Score | None:
    """How well the model does, after its short training, on training samples it was not shown."""
    config, dataset = subject.config, subject.data.train
    plan = plan_alone(config, subject.data)
    unseen = plan.order(0)[plan.epoch_schedule.samples_before(len(subject.batches)) :][:MOST_UNSEEN]
    if trial.diverged or len(unseen) < FEWEST_TEST:
        return None
    found = [dataset[int(index)] for index in unseen]
    targets = torch.tensor([int(target) for _, target in found])
    model, predicted = trial.model.eval(), []
    with torch.no_grad():
        for start in range(0, len(found), AT_ONCE):
            batch = subject.batch_of(found[start : start + AT_ONCE])
            logits = subject.task.align(subject.outputs(model, batch), batch.targets)
            predicted.append(logits.argmax(1).cpu())
    return score(torch.cat(predicted), targets, subject.data.num_classes)


def _are_ids(sample: Sample) -> bool:
    """Whether inputs are names of things, such as tokens, of which no distance means anything."""
    return sample.inputs.dtype in (torch.int32, torch.int64)


def gather_machines(runtime: Runtime, findings: list[Finding]) -> list[Finding]:
    """What was found on this machine, and what needs attention on the others, with their names."""
    mine = (socket.gethostname(), findings if runtime.local_rank == 0 else [])
    others = [
        replace(finding, seen=f"{host}: {finding.seen}")
        for host, found in gather_objects(runtime, mine)[1:]
        for finding in found
        if finding.needs_attention
    ]
    return [*findings, *others]
