"""Is the data what it should be: labels, pixels, copies between splits, normalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from data.datasets import Datasets
from data.normalize import Normalize
from launch.diagnosis.check_copies import check_copies
from launch.diagnosis.data_sample import Looks, Sample
from launch.diagnosis.findings import Check, Finding, name_some

IMBALANCE = 10.0
CONSTANT_FRACTION = 0.9
MOST_FOR_MOMENTS = 8192
UNEVEN = 100.0
"""Ratio of the deviations of two features from which on they should not be treated alike."""


Samples = Mapping[str, Sample]
"""Those of each set, by its name."""


def check_data(data: Datasets, train: Sample, held_out: Samples, looks: Looks) -> list[Finding]:
    """Look at the samples of each set, as far as can be said what they should be."""
    samples = {"train": train, **held_out}
    found: list[Finding] = []
    if looks.classes:
        found += [check_targets(data, samples), check_classes(data, train, held_out)]
    if not looks.inputs:
        seen = f"{train.size} samples of {data.structure or 'several shapes'}, all numbers finite"
        return [*found, check_finite(samples) or Check("data", "inputs").ok(seen)]
    found += [check_finite(samples) or check_inputs(data, train)]
    return [*found, check_normalisation(data, train), *check_copies(train, held_out)]


def check_targets(data: Datasets, samples: Samples) -> Finding:
    """Labels must be 0 ... num_classes - 1."""
    wrong = [
        f"{name} {int(sample.targets.min())} to {int(sample.targets.max())}"
        for name, sample in samples.items()
        if int(sample.targets.min()) < 0 or int(sample.targets.max()) >= data.num_classes
    ]
    if not wrong:
        sizes = " + ".join(sample.size for sample in samples.values())
        seen = f"all within 0 to {data.num_classes - 1} ({sizes} samples)"
        return Check("data", "label_range").ok(seen)
    return Check("data", "label_range").problem(
        f"{'; '.join(wrong)}, with {data.num_classes} classes",
        "Cross-entropy indexes the logits with them: an error, or a device-side assert on a GPU.",
        "number the classes from 0, or correct `num_classes` of the data set",
    )


def check_classes(data: Datasets, train: Sample, held_out: Samples) -> Finding:
    """How often each class occurs; one that is missing cannot be learned, or is not tested."""
    counts = [
        _histogram(sample.targets, data.num_classes) for sample in (train, *held_out.values())
    ]
    names = data.classes or tuple(map(str, range(data.num_classes)))
    table = [
        {"class": names[c]}
        | {name: int(count[c]) for name, count in zip(("train", *held_out), counts, strict=True)}
        for c in range(min(data.num_classes, 20))
    ]
    table = table if len(names) <= 20 else []
    present = counts[0][counts[0] > 0]
    ratio = float(present.max() / present.min()) if len(present) else 0.0
    largest_fraction = float(counts[0].max() / counts[0].sum().clamp(min=1))
    seen = f"{data.num_classes} classes, most to least frequent {ratio:.1f} : 1"
    absent = [names[c] for c in range(data.num_classes) if not counts[0][c]]
    tested = [names[c] for c in range(data.num_classes) if not counts[0][c] and counts[-1][c]]
    if data.num_classes < 2:
        return Check("data", "classes").problem(
            "every sample is of the same class",
            "There is nothing to tell apart: any model is right at once.",
            "look at how the labels were written",
            table=table,
        )
    if absent and (train.is_complete or tested):
        return Check("data", "classes").judge(
            "problem" if tested else "warning",
            f"no training samples of class {name_some(absent)}"
            + (", which the test set has" if tested else ""),
            "A class that is never shown is never predicted.",
            "look at how the split was made, or lower `num_classes`",
            table=table,
        )
    for (name, sample), count in zip(held_out.items(), counts[1:], strict=True):
        missing = [names[c] for c in range(data.num_classes) if counts[0][c] and not count[c]]
        if missing and sample.is_complete:
            return Check("data", "classes").problem(
                f"no {name} samples of class {name_some(missing)}",
                f"What is measured on the {name} set says nothing about these classes.",
                "split the data so that every class is in every part",
                table=table,
            )
    if ratio > IMBALANCE:
        return Check("data", "classes").warning(
            f"{seen}; always guessing the largest class is right for {largest_fraction:.1%}",
            "Accuracy looks good while rare classes are ignored.",
            "compare with that figure, look at accuracy per class, or show rare classes more often",
            table=table,
        )
    return Check("data", "classes").ok(seen, table=table)


def _histogram(targets: Tensor, num_classes: int) -> Tensor:
    inside = targets[(targets >= 0) & (targets < num_classes)]
    return torch.bincount(inside, minlength=num_classes)


def check_finite(samples: Samples) -> Finding | None:
    """A problem if samples hold numbers that are not finite."""
    for name, sample in samples.items():
        if sample.bad:
            return Check("data", "inputs").problem(
                f"{sample.bad} of {sample.size} {name} samples hold NaN or infinity",
                "One of them in a batch makes the loss and then all weights NaN.",
                "repair or drop them in the data set",
            )
    return None


def check_inputs(data: Datasets, train: Sample) -> Finding:
    """Samples without content, features that never change."""
    flat = train.inputs.flatten(1)
    low, high = flat.amin(0), flat.amax(0)
    constant = float((low == high).float().mean())
    blank = float((flat == flat[:, :1]).all(1).float().mean()) if flat.shape[1] > 1 else 0.0
    seen = (
        f"{train.inputs.dtype} {tuple(flat.shape[1:])} from {low.min().item():.4g} to "
        f"{high.max().item():.4g}; {constant:.0%} of the features never change"
    ).replace("torch.", "")
    if constant == 1.0 and len(train.targets) > 1:
        return Check("data", "inputs").problem(
            f"all {train.size} training inputs are the same",
            "There is nothing to tell classes apart by.",
            "look at what the data set reads",
        )
    if blank > 0.01:
        return Check("data", "inputs").warning(
            f"{blank:.1%} of the training inputs have the same value everywhere",
            "Empty images are usually files that could not be read.",
            "look at some of them, and drop them in the data set",
        )
    if constant > CONSTANT_FRACTION:
        return Check("data", "inputs").warning(
            seen,
            "Most of the input carries no information but costs memory and time.",
            "crop or select the features that change",
        )
    if _are_measurements(train.inputs) and constant:
        names = [data.feature_name(int(index)) for index in (low == high).nonzero()]
        return Check("data", "inputs").warning(
            f"{name_some(names)} never changes in {train.size} training samples",
            "It tells nothing apart, and a test sample with another value is like none seen.",
            "look at how it was written down, or leave it out",
        )
    return Check("data", "inputs").ok(seen)


def _are_measurements(inputs: Tensor) -> bool:
    """Vectors of numbers that mean something each, as the columns of a table."""
    return inputs.ndim == 2 and inputs.shape[1] > 1 and inputs.is_floating_point()


def check_normalisation(data: Datasets, train: Sample) -> Finding:
    """Mean and standard deviation of what the model is given."""
    if train.inputs.dtype in (torch.int32, torch.int64, torch.bool):
        return Check("data", "normalisation").ok("inputs are indices, not measurements")
    raw = train.subset(MOST_FOR_MOMENTS).inputs
    inputs = Normalize(data, torch.device("cpu"))(raw).double()
    mean, std = float(inputs.mean()), float(inputs.std())
    seen = f"the model gets inputs with mean {mean:.3g} and standard deviation {std:.3g}"
    why = "Initial weights and learning rates are made for inputs around 0 with deviation 1."
    change = (
        f"return data.datasets.Datasets with scale={255.0 if _looks_raw(inputs) else 1.0}, "
        "mean=(...,) and std=(...,) of the training set, or normalise in the data set"
    )
    if _are_measurements(raw):
        stds = inputs.std(0)
        changing = torch.where(stds > 0, stds, stds.max())
        least, most = int(changing.argmin()), int(stds.argmax())
        if stds[most] > UNEVEN * changing[least]:
            return Check("data", "normalisation").warning(
                f"{seen}; that of single features goes from {stds[least]:.2g} "
                f"({data.feature_name(least)}) to {stds[most]:.2g} ({data.feature_name(most)})",
                "The largest features drown the others: weights and rates are made for one scale.",
                "normalise feature by feature: one number for each in mean and std",
            )
    if _looks_raw(inputs):
        seen += f", whole numbers from {inputs.min():.0f} to {inputs.max():.0f}: raw pixels"
        return Check("data", "normalisation").problem(seen, why, change)
    if abs(mean) > 100 or std > 100 or 0 < std < 1e-3:
        return Check("data", "normalisation").problem(seen, why, change)
    if abs(mean) > 2.5 or std > 5 or 0 < std < 0.1:
        return Check("data", "normalisation").warning(seen, why, change)
    if abs(mean) > 0.5 or not 0.5 < std < 2:
        return Check("data", "normalisation").note(seen, why)
    return Check("data", "normalisation").ok(seen)


def _looks_raw(inputs: Tensor) -> bool:
    """Whether these are pixels from 0 to 255 as they lie in a file."""
    low, high = float(inputs.min()), float(inputs.max())
    are_whole_numbers = bool((inputs - inputs.round()).abs().max() < 1e-3)
    return low >= 0 and 64 < high <= 255 and are_whole_numbers
