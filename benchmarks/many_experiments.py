"""How the commands that only look grow with the matrix: wall time and memory with 50 to 1,000 experiments.

    python benchmarks/many_experiments.py [--counts 50 100 250 500 1000] [--commands "snakemake -n" "vpd plan"]

Each count gets a fresh copy of the project, in which nothing was run, with as many experiments in params.yaml: the
paper's, and variations of them at other learning rates. Memory is the largest process's peak.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
COMMANDS = ("vpd show", "vpd plan", "snakemake -n", "dvc repro --dry --force", "dvc status")
LAST = "depth-blip"
"""The experiment in whose line the matrix of params.yaml ends."""
RATE = {"segmentation": 8.0e-5, "referring": 5.0e-5, "depth": 5.0e-4}


def enlarged(text: str, count: int) -> str:
    """The text of params.yaml with ``count`` experiments, none fewer than it has: the added ones are variations."""
    lines = text.splitlines(keepends=True)
    known = yaml.safe_load(text)["experiments"]
    assert list(known)[-1] == LAST
    place = next(place for place, line in enumerate(lines) if line.startswith(f"  {LAST}:")) + 1
    bases = itertools.islice(itertools.cycle(known.items()), count - len(known))
    return "".join([*lines[:place], *itertools.starmap(variation, enumerate(bases)), *lines[place:]])


def variation(number: int, base: tuple[str, dict]) -> str:
    """A line like the experiment ``base``, at a learning rate that no other has."""
    name, line = base
    line = {**line, "training": {"optimizer": {"lr": RATE[line["task"]] * (1 + number / 1000)}}}
    return f"  {name}-{number}: {yaml.safe_dump(line, default_flow_style=True, sort_keys=False, width=10_000)}"


def fresh_copy(folder: Path, count: int) -> None:
    """The project's files without its results, with ``count`` experiments, as a git repository."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if name != "dvc.lock" and not name.startswith("results/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    params = folder / "params.yaml"
    params.write_text(enlarged(params.read_text(encoding="utf-8"), count), encoding="utf-8")
    subprocess.run(["git", "init", "-q"], cwd=folder, check=True)


def measured(command: str, folder: Path) -> tuple[float, float]:
    """Seconds of wall time and peak MiB of ``command``, which must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command.split(), cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{command} failed:\n{output.read().decode()[-3000:]}")
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def main() -> None:
    """Print a table: a row for each command, a column for each count."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--counts", type=int, nargs="+", default=[50, 100, 250, 500, 1000])
    options.add_argument("--commands", nargs="+", default=COMMANDS)
    given = options.parse_args()
    print("| seconds (MiB) | " + " | ".join(f"{count:,}" for count in given.counts) + " |")
    print("|---|" + "---|" * len(given.counts))
    with tempfile.TemporaryDirectory() as root:
        for count in given.counts:
            fresh_copy(Path(root, str(count)), count)
        for command in given.commands:
            cells = [measured(command, Path(root, str(count))) for count in given.counts]
            print(
                f"| `{command}` | " + " | ".join(f"{wall:.1f} ({peak:.0f})" for wall, peak in cells) + " |", flush=True
            )


if __name__ == "__main__":
    main()
