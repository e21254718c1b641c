"""What each pre-trained network saw before it was fine-tuned, from the facts that its stage left in the results."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ValidationError

from vpd.report.cells import csv_text, number
from vpd.utils.errors import UserError
from vpd.utils.files import read_json

if TYPE_CHECKING:
    from vpd.config.params import Params

DIFFUSION = "text-to-image diffusion"
COLUMNS = (
    "checkpoint",
    "source",
    "objective",
    "images_seen",
    "parameters",
    "loss_first",
    "loss_last",
    "measures",
    "used_by",
)


@dataclass(frozen=True)
class Measure:
    """A quantity of the pre-trained network beside that of the same network with fresh weights."""

    trained: float
    random: float


class Loss(BaseModel):
    """Loss at both ends of pre-training."""

    first: float
    last: float


class Phase(BaseModel):
    """One objective of a pre-training, as the backbone stage records it."""

    loss: Loss
    measures: dict[Literal["fresh", "trained"], dict[str, float]]

    def compared(self) -> dict[str, Measure]:
        """Each measure trained and fresh; ``chance`` is the same for both and named beside them."""
        fresh, trained = (self.measures.get(name, {}) for name in ("fresh", "trained"))
        return {name.replace("_", " "): Measure(value, fresh[name]) for name, value in trained.items() if name in fresh}


class Manifest(BaseModel):
    """A checkpoint's manifest, as far as the report shows it."""

    source: str = ""
    repo: str | None = None
    revision: str | None = None
    objective: str | None = None
    images_seen: int | None = None
    parameters: dict[str, Any] | int | None = None
    phases: dict[str, Phase] = {}

    @property
    def loss(self) -> Loss | None:
        """Loss of the image encoder's own phase, the first."""
        return next((phase.loss for phase in self.phases.values()), None)

    @property
    def measures(self) -> dict[str, Measure]:
        """Held-out measures of all phases."""
        found = [phase.compared() for phase in self.phases.values()]
        return {name: value for part in found for name, value in part.items() if name != "chance"}

    @property
    def size(self) -> int | None:
        """Parameters of all parts together."""
        if isinstance(self.parameters, dict):
            return sum(value for value in self.parameters.values() if isinstance(value, int))
        return self.parameters


@dataclass(frozen=True)
class Backbone:
    """One checkpoint that experiments start from."""

    name: str
    manifest: Manifest | None
    """None if nothing is recorded of it."""
    used_by: tuple[str, ...]

    @property
    def source(self) -> str:
        """Where its weights come from, in words."""
        if self.manifest is None:
            return "not here"
        revision = f" at {self.manifest.revision[:12]}" if self.manifest.revision else ""
        if self.manifest.source == "pretrained":
            return "pre-trained here"
        return f"{self.manifest.repo}{revision}" if self.manifest.repo else self.manifest.source


def backbones(params: Params, folder: Path) -> list[Backbone]:
    """Every checkpoint that the matrix uses, in the order of first use; ``folder`` has copies of backbones' manifests."""
    used: dict[str, list[str]] = {}
    for name in params.experiments:
        used.setdefault(params.resolve(name).checkpoint, []).append(name)
    return [Backbone(name, _manifest(params, name, folder), tuple(names)) for name, names in used.items()]


def _manifest(params: Params, name: str, folder: Path) -> Manifest | None:
    if name in params.checkpoints:
        return _diffusion(params, name)
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    try:
        return Manifest.model_validate(read_json(path))
    except ValidationError as error:
        place = ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{path} is not a backbone's manifest ({place}); make the backbone again") from None


def _diffusion(params: Params, name: str) -> Manifest:
    """What the parameters say of a Stable Diffusion checkpoint: its milestone, or its repository."""
    spec, denoiser = params.checkpoint(name), params.pretraining.denoiser
    steps = params.pretraining.milestones.get(name)
    seen = steps * denoiser.batch_size if steps is not None and denoiser is not None else None
    about = {"source": spec.source, "repo": spec.repo, "revision": spec.revision}
    return Manifest(objective=DIFFUSION, images_seen=seen, **about)


def backbones_csv(found: list[Backbone]) -> str:
    """The checkpoints as CSV text; what is not known is empty."""
    rows = []
    for item in found:
        facts = item.manifest or Manifest()
        loss = (facts.loss.first, facts.loss.last) if facts.loss else (None, None)
        measures = "; ".join(
            f"{name} {number(value.trained)} (random {number(value.random)})" for name, value in facts.measures.items()
        )
        start = (item.name, item.source, facts.objective or "")
        middle = (number(facts.images_seen), number(facts.size), *map(number, loss))
        rows.append((*start, *middle, measures, " ".join(item.used_by)))
    return csv_text(COLUMNS, rows)
