"""What a cluster should reserve for each experiment, in a file that a workflow reads without torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vpd.config.schema import DatasetSpec, Spec
from vpd.planning.cost.estimate import FLOAT, RESERVED, Cost, cost
from vpd.planning.cost.network import CLASSES, Parts, read_parts
from vpd.planning.cost.table import figures
from vpd.utils.errors import UserError
from vpd.utils.files import write_json
from vpd.utils.progress import track
from vpd.world.classes import CLASSES as DRAWN

if TYPE_CHECKING:
    from vpd.config.params import Params

MIB = 1 << 20
MARGIN = 1.2
"""Reserved over expected."""
STARTING = 30
"""Minutes for imports, prompts and saving, whatever the training."""
HOST, WORKER = 3072, 1024
"""MiB for a process with its two caches of 1 GiB, and for each of its loader processes."""
CPU_MACS = 5e9
"""Multiply-adds per second of one CPU thread, at the low end."""


def resources(cost: Cost, spec: Spec, gpus: int = 1) -> dict[str, int]:
    """What a job that trains all seeds of ``spec`` should reserve: gpus, gpu_mem_mb (each), mem_mb, runtime (minutes), cpus.

    A spec that fixes the number of CPU threads is meant for CPUs and gets no GPU.
    """
    threads, workers, seeds = spec.training.threads, spec.training.workers, len(spec.seeds)
    if threads:
        minutes = cost.images * cost.training_macs / (CPU_MACS * threads) / 60
        memory = seeds * (HOST + workers * WORKER + cost.step_bytes() / MIB)
        return _rounded(0, 0, memory, minutes * seeds, threads * seeds)
    memory = gpus * (HOST + workers * WORKER + cost.state / MIB)
    minutes = cost.gpu_hours * 60 / gpus
    return _rounded(gpus, cost.gpu_bytes(gpus) / MIB, memory, minutes * seeds, gpus * (1 + workers))


def evaluation_resources(cost: Cost, spec: Spec) -> dict[str, int]:
    """What a job that measures all seeds of ``spec`` should reserve; the names are those of ``resources``."""
    threads, workers, seeds = spec.training.threads, spec.training.workers, len(spec.seeds)
    if threads:
        minutes = cost.evaluation_images * cost.macs / (CPU_MACS * threads) / 60
        memory = seeds * (HOST + workers * WORKER + cost.evaluation_bytes() / MIB)
        return _rounded(0, 0, memory, minutes * seeds, threads * seeds)
    memory = HOST + workers * WORKER + FLOAT * cost.parameters / MIB
    return _rounded(
        1, (cost.evaluation_bytes() + RESERVED) / MIB, memory, cost.evaluation_hours * 60 * seeds, 1 + workers
    )


def hours(cost: Cost, spec: Spec) -> dict[str, float]:
    """V100-hours of training and of measuring all seeds of ``spec``."""
    seeds = len(spec.seeds)
    return {"train": round(cost.gpu_hours * seeds, 3), "evaluate": round(cost.evaluation_hours * seeds, 3)}


def _rounded(gpus: int, gpu_mem: float, mem: float, minutes: float, cpus: int) -> dict[str, int]:
    return {
        "gpus": gpus,
        "gpu_mem_mb": math.ceil(gpu_mem),
        "mem_mb": math.ceil(mem * MARGIN),
        "runtime": STARTING + math.ceil(minutes * MARGIN),
        "cpus": cpus,
    }


def all_costs(params: Params, checkpoints: Path | None = None, names: Sequence[str] | None = None) -> dict[str, Cost]:
    """Costs of the experiments ``names``, or of the whole matrix.

    ``checkpoints`` holds one diffusers pipeline folder per checkpoint, whose configurations are read; without it they
    are Stable Diffusion 1's. UserError if the scale pre-trains its own checkpoints and they are not given. Backbones of
    baselines are known from params.yaml.
    """
    specs = [params.resolve(name) for name in names or params.experiments]
    return {spec.name: _cost(params, spec, checkpoints) for spec in track(specs, len(specs), "costs", "experiment")}


def write_costs(params: Params, costs: Mapping[str, Cost], path: Path) -> None:
    """Write ``{experiment: {resources, hours, trainable, figures}}`` to ``path`` as JSON; resources by stage."""
    write_json(path, {name: _entry(params, found, params.resolve(name)) for name, found in costs.items()})


def _entry(params: Params, cost: Cost, spec: Spec) -> dict:
    gpus = params.resources(spec.name).gpus
    stages = {"train": resources(cost, spec, gpus), "evaluate": evaluation_resources(cost, spec)}
    return {"resources": stages, "hours": hours(cost, spec), "trainable": cost.trainable, "figures": figures(cost)}


def _cost(params: Params, spec: Spec, checkpoints: Path | None) -> Cost:
    dataset = params.dataset(spec.dataset)
    return cost(spec, _parts(params, spec, checkpoints), classes(dataset), samples(dataset), evaluated(dataset))


def _parts(params: Params, spec: Spec, checkpoints: Path | None) -> Parts | None:
    if spec.model.kind != "vpd":
        return params.backbone(spec.checkpoint)
    if checkpoints is None and params.checkpoint(spec.checkpoint).source == "pretrained":
        raise UserError(
            f"{params.source}: scale {params.scale} pre-trains checkpoint {spec.checkpoint}, so its size is not known "
            "beforehand; give the folder of its checkpoints with --checkpoints"
        )
    return read_parts(checkpoints / spec.checkpoint) if checkpoints else None


def classes(dataset: DatasetSpec) -> int:
    """Number of classes: the drawn world has its own where ADE20K has 150."""
    drawn = dataset.source == "synthetic" and dataset.format == "ade20k"
    return len(DRAWN) if drawn else CLASSES[dataset.format]


def samples(dataset: DatasetSpec) -> int | None:
    """Training images that are drawn, or None where the dataset is real and its size known."""
    return _drawn(dataset, "training", "train")


def evaluated(dataset: DatasetSpec) -> int | None:
    """Drawn images of the split that the tables show, or None where the dataset is real."""
    return _drawn(dataset, "validation", "test", "val")


def _drawn(dataset: DatasetSpec, *splits: str) -> int | None:
    return next((dataset.images[split] for split in splits if split in dataset.images), None)
