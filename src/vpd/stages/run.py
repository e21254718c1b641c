"""Run one stage of the workflow, unless its output is current."""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from vpd.config.params import Params
from vpd.config.paths import ARCHIVES, Paths
from vpd.config.schema import load_spec
from vpd.measures.results import measure_nothing
from vpd.planning.costs import Trained
from vpd.stages.data import prepare_dataset
from vpd.stages.keys import is_current, job_key
from vpd.stages.training import evaluate_experiment, train_experiment
from vpd.training.runs import TIMING, seed_folder
from vpd.utils.devices import machine
from vpd.utils.errors import UserError
from vpd.utils.files import exclusive, read_json, write_json
from vpd.utils.fingerprint import MANIFEST, check_intact
from vpd.utils.validation import read_as

Facts = dict[str, object]  # what the timing file says besides the time
WHOLE = {"pretrain": "pretraining", "measure": "measures"}
"""Stages that a scale has once, and what their timings call what they make."""


class Stopwatch:
    """Adds up the attempts at a job: this one from its creation on, and each before it up to the last state that it saved."""

    def __init__(self, stage: str, name: str, paths: Paths, key: str = "") -> None:
        self.stage, self.name, self.timing = stage, name, paths.timing(stage, name)
        self.note = paths.state("attempts", stage) / f"{name}.json"
        self.earlier = _earlier(self.note, key, paths.state(stage, "" if stage in WHOLE else name))
        write_json(self.note, {"key": key, "seconds": self.earlier, "started": time.time()})
        self.started = time.monotonic()

    def write(self, **facts: object) -> None:
        """Write ``{"stage", "name", "seconds", "peak_mb", ...}``; the peak counts child processes too."""
        peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024
        seconds = round(self.earlier + time.monotonic() - self.started, 2)
        own = {"stage": self.stage, "name": self.name, "seconds": seconds, "peak_mb": round(peak)}
        write_json(self.timing, {**own, **facts})
        self.note.unlink(missing_ok=True)


def _earlier(note: Path, key: str, state: Path) -> float:
    """Seconds of the attempts at the same job that ended before it was done."""
    try:
        last = read_json(note)
        saved = [path.stat().st_mtime for path in (state, *state.rglob("*")) if path.exists()]
        gained = max([0.0, *(moment - last["started"] for moment in saved)])
        return round(last["seconds"] + gained, 2) if last["key"] == key else 0.0
    except (UserError, KeyError, TypeError, ArithmeticError):
        return 0.0


def _data(name: str, params: Params, paths: Paths, archives: Path = ARCHIVES) -> Facts:
    users = [params.resolve(key) for key, line in params.experiments.items() if line.dataset == name]
    prepare_dataset(name, params.dataset(name), paths.dataset(name), archives, users)
    return {}


def _pretrain(name: str, params: Params, paths: Paths) -> Facts:
    from vpd.datasets.manifest import check_unchanged
    from vpd.pretraining.diffusion.pretrain import pretrain

    spec = params.pretraining
    check_unchanged(paths.dataset(spec.dataset))
    pretrain(spec, paths.dataset(spec.dataset), paths.pretraining, paths.state("pretrain"))
    return {"images": spec.images_seen or 0}


def _checkpoint(name: str, params: Params, paths: Paths) -> Facts:
    spec, common, out = params.checkpoint(name), params.pretraining, paths.checkpoint(name)
    if small := params.small_diffusion(name):
        from vpd.datasets.manifest import check_unchanged
        from vpd.pretrained.shipped import check_shipped
        from vpd.pretraining.families.pretrain import pretrain_diffusion

        captions, source = paths.dataset(common.dataset), params.small_source(paths)
        check_unchanged(captions)
        if source != paths.pretraining:
            check_shipped(source, params.maker.recipe(source.name))
            print(f"{name} takes parts of {source}, which is in git", file=sys.stderr, flush=True)
        pretrain_diffusion(name, small, common, captions, source, out, paths.state("checkpoint", name))
        return {"images": common.images_seen or 0}
    from vpd.pretrained.checkpoints import assemble

    assemble(name, spec, paths.pretraining, out)
    return {}


def _measure(name: str, params: Params, paths: Paths) -> Facts:
    if params.measures is None:
        measure_nothing(paths.measures)
        return {}
    from vpd.measures.run import measure

    checkpoints = {key: paths.checkpoint(key) for key in params.measured}
    for folder in checkpoints.values():
        check_intact(folder, "checkpoint")
    measure(params.measures, checkpoints, paths.measures, paths.state("measure"))
    return {}


def _backbone(name: str, params: Params, paths: Paths) -> Facts:
    spec, block, out = params.backbone(name), params.block.backbones, paths.checkpoint(name)
    if spec.source == "pretrained":
        from vpd.datasets.manifest import check_unchanged
        from vpd.pretraining.backbones.pretrain import pretrain_backbone

        captions, objects = paths.dataset(block.dataset), paths.dataset(block.objects)
        check_unchanged(captions)
        check_unchanged(objects)
        pretrain_backbone(name, spec, captions, objects, out, paths.state("backbone", name))
    else:
        from vpd.pretrained.backbones import fetch_backbone, take_backbone

        (take_backbone if spec.source == "shipped" else fetch_backbone)(name, spec, out)
    origin = out / "origin.json"
    write_json(
        paths.backbone_facts(name), {**(read_json(origin) if origin.is_file() else {}), **read_json(out / MANIFEST)}
    )
    return {"steps": spec.steps(spec.training) if spec.training else 0}


def _train(name: str, params: Params, paths: Paths, live: str | None = None) -> Facts:
    spec, begun = params.resolve(name), time.time()
    steps = train_experiment(spec, paths, params.resources(name).gpus, live)
    files = [seed_folder(paths.runs(name), seed) / TIMING for seed in spec.seeds]
    facts: Facts = {"steps": steps, "seeds": len(spec.seeds)}
    if all(map(Path.is_file, files)):
        # What the runs say of themselves also holds where they were finished already, perhaps on another machine.
        times = [read_as(Trained, path) for path in files]
        facts["seconds"] = round(sum(each["seconds"] for each in times), 2)
        if all(each["ended"] >= begun for each in times):
            facts["machine"] = machine()
    return facts


def _evaluate(name: str, params: Params, paths: Paths) -> Facts:
    spec = load_spec(paths.spec(name))
    evaluate_experiment(spec, paths)
    return {"seeds": len(spec.seeds)}


STAGES: dict[str, Callable[..., Facts]] = {
    "data": _data,
    "pretrain": _pretrain,
    "checkpoint": _checkpoint,
    "measure": _measure,
    "backbone": _backbone,
    "train": _train,
    "evaluate": _evaluate,
}


def output(stage: str, name: str, paths: Paths) -> Path:
    """Return what only one job at a time may make; one whose results are in git is locked among the runs."""
    if stage in ("train", "evaluate"):
        return paths.runs(name if stage == "train" else f"{name}.evaluated")
    if stage == "measure":
        return paths.runs("checkpoints.measured")
    return paths.dataset(name) if stage == "data" else paths.checkpoint(name) if name else paths.pretraining


def _check_name(stage: str, name: str, params: Params) -> None:
    """Refuse a name that params.yaml does not have."""
    looked_up = {"data": params.dataset, "checkpoint": params.checkpoint, "backbone": params.backbone}
    if name:
        looked_up.get(stage, params.resolve)(name)


def run_stage(stage: str, name: str, params: Params, paths: Paths, **options: object) -> str:
    """Run a stage, note how long it took, and return what to tell the user; idle stages do not import torch.

    ``name`` is empty for the stages of WHOLE; ``options`` are ``archives`` of data and ``live`` of train. Waits for another
    process that does the same, and then finds it done.
    """
    job = name or WHOLE[stage]
    _check_name(stage, name, params)  # before anything is written under that name
    with exclusive(output(stage, name, paths), f"{stage} {name}".rstrip()):
        if paths.timing(stage, job).is_file() and is_current(stage, name, params, paths):
            return f"{stage} {name}".rstrip() + " is up to date"
        watch = Stopwatch(stage, job, paths, job_key(stage, name, params, paths))
        watch.write(**STAGES[stage](name, params, paths, **options))
    preview = f"; look at {paths.dataset(name) / 'preview.png'}" if stage == "data" else ""
    return f"{stage} {name}".rstrip() + f" is done{preview}"
