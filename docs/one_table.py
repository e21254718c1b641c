"""Write the marked parts of docs/one-table.md: what ``vpd plan`` prints in a new clone, and what each table takes and costs.

Run it as ``python docs/one_table.py`` (``make costs`` does) after an edit of params.yaml, GPUS below or the downloads.
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from vpd.cli import main
from vpd.config.params import Params, load_params
from vpd.download.sources import load_sources
from vpd.planning.costs import read_entries
from vpd.planning.plan import (
    Computed,
    Estimate,
    Job,
    ancestors,
    duration,
    estimates,
    makespan,
    meanings,
    read_graph,
    select,
)
from vpd.report.wording import ordinal
from vpd.utils.disk import amount

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "one-table.md"
PART = re.compile(r"(<!-- made by docs/one_table\.py: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
EXAMPLE, MACHINE = "table5", 8
STATE = 4 * 3 * 3
"""Bytes per trained weight: itself and AdamW's two moments, in single precision, in two states and a third to come."""
GPUS = {"V100": (1.0, 1.0), "A100": (2.0, 2.0), "H100": (4.0, 3.0)}
"""GPU -> how many times as fast as a V100, and dollars per hour: round assumptions, neither measured nor quoted."""


class Clone:
    """The paper's scale in a new clone, where nothing is done."""

    def __init__(self, folder: Path) -> None:
        for name in ("params.yaml", "dvc.yaml", "workflow"):
            (folder / name).symlink_to(ROOT / name)
        self.folder = folder
        self.params: Params = load_params(ROOT / "params.yaml", "paper")
        self.graph: dict[str, Job] = read_graph(self.params, ROOT / "dvc.yaml")
        self.costs: dict[str, Computed] = read_entries(ROOT / "workflow/costs.json", Computed)

    def printed(self, *arguments: str) -> str:
        """What ``vpd`` prints there."""
        with contextlib.chdir(self.folder), contextlib.redirect_stdout(io.StringIO()) as said:
            main(list(arguments))
        return said.getvalue()

    def planned(self, words: list[str]) -> tuple[dict[str, Job], dict[str, Estimate]]:
        """The jobs of ``words`` and what they take; of all without words."""
        targets = [f"evaluate@{name}" for name in select(self.params, words)]
        jobs = ancestors(self.graph, targets) if words else self.graph
        return jobs, estimates(self.params, jobs, self.costs, lambda stage, key: False, self.folder)

    def rows(self) -> Iterator[tuple[str, list[str]]]:
        """A heading and words for each table and figure that takes trainings, and for everything."""
        known = meanings(self.params)
        names = dict.fromkeys((*self.params.tables, *self.params.figures))
        yield from ((ordinal(name), [name]) for name in names if known.get(name))
        yield "everything", []


# ---------------------------------------------------------------------------------------------------------------- parts
def plan(clone: Clone) -> str:
    """The plan of the example on eight GPUs, and what is different on one."""
    words = ["plan", EXAMPLE, "--scale", "paper"]
    many, one = (clone.printed(*words, "--gpus", str(gpus)) for gpus in (MACHINE, 1))
    other = "\n".join(line for line in one.splitlines() if line not in many.splitlines())
    return f"```text\n$ vpd {' '.join(words)} --gpus {MACHINE}\n{many}\n$ vpd {' '.join(words)}\n...\n{other}\n```\n"


def data(clone: Clone) -> str:
    """Each dataset: who needs it, its size and its terms."""
    rows = [("dataset", "needed for", "download", "on disk, with archives", "terms")]
    catalogue = load_sources()
    for name, spec in clone.params.datasets.items():
        entries = [catalogue.entries[entry] for entry in spec.download]
        if entries:
            words = [row for row, words in clone.rows() if words and f"data@{name}" in clone.planned(words)[0]]
            taken = clone.planned([])[1][f"data@{name}"]
            terms = dict.fromkeys(catalogue.licences[entry.licence].name for entry in entries)
            rows.append(
                (f"`{name}`", ", ".join(words), amount(taken.downloaded), amount(taken.written), "; ".join(terms))
            )
    return markdown(rows, "llrrl")


def takes(clone: Clone) -> str:
    """Hours, memory and gigabytes of each table."""
    heads = ("experiments", "V100-hours", "on one GPU", f"on {MACHINE} GPUs", "a node for every job")
    memory = ("memory of one GPU", f"of each of {MACHINE}")
    rows: list[tuple[str, ...]] = [("", *heads, *memory, "download", "on disk", "and for each running training")]
    for title, words in clone.rows():
        jobs, needs = clone.planned(words)
        names = select(clone.params, words)
        hours = [makespan(jobs, needs, gpus) for gpus in (1, MACHINE, sum(job.gpus for job in needs.values()))]
        alone = max(clone.costs[name].figures["GPU memory (GiB)"] for name in names)
        shared = max(found["gpu_mem_mb"] for name in names for found in clone.costs[name].resources.values()) / 1024
        sizes = (sum(getattr(job, kind) for job in needs.values()) for kind in ("downloaded", "written"))
        times = (f"{gpu_hours(needs):,.0f}", *map(duration, hours))
        disk = (*sizes, STATE * max(clone.costs[name].trainable for name in names))
        rows.append((title, str(len(names)), *times, f"{alone:.0f} GiB", f"{shared:.0f} GiB", *map(amount, disk)))
    return markdown(rows, "lrrrrrrrrrr")


def where(clone: Clone) -> str:
    """V100-hours by task, method and schedule, and of one more seed of what carries claims."""
    lines = clone.params.experiments
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, line in lines.items():
        groups.setdefault((line.task, line.method, line.schedule.split("-")[0]), []).append(name)
    groups["everything", "", ""] = list(lines)
    groups["each further seed of ablations and claims", "", ""] = [
        n for n, line in lines.items() if line.seeds != "single"
    ]
    rows = [("task", "method", "schedule", "experiments", "training", "evaluation", "V100-hours")]
    for (task, method, schedule), names in groups.items():
        train, evaluate = (sum(clone.costs[name].hours[stage] for name in names) for stage in ("train", "evaluate"))
        hours = (f"{value:,.1f}" for value in (train, evaluate, train + evaluate))
        rows.append((task, method, schedule, str(len(names)), *hours))
    return markdown(rows, "lllrrrr")


def money(clone: Clone) -> str:
    """The price of each table on each kind of GPU."""
    rows: list[tuple[str, ...]] = [("", *(f"{name}, ${price:.2f} an hour" for name, (_, price) in GPUS.items()))]
    rows.append(("times as fast as a V100", *(f"{speed:g}" for speed, _ in GPUS.values())))
    for title, words in clone.rows():
        hours = gpu_hours(clone.planned(words)[1])
        rows.append((title, *(f"${hours * price / speed:,.0f}" for speed, price in GPUS.values())))
    return markdown(rows, "lrrr")


PARTS: dict[str, Callable[[Clone], str]] = {"plan": plan, "data": data, "takes": takes, "where": where, "money": money}


def gpu_hours(needs: dict[str, Estimate]) -> float:
    """V100-hours of all jobs."""
    return sum((job.hours or 0.0) * job.gpus for job in needs.values())


def markdown(rows: Iterable[tuple[str, ...]], alignment: str) -> str:
    """Format a table; its first row is the heading."""
    head, *body = (f"| {' | '.join(row)} |\n" for row in rows)
    return "".join((head, f"|{'|'.join({'l': '---', 'r': '---:'}[side] for side in alignment)}|\n", *body))


def page() -> str:
    """The page with its marked parts made anew."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Clone(Path(folder))
        return PART.sub(lambda m: f"{m[1]}\n{PARTS[m[2]](clone)}\n{m[3]}", PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
