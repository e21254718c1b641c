"""A Slurm cluster of one node on this machine, from Debian's packages: slurmctld, slurmd and munged, started as root.

Slurm's commands look for /etc/slurm/slurm.conf, and Snakemake's plugin takes other places out of the environment; so the lab
writes that file, refuses to replace one that is not its own, and takes it away at the end.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

ETC = Path("/etc/slurm")
CONF, GRES, DBD = ETC / "slurm.conf", ETC / "gres.conf", ETC / "slurmdbd.conf"
MARK = "# written by tests/slurm_lab.py"
SETTINGS = """\
{mark}
ClusterName=lab
SlurmctldHost={host}
AuthType=auth/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
{accounting}GresTypes=gpu
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=10
MinJobAge=600
SlurmdTimeout=20
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
WITHOUT_ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
"""
WITH_ACCOUNTING = """\
JobAcctGatherType=jobacct_gather/linux
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=16819
AccountingStorageEnforce=associations
AccountingStorageTRES=gres/gpu
"""
DATABASE = """\
{mark}
AuthType=auth/munge
DbdHost={host}
DbdPort=16819
SlurmUser=root
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=16806
StorageUser=slurm
StoragePass=lab
StorageLoc=slurm
"""
ACCOUNT = "perception"
MEGABYTE = 1 << 20


class Lab:
    def __init__(self, root: Path, accounting: bool = False) -> None:
        self.root, self.host, self.accounting = root, socket.gethostname(), accounting
        self.mariadb: subprocess.Popen | None = None

    def start(self) -> None:
        """Start all daemons and wait until the node takes jobs."""
        for name in ("state", "spool"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // MEGABYTE * 3 // 4
        cpus = len(os.sched_getaffinity(0))
        accounting = WITH_ACCOUNTING if self.accounting else WITHOUT_ACCOUNTING
        here = {"mark": MARK, "host": self.host, "root": self.root}
        CONF.write_text(SETTINGS.format(cpus=cpus, memory=memory, accounting=accounting, **here))
        # Any two devices will do as GPUs that only Slurm counts.
        lines = [f"NodeName={self.host} Name=gpu File={device}" for device in ("/dev/null", "/dev/zero")]
        GRES.write_text("\n".join([MARK, *lines, ""]))
        start_munge()
        if self.accounting:
            self.start_accounting(DATABASE.format(**here))
        subprocess.run(["slurmctld"], check=True)
        self.start_node()
        self.wait_for(lambda: "idle" in output("sinfo", "-h", "-o", "%T"), "the node never became idle")

    def start_accounting(self, settings: str) -> None:
        """Start a MariaDB and slurmdbd, and make the one account that may submit."""
        data, sock = self.root / "mariadb", self.root / "mariadb.sock"
        made = ["mariadb-install-db", f"--datadir={data}", "--user=root", "--auth-root-authentication-method=normal"]
        subprocess.run(made, check=True, capture_output=True)
        served = ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}", f"--socket={sock}", "--port=16806"]
        log = (self.root / "mariadb.log").open("w")
        self.mariadb = subprocess.Popen([*served, "--bind-address=127.0.0.1"], stderr=log)
        client = ["mariadb", f"--socket={sock}", "--user=root", "--execute"]
        user = "CREATE USER slurm@'127.0.0.1' IDENTIFIED BY 'lab'; GRANT ALL ON slurm.* TO slurm@'127.0.0.1'"
        self.wait_for(lambda: subprocess.run([*client, user], capture_output=True).returncode == 0, "no MariaDB")
        DBD.touch(mode=0o600)
        DBD.write_text(settings)
        subprocess.run(["slurmdbd"], check=True)
        cluster = ["sacctmgr", "--immediate", "add", "cluster", "lab"]
        self.wait_for(lambda: subprocess.run(cluster, capture_output=True).returncode == 0, "no slurmdbd")
        for words in (["account", ACCOUNT, "Cluster=lab"], ["user", "root", f"Account={ACCOUNT}"]):
            subprocess.run(["sacctmgr", "--immediate", "add", *words], check=True, capture_output=True)

    def start_node(self) -> None:
        subprocess.run(["slurmd", "-N", self.host], check=True)

    def kill_node(self) -> None:
        """Kill slurmd as a power cut does; its jobs' processes go with it."""
        os.kill(self._pid("slurmd"), signal.SIGKILL)
        for step in output("pgrep", "-f", "slurmstepd").split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(step), signal.SIGKILL)

    def stop(self) -> None:
        subprocess.run(["scancel", "--user", "root"], check=False)
        for name in ("slurmd", "slurmctld", "slurmdbd"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
                os.kill(self._pid(name), signal.SIGTERM)
        self.wait_for(lambda: not output("pgrep", "-x", "slurmd|slurmctld|slurmdbd"), "the daemons did not end")
        if self.mariadb:
            self.mariadb.terminate()
            self.mariadb.wait()
        # A conf without a controller makes every later Snakemake wait ten seconds for an answer.
        for conf in (CONF, GRES, DBD):
            conf.unlink(missing_ok=True)

    def _pid(self, name: str) -> int:
        return int((self.root / f"{name}.pid").read_text())

    def wait_for(self, condition, complaint: str, seconds: float = 60) -> None:
        """Wait until ``condition()``; with the daemons' logs if it never comes."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                logs = (log.read_text()[-2000:] for log in self.root.glob("*.log"))
                raise AssertionError("\n".join([complaint, *logs]))
            time.sleep(0.5)


def start_munge() -> None:
    if subprocess.run(["munge", "-n"], capture_output=True, check=False).returncode == 0:
        return
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)


def output(*command: str) -> str:
    """What a command prints; empty if it fails."""
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


@contextlib.contextmanager
def slurm(root: Path, accounting: bool = False) -> Iterator[Lab]:
    """A cluster while the block runs; with ``accounting``, only ACCOUNT may submit."""
    for name in ("slurmctld", "slurmd", "slurmdbd", "munged", "sbatch", "mariadbd"):
        assert shutil.which(name), f"{name} not found; run `make test-cluster`, which installs it"
    assert not CONF.exists() or MARK in CONF.read_text(), f"{CONF} is a real cluster's; this test would replace it"
    lab = Lab(root, accounting)
    try:
        lab.start()
        yield lab
    finally:
        lab.stop()
