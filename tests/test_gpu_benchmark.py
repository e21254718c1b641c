"""benchmarks/gpu.py runs to its end with narrow networks, and what has no time, memory or success says so."""

import itertools
import json
import math
import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[1]
TASKS = ("segmentation", "referring", "depth")
MODES = ("bf16", "tf32", "fp32")
WAYS = [f"{task}, {mode}{again}" for again in ("", ", checkpointed") for mode in MODES for task in TASKS]
CASES = {
    "matrix product": [f"{mode}, 128 x 128" for mode in MODES],
    "parity": TASKS,
    "evaluation": [*TASKS, "segmentation, all scales and mirror images"],
    "24 GB recipe": [f"{task}, 8 x 1" for task in TASKS],
    "drift": [f"{task}, {mode}" for task in TASKS for mode in ("fp32", "bf16", "fp32, convolutions tf32", "tf32")],
    "training": [f"{way}, batch 1" for way in WAYS],
}
FIGURES = {
    "matrix product": {"TFLOP/s"},
    "parity": {"errors"},
    "evaluation": {"images/s"},
    "24 GB recipe": {"steps/s", "images/s", "foreseen GiB"},
    "drift": {"losses"},
    "training": {"steps/s", "images/s", "foreseen GiB", "MFU %"},
}


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import jobs

    return jobs


@pytest.fixture
def gpu(jobs):
    import gpu

    return gpu


def run(folder: Path, *options: str) -> tuple[int, list[dict]]:
    """Exit status and rows of the benchmark with narrow networks."""
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--narrow", "--out", folder, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.startswith("card"), done.stderr
    return done.returncode, json.loads((folder / "gpu.json").read_text())["rows"]


def numbers(value: object) -> list[float]:
    """All numbers in a row's value."""
    if isinstance(value, dict | list):
        return list(itertools.chain.from_iterable(map(numbers, value.values() if isinstance(value, dict) else value)))
    return [value] if isinstance(value, int | float) else []


def test_every_row_is_there_with_finite_numbers(tmp_path):
    status, rows = run(tmp_path, "--minutes", "60")
    assert status == 0
    assert [(row["part"], row["case"]) for row in rows] == [(part, case) for part in CASES for case in CASES[part]]
    for row in rows:
        assert row.keys() >= FIGURES[row["part"]], row
        assert all(map(math.isfinite, numbers(list(row.values())))), row
        assert all(row[name] > 0 for name in FIGURES[row["part"]] - {"errors", "losses"}), row
    assert all(row["result"].startswith("within the limits") for row in rows if row["part"] == "parity")
    drifts = {row["case"]: row for row in rows if row["part"] == "drift" and "levels" in row}
    assert all(level == 0 for task in TASKS for level in drifts[f"{task}, tf32"]["levels"])  # there is none on a CPU
    assert all(0 < level < 0.1 for task in TASKS for level in drifts[f"{task}, bf16"]["levels"])
    table = [line for line in (tmp_path / "gpu.md").read_text().splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(rows)
    assert len({line.count("|") for line in table}) == 1


@pytest.mark.slow
def test_what_has_no_time_says_so(jobs, gpu):
    rows = list(jobs.run(gpu.plan(gpu.narrow_bench()), time.monotonic()))
    assert {row["result"] for row in rows} == {"not run: time"}
    assert [row["case"] for row in rows if row["part"] == "training"] == WAYS


def test_time_that_is_left_goes_to_those_after(jobs, monkeypatch):
    now = 100.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    ends = {}
    for name, end in jobs.turns({"a": 1, "b": 1, "c": 2}, 140.0):
        ends[name] = end
        now += {"a": 4, "b": 32, "c": 0}[name]
    assert ends == {"a": 110.0, "b": 116.0, "c": 140.0}


def failing(error: Exception, end: float):
    yield {"case": "first"}
    raise error


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (torch.OutOfMemoryError("all of it"), "out of memory"),
        (RuntimeError("a kernel\nand more"), "failed: RuntimeError: a kernel"),
        (AssertionError(), "failed: AssertionError: "),
    ],
)
def test_a_job_that_fails_keeps_its_rows_and_the_others(jobs, error, result):
    parts = {"part": (1.0, {"bad": partial(failing, error), "good": lambda end: iter([{"case": "last"}])})}
    rows = list(jobs.run(parts, time.monotonic() + 60))
    told = {"part": "part", "case": "bad", "result": result}
    assert rows == [{"part": "part", "case": "first"}, told, {"part": "part", "case": "last"}]


def test_a_number_that_is_not_finite_fails(jobs, tmp_path):
    table = jobs.Table(tmp_path / "gpu", ("case", "MFU %", "result"), {"card": "none"})
    table.add({"case": "sound", "MFU %": 41.25})
    assert not table.failed
    table.add({"case": "broken", "MFU %": math.nan})
    assert table.failed
    assert (tmp_path / "gpu.md").read_text().splitlines()[-2:] == [
        "| sound | 41.2 |  |",
        "| broken |  | failed: MFU % not finite |",
    ]


def test_batches_double_until_memory_ends(gpu, monkeypatch):
    def step(trainer, batches, number):
        if len(batches[0]["image"]) > 2:
            raise torch.OutOfMemoryError
        return 1.0

    monkeypatch.setattr(gpu.Trainer, "step", step)
    bench = gpu.narrow_bench()
    bench.largest = 64
    rows = list(gpu.train(bench, "depth", "fp32", False, time.monotonic() + 60))
    assert [row["case"] for row in rows] == [f"depth, fp32, batch {images}" for images in (1, 2, 4)]
    assert [row.get("result") for row in rows] == [None, None, "out of memory"]


def test_the_recipe_is_that_of_the_page(gpu):
    page = (ROOT / "docs/paper-scale.md").read_text()
    (told,) = re.findall(r"training: (\{accumulate.*?\})", page)
    assert yaml.safe_load(told) == gpu.RECIPE
