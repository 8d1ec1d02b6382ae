"""What cores the kernel grants, what is chosen from that, and what is said of waiting for one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.diagnosis.check_cores import check_load
from trainer.ranks import cores
from trainer.ranks.cores import OtherProcesses, cpu_quota, fair_threads


def plant(root: Path, own: str, files: dict[str, str]) -> float | None:
    """The quota by such files of cgroups, where /proc/self/cgroup says `own`."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (root / "own").write_text(own)
    return cpu_quota(root, root / "own")


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
        (
            "2:cpuacct:/\n1:cpu:/job\n0::/\n",
            {"cpu/job/cpu.cfs_quota_us": "300000\n", "cpu/job/cpu.cfs_period_us": "100000\n"},
            3.0,
        ),
        (
            "4:cpu,cpuacct:/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "-1", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            None,
        ),
        ("0::/gone\n", {}, None),
    ],
)
def test_the_quota_is_the_least_of_all_groups(
    tmp_path: Path, own: str, files: dict[str, str], expected: float | None
) -> None:
    """Law: of either version of cgroups, of a nested group too."""
    assert plant(tmp_path, own, files) == expected


def test_threads_follow_from_quota_and_affinity_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: all ranks share them, unless a rank is bound to cores of its own, or was told."""

    def machine(affinity: int, cpus: int, quota: float | None) -> Callable[[int], float]:
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(affinity)))
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(cores, "cpu_quota", lambda: quota)
        return lambda ranks: fair_threads(ranks, {})

    assert [machine(8, 8, None)(ranks) for ranks in (1, 2, 16)] == [8, 4, 1]
    assert machine(4, 16, None)(4) == 4  # bound
    assert [machine(64, 64, 2.5)(ranks) for ranks in (1, 2, 4)] == [2, 1, 1]
    assert machine(4, 16, 32.0)(2) == 4
    assert fair_threads(1, {"OMP_NUM_THREADS": "64"}) == float("inf")


def test_what_others_use_is_what_this_process_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Law: of the cores it may run on, since the last look; idle time and waiting for a disk are
    no use, and what the hypervisor took is one."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    stat, own, now = tmp_path / "stat", [5.0], [0.0]

    def write(*ticks: tuple[int, int, int, int]) -> None:
        lines = (
            f"cpu{cpu} {user} 0 0 {idle} {disk} 0 0 {stolen} 9 9\n"
            for cpu, (user, idle, disk, stolen) in enumerate(ticks)
        )
        stat.write_text("cpu  1 2 3 4 5 6 7 8 9 10\n" + "".join(lines))

    write((100, 100, 0, 0), (0, 0, 0, 0), (50, 50, 0, 0))
    others = OtherProcesses(stat, lambda: own[0], lambda: now[0])
    write((170, 110, 10, 10), (500, 0, 0, 0), (100, 100, 0, 0))
    own[0], now[0] = 5.3, 1.0
    assert others.look() == pytest.approx(2 * 130 / 200 - 0.3)
    own[0], now[0] = 9.0, 2.0
    assert others.look() == 0.0
    stat.unlink()
    assert others.look() is None
    assert OtherProcesses(stat).look() is None


@pytest.mark.parametrize(("busy", "level"), [(0.1, "ok"), (1000.0, "warning")])
def test_the_doctor_says_when_others_are_at_work(busy: float, level: str) -> None:
    finding = check_load(1, busy)
    assert finding.level == level
    assert f"others keep {busy:.1f} of" in finding.seen
    assert ("--parallel.threads 1" in finding.change) == (level == "warning")
