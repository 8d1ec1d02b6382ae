"""A run looked at without being started: would so many ranks train it, and on what?

Everything a rank builds or refuses by itself is built here by the same code, so a refusal reads as
it would in the real world. No process group, no download, and nothing written.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from configs.schema import RunConfig
from data.catalogue.acquire import acquire, download_folder, find_files
from data.catalogue.catalog import CATALOG
from data.catalogue.dataset_facts import DatasetFacts
from data.datasets import ArrayDataset, Datasets, load_datasets
from data.loading.order import Plan, evaluation_batches
from data.splits import cut
from launch.forecast.memory import Need, largest_micro_batch, memory_of_rank
from trainer.beginning import continue_from, decide_resume
from trainer.build_step import build_state
from trainer.checkpoints.checkpoint_folder import list_checkpoints
from trainer.checkpoints.run_directory import RunDirectory
from trainer.checkpoints.state import RunState
from trainer.components import build_components
from trainer.optim.schedule import Schedule
from trainer.ranks.runtime import Runtime, choose_device
from trainer.records.pace import peak_host_bytes
from trainer.run_model import check_batch_norm
from trainer.ways import Execution

SCHEDULE_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class RankSplit:
    """How one global batch is divided among the ranks."""

    name: str
    global_batch: int
    size: int
    """Samples in it over all ranks."""
    samples: tuple[int, ...]
    """Samples of each rank."""
    micro_batches: tuple[int, ...]
    """Micro-batches of each rank."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run of `world_size` ranks would be."""

    config: RunConfig
    runtime: Runtime
    plan: Plan
    """The plan of rank 0."""
    data: str
    directory: str
    execution: Execution
    total_steps: int
    splits: tuple[RankSplit, ...]
    proved_global_batches: tuple[int, ...]
    """Global batches whose slices were compared rank by rank."""
    learning_rates: dict[str, float]
    held_out: dict[str, int]
    """Samples of each set that is evaluated on."""
    memory: tuple[Need, ...]
    notes: tuple[str, ...]


def examine(config: RunConfig) -> Report:
    """Build rank 0 of the world that `config.dry_run` names, and check the others against it.

    Raises:
        InputError: With the words in which the ranks of that world would refuse.
    """
    libraries = int(peak_host_bytes())
    world_size = config.dry_run.world_size
    assert world_size is not None
    runtime = choose_device(Runtime(launcher="dry run", world_size=world_size), config.parallel)
    found, data = _find_data(config)
    components = build_components(config, runtime, data)
    plans = [replace(components.plan, rank=rank) for rank in range(world_size)]
    for plan in plans[1:]:
        check_batch_norm(components.model, plan)
    alone = replace(runtime, world_size=1, backend="")
    state = build_state(config, alone, components.on(alone))
    directory = _decide(config, state)
    global_batches = _telling_global_batches(components.plan)
    for index in global_batches:
        check_partition(plans, index)
    held_out = {name: len(part) for name, part in data.held_out.items()}
    for count in held_out.values():
        check_evaluation(count, config.evaluate.batch_size, world_size)
    splits = _split_batches(plans)
    total_steps = components.schedule.total_steps
    largest = max(plans, key=largest_micro_batch)
    memory = [
        Need("Python and its libraries", libraries, False, "resident here before anything is built")
    ]
    return Report(
        config=config,
        runtime=runtime,
        plan=components.plan,
        data=found,
        directory=directory,
        execution=components.execution,
        total_steps=total_steps,
        splits=splits,
        proved_global_batches=tuple(global_batches),
        learning_rates=_learning_rates(components.schedule, config.schedule.warmup_steps),
        held_out=held_out,
        memory=(*memory, *memory_of_rank(config, components, state, largest)),
        notes=tuple(_notes(config, splits, held_out)),
    )


def check_partition(plans: Sequence[Plan], index: int) -> None:
    """Compare, sample by sample, what all ranks take of a global batch with the batch itself.

    Raises:
        AssertionError: If a sample is taken twice, left out, or not of this batch.
    """
    batch = plans[0].global_batch(index)
    order = plans[0].order(batch.epoch)
    taken = []
    for plan in plans:
        global_batch = plan.global_batch(index)
        assert (global_batch.start, global_batch.size) == (batch.start, batch.size), (
            f"rank {plan.rank}"
        )
        ends = [micro.ends_global_batch for micro in global_batch.micro_batches]
        assert ends == [False] * (len(ends) - 1) + [True], f"rank {plan.rank}"
        taken += list(plan.indices(global_batch))
    every = torch.cat(taken)
    assert len(every) == batch.size, f"{len(every)} samples are taken of {batch.size}"
    assert len(set(every.tolist())) == batch.size, "a sample is taken twice"
    expected = order[batch.start : batch.start + batch.size]
    assert torch.equal(every.sort().values, expected.sort().values), "a sample of another batch"


def check_evaluation(num_samples: int, batch_size: int, world_size: int) -> None:
    """Every sample is in exactly one batch of exactly one rank."""
    bounds = evaluation_batches(num_samples, batch_size)
    mine = [
        bounds[index]
        for rank in range(world_size)
        for index in range(rank, len(bounds), world_size)
    ]
    assert sorted(mine) == bounds
    assert [start for start, _ in bounds] == [0, *(stop for _, stop in bounds[:-1])]
    assert bounds[-1][1] == num_samples


def _find_data(config: RunConfig) -> tuple[str, Datasets]:
    """The data sets and where they are; stand-ins of the same shape where a run would download."""
    facts = CATALOG.get(config.data.dataset)
    if facts is None:
        where = f" in {config.data.root}" if config.data.root else ""
        return f"{config.data.dataset}{where}", load_datasets(config.data, seed=config.seed)
    root = config.data.root
    files = find_files(facts, root)
    if (
        files is None
        and config.data.download
        and (root is None or Path(root).expanduser().is_dir())
    ):
        target = download_folder(facts, root)
        stand_in = cut(_stand_in(facts), config.data, config.seed)
        return f"{facts.name}: not here, would be downloaded to {target}", stand_in
    # Nothing to download, or not allowed: as in the real run, this finds them or refuses.
    folder = next(iter(acquire(facts, root, download=False).values())).parent
    return f"{facts.name} in {folder}", load_datasets(config.data, seed=config.seed)


def _stand_in(facts: DatasetFacts) -> Datasets:
    """Data sets of the published sizes that take no memory: one value, seen many times."""

    def blank(count: int) -> ArrayDataset:
        inputs = torch.zeros((), dtype=torch.uint8).expand(count, *facts.input_shape)
        return ArrayDataset(inputs, torch.zeros((), dtype=torch.int64).expand(count))

    return Datasets(
        train=blank(facts.num_train),
        test=blank(facts.num_test),
        input_shape=facts.input_shape,
        num_classes=len(facts.classes),
        mean=facts.mean or (0.0,),
        std=facts.std or (1.0,),
        scale=255.0,
        classes=facts.classes,
    )


def _decide(config: RunConfig, state: RunState) -> str:
    """What the run would do with its directory; a checkpoint it continues from must fit."""
    directory = RunDirectory(config)
    above = directory.path.parent
    while not above.exists():
        above = above.parent
    if not (above.is_dir() and os.access(above, os.W_OK | os.X_OK)):
        number = errno.EACCES if above.is_dir() else errno.ENOTDIR
        raise directory.unwritable(OSError(number, os.strerror(number)))
    resume = decide_resume(config, directory)
    continue_from(config, resume, state)
    if resume.checkpoint is not None:
        return f"{directory.path}: would continue from {resume.checkpoint} (step {resume.step})"
    if list_checkpoints(directory.checkpoints) or directory.status() is not None:
        return f"{directory.path}: would start afresh, and move the run that is there aside"
    return f"{directory.path}: would start there"


def _telling_global_batches(plan: Plan) -> list[int]:
    """The first global batches, and those at the ends of an epoch of every batch size."""
    begin = plan.epoch_schedule.global_batches_before
    ends = [begin(epoch + 1) for epoch, _ in plan.epoch_schedule.batch_sizes]
    starts = [begin(epoch) for epoch, _ in plan.epoch_schedule.batch_sizes]
    return sorted({0, 1, *starts, *ends, *(end - 1 for end in ends)})


def _split_batches(plans: Sequence[Plan]) -> tuple[RankSplit, ...]:
    plan, epoch_schedule = plans[0], plans[0].epoch_schedule
    global_batches = {}
    for epoch, full in epoch_schedule.batch_sizes:
        stage = "" if len(epoch_schedule.batch_sizes) == 1 else f" from epoch {epoch + 1} on"
        first, last = (
            epoch_schedule.global_batches_before(epoch),
            epoch_schedule.global_batches_before(epoch + 1) - 1,
        )
        only = plan.global_batch(first).size < full
        global_batches[("only batch of an epoch" if only else "full batch") + stage] = first
        if plan.global_batch(last).size != plan.global_batch(first).size:
            global_batches[f"last batch of an epoch{stage}"] = last
    found = []
    for name, index in global_batches.items():
        cuts = [plan.global_batch(index).micro_batch_sizes for plan in plans]
        found.append(
            RankSplit(
                name,
                index,
                plans[0].global_batch(index).size,
                tuple(map(sum, cuts)),
                tuple(map(len, cuts)),
            )
        )
    return tuple(found)


def _learning_rates(schedule: Schedule, warmup: int) -> dict[str, float]:
    """Learning rates at the ends of the run and at the highest one, by step (counted from 1)."""
    total = schedule.total_steps
    steps = {0, total - 1, min(warmup, total - 1)}
    steps |= {total * part // SCHEDULE_SAMPLES for part in range(SCHEDULE_SAMPLES)}
    rates = dict(zip(sorted(steps), schedule.preview(sorted(steps)), strict=True))
    highest = max(sorted(steps), key=rates.__getitem__)
    chosen = sorted({0, highest, total - 1})
    return {f"step {step + 1}": rates[step] for step in chosen}


def _notes(
    config: RunConfig, splits: Sequence[RankSplit], held_out: Mapping[str, int]
) -> list[str]:
    """What works, but may not be what was meant."""
    world_size = len(splits[0].samples)
    notes = []
    for split in splits:
        counts = Counter(split.samples)
        if counts[0]:
            notes.append(f"{counts[0]} of {world_size} ranks have no sample in the {split.name}")
    if len(set(splits[0].samples)) > 1:
        notes.append("ranks have unequal parts of a full batch: the larger ones set the pace")
    for name, count in held_out.items():
        batches = len(evaluation_batches(count, config.evaluate.batch_size))
        if batches < world_size:
            notes.append(
                f"{world_size - batches} of {world_size} ranks have nothing to evaluate of the "
                f"{name} set: a smaller evaluate.batch_size would share it out"
            )
    return notes
