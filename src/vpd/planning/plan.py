"""``vpd plan``: the workflow's jobs, what each waits for and takes (hours, GPUs, memory, disk), and what is done.

The graph is read from dvc.yaml. DVC's own index gives the same one (a test compares them), but takes seconds and only
knows the scale in params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from graphlib import CycleError, TopologicalSorter
from operator import getitem
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from vpd.planning.costs import read_timing
from vpd.utils.disk import amount
from vpd.utils.documents import read_yaml
from vpd.utils.errors import UserError, pick
from vpd.utils.validation import checked

if TYPE_CHECKING:
    from vpd.config.params import Params

FLOAT = 4
CHECKPOINT_BYTES = {
    "stable-diffusion-1": 4_265_000_000,  # U-Net 859.5 M, VAE 83.7 M and text encoder 123.1 M parameters
    "stable-diffusion-2": 5_160_000_000,
    "stable-diffusion-xl": 13_875_000_000,
    "stable-diffusion-3": 30_771_000_000,  # 19 GB of it T5, as in PixArt
    "pixart-alpha": 21_827_000_000,
}
"""Of a checkpoint of each family in single precision; a repository may have half of it in half precision."""
DATA_CORES = 2  # of a data job in both workflows
MEBIBYTE = 1 << 20
NAMED = 8  # jobs that a sentence names before it says how many more there are
PLACEHOLDER = re.compile(r"\$\{([\w.-]+)\}")


class Files(BaseModel):
    """Files of one stage of dvc.yaml, each alone or with settings."""

    outs: list[str | dict[str, Any]] = []
    metrics: list[str | dict[str, Any]] = []
    plots: list[str | dict[str, Any]] = []
    deps: list[str | dict[str, Any]] = []


class Stage(Files):
    """A stage, or one for each of ``foreach``: items, or ``${a section of params.yaml}``."""

    foreach: str | list[str] | dict[str, Any] = [""]
    always_changed: bool = False
    do: Files | None = None


class Workflow(BaseModel):
    """What is read of dvc.yaml."""

    stages: dict[str, Stage]


@dataclass(frozen=True)
class Job:
    """One stage of dvc.yaml for one item ``key``, if it has items; ``needs``: names of the jobs whose outputs it reads."""

    stage: str
    key: str
    outs: tuple[str, ...]
    deps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


class Computed(BaseModel):
    """An experiment in the file of ``vpd cost --out``."""

    resources: dict[str, dict[str, int]]
    hours: dict[str, float]
    trainable: int
    figures: dict[str, float]


@dataclass(frozen=True)
class Estimate:
    """What one job takes; ``done`` if its outputs and those of all that it needs are current."""

    done: bool
    hours: float | None  # wall time with all its seeds on as many GPUs as it may use; None if unknown
    gpus: int = 0
    gpu_mem_mb: int = 0
    mem_mb: int = 0
    cores: int = 1
    downloaded: int = 0  # bytes, as far as they are known
    written: int = 0  # bytes that stay, downloads included


def read_graph(params: Params, workflow: Path = Path("dvc.yaml")) -> dict[str, Job]:
    """Read every job by name, each after those that it needs."""
    content = read_yaml(workflow, "run vpd plan in the project's folder")
    stages = checked(Workflow, content, str(workflow)).stages
    values = params.document.model_dump(include={"experiments", "backbones"})
    values |= {"scale": params.scale, "protocol": params.protocol}
    jobs = {  # by the names that DVC gives: train@seg-full
        f"{stage}@{job.key}" if job.key else stage: job
        for stage, body in stages.items()
        if not body.always_changed  # DVC's own: it makes nothing
        for job in _instances(stage, body, values, workflow)
    }
    makers = {out: name for name, job in jobs.items() for out in job.outs}

    def needs(path: str) -> Iterable[str]:
        """Jobs that make the path or a folder around it, else those that make something inside it."""
        around = [str(folder) for folder in (PurePosixPath(path), *PurePosixPath(path).parents)]
        inside = (name for out, name in makers.items() if out.startswith(f"{path}/"))
        return [makers[folder] for folder in around if folder in makers] or inside

    graph = {name: tuple(dict.fromkeys(n for path in job.deps for n in needs(path))) for name, job in jobs.items()}
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        raise UserError(f"{workflow}: {' and '.join(error.args[1])} wait for each other; correct their deps") from None
    return {name: replace(jobs[name], needs=graph[name]) for name in order}


def _instances(stage: str, body: Stage, values: dict[str, Any], workflow: Path) -> Iterator[Job]:
    """Yield the jobs of one stage: one, or one per item of its foreach (a list, or a section of params.yaml)."""
    over, inner = body.foreach, body.do or body
    items = _look_up(over[2:-1], values, workflow) if isinstance(over, str) else over
    for key, item in items.items() if isinstance(items, Mapping) else ((item, item) for item in items):
        known = {**values, "key": key, "item": item}

        def paths(*sections: str, known: dict[str, Any] = known) -> tuple[str, ...]:
            entries = [entry for section in sections for entry in getattr(inner, section)]
            templates = [entry if isinstance(entry, str) else next(iter(entry), "") for entry in entries]
            return tuple(PLACEHOLDER.sub(lambda m: str(_look_up(m[1], known, workflow)), path) for path in templates)

        yield Job(stage, str(key), paths("outs", "metrics", "plots"), paths("deps"))


def _look_up(dotted: str, values: dict[str, Any], workflow: Path) -> Any:
    try:
        return reduce(getitem, dotted.split("."), values)
    except (KeyError, TypeError):
        raise UserError(f"{workflow}: ${{{dotted}}} names nothing in params.yaml; correct it") from None


def ancestors(jobs: Mapping[str, Job], names: Iterable[str]) -> dict[str, Job]:
    """Return the jobs ``names`` and all that they wait for, in the order of ``jobs``."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(jobs[name].needs)
    return {name: job for name, job in jobs.items() if name in wanted}


def meanings(params: Params) -> dict[str, set[str]]:
    """Return the experiments that each word names: those of a task, of a table or figure of the paper, or one by its name.

    Rows beyond the paper would make its tables dearer. The word ``beyond`` names all that the paper does not need.
    """
    meanings = {name: {name} for name in params.experiments}
    for name, line in params.experiments.items():
        meanings.setdefault(line.task, set()).add(name)
    shown: dict[str, set[str]] = {}
    for table_name, table in params.tables.items():
        shown[table_name] = {used for row in table.rows for used in row.trained.values()}
    shown |= {name: set(figure.experiments) for name, figure in params.figures.items() if figure.experiments}
    return meanings | shown | {"beyond": set(params.experiments).difference(*shown.values())}


def select(params: Params, words: Sequence[str]) -> list[str]:
    """Return the experiments that any of ``words`` names, in order; all without words."""
    kinds, known = "experiment, task, table or figure", meanings(params)
    wanted = {name for word in words for name in pick(word, known, kinds, str(params.source))}
    return [name for name in params.experiments if name in wanted or not words]


def estimates(
    params: Params,
    jobs: Mapping[str, Job],
    computed: Mapping[str, Computed],
    is_done: Callable[[str, str], bool],
    root: Path = Path(),
) -> dict[str, Estimate]:
    """Estimate every job: hours as recorded here, else as ``vpd cost`` computed them, and the bytes that it writes.

    ``is_done`` says whether the output of (stage, name) is current; ``root`` is what the jobs' paths are relative to.
    """
    result: dict[str, Estimate] = {}
    for name, job in jobs.items():
        ready = all(result[needed].done for needed in job.needs if needed in result)
        result[name] = _estimate(params, job, computed, root, ready and is_done(job.stage, job.key))
    return result


def _estimate(params: Params, job: Job, computed: Mapping[str, Computed], root: Path, done: bool) -> Estimate:
    timings = [root / out for out in job.outs if "timing" in Path(out).parts]
    seconds = next((read_timing(file)["seconds"] for file in timings if file.is_file()), None)
    recorded = None if seconds is None else seconds / 3600
    if job.stage not in ("train", "evaluate"):
        cores = {"pretrain": params.pretraining.threads, "data": DATA_CORES}.get(job.stage, 1)
        downloaded, prepared = _fetched(params, job, computed)
        return Estimate(done, recorded, cores=cores, downloaded=downloaded, written=downloaded + prepared)
    spec, cost = params.resolve(job.key), computed.get(job.key)
    if spec.training.threads or cost is None:  # the file has the costs of another scale, or not of this experiment
        return Estimate(done, recorded, cores=spec.training.threads or 1)
    needs, runs = cost.resources[job.stage], len(spec.seeds) * len(spec.training.milestones)
    return Estimate(
        done,
        cost.hours[job.stage] / max(needs["gpus"], 1) if recorded is None else recorded,
        gpus=needs["gpus"],
        gpu_mem_mb=needs["gpu_mem_mb"],
        mem_mb=needs["mem_mb"],
        cores=needs["cpus"],
        written=FLOAT * cost.trainable * runs if job.stage == "train" else 0,
    )


def _fetched(params: Params, job: Job, computed: Mapping[str, Computed]) -> tuple[int, int]:
    """Return the bytes of a job's downloads and of what it prepares from them; synthetic data and small networks do not count."""
    if job.stage in ("data", "released"):
        from vpd.download.sources import load_sources

        released = [spec.download for spec in params.released.values() if spec.download]
        names = params.dataset(job.key).download if job.stage == "data" else released
        known = load_sources().entries
        entries = [pick(name, known, "download", f"{params.source}: {job.stage}") for name in names]
        files = [file for entry in entries for file in entry.files.values()]
        made = sum(entry.prepared for entry in entries if entry.prepare != "keep")  # what is kept is a hard link
        return sum(file.expected_size for file in files), made
    if job.stage == "checkpoint" and (spec := params.checkpoint(job.key)).source == "hub":
        return CHECKPOINT_BYTES[spec.family], 0
    if job.stage == "backbone" and params.backbone(job.key).source == "hub":
        users = [name for name, line in params.experiments.items() if line.checkpoint == job.key and name in computed]
        return max((FLOAT * computed[name].trainable for name in users), default=0), 0
    return 0, 0


def makespan(jobs: Mapping[str, Job], needs: Mapping[str, Estimate], gpus: int) -> float:
    """Return the hours until ``gpus`` GPUs have done all jobs; those that share most GPUs come first, as in the Snakefile."""
    free, ends = [0.0] * gpus, dict[str, float]()
    for name in sorted(needs, key=lambda name: -needs[name].gpus):
        job = needs[name]
        used = 0 if job.done else min(job.gpus, gpus)
        if used:
            free.sort()
            begin = max(free[used - 1], *(ends.get(needed, 0.0) for needed in jobs[name].needs), 0.0)
            ends[name] = begin + (job.hours or 0.0) * job.gpus / used
            free[:used] = [ends[name]] * used
    return max(free)


def describe(title: str, jobs: Mapping[str, Job], needs: Mapping[str, Estimate], gpus: int) -> str:
    """Format jobs, hours, download and disk by stage, and the time that ``gpus`` GPUs take."""
    stages = list(dict.fromkeys(job.stage for job in jobs.values()))
    rows: list[tuple[str, ...]] = [("stage", "jobs", "done", "to do", "GPU-hours", "CPU-hours", "download", "disk")]
    rows += [_row(stage, [needs[name] for name, job in jobs.items() if job.stage == stage]) for stage in stages]
    lines = [title, "", *_table([*rows, _row("all", list(needs.values()))]), ""]
    todo = {name: estimate for name, estimate in needs.items() if not estimate.done}
    if hours := makespan(jobs, needs, gpus):
        lines.append(f"About {duration(hours)} on {gpus} GPU{'s' * (gpus != 1)}, trainings before evaluations.")
    unknown = [name for name, estimate in todo.items() if estimate.hours is None]
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        lines.append(f"Unknown and counted as zero: the time of {', '.join(unknown[:NAMED])}{more}.")
    return "\n".join(lines)


def listing(needs: Mapping[str, Estimate]) -> str:
    """Format every job with its state and needs, one per line; a dash for what is unknown or not needed."""
    rows: list[tuple[str, ...]] = [("job", "state", "time", "GPUs", "GPU memory", "memory", "cores")]
    for name, job in needs.items():
        memory = (amount(size * MEBIBYTE) if size else "-" for size in (job.gpu_mem_mb, job.mem_mb))
        time, state = "-" if job.hours is None else duration(job.hours), "done" if job.done else "to do"
        rows.append((name, state, time, str(job.gpus or "-"), *memory, str(job.cores)))
    return "\n".join(_table(rows))


def duration(hours: float) -> str:
    """``0.004`` -> ``14 s``; ``0.4`` -> ``24 min``; ``30`` -> ``30.0 h``; ``100`` -> ``4.2 days``."""
    if hours < 1 / 60:
        return f"{hours * 3600:.0f} s"
    if hours < 1:
        return f"{hours * 60:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"


def _row(stage: str, group: list[Estimate]) -> tuple[str, ...]:
    todo = [estimate for estimate in group if not estimate.done]
    gpu = sum((estimate.hours or 0.0) * estimate.gpus for estimate in todo)
    cpu = sum((estimate.hours or 0.0) * estimate.cores for estimate in todo if not estimate.gpus)
    sizes = (sum(getattr(estimate, kind) for estimate in todo) for kind in ("downloaded", "written"))
    counts = (len(group), len(group) - len(todo), len(todo))
    hours = ("-" if not total else f"{total:.1f}" if total >= 0.05 else "< 0.1" for total in (gpu, cpu))
    return (stage, *map(str, counts), *hours, *(amount(size) if size else "-" for size in sizes))


def _table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(first), *map(str.rjust, row[1:], others)]) for row in rows]
