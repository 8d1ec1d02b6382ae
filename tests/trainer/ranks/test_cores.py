"""What cores the kernel grants, what is chosen from that, and what is said of waiting for one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from launch.diagnosis.check_cores import check_load
from tests.support.processes import train
from trainer.ranks import cores
from trainer.ranks.cores import CoreWatch, bound_spinning, busy_cores, cpu_quota, fair_threads


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


def test_spinning_is_bounded_unless_the_user_has_chosen() -> None:
    env = {"X": ""}
    bound_spinning(env)
    assert env == {"X": "", "GOMP_SPINCOUNT": cores.SPINS}
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        chosen = {name: "active"}
        bound_spinning(chosen)
        assert chosen == {name: "active"}


@pytest.mark.process
def test_the_threads_of_a_run_know_the_bound(small: Callable[..., list[str]]) -> None:
    """Law: it is in the environment before torch loads the library that reads it, once."""
    finished = train(*small("run", "--train.max_steps=2"), env={"OMP_DISPLAY_ENV": "verbose"})
    assert f"GOMP_SPINCOUNT = '{cores.SPINS}'" in finished.stderr


def wait_for(tasks: Path, **milliseconds: float) -> None:
    """Threads that have been ready for so long without a core."""
    for name, waited in milliseconds.items():
        folder = tasks / name.removeprefix("t")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "schedstat").write_text(f"123 {int(waited * 1e6)} 7\n")


def test_a_shared_machine_is_said_once(tmp_path: Path) -> None:
    """Law: the thread that waits most counts, in the time since the last look; one line."""
    now = [0.0]
    wait_for(tmp_path, t1=0, t2=900_000)
    watch = CoreWatch(threads=2, ranks=1, tasks=tmp_path, clock=lambda: now[0])
    wait_for(tmp_path, t1=2000, t2=900_500)
    now[0] = 4.9
    assert watch.look() == ""  # too soon
    wait_for(tmp_path, t1=700, t2=900_500, t3=80_000)  # the third is new
    now[0] = 6.0
    assert watch.look() == ""
    wait_for(tmp_path, t1=3200, t2=900_500, t3=80_000)
    now[0] = 16.0
    line = watch.look()
    assert line.startswith("this machine is shared: for 25% of the last 10 s")
    assert "parallel.threads" in line
    now[0] = 60.0
    wait_for(tmp_path, t1=50_000)
    assert watch.look() == ""


def test_nothing_is_said_where_nobody_counts(tmp_path: Path) -> None:
    now = [0.0]
    (tmp_path / "1").mkdir()
    watch = CoreWatch(threads=2, ranks=1, tasks=tmp_path, clock=lambda: now[0])
    now[0] = 100.0
    assert watch.look() == ""
    assert busy_cores(0.0, tmp_path / "stat") is None


def test_time_that_others_take_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Law: of the cores this process may use; idle time and waiting for a disk are no use."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2})
    stat = tmp_path / "stat"

    def write(*ticks: tuple[int, int, int]) -> None:
        lines = [
            f"cpu{n} {user} 0 0 {idle} {disk} 0 0 0 9 9\n"
            for n, (user, idle, disk) in enumerate(ticks)
        ]
        stat.write_text("cpu  1 2 3 4 5 6 7 8 9 10\n" + "".join(lines))

    write((100, 100, 0), (0, 0, 0), (50, 50, 0))
    thread = threading.Timer(0.05, write, [(150, 140, 10), (500, 0, 0), (50, 150, 0)])
    thread.start()
    assert busy_cores(0.2, stat) == pytest.approx(2 * 50 / 200)
    thread.join()


@pytest.mark.parametrize(("busy", "level"), [(0.1, "ok"), (1000.0, "warning")])
def test_the_doctor_says_when_others_are_at_work(busy: float, level: str) -> None:
    finding = check_load(1, busy)
    assert finding.level == level
    assert f"others keep {busy:.1f} of" in finding.seen
    assert ("--parallel.threads 1" in finding.change) == (level == "warning")
