"""The workflow's jobs and what each waits for, read from dvc.yaml: the graph that both orchestrators run.

DVC's own index gives the same graph (a test compares them), but takes seconds and only knows the scale in params.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import yaml

from vpd.utils.errors import UserError, nearest

if TYPE_CHECKING:
    from vpd.config.params import Params

PLACEHOLDER = re.compile(r"\$\{([\w.-]+)\}")


@dataclass(frozen=True)
class Job:
    """One stage of dvc.yaml for one item."""

    stage: str
    key: str
    """Experiment, dataset or checkpoint; empty for a stage without items."""
    outs: tuple[str, ...]
    deps: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    """Names of the jobs whose outputs it reads."""

    @property
    def name(self) -> str:
        """As DVC calls it: ``train@seg-full``."""
        return f"{self.stage}@{self.key}" if self.key else self.stage


def read_graph(params: Params, workflow: Path = Path("dvc.yaml")) -> dict[str, Job]:
    """Read every job by name, each after those that it needs.

    Raises:
        UserError: the file is missing, or a placeholder in it names nothing.
    """
    if not workflow.is_file():
        raise UserError(f"{workflow} does not exist; run vpd plan in the project's folder")
    stages = yaml.safe_load(workflow.read_text(encoding="utf-8"))["stages"]
    values = params.document.model_dump(include={"experiments", "backbones"})
    values |= {"scale": params.scale, "protocol": params.protocol}
    jobs = {job.name: job for stage, body in stages.items() for job in _instances(stage, body, values, workflow)}
    makers = {out: name for name, job in jobs.items() for out in job.outs}
    inside: dict[str, dict[str, None]] = {}
    for out, name in makers.items():
        for folder in PurePosixPath(out).parents:
            inside.setdefault(str(folder), {})[name] = None

    def needs(path: str) -> Iterable[str]:
        """Jobs that make the path or a folder around it, else those that make something inside it."""
        around = [str(folder) for folder in (PurePosixPath(path), *PurePosixPath(path).parents)]
        return [makers[folder] for folder in around if folder in makers] or inside.get(path, ())

    graph = {name: tuple(dict.fromkeys(n for path in job.deps for n in needs(path))) for name, job in jobs.items()}
    return {
        name: Job(jobs[name].stage, jobs[name].key, jobs[name].outs, jobs[name].deps, graph[name])
        for name in TopologicalSorter(graph).static_order()
    }


def ancestors(jobs: Mapping[str, Job], names: Iterable[str]) -> dict[str, Job]:
    """Return the jobs ``names`` and all that they wait for, in the order of ``jobs``."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(jobs[name].needs)
    return {name: job for name, job in jobs.items() if name in wanted}


def _instances(stage: str, body: dict[str, Any], values: dict[str, Any], workflow: Path) -> Iterator[Job]:
    """Yield the jobs of one stage: one, or one per item of its foreach (a list, or a section of params.yaml)."""
    over, inner = body.get("foreach", [""]), body.get("do", body)
    items = _look_up(over[2:-1], values, workflow) if isinstance(over, str) else over
    for key, item in items.items() if isinstance(items, Mapping) else ((item, item) for item in items):
        known = {**values, "key": key, "item": item}

        def paths(*sections: str, known: dict[str, Any] = known) -> tuple[str, ...]:
            entries = [entry for section in sections for entry in inner.get(section, [])]
            templates = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
            return tuple(PLACEHOLDER.sub(lambda m: str(_look_up(m[1], known, workflow)), path) for path in templates)

        yield Job(stage, str(key), paths("outs", "metrics"), paths("deps"))


def _look_up(dotted: str, values: Mapping[str, Any], workflow: Path) -> Any:
    value: Any = values
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            known = value if isinstance(value, Mapping) else {}
            raise UserError(f"{workflow}: ${{{dotted}}} names nothing in params.yaml; {nearest(part, known)}")
        value = value[part]
    return value
