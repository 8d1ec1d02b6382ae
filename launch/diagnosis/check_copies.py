"""Samples that occur twice, or in the training set and in one that is held out."""

from __future__ import annotations

from collections.abc import Container, Mapping

from launch.diagnosis.data_sample import Sample
from launch.diagnosis.findings import Check, Finding

SMALL_SAMPLE_BYTES = 16
"""Smaller samples are equal by chance."""
COPIES_WARNING = 0.002
COPIES_PROBLEM = 0.02
"""Part of a set that is held out that is in the training set too."""


def check_copies(train: Sample, held_out: Mapping[str, Sample]) -> list[Finding]:
    """Samples that occur more than once: in two sets, or with different labels."""
    if train.inputs[0].nbytes < SMALL_SAMPLE_BYTES:
        seen = "samples are too small to tell copies from chance"
        return [Check("data", "copies").note(seen)]
    labels: dict[bytes, int] = {}
    repeated = contradicting = 0
    for key, target in zip(train.digests(), train.targets.tolist(), strict=True):
        repeated += key in labels
        contradicting += labels.setdefault(key, target) != target
    return [
        *(_shared_copies(labels, sample, name) for name, sample in held_out.items()),
        _repeated(repeated, contradicting, train),
    ]


def _shared_copies(train: Container[bytes], sample: Sample, name: str) -> Finding:
    shared = sum(key in train for key in sample.digests())
    part = shared / len(sample.targets)
    seen = f"{shared} of {sample.size} {name} samples are among the training samples, byte for byte"
    if part <= COPIES_WARNING:
        return Check("data", f"train_in_{name}").judge("note" if shared else "ok", seen)
    return Check("data", f"train_in_{name}").judge(
        "problem" if part > COPIES_PROBLEM else "warning",
        f"{seen} ({part:.1%})",
        "Accuracy on it then rewards memory and says too little about new samples.",
        "split before augmenting, and by source (person, patient, document) rather than by sample",
    )


def _repeated(repeated: int, contradicting: int, train: Sample) -> Finding:
    part = repeated / len(train.targets)
    seen = f"{repeated} of {train.size} training samples repeat another one"
    if contradicting > max(2, 0.001 * len(train.targets)):
        return Check("data", "copies").warning(
            f"{seen}, {contradicting} of them with another label",
            "Nothing can be learned from the same input under two labels.",
            "look at how labels were assigned to files",
        )
    if part > 0.1:
        return Check("data", "copies").warning(
            f"{seen} ({part:.1%})",
            "Repeated samples count several times, and an epoch is longer than its content.",
            "drop the copies, or weigh samples on purpose",
        )
    return Check("data", "copies").ok(seen)
