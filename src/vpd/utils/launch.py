"""One training in several processes, on one machine or several, each with a GPU of its own where there are GPUs.

torch's elastic launcher starts the processes, and after the loss of one starts all of them again: the training goes on from its
last saved state.
"""

from __future__ import annotations

import base64
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from vpd.utils.errors import UserError
from vpd.utils.processes import end_with_parent

RESTARTS = 3
"""Times that the processes are started again before a training counts as failed."""
MISTAKE = "mistake.txt"
"""Within the state: what the user has to cure, so that no process is started again for it."""


@dataclass(frozen=True)
class Machines:
    """The machines that share a training, and which of them this one is."""

    count: int = 1
    number: int = 0
    endpoint: str = "127.0.0.1:0"
    """Where they meet: host and port of the first."""

    @property
    def lead(self) -> bool:
        """Whether this machine writes what all of them made."""
        return self.number == 0


def machines(environment: Mapping[str, str] = os.environ) -> Machines:
    """From VPD_MACHINES, VPD_MACHINE and VPD_MEET; without them this machine alone. UserError if they do not fit."""
    count, number, meet = (environment.get(name) for name in ("VPD_MACHINES", "VPD_MACHINE", "VPD_MEET"))
    if count in (None, "1"):
        return Machines()
    if not (count.isdigit() and (number or "").isdigit() and int(number) < int(count) and ":" in (meet or "")):
        raise UserError(
            f"VPD_MACHINES={count}, VPD_MACHINE={number} and VPD_MEET={meet} do not fit each other; "
            "give how many machines there are, which this is (from 0), and host:port of the first"
        )
    return Machines(int(count), int(number), meet)


def process_count(gpus: int, machines: int = 1, environment: Mapping[str, str] = os.environ) -> int:
    """Processes on each machine for a training that may use ``gpus`` in all: one per GPU that is there, at least one.

    VPD_PROCESSES, where set, says how many, for machines without GPUs. UserError if it is no number.
    """
    asked = environment.get("VPD_PROCESSES")
    if asked is not None:
        if not asked.isdigit() or int(asked) < 1:
            raise UserError(f"VPD_PROCESSES={asked} is not a number of processes; give 1 or more, or unset it")
        return int(asked)
    if gpus == 1:
        return 1
    import torch

    return max(1, min(gpus // machines, torch.cuda.device_count()))


def launch(function: Callable[..., None], arguments: tuple, state: Path, count: int, where: Machines) -> None:
    """Call ``function(*arguments)`` in ``count`` processes on every machine, with RANK, WORLD_SIZE and the like set.

    ``function`` is importable. UserError if one of them raised it; SystemExit with 128 + n after signal n.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Else processes that start again may meet at the addresses of dead ones (pytorch/pytorch, issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    state.mkdir(parents=True, exist_ok=True)
    mistake = state / MISTAKE
    if where.lead:
        mistake.unlink(missing_ok=True)
    config = LaunchConfig(
        min_nodes=where.count,
        max_nodes=where.count,
        nproc_per_node=count,
        run_id=f"vpd-{state.name}",
        rdzv_backend="c10d",
        rdzv_endpoint=where.endpoint,
        max_restarts=RESTARTS,
        monitor_interval=0.5,
    )
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))  # which it passes on
    # As commands, because of functions the launcher waits for ever where one hangs over the death of another.
    call = base64.b64encode(pickle.dumps((function, arguments, mistake))).decode()
    try:
        elastic_launch(config, sys.executable)("-m", "vpd.utils.launch", call)
    except SignalException as stopped:
        raise SystemExit(128 + stopped.sigval) from None
    except ChildFailedError as error:
        if not mistake.exists():
            raise RuntimeError(f"a process of {state} failed {1 + RESTARTS} times; its own output says why") from error
    if mistake.exists():
        raise UserError(mistake.read_text(encoding="utf-8"))


def work(call: str) -> None:
    """In a process that ``launch`` started: a mistake of the user is written down, and nothing runs where one is."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher passes it on as SIGTERM
    function, arguments, mistake = pickle.loads(base64.b64decode(call))  # from the parent's command line
    if mistake.exists():
        return
    try:
        function(*arguments)
    except UserError as error:
        mistake.write_text(str(error), encoding="utf-8")
        raise SystemExit(2) from None


if __name__ == "__main__":
    work(sys.argv[1])
