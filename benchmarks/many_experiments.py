"""How the commands that only look grow with the matrix: wall time and memory with 50 to 1,000 experiments.

    python benchmarks/many_experiments.py [--counts 50 100 250 500 1000] [--commands "snakemake -n" "vpd plan"]

Each count gets a copy of the project with as many experiments in params.yaml: the paper's, and variations of them at
other learning rates. Its dvc.lock is that of a whole run, so that DVC compares all that it would; the digests of what a run
makes are made up, and the files are not there. Processor time is what a busy machine does not change; memory is the
largest process's peak.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
COMMANDS = (
    "vpd show", "vpd plan", "snakemake -n", "dvc repro --dry --force evaluate@seg-full", "dvc repro --dry --force",
    "dvc repro --dry --allow-missing", "dvc status",
)  # fmt: skip
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


def prepare(folder: Path, count: int) -> None:
    """A recorded copy of the project with ``count`` experiments."""
    fresh_copy(folder, count)
    record(folder)


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


def record(folder: Path) -> None:
    """Write the dvc.lock of a whole run."""
    from dvc.repo import Repo

    values = yaml.load((folder / "params.yaml").read_text(encoding="utf-8"), yaml.CSafeLoader)
    with Repo(str(folder)) as repo:
        code = {}
        stages = {stage.name: locked(stage, values, code) for stage in repo.index.stages}
    lock = {"schema": "2.0", "stages": stages}
    (folder / "dvc.lock").write_text(yaml.dump(lock, Dumper=Unshared, sort_keys=False), encoding="utf-8")


class Unshared(yaml.CSafeDumper):
    """Writes what stands in several places several times, as DVC does."""

    def ignore_aliases(self, data: object) -> bool:
        """Whatever it is."""
        return True


def locked(stage, values: dict, code: dict[str, dict]) -> dict:
    """A stage's entry in dvc.lock; ``code`` keeps those of the sources between calls."""
    found = {part: [entry(each, code) for each in getattr(stage, part) if not hasattr(each, "params")]
             for part in ("deps", "outs")}  # fmt: skip
    keys = [key for each in stage.deps for key in getattr(each, "params", ())]
    params = {key: functools.reduce(dict.__getitem__, key.split("."), values) for key in keys}
    return {"cmd": stage.cmd, **found, **({"params": {"params.yaml": params}} if params else {})}


def entry(each, code: dict[str, dict]) -> dict:
    """A file or folder in dvc.lock; the digest of what is not there is that of its name."""
    path = each.def_path
    if not each.exists:
        return {"path": path, "hash": "md5", "md5": hashlib.md5(path.encode()).hexdigest(), "size": len(path)}
    if path not in code:
        each.save()
        code[path] = each.dumpd()
    return code[path]


def measured(command: str, folder: Path) -> str:
    """Seconds of wall and processor time and peak MiB of ``command``, which must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command.split(), cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{command} failed:\n{output.read().decode()[-3000:]}")
    wall = time.perf_counter() - start
    return f"{wall:.0f} / {usage.ru_utime + usage.ru_stime:.0f} ({usage.ru_maxrss / 1024:.0f})"


def main() -> None:
    """Print a table: a row for each command, a column for each count."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--counts", type=int, nargs="+", default=[50, 100, 250, 500, 1000])
    options.add_argument("--commands", nargs="+", default=COMMANDS)
    given = options.parse_args()
    print("| wall / processor seconds (MiB) | " + " | ".join(f"{count:,}" for count in given.counts) + " |")
    print("|---|" + "---|" * len(given.counts))
    with tempfile.TemporaryDirectory() as root:
        # Elsewhere, because the peak of a process counts what it was forked from, and this takes memory.
        with ProcessPoolExecutor(1, get_context("spawn")) as pool:
            list(pool.map(prepare, [Path(root, str(count)) for count in given.counts], given.counts))
        for command in given.commands:
            cells = [measured(command, Path(root, str(count))) for count in given.counts]
            print(f"| `{command}` | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
