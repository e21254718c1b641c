"""What sharing the imports of a workflow's stages saves, measured both ways in one run.

    snakemake --cores 2 --config scale=smoke -- results/smoke/metrics/seg-fast.json
    python benchmarks/shared_imports.py

Rounds alternate between an evaluation of seg-fast that imports the libraries and one in a copy of a process that has them.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from vpd.utils import forkserver

ROUNDS = 5
METRICS = Path("results/smoke/metrics/seg-fast.json")
COMMAND = """\
import sys, time
from vpd.utils import forkserver

if __name__ == "__main__":  # a stage of several seeds starts processes that import this file
    status = forkserver.run()
    if status is not None:
        sys.exit(status)
    copied = "torch" in sys.modules
    from vpd.cli import main

    status = main(["evaluate", "seg-fast", "--scale", "smoke"])
    print("copy", time.process_time() if copied else 0.0)
    sys.exit(status)
"""


def evaluate(command: Path, server: str) -> float:
    """Processor seconds of one evaluation that finds the ``server``, or none if its name is empty."""
    METRICS.unlink()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, forkserver.VARIABLE: server}
    done = subprocess.run([sys.executable, command], env=environment, check=True, capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    copy = float(done.stdout.split()[-1])
    assert bool(copy) == bool(server)
    return copy + after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print the median of both ways and their difference, round by round."""
    forkserver.start()
    server = os.environ[forkserver.VARIABLE]
    with TemporaryDirectory() as folder:
        command = Path(folder) / "command.py"
        command.write_text(COMMAND, encoding="utf-8")
        evaluate(command, server)  # the first copy waits for the imports
        pairs = [(evaluate(command, ""), evaluate(command, server)) for _ in range(ROUNDS)]
    alone, shared = (statistics.median(times) for times in zip(*pairs, strict=True))
    saved = sorted(a - b for a, b in pairs)
    print(f"alone {alone:.1f} s, in a copy {shared:.1f} s of processor time")
    print(f"saved {statistics.median(saved):.1f} s [{saved[0]:.1f}..{saved[-1]:.1f}] over {ROUNDS} rounds")


if __name__ == "__main__":
    main()
