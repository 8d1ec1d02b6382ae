"""The pages of `--help`: a screen of what is used most, a group of keys, or all of them."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from configs.errors import InputError, did_you_mean
from configs.identity import flatten
from configs.schema import RunConfig
from configs.table import Row, groups, kind, literal

COMMON = (
    *("name", "output_dir", "train.epochs", "train.global_batch_size", "optimizer.name"),
    *("optimizer.lr", "model.name", "data.dataset", "data.root", "precision.dtype"),
    *("checkpoint.resume", "parallel.device", "logging.wandb.mode"),
)
WIDTH = 100


def asked_for(argv: Sequence[str]) -> str:
    """What a command line wants to be told about: a group, `all`, or "" for the first screen."""
    index = next(number for number, token in enumerate(argv) if token in ("-h", "--help"))
    following = argv[index + 1 : index + 2]
    return following[0] if following and not following[0].startswith("-") else ""


def help_page(topic: str, prog: str, description: str) -> str:
    """The page about a topic.

    Raises:
        InputError: If there is no group of that name.
    """
    known = {group: (sentence, rows) for group, sentence, rows in groups(RunConfig, "")}
    if topic == "":
        return "\n".join(_overview(known, prog, description))
    if topic == "all":
        chosen = list(known)
    else:
        inside = topic.strip("-.")
        chosen = [name for name in known if name == inside or name.startswith(f"{inside}.")]
        if not inside or not chosen:
            raise InputError(
                "--help",
                given=topic,
                expected=f"all, or a group of keys: {', '.join(filter(None, known))}",
                remedy=did_you_mean(topic, known),
            )
    lines = [_usage(prog), "", description] if topic == "all" else []
    for name in chosen:
        sentence, rows = known[name]
        lines += ["", f"{name or 'at the top'}: {sentence or RunConfig.__doc__}"]
        lines += [line for row in rows for line in _entry(row)]
    return "\n".join(lines).strip("\n")


def _overview(
    known: dict[str, tuple[str, list[Row]]], prog: str, description: str
) -> Iterator[str]:
    yield from (_usage(prog), "", description, "", "used most:")
    yield "  --config NAME               a recipe of configs/, or a YAML file (default: mnist)"
    if prog.startswith("convoy "):  # else it is for torchrun to say
        yield "  --nproc N                   processes on this machine (default: 1)"
    rows = {row[0]: row for _, some in known.values() for row in some}
    for key in COMMON:
        meaning = re.split(r"[.;] ", rows[key][2])[0].rstrip(".")
        yield f"  --{key:<25} {textwrap.shorten(meaning, WIDTH - 30, placeholder=' ...')}"
    yield from ("", "groups of keys (--help GROUP):")
    for name, (sentence, _) in known.items():
        if name and "." not in name:
            yield f"  {name:<12} {sentence}"
    yield from ("", "--help all shows every key, --print_config what a run would use.")


def _usage(prog: str) -> str:
    return (
        f"usage: {prog} [--config NAME] [--KEY VALUE ...] [--help [GROUP | all]] [--print_config]"
    )


def _entry(row: Row) -> list[str]:
    key, hint, meaning = row
    default = literal(flatten(RunConfig())[key])
    text = f"{meaning} (type: {kind(hint).replace('`', '')}; default: {default})"
    return [
        f"  --{key}",
        *textwrap.wrap(text, WIDTH - 6, initial_indent=" " * 6, subsequent_indent=" " * 6),
    ]
