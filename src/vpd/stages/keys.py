"""What the output of every stage should be made from, and whether it is: the one answer for Snakemake, `vpd plan` and people.

A key is a file with the fingerprints that a stage's output should have, given params.yaml, the code and the inputs as they
are now. Snakemake's rules have their key as an input, so that content decides what runs, whichever engine made the output.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

from vpd.config.params import Params
from vpd.config.paths import Paths, shipped
from vpd.config.schema import load_spec
from vpd.evaluation.results import evaluation_fingerprint, is_evaluated
from vpd.measures.results import PICTURE, TABLE, measures_fingerprint, measures_to_show
from vpd.pretrained.checkpoints import checkpoint_fingerprint, fetched_backbone_fingerprint
from vpd.pretraining.families.made_from import diffusion_fingerprint
from vpd.pretraining.workdir import backbone_fingerprint, pretraining_fingerprint
from vpd.stages.data import PREVIEW, dataset_fingerprint
from vpd.training.runs import run_fingerprint, seed_folder
from vpd.utils.digests import changed, digest, digests, sha256, tree
from vpd.utils.errors import UserError
from vpd.utils.files import files_in, write_json, write_text
from vpd.utils.fingerprint import (
    FINGERPRINT,
    MANIFEST,
    Fingerprint,
    fingerprint,
    is_finished,
    read_fingerprint,
    read_manifest,
)

LONG_AGO = 946684800
"""Modification time of the key of an output that is current: older than any output."""
LOOKED = "DVC does not see folders outside the project: it runs `vpd outside` before the stages that use them.\n"
READ = (
    *("metrics", "provenance", "specs", "history", "panels", "backbones", "released"),
    *("timing/train", "timing/evaluate", "timing/backbone"),
)
"""Folders of results that report and tracking read."""
Answer = tuple[dict[str, Fingerprint], bool, Path]
"""Fingerprints by part, whether the output has them, and the file that the stage writes last."""


# ------------------------------------------------------------------------------------------------------------ each stage
def _data(name: str, params: Params, paths: Paths) -> Answer:
    wanted, current, manifest = _folder(paths.dataset(name), dataset_fingerprint(name, params.dataset(name)))
    return wanted, current and (paths.dataset(name) / PREVIEW).is_file(), manifest


def _pretrain(name: str, params: Params, paths: Paths) -> Answer:
    wanted = pretraining_fingerprint(params.pretraining, paths.dataset(params.pretraining.dataset))
    return _folder(paths.pretraining, wanted)


def _checkpoint(name: str, params: Params, paths: Paths) -> Answer:
    spec, common = params.checkpoint(name), params.pretraining
    if small := params.small_diffusion(name):
        captions = paths.dataset(common.dataset)
        wanted = diffusion_fingerprint(name, small, common, captions, params.small_source(paths))
    else:
        wanted = checkpoint_fingerprint(name, spec, paths.pretraining)
    return _folder(paths.checkpoint(name), wanted)


def _measure(name: str, params: Params, paths: Paths) -> Answer:
    checkpoints = {key: paths.checkpoint(key) for key in params.measured}
    return _folder(paths.measures, measures_fingerprint(params.measures, checkpoints))


def _backbone(name: str, params: Params, paths: Paths) -> Answer:
    spec, block = params.backbone(name), params.block.backbones
    if spec.source == "pretrained":
        captions, objects = paths.dataset(block.dataset), paths.dataset(block.objects)
        wanted = backbone_fingerprint(name, spec, captions, objects)
    else:
        wanted = fetched_backbone_fingerprint(name, spec)
    parts, current, manifest = _folder(paths.checkpoint(name), wanted)
    return parts, current and paths.backbone_facts(name).is_file(), manifest


def _train(name: str, params: Params, paths: Paths) -> Answer:
    spec = params.resolve(name)
    data, checkpoint = paths.dataset(spec.dataset), paths.checkpoint(spec.checkpoint)
    runs = paths.runs(name)
    wanted = {f"seed{seed}": run_fingerprint(spec, seed, data, checkpoint) for seed in spec.seeds}
    done = all(is_finished(seed_folder(runs, seed), wanted[f"seed{seed}"]) for seed in spec.seeds)
    history = paths.history(name)
    complete = all(path.is_file() for path in (runs / MANIFEST, history, paths.spec(name)))
    # The spec also says how to evaluate, which trains nothing but has to be written down.
    same = complete and load_spec(paths.spec(name)) == spec and _lists(runs / MANIFEST, wanted, sha256(history))
    return wanted, done and same, runs / MANIFEST


def _lists(manifest: Path, seeds: dict[str, Fingerprint], history: str) -> bool:
    """Whether the manifest of all runs lists exactly these seeds' files, as they are, and the history with this digest."""
    with contextlib.suppress(UserError):
        found = read_manifest(manifest.parent, "history")
        files, same = found["files"], found["history"] == history
        return same and {name.split("/")[0] for name in files} == set(seeds) and not changed(manifest.parent, files)
    return False


def _evaluate(name: str, params: Params, paths: Paths) -> Answer:
    spec = load_spec(paths.spec(name))
    inputs = (paths.runs(name), paths.dataset(spec.dataset), paths.checkpoint(spec.checkpoint))
    wanted, out = evaluation_fingerprint(spec, *inputs), paths.evaluated(name)
    return {"": wanted}, is_evaluated(out, wanted), out.provenance


def _ship(name: str, params: Params, paths: Paths) -> Answer:
    names = pretrained_here(params)
    recipes = {key: params.recipe(key) for key in names}
    inputs = {**{key: paths.checkpoint(key) for key in names}, "measures": paths.measures}
    wanted = fingerprint(recipes, ("pretrained", "stages/shipping"), inputs)
    _, current, output = _recorded("ship", paths, wanted, paths.timing("ship", "weights"))
    files = [f"{key}/{MANIFEST}" for key in names] + ([TABLE, PICTURE] if params.measures else [])
    complete = current and all(shipped(params.scale, file).is_file() for file in files)
    return {"": wanted}, complete or not names, output  # who pre-trains nothing has nothing to ship


def pretrained_here(params: Params) -> list[str]:
    """Checkpoints and backbones that the scale pre-trains itself."""
    backbones = params.backbones if params.block.backbones.source == "pretrained" else ()
    return [*(name for name, spec in params.checkpoints.items() if spec.source == "pretrained"), *backbones]


def _released(name: str, params: Params, paths: Paths) -> Answer:
    specs = [params.resolve(line.experiment or key) for key, line in params.released.items()]
    settings = [line.model_dump(mode="json") for line in (*params.released.values(), *specs)]
    inputs = {spec.dataset: paths.dataset(spec.dataset) for spec in specs}
    inputs |= {spec.checkpoint: paths.checkpoint(spec.checkpoint) for spec in specs if spec.model.kind == "vpd"}
    files = [_at(Path(line.path)) for line in params.released.values() if line.path]
    wanted = fingerprint([settings, files], ("pretrained", "datasets", "models", "evaluation"), inputs)
    return _recorded("released", paths, wanted, paths.released / "index.json")


def _at(path: Path) -> str:
    """Digest of a file or a folder's files; empty if there is none yet."""
    return digest(digests(path, tree(path))) if path.is_dir() else sha256(path) if path.is_file() else ""


def _report(name: str, params: Params, paths: Paths) -> Answer:
    previews = {key: sha256(paths.dataset(key) / PREVIEW) for key in params.datasets}
    measures = measures_to_show(paths.measures, params.block.shipped)
    maybe = (paths.evidence, paths.costs, measures / TABLE, measures / PICTURE)
    settings = [params.layout(), previews, _results(paths), *map(_at, maybe)]
    wanted = fingerprint(settings, ("report", "config"), {"pretraining": paths.pretraining})
    outputs = (paths.results / name for name in ("REPORT.md", "report.html", "tables/cells.csv"))
    return _recorded("report", paths, wanted, *outputs)


def _track(name: str, params: Params, paths: Paths) -> Answer:
    return _recorded("track", paths, fingerprint([params.layout(), _results(paths)], ("tracking",)), paths.tracked)


def _results(paths: Paths) -> str:
    """Digest of all results that report and tracking read."""
    files = (path for folder in READ for path in files_in(paths.results / folder, "**/*"))
    return digest({path.relative_to(paths.results).as_posix(): sha256(path) for path in files})


STAGES: dict[str, Callable[[str, Params, Paths], Answer]] = {
    "data": _data,
    "pretrain": _pretrain,
    "checkpoint": _checkpoint,
    "measure": _measure,
    "backbone": _backbone,
    "train": _train,
    "evaluate": _evaluate,
    "ship": _ship,
    "released": _released,
    "report": _report,
    "track": _track,
}


def _folder(out: Path, wanted: Fingerprint) -> Answer:
    return {"": wanted}, is_finished(out, wanted), out / MANIFEST


def _recorded(stage: str, paths: Paths, wanted: Fingerprint, output: Path, *others: Path) -> Answer:
    """For stages whose last file has another structure: the fingerprint is in a file of its own among their outputs."""
    note = _note(stage, paths)
    complete = all(path.is_file() for path in (note, output, *others))
    return {"": wanted}, complete and read_fingerprint(note.parent) == asdict(wanted), output


def _note(stage: str, paths: Paths) -> Path:
    folders = {
        "ship": paths.state("ship"),
        "released": paths.released,
        "report": paths.results / "tables",
        "track": paths.tracked.parent / "tracked",
    }
    return folders[stage] / FINGERPRINT


def note_made(stage: str, params: Params, paths: Paths) -> None:
    """Write down what the output of ``ship``, ``released``, ``report`` or ``track`` was made from, once it is complete.

    Nothing is written where an input is missing, as data are in a new clone: the output counts as stale.
    """
    with contextlib.suppress(UserError, FileNotFoundError):
        wanted, _, _ = STAGES[stage]("", params, paths)
        write_json(_note(stage, paths), asdict(wanted[""]))


@contextlib.contextmanager
def keep_note(stage: str, output: Path, paths: Paths) -> Iterator[None]:
    """Keep what ``note_made`` wrote if the block makes the same output again, as in a new clone, which lacks the inputs."""
    note = _note(stage, paths)
    old = (note.read_text(encoding="utf-8"), sha256(output)) if note.is_file() and output.is_file() else None
    yield
    if old and sha256(output) == old[1]:
        write_text(note, old[0])


# ------------------------------------------------------------------------------------------------------------- questions
def is_current(stage: str, name: str, params: Params, paths: Paths) -> bool:
    """Whether a stage's output is there and was made from settings, code and inputs as they are now."""
    try:
        return STAGES[stage](name, params, paths)[1]
    except (UserError, FileNotFoundError):
        return False  # an input is missing


def job_key(stage: str, name: str, params: Params, paths: Paths) -> str:
    """Sixteen hex digits of what a stage's output should be made from; empty if an input is missing."""
    try:
        return digest({part: asdict(value) for part, value in STAGES[stage](name, params, paths)[0].items()})
    except (UserError, FileNotFoundError):
        return ""


def stale(params: Params, paths: Paths) -> Iterator[str]:
    """Every stage that is not current, named as DVC names it."""
    for stage, name in stages(params):
        if not is_current(stage, name, params, paths):
            yield f"{stage}@{name}" if name else stage


def stages(params: Params) -> Iterator[tuple[str, str]]:
    """Every stage and, if there is one for each of several, the name of what it makes."""
    names: dict[str, Iterable[str]] = {
        "data": params.datasets,
        "checkpoint": params.checkpoints,
        "backbone": params.backbones,
    }
    names |= dict.fromkeys(("train", "evaluate"), params.experiments)
    for stage in STAGES:
        for name in names.get(stage, ("",)):
            yield stage, name


def forget_changed(params: Params, paths: Paths) -> list[str]:
    """Make DVC run the stages whose dataset or weights outside the project changed: it looks at their outputs alone.

    Returns:
        Their names, as DVC names them.
    """
    backbones = {name: params.backbone(name) for name in params.backbones}
    forgotten = []
    for stage, specs, folder in (
        ("data", params.datasets, paths.dataset),
        ("checkpoint", params.checkpoints, paths.checkpoint),
        ("backbone", backbones, paths.checkpoint),
    ):
        for name, spec in specs.items():
            note = folder(name) / FINGERPRINT
            away = spec.source not in ("synthetic", "pretrained") and note.is_file()
            if away and not is_current(stage, name, params, paths):
                note.unlink()
                forgotten.append(f"{stage}@{name}")
    note = _note("released", paths)
    if note.is_file() and not is_current("released", "", params, paths):
        note.unlink()
        forgotten.append("released")
    write_text(paths.outside, LOOKED)
    return forgotten


def write_key(stage: str, name: str, params: Params, paths: Paths) -> Path:
    """Write the key of a stage and date it so that Snakemake runs the stage exactly if its output is not current.

    Args:
        stage: one of ``STAGES``.
        name: of its dataset, checkpoint, backbone or experiment; empty where there is only one.
        params: the settings.
        paths: of their scale.

    Returns:
        The key's file. It is older than the output if that is current, and newer otherwise.
    """
    path = paths.key(stage, name or stage)
    try:
        wanted, current, output = STAGES[stage](name, params, paths)
        content: dict[str, object] = {part: asdict(value) for part, value in wanted.items()}
    except (UserError, FileNotFoundError) as error:
        content, current, output = {"missing": str(error)}, False, path
    if not current and output.is_file() and output != path:
        # Snakemake compares checksums too, and an output may be damaged although all that it is made from is as it was.
        content |= {"replaces": sha256(output)}
    text = json.dumps(content, indent=1) + "\n"
    if not path.is_file() or path.read_bytes() != text.encode():
        write_text(path, text)
    if current:
        os.utime(path, (LONG_AGO, LONG_AGO))
    elif path.stat().st_mtime <= max(LONG_AGO, output.stat().st_mtime if output.is_file() and output != path else 0):
        os.utime(path)
    return path
