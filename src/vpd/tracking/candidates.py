"""Which trained networks become registered models, and the files that each of them is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vpd.config.schema import Spec, load_spec
from vpd.tracking.tags import UNKNOWN, run_key
from vpd.utils.digests import digest
from vpd.utils.errors import UserError, pick
from vpd.utils.files import read_json

FORMAT = 1
"""Number of the registered models' layout; another number makes new versions of all of them."""
STORED = ("copied", "referenced")
WEIGHTS = "final.safetensors"


class Missing(UserError):
    """Something that a registered model needs is not here."""


@dataclass(frozen=True)
class Candidate:
    """One task's trained network with all that its predictions depend on."""

    name: str
    """Registered model: vpd-<task>."""
    spec: Spec
    seed: int
    spec_file: Path
    weights: Path
    manifest: Path
    """That of the run, which lists the digest of the weights."""
    weights_digest: str
    checkpoint: Path
    checkpoint_digest: str
    stored: str
    """Whether the checkpoint is ``copied`` into the model or ``referenced`` by its path."""
    classes: tuple[str, ...] | None
    """Names of the segmentation classes."""

    @property
    def run_key(self) -> str:
        """Key of the run whose weights these are."""
        return run_key(self.spec.scale, self.spec.protocol, self.spec.name, self.seed)

    @property
    def alias(self) -> str:
        """Alias of the newest version of this scale and protocol."""
        return f"{self.spec.scale}-{self.spec.protocol}"

    @property
    def digest(self) -> str:
        """Sixteen hex digits that change with whatever changes predictions, or where they find the checkpoint."""
        place = self.checkpoint.resolve().as_posix() if self.stored == "referenced" else None
        parts = [FORMAT, self.spec.digest(), self.weights_digest, self.checkpoint_digest, self.classes, place]
        return digest(parts)


def model_name(task: str) -> str:
    """Registered model that holds the versions of one task."""
    return f"vpd-{task}"


def candidate(
    results: Path, params: Any, task: str, digests: Mapping[str, str], data: Path, checkpoints: Path
) -> Candidate:
    """Collect the network that ``params.registered`` names for ``task``; Missing if a part of it is not here."""
    name = params.registered[task]
    spec_file = results / "specs" / f"{name}.json"
    if not spec_file.is_file():
        raise Missing(f"{model_name(task)} is not registered: {spec_file} does not exist; train {name} first")
    spec = load_spec(spec_file)
    if spec.task != task:
        raise UserError(f"registered.{task} names {name}, which is {spec.task}; name an experiment of {task}")
    run = results / "runs" / name / f"seed{spec.seeds[0]}"
    weights_digest = _weights_digest(run, spec, task)
    return Candidate(
        name=model_name(task),
        spec=spec,
        seed=spec.seeds[0],
        spec_file=spec_file,
        weights=run / WEIGHTS,
        manifest=run / "manifest.json",
        weights_digest=weights_digest,
        checkpoint=checkpoints / spec.checkpoint,
        checkpoint_digest=_known(digests, f"checkpoints/{spec.checkpoint}", checkpoints, task),
        stored=pick(params.registered_checkpoints, dict.fromkeys(STORED, params.registered_checkpoints), "storage"),
        classes=_classes(spec, digests, data, task),
    )


def _weights_digest(run: Path, spec: Spec, task: str) -> str:
    for path in (run / "manifest.json", run / WEIGHTS):
        if not path.is_file():
            raise Missing(f"{model_name(task)} is not registered: {path} does not exist; train {spec.name} first")
    manifest = read_json(run / "manifest.json")
    if manifest.get("spec") != spec.training_digest():
        raise Missing(
            f"{model_name(task)} is not registered: {run} was trained with other settings than those of {spec.name}; "
            f"train it again"
        )
    return pick(WEIGHTS, manifest.get("files", {}), "file", str(run / "manifest.json"))


def _known(digests: Mapping[str, str], name: str, folder: Path, task: str) -> str:
    found = digests.get(name, UNKNOWN)
    if found == UNKNOWN:
        place = folder / Path(name).name
        raise Missing(f"{model_name(task)} is not registered: {place} has no manifest.json; make or fetch it first")
    return found


def _classes(spec: Spec, digests: Mapping[str, str], data: Path, task: str) -> tuple[str, ...] | None:
    """Names of the classes, read from the dataset."""
    if task != "segmentation":
        return None
    _known(digests, f"data/{spec.dataset}", data, task)
    from vpd.datasets.ade20k import class_names  # not vpd.predict's, which imports torch for seconds
    from vpd.datasets.manifest import located

    return tuple(names[0] for names in class_names(located(data / spec.dataset)))
