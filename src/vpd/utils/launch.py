"""One training in several processes, each with a GPU of its own where there are GPUs.

torch's elastic launcher starts the processes, and after the loss of one starts all of them again: the training continues from its
last saved state.
"""

import base64
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from vpd.utils.errors import UserError, curable
from vpd.utils.processes import end_with_parent

RESTARTS = 3  # times that the processes are started again before a training counts as failed
MISTAKE = "mistake.txt"  # within the state: what the user has to cure, so that no process is started again for it


def process_count(gpus: int, environment: Mapping[str, str] = os.environ) -> int:
    """Processes for a training that may use ``gpus``: one for each that is there, at least one.

    VPD_PROCESSES, if set, says how many, for machines without GPUs. UserError if it is not a positive number.
    """
    given = environment.get("VPD_PROCESSES")
    if given is not None:
        if not (given.isascii() and given.isdigit() and int(given)):
            raise UserError(f"VPD_PROCESSES={given} is not a number of processes; give 1 or more, or unset it")
        return int(given)
    if gpus == 1:
        return 1
    import torch

    return max(1, min(gpus, torch.cuda.device_count()))


def launch(function: Callable[..., None], arguments: tuple, state: Path, count: int) -> None:
    """Call an importable function in ``count`` processes, with RANK, WORLD_SIZE and the like set.

    UserError if one of the processes raised it; SystemExit with 128 + n after signal n.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # Otherwise processes that start again may meet at the addresses of dead ones (pytorch/pytorch, issue 135712).
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    state.mkdir(parents=True, exist_ok=True)
    mistake = state / MISTAKE
    mistake.unlink(missing_ok=True)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=f"vpd-{state.name}",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        max_restarts=RESTARTS,
        monitor_interval=0.5,
    )
    signal.signal(signal.SIGUSR1, lambda number, frame: os.kill(os.getpid(), signal.SIGTERM))  # which it passes on
    # As commands: with functions, the launcher waits for ever if one process hangs over the death of another.
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
    """Call the function in a process that ``launch`` started; a UserError is written down for the parent and stops all."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the launcher passes it on as SIGTERM
    function, arguments, mistake = pickle.loads(base64.b64decode(call))  # from the parent's command line
    if mistake.exists():
        return
    try:
        function(*arguments)
    except Exception as error:
        if not (text := curable(error)):
            raise
        mistake.write_text(text, encoding="utf-8")
        raise SystemExit(2) from None


if __name__ == "__main__":
    work(sys.argv[1])
