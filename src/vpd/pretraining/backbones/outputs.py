"""What a finished pre-training of a backbone writes: its checkpoint folder, loss history and, last, the manifest."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from vpd.config.schema import BackboneSpec
from vpd.models.backbones import save_backbone
from vpd.pretraining.backbones.objective import Objective
from vpd.pretraining.outputs import averaged, write_history
from vpd.pretraining.pictures import plot_losses
from vpd.pretraining.silence import quiet
from vpd.utils.digests import sha256
from vpd.utils.files import atomic_folder, write_json

PARTS = ("vision", "language")


@dataclass(frozen=True)
class Outcome:
    """A finished phase; measures: of the ``fresh`` and of the ``trained`` network."""

    phase: str
    objective: Objective
    losses: list[float]
    seen: int
    measures: dict[str, dict[str, float]]


def write_outputs(spec: BackboneSpec, outcomes: list[Outcome], out: Path, identity: dict[str, str]) -> None:
    """Write the networks, history.csv, loss.png and the manifest, which starts with ``identity``."""
    (out / "manifest.json").unlink(missing_ok=True)
    for part in PARTS:
        shutil.rmtree(out / part, ignore_errors=True)
    vision = outcomes[0].objective.result().cpu().eval()
    save_backbone(vision, spec.vision, out)
    parameters = {"vision": sum(parameter.numel() for parameter in vision.network.parameters())}
    for outcome in outcomes[1:]:
        parameters["language"] = save_language(outcome.objective, out / "language")
    rows = averaged({outcome.phase: outcome.losses for outcome in outcomes})
    plot_losses(rows, {}, out / "loss.png")
    details = {
        "source": "pretrained",
        "objective": spec.objective,
        "repo": None,
        "revision": None,
        "parameters": parameters,
        "phases": {outcome.phase: _account(outcome) for outcome in outcomes},
        "images_seen": outcomes[0].seen,
    }
    files = sorted(path for part in PARTS for path in (out / part).rglob("*") if path.is_file())
    write_history(rows, out / "history.csv")
    digests = {str(path.relative_to(out)): sha256(path) for path in files}
    write_json(out / "manifest.json", identity | details | {"files": digests})


def save_language(objective: Objective, folder: Path) -> int:
    """Write BERT without its guessing layer, and the tokenizer, as a transformers folder; number of parameters."""
    model = objective.model.cpu().eval().bert
    with quiet(), atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        objective.tokenizer.save_pretrained(temporary)
    return model.num_parameters()


def _account(outcome: Outcome) -> dict:
    """What the manifest says of a phase; the losses are means over HISTORY_EVERY steps."""
    history = [loss for _, _, loss in averaged({outcome.phase: outcome.losses})]
    measures = {
        state: {name: round(value, 6) for name, value in found.items()} for state, found in outcome.measures.items()
    }
    return {
        "steps": len(outcome.losses),
        "seen": outcome.seen,
        "sees": list(outcome.objective.sees),
        "loss": {"first": round(history[0], 6), "last": round(history[-1], 6)},
        "measures": measures,
    }
