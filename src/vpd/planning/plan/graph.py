"""The workflow's jobs and what each waits for, read from dvc.yaml: the graph that both orchestrators run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
    needs: tuple[str, ...] = ()
    """Names of the jobs whose outputs it reads."""

    @property
    def name(self) -> str:
        """As DVC calls it: ``train@seg-full``."""
        return f"{self.stage}@{self.key}" if self.key else self.stage


def read_graph(params: Params, workflow: Path = Path("dvc.yaml")) -> dict[str, Job]:
    """Every job by name, each after those that it needs.

    UserError if the file is missing, or a placeholder in it names nothing.
    """
    try:
        stages = yaml.safe_load(workflow.read_text(encoding="utf-8"))["stages"]
    except FileNotFoundError:
        raise UserError(f"{workflow} does not exist; run vpd plan in the project's folder") from None
    values = params.document.model_dump(include={"experiments", "backbones"})
    values |= {"scale": params.scale, "protocol": params.protocol}
    declared = [found for stage, body in stages.items() for found in _instances(stage, body, values, workflow)]
    makers = {out: job.name for job, _ in declared for out in job.outs}
    below = _by_folder(makers)
    jobs = {}
    for job, deps in declared:
        needs = dict.fromkeys(maker for path in deps for maker in _makers(path, makers, below))
        jobs[job.name] = replace(job, needs=tuple(needs))
    return {name: jobs[name] for name in _in_order(jobs)}


def ancestors(jobs: Mapping[str, Job], names: Iterable[str]) -> dict[str, Job]:
    """The jobs ``names`` and all that they wait for, in the order of ``jobs``."""
    wanted, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in wanted:
            wanted.add(name)
            waiting.extend(jobs[name].needs)
    return {name: job for name, job in jobs.items() if name in wanted}


def _instances(stage: str, body: dict, values: dict, workflow: Path) -> Iterator[tuple[Job, list[str]]]:
    """Every job of one stage, without what it needs, and the paths that it depends on."""
    for key, item in _items(body.get("foreach"), values, workflow):
        known, inner = {**values, "key": key, "item": item}, body.get("do", body)
        outs = _paths(inner, ("outs", "metrics"), known, workflow)
        yield Job(stage, str(key), tuple(outs)), _paths(inner, ("deps",), known, workflow)


def _items(over: str | list | None, values: dict, workflow: Path) -> Iterable[tuple[str, Any]]:
    """Keys and items of a foreach: of a list, or of the section that a placeholder names; one of no name without it."""
    if over is None:
        return [("", None)]
    items = _look_up(PLACEHOLDER.fullmatch(over)[1], values, workflow) if isinstance(over, str) else over
    return items.items() if isinstance(items, Mapping) else [(item, item) for item in items]


def _paths(body: dict, sections: Iterable[str], values: dict, workflow: Path) -> list[str]:
    """Paths of some sections, whose entries are a path or a path with options."""
    entries = [entry for section in sections for entry in body.get(section, [])]
    templates = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]
    return [PLACEHOLDER.sub(lambda found: str(_look_up(found[1], values, workflow)), path) for path in templates]


def _look_up(dotted: str, values: Mapping[str, Any], workflow: Path) -> Any:
    found: Any = values
    for part in dotted.split("."):
        if not isinstance(found, Mapping) or part not in found:
            known = found if isinstance(found, Mapping) else {}
            raise UserError(f"{workflow}: ${{{dotted}}} names nothing in params.yaml; {nearest(part, known)}")
        found = found[part]
    return found


def _by_folder(makers: Mapping[str, str]) -> dict[str, list[str]]:
    """Folder -> the jobs that write something in it."""
    found: dict[str, dict[str, None]] = {}
    for out, name in makers.items():
        for folder in PurePosixPath(out).parents:
            found.setdefault(str(folder), {})[name] = None
    return {folder: list(names) for folder, names in found.items()}


def _makers(path: str, makers: Mapping[str, str], below: Mapping[str, list[str]]) -> list[str]:
    """The jobs that make ``path``, a folder around it, or something within it."""
    above = [
        makers[str(folder)] for folder in (PurePosixPath(path), *PurePosixPath(path).parents) if str(folder) in makers
    ]
    return above or below.get(path, [])


def _in_order(jobs: Mapping[str, Job]) -> Iterator[str]:
    """Names, each after what it needs, else as declared."""
    from graphlib import TopologicalSorter

    return TopologicalSorter({name: job.needs for name, job in jobs.items()}).static_order()
