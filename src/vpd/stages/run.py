"""Run one stage of the workflow, unless its output is current."""

import resource
import time
from collections.abc import Callable
from pathlib import Path

from vpd.config.params import Params
from vpd.config.paths import ARCHIVES, Paths
from vpd.config.schema import load_spec
from vpd.stages.data import prepare_dataset
from vpd.stages.keys import is_current
from vpd.stages.training import evaluate_experiment, train_experiment
from vpd.utils.files import exclusive, read_json, write_json
from vpd.utils.fingerprint import MANIFEST

Facts = dict[str, object]  # what the timing file says besides the time


class Stopwatch:
    """Runs from its creation on."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def write(self, path: Path, stage: str, name: str, **facts: object) -> None:
        """Write ``{"stage", "name", "seconds", "peak_mb", ...}``; the peak counts child processes too."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        seconds = round(time.monotonic() - self.started, 2)
        write_json(path, {"stage": stage, "name": name, "seconds": seconds, "peak_mb": round(peak), **facts})


def _data(name: str, params: Params, paths: Paths, archives: Path = ARCHIVES) -> Facts:
    out = paths.dataset(name)
    with exclusive(out):
        prepare_dataset(name, params.dataset(name), out, archives)
    return {}


def _pretrain(name: str, params: Params, paths: Paths) -> Facts:
    from vpd.pretraining.diffusion.pretrain import pretrain

    spec = params.pretraining
    with exclusive(paths.pretraining):
        pretrain(spec, paths.dataset(spec.dataset), paths.pretraining, paths.state("pretrain"))
    return {"images": spec.images_seen or 0}


def _checkpoint(name: str, params: Params, paths: Paths) -> Facts:
    from vpd.pretrained.checkpoints import assemble

    with exclusive(paths.checkpoint(name)):
        assemble(name, params.checkpoint(name), paths.pretraining, paths.checkpoint(name))
    return {}


def _backbone(name: str, params: Params, paths: Paths) -> Facts:
    spec, block, out = params.backbone(name), params.block.backbones, paths.checkpoint(name)
    with exclusive(out):
        if spec.source == "pretrained":
            from vpd.pretraining.backbones.pretrain import pretrain_backbone

            captions, objects = paths.dataset(block.dataset), paths.dataset(block.objects)
            pretrain_backbone(name, spec, captions, objects, out, paths.state("backbone", name))
        else:
            from vpd.pretrained.backbones import fetch_backbone, take_backbone

            (take_backbone if spec.source == "shipped" else fetch_backbone)(name, spec, out)
        origin = out / "origin.json"
        facts = {**(read_json(origin) if origin.is_file() else {}), **read_json(out / MANIFEST)}
    write_json(paths.backbone_facts(name), facts)
    return {"steps": spec.steps(spec.training) if spec.training else 0}


def _train(name: str, params: Params, paths: Paths, live: str | None = None) -> Facts:
    spec = params.resolve(name)
    return {"steps": train_experiment(spec, paths, params.resources(name).gpus, live), "seeds": len(spec.seeds)}


def _evaluate(name: str, params: Params, paths: Paths) -> Facts:
    spec = load_spec(paths.spec(name))
    evaluate_experiment(spec, paths)
    return {"seeds": len(spec.seeds)}


STAGES: dict[str, Callable[..., Facts]] = {
    "data": _data,
    "pretrain": _pretrain,
    "checkpoint": _checkpoint,
    "backbone": _backbone,
    "train": _train,
    "evaluate": _evaluate,
}


def run_stage(stage: str, name: str, params: Params, paths: Paths, **options: object) -> str:
    """Run a stage, note how long it took, and return what to tell the user; idle stages do not import torch.

    ``name`` is empty for the pre-training; ``options`` are ``archives`` of data and ``live`` of train.
    """
    timing = paths.timing(stage, name or "pretraining")
    if timing.is_file() and is_current(stage, name, params, paths):
        return f"{stage} {name}".rstrip() + " is up to date"
    watch = Stopwatch()
    watch.write(timing, stage, name or "pretraining", **STAGES[stage](name, params, paths, **options))
    preview = f"; look at {paths.dataset(name) / 'preview.png'}" if stage == "data" else ""
    return f"{stage} {name}".rstrip() + f" is done{preview}"
