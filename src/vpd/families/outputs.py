"""What a finished pre-training of a backbone writes: its checkpoint folder, loss history and, last, the manifest."""

from __future__ import annotations

import csv
import shutil
from dataclasses import dataclass
from pathlib import Path

from vpd.checkpoints.pictures import Row, plot_losses
from vpd.families.objective import Objective
from vpd.files import atomic_folder, atomic_path, read_json, sha256, write_json
from vpd.models.backbones import save_backbone
from vpd.spec import BackboneSpec

PARTS = ("vision", "language")
HISTORY_EVERY = 10
"""Steps that one line of history.csv averages."""


@dataclass(frozen=True)
class Outcome:
    """A finished phase; measures: of the ``fresh`` and of the ``trained`` network."""

    phase: str
    objective: Objective
    losses: list[float]
    seen: int
    measures: dict[str, dict[str, float]]


def is_finished(out: Path, identity: dict[str, str]) -> bool:
    """Whether ``out`` is complete and was made from the same spec, data and code."""
    if not (out / "manifest.json").exists():
        return False
    manifest = read_json(out / "manifest.json")
    same = all(manifest.get(key) == value for key, value in identity.items())
    return same and all((out / name).is_file() for name in (*manifest["files"], "history.csv", "loss.png"))


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
    rows = [row for outcome in outcomes for row in _history(outcome)]
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
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        objective.tokenizer.save_pretrained(temporary)
    return model.num_parameters()


def write_history(rows: list[Row], path: Path) -> None:
    """Write phase, step and loss, a line per row."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("phase", "step", "loss"))
        writer.writerows((phase, step, f"{loss:.6f}") for phase, step, loss in rows)


def _history(outcome: Outcome) -> list[Row]:
    """Mean loss of every HISTORY_EVERY steps (fewer at the end), at the last of them."""
    starts = range(0, len(outcome.losses), HISTORY_EVERY)
    chunks = [(start, outcome.losses[start : start + HISTORY_EVERY]) for start in starts]
    return [(outcome.phase, start + len(chunk), sum(chunk) / len(chunk)) for start, chunk in chunks]


def _account(outcome: Outcome) -> dict:
    """What the manifest says of a phase; the losses are means over HISTORY_EVERY steps."""
    history = [loss for _, _, loss in _history(outcome)]
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
