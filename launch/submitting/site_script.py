"""A site in the words of Slurm: options of sbatch, and the lines that slurm/train.sbatch reads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from launch.submitting.sites import Site

VARIABLE = re.compile(r"(\$(?:[A-Za-z_]\w*|\{[A-Za-z_]\w*\}))")


def sbatch_options(site: Site, name: str) -> list[str]:
    """What a site asks of sbatch for a job of that name."""
    gres = site.gres or (f"gpu:{site.gpus_per_node}" if site.gpus_per_node else None)
    optional = {
        "partition": site.partition,
        "account": site.account,
        "qos": site.qos,
        "gres": gres,
        "mem": site.memory,
        "mail-user": site.mail,
        "mail-type": site.mail_on if site.mail else None,
    }
    return [
        f"--job-name={name}",
        f"--nodes={site.nodes}",
        f"--ntasks-per-node={site.ranks}",
        f"--cpus-per-task={site.cpus_per_rank}",
        f"--time={site.time}",
        f"--signal=B:USR1@{site.notice_seconds}",
        *(f"--{key}={value}" for key, value in optional.items() if value is not None),
        *site.sbatch,
    ]


def site_script(name: str, site: Site, logs: Path) -> str:
    """The lines that prepare a job on this site, in bash; slurm/train.sbatch reads them.

    Args:
        name: Of the site.
        site: What its file says.
        logs: Folder of what jobs print.
    """
    lines = [
        f"# Site {shlex.quote(name)}, written by launch/submit.py for slurm/train.sbatch.",
        f"logs={shlex.quote(str(logs))}",
        f"patience_seconds={site.notice_seconds}",
        *(f"export {key}={spoken(value)}" for key, value in site.environment.items()),
        *site.setup,
    ]
    python = site.python or ("python3" if site.container else None)
    lines += [f"python={spoken(python)}"] if python else []
    lines += [
        'mkdir -p -- "$logs/$SLURM_JOB_ID"',
        'srun_options=(--output="$logs/$SLURM_JOB_ID/rank%t.log" --open-mode=append)',
    ]
    lines += [f"srun_options+=({' '.join(map(spoken, site.srun))})"] if site.srun else []
    if site.container == "apptainer":
        lines += apptainer(site)
    elif site.container == "pyxis":
        lines += pyxis(site)
    return "\n".join(lines) + "\n"


def apptainer(site: Site) -> list[str]:
    """Every program of the job starts inside of the image, the check of its config as well."""
    options = ["--nv"] if site.gpus_per_node or site.gres else []
    for mount in site.mounts:
        options += ["--bind", mount]
    end = " ".join(map(spoken, [*options, str(site.image)]))
    return [f'inside=(apptainer exec --bind "$PWD" --bind "$logs" --pwd "$PWD" {end})']


def pyxis(site: Site) -> list[str]:
    """srun alone knows the image: what the script does outside of it is left out."""
    mounts = "".join(f",{spoken(mount)}" for mount in site.mounts)
    return [
        f"srun_options+=(--container-image={spoken(str(site.image))}",
        f'    --container-mounts="$PWD:$PWD,$logs:$logs"{mounts}',
        '    --container-workdir="$PWD")',
        "check_config() { :; } # launch/submit.py has",
        "summarize() { :; }",
    ]


def spoken(text: str) -> str:
    """A word for bash in which `~/` at the beginning and $NAME mean what they mean in the job;
    nothing else of it does."""
    parts = VARIABLE.split(re.sub(r"^~(?=/|$)", "$HOME", text))
    if len(parts) == 1:
        return shlex.quote(text)
    parts[::2] = [re.sub(r'(["\\`$])', r"\\\1", part) for part in parts[::2]]
    return f'"{"".join(parts)}"'
