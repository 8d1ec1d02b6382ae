"""A private SLURM cluster: one slurmctld, two slurmd and a munged on this machine's loopback."""

from __future__ import annotations

import getpass
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.slurm.reaper import members
from tests.support.processes import ROOT, environment

PROGRAMS = (
    "slurmctld",
    "slurmd",
    "munged",
    "sbatch",
    "srun",
    "scontrol",
    "scancel",
    "sinfo",
    "squeue",
)
NODES = ("node1", "node2")
START_SECONDS = 60.0
JOB_SECONDS = 300.0
"""A machine that does something else besides is waited for; what is there earlier ends the wait."""
# How real clusters follow processes is cgroup; it works here too where /sys/fs/cgroup is writable.
PROCTRACK = os.environ.get("CONVOY_TEST_PROCTRACK", "linuxproc")

CONFIG = """\
ClusterName=convoy
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its last start has expired.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/{proctrack}
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=bf_interval=2,sched_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=20
MinJobAge=3600
SlurmctldTimeout=60
SlurmdTimeout=12
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=ALL Default=YES PriorityTier=1
PartitionName=urgent Nodes=ALL PriorityTier=2
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if shutil.which(name) is None]


class Cluster:
    """The running cluster; `start` makes one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.conf = folder / "slurm.conf"
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def environment(self) -> dict[str, str]:
        return environment({"SLURM_CONF": str(self.conf)})

    def call(self, *command: object, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
        """The standard output of a command that must succeed."""
        done = subprocess.run(
            [str(part) for part in command],
            cwd=cwd,
            env=self.environment | (env or {}),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def submit(
        self,
        script: str,
        *arguments: object,
        options: Sequence[str] = (),
        cwd: Path = ROOT,
        env: dict[str, str] | None = None,
    ) -> Job:
        """`sbatch OPTIONS SCRIPT ARGUMENTS`, its output in a file of the cluster's folder."""
        logs = self.folder / "jobs"
        logs.mkdir(exist_ok=True)
        where = [
            f"--output={logs}/%x-%A_%a.out" if "array" in script else f"--output={logs}/%j.out"
        ]
        command = ["sbatch", "--parsable", *where, *options, script, *arguments]
        return Job(self, self.call(*command, cwd=cwd, env=env).strip())

    def start_daemon(self, name: str, *command: object) -> None:
        with (self.folder / f"{name}.output").open("ab") as output:
            self.daemons[name] = subprocess.Popen(
                [str(part) for part in command],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    def start_node(self, node: str) -> None:
        self.start_daemon(node, "slurmd", "-D", "-N", node)

    def kill_node(self, node: str) -> None:
        """SIGKILL to the node's slurmd; what runs on the node goes on."""
        self.daemons[node].kill()
        self.daemons[node].wait()

    def node_states(self) -> dict[str, str]:
        lines = self.call("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(line.split() for line in lines)

    def logs(self) -> str:
        """The ends of the daemons' logs, for a test that failed."""
        paths = sorted([*self.folder.glob("*.log"), *self.folder.glob("*.output")])
        return "\n".join(f"--- {path.name}\n{path.read_text()[-1500:]}" for path in paths)


@dataclass(frozen=True)
class Job:
    """A batch job, or one task of an array (`12_3`)."""

    cluster: Cluster
    id: str

    def fields(self) -> dict[str, str]:
        """What `scontrol show job` says of it."""
        shown = self.cluster.call("scontrol", "--oneliner", "show", "job", self.id)
        return dict(re.findall(r"(?:^|\s)([\w/:]+)=(\S*)", shown.splitlines()[0]))

    @property
    def state(self) -> str:
        return self.fields()["JobState"]

    @property
    def restarts(self) -> int:
        return int(self.fields()["Restarts"])

    @property
    def output(self) -> str:
        path = Path(self.fields()["StdOut"])
        return path.read_text() if path.exists() else ""

    def wait_for(self, *states: str, timeout: float = JOB_SECONDS) -> str:
        """Until the job is in one of these states; any other final state is a failure."""

        def arrived() -> bool:
            state = self.state
            if state not in states and state not in ("PENDING", "CONFIGURING", "RUNNING"):
                assert state == "COMPLETING", self.describe(f"{state} instead of {states}")
            return state in states

        self.wait_until(arrived, f"{' or '.join(states)}", timeout)
        return self.state

    def wait_until(
        self, holds: Callable[[], bool], what: str, timeout: float = JOB_SECONDS
    ) -> None:
        deadline = time.monotonic() + timeout
        while not holds():
            assert time.monotonic() < deadline, self.describe(f"not {what} after {timeout} s")
            time.sleep(0.25)

    def describe(self, problem: str) -> str:
        return f"job {self.id}: {problem}\n{self.output[-6000:]}\n{self.cluster.logs()}"

    def signal(self, name: str, *options: str) -> None:
        self.cluster.call("scancel", f"--signal={name}", *options, self.id)

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        wanted = {
            f"SLURM_JOB_ID={self.fields()['JobId']}".encode(),
            f"SLURM_PROCID={number}".encode(),
            b"SLURM_STEP_ID=0",
        }
        for pid in members(str(self.cluster.conf)):
            try:
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"launch/train.py" in command.split(b"\0") and wanted <= set(variables):
                return pid
        raise AssertionError(self.describe(f"no rank {number}"))


@contextmanager
def start() -> Iterator[Cluster]:
    """A cluster of two idle nodes; everything it started is gone afterwards, whatever happens."""
    folder = Path(tempfile.mkdtemp(prefix="convoy-slurm-"))
    folder.chmod(0o711)  # munged refuses a socket that others could not reach
    cluster = Cluster(folder)
    reaper = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("reaper.py")), str(cluster.conf)],
        stdin=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        _configure(cluster)
        _start_daemons(cluster)
        yield cluster
    finally:
        assert reaper.stdin is not None
        reaper.stdin.close()
        reaper.wait(timeout=60)
        for daemon in cluster.daemons.values():
            daemon.wait(timeout=10)
        assert not members(str(cluster.conf)), "processes of the cluster are left"
        assert not folder.exists()


def _configure(cluster: Cluster) -> None:
    folder = cluster.folder
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(mode=0o700)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    host = socket.gethostname().partition(".")[0]
    cluster.conf.write_text(
        CONFIG.format(
            host=host,
            user=getpass.getuser(),
            folder=folder,
            ports=_free_ports(3),
            proctrack=PROCTRACK,
        )
    )
    if PROCTRACK == "cgroup":
        (folder / "cgroup.conf").write_text("ConstrainCores=no\n")


def _start_daemons(cluster: Cluster) -> None:
    folder = cluster.folder
    cluster.start_daemon(
        "munged",
        "munged",
        "--foreground",
        f"--key-file={folder}/munge.key",
        f"--socket={folder}/munge.socket",
        f"--pid-file={folder}/munged.pid",
        f"--log-file={folder}/munged.log",
        f"--seed-file={folder}/munge.seed",
    )
    _wait(lambda: (folder / "munge.socket").exists(), cluster, "munged")
    cluster.start_daemon("slurmctld", "slurmctld", "-D")
    for node in NODES:
        cluster.start_node(node)
    _wait(lambda: _idle(cluster), cluster, "two idle nodes")


def _idle(cluster: Cluster) -> bool:
    try:
        return cluster.node_states() == dict.fromkeys(NODES, "idle")
    except AssertionError:  # slurmctld does not answer yet
        return False


def _wait(ready: Callable[[], bool], cluster: Cluster, what: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        dead = [name for name, daemon in cluster.daemons.items() if daemon.poll() is not None]
        assert not dead, f"{dead} ended:\n{cluster.logs()}"
        assert time.monotonic() < deadline, f"no {what}:\n{cluster.logs()}"
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    with_sockets = [socket.socket() for _ in range(count)]
    try:
        for one in with_sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in with_sockets]
    finally:
        for one in with_sockets:
            one.close()
