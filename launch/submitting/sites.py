"""What a cluster needs of every job, from one YAML file: a site has a name and a few keys."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from configs.errors import InputError, did_you_mean
from configs.keys import describe
from configs.read_files import read_yaml

CHECKOUT = Path(__file__).resolve().parents[2]
EXAMPLE = "slurm/sites.example.yaml"
VARIABLE = re.compile(r"[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """How jobs are submitted to one cluster, or to one of its partitions."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = 1
    ranks_per_node: int | None = None
    """None: one for each GPU, or one."""
    gpus_per_node: int = 0
    gres: str | None = None
    """What GPUs are called here, such as gpu:a100:4; None: gpu:N."""
    cpus_per_rank: int = 1
    memory: str | None = None
    """Of a node, such as 64G."""
    time: str = "01:00:00"
    notice_seconds: int = 120
    """Before the time limit, in which everything is saved."""
    restarts: int = 500
    """After as many the job is not started again."""
    sbatch: list[str] = field(default_factory=list)
    """Further options, such as --exclusive."""
    srun: list[str] = field(default_factory=list)
    setup: list[str] = field(default_factory=list)
    """Lines of shell before anything else: modules, conda."""
    python: str | None = None
    """None: .venv's, or python3."""
    environment: dict[str, str] = field(default_factory=dict)
    """Of all ranks: NCCL's and others' variables."""
    container: Literal["apptainer", "pyxis"] | None = None
    image: str | None = None
    mounts: list[str] = field(default_factory=list)
    """FROM:TO, besides the checkout."""
    mail: str | None = None
    mail_on: str = "END,FAIL"
    logs: str = "slurm_logs"
    """Folder of what jobs print, in the checkout unless it is absolute; all nodes see it. `~` and
    $NAME mean what they mean where it is submitted; in other keys, what they mean in the job."""

    @property
    def ranks(self) -> int:
        """On each node."""
        return self.ranks_per_node or max(self.gpus_per_node, 1)

    @property
    def logs_folder(self) -> Path:
        return CHECKOUT / Path(os.path.expandvars(self.logs)).expanduser()


def site_files() -> list[Path]:
    """Where sites are looked for; the first file that is there is taken."""
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return [CHECKOUT / "slurm" / "sites.yaml", Path(home).expanduser() / "convoy" / "sites.yaml"]


def read_site(name: str | None, file: Path | None) -> tuple[str, Site]:
    """A site of a file, by its name, or the file's default.

    Args:
        name: None: the one under `default`, or the only one.
        file: None: the first of `site_files` that is there; without any of them, a site that asks
            Slurm for nothing but its defaults.

    Returns:
        Its name, and the site.

    Raises:
        InputError: If the file or a key in it is not what it should be.
    """
    path = file or next((path for path in site_files() if path.is_file()), None)
    if path is None:
        if name is not None:
            places = " or ".join(map(str, site_files()))
            raise InputError("--site", given=name, expected=f"a file {places}, like {EXAMPLE}")
        return "defaults", Site()
    content = read_yaml(path)
    sites = content.get("sites") if isinstance(content, dict) else None
    if not isinstance(sites, dict) or not sites or content.keys() - {"sites", "default"}:
        given = ", ".join(map(str, content)) if isinstance(content, dict) else content
        expected = f"the keys sites and default, like {EXAMPLE}"
        raise InputError(str(path), given=given, expected=expected)
    sites = {str(key): value for key, value in sites.items()}  # YAML's 1 and true are names here
    chosen = name or content.get("default") or (next(iter(sites)) if len(sites) == 1 else None)
    if str(chosen) not in sites:
        raise InputError(
            "--site" if name else f"{path}: default",
            given=chosen,
            expected=f"one of {', '.join(sites)}, as {path} has them",
            remedy=did_you_mean(str(chosen), sites),
        )
    return str(chosen), make_site(sites[str(chosen)] or {}, f"{path}: {chosen}")


def make_site(content: Any, where: str) -> Site:
    """A site from what a file says of it.

    Raises:
        InputError: For a key that is unknown or of another kind, or keys that do not go together.
    """
    hints = get_type_hints(Site)
    if not isinstance(content, dict):
        raise InputError(where, given=content, expected="a mapping of keys under it")
    for key, value in content.items():
        if key not in hints:
            raise InputError(
                f"{where}: unknown key {key!r}",
                expected=f"one of {', '.join(hints)}",
                remedy=did_you_mean(str(key), hints),
            )
        if not fits(value, hints[key]):
            # YAML 1.1 takes 24:00:00 for a number to the base of 60.
            quotes = "Put it in quotes." if hints[key] in (str, str | None) else ""
            expected = describe(hints[key])
            raise InputError(f"{where}.{key}", given=value, expected=expected, remedy=quotes)
    content = {**content}
    given = content.get("environment", {})
    content["environment"] = {name: spelled(value) for name, value in given.items()}
    site = Site(**content)
    check(site, where)
    return site


def check(site: Site, where: str) -> None:
    """Refuse what Slurm or a shell would misunderstand."""
    least = {"nodes": 1, "cpus_per_rank": 1, "gpus_per_node": 0, "notice_seconds": 1, "restarts": 0}
    for key, number in least.items():
        if getattr(site, key) < number:
            raise InputError(
                f"{where}.{key}", given=getattr(site, key), expected=f"{number} or more"
            )
    if site.ranks_per_node is not None and site.ranks_per_node < 1:
        raise InputError(f"{where}.ranks_per_node", given=site.ranks_per_node, expected="1 or more")
    if (site.container is None) != (site.image is None):
        raise InputError(f"{where}.container", expected="container and image, or neither")
    if "$" in str(site.logs_folder):
        raise InputError(f"{where}.logs", given=site.logs, expected="variables that are set here")
    for name in site.environment:
        if not VARIABLE.fullmatch(name):
            raise InputError(f"{where}.environment", given=name, expected="the name of a variable")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML is of the kind that a key takes."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(fits(value, part) for part in get_args(hint))
    if hint == list[str]:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if hint == dict[str, str]:
        return isinstance(value, dict) and all(
            isinstance(name, str) and isinstance(item, str | int | float)
            for name, item in value.items()
        )
    if hint is NoneType:
        return value is None
    return isinstance(value, hint) and not isinstance(value, bool)


def spelled(value: object) -> str:
    """A variable's value as text; YAML's true is 1, as NCCL wants it."""
    return str(int(value)) if isinstance(value, bool) else str(value)
