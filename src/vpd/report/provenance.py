"""Where every measured number comes from: its run, with digests, and the pre-trained network that it started from."""

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vpd.config.params import Params
from vpd.evaluation.results import read_provenance
from vpd.pretrained.shipped import shipped_facts
from vpd.report.cells import csv_text, number
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.fingerprint import MANIFEST

COLUMNS = (
    "run", "experiment", "seed", "checkpoint", "dataset", "spec", "code", "data_digest", "checkpoint_digest", "weights",
    "commit", "ended", "seconds",
)  # fmt: skip
NETWORKS = (
    "checkpoint", "source", "objective", "images_seen", "parameters", "loss_first", "loss_last", "measures", "used_by",
)  # fmt: skip


def runs_of(params: Params, name: str, provenance: Path) -> list[dict[str, Any]]:
    """Describe every run of an experiment, one per seed, by ``COLUMNS``; what is not recorded is empty.

    ``run`` is also the run's key in MLflow; ``weights`` is the digest of the final weights, ``spec`` of the resolved spec;
    ``ended`` and ``seconds`` are of the training. UserError if the file is damaged.
    """
    if not provenance.is_file():
        return []
    made, spec, runs = read_provenance(provenance), params.resolve(name), []
    for seed, run in made.runs.items():
        about = (f"{spec.scale}/{spec.protocol}/{name}/{seed}", name, int(seed.removeprefix("seed")), spec.checkpoint)
        digests = (run.fingerprint.code, *(run.fingerprint.inputs.get(role, "") for role in ("data", "checkpoint")))
        took = (
            (run.timing.commit, _moment(run.timing.ended, provenance), run.timing.seconds) if run.timing else ("",) * 3
        )
        made_by = (*digests, run.files.get("final.safetensors", ""), *took)
        row = (*about, spec.variant or spec.dataset, made.fingerprint.settings, *made_by)
        runs.append(dict(zip(COLUMNS, row, strict=True)))
    return runs


def _moment(seconds: float, path: Path) -> str:
    """Format seconds since 1970 as ``2026-11-26 15:17 UTC``."""
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        raise UserError(f"{path} has a training that ended {seconds:g} seconds after 1970; evaluate again") from None


def backbones(params: Params, folder: Path) -> list[dict[str, Any]]:
    """Describe every checkpoint of the matrix by ``NETWORKS``, in the order of first use, from manifests in ``folder``.

    ``measures`` are held-out ones, of the trained network and of the same one with fresh weights.
    """
    used: dict[str, list[str]] = {}
    for name in params.experiments:
        used.setdefault(params.resolve(name).checkpoint, []).append(name)
    networks = []
    for name, experiments in used.items():
        path = folder / f"{name}.json"
        recorded = read_json(path) if path.is_file() else {}
        try:
            networks.append(_network(name, _diffusion(params, name) if name in params.checkpoints else recorded))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is not a backbone's manifest ({error}); make the backbone again") from None
        networks[-1]["used_by"] = experiments
    return networks


def _network(name: str, manifest: Mapping[str, Any]) -> dict[str, Any]:
    phases = list(manifest.get("phases", {}).values())  # that of the image encoder is the first
    measures: dict[str, tuple[float, float]] = {}
    for phase in phases:
        trained, fresh = (phase["measures"].get(state, {}) for state in ("trained", "fresh"))
        shared = [key for key in trained if key in fresh and key != "chance"]  # chance is the same for both
        measures |= {key.replace("_", " "): (float(trained[key]), float(fresh[key])) for key in shared}
    parameters, source = manifest.get("parameters"), manifest.get("source", "not here")
    if isinstance(parameters, dict):
        parameters = sum(count for count in parameters.values() if isinstance(count, int))
    if source != "pretrained" and manifest.get("repo"):
        source = f"{manifest['repo']} at {manifest['revision'][:12]}" if manifest.get("revision") else manifest["repo"]
    return {
        "checkpoint": name,
        "source": {"pretrained": "pre-trained here", "shipped": "weights in git"}.get(source, source),
        "objective": manifest.get("objective"),
        "images_seen": manifest.get("images_seen"),
        "parameters": parameters,
        "loss_first": float(phases[0]["loss"]["first"]) if phases else None,
        "loss_last": float(phases[0]["loss"]["last"]) if phases else None,
        "measures": measures,
    }


def _diffusion(params: Params, name: str) -> dict[str, Any]:
    """Describe a diffusion checkpoint from the parameters, and one in git from its manifest too."""
    spec = params.checkpoint(name)
    manifest = Path(spec.path or "") / MANIFEST
    facts = shipped_facts(manifest.parent) if spec.source == "shipped" and manifest.is_file() else {}
    known = {"objective": "text-to-image diffusion", "images_seen": params.images_seen(name)}
    known |= {key: value for key, value in facts.items() if key in ("objective", "parameters")}
    return known | spec.model_dump(include={"source", "repo", "revision"})


def backbones_csv(networks: Iterable[Mapping[str, Any]]) -> str:
    """Format the checkpoints as CSV; unknown values are empty."""
    rows = []
    for item in networks:
        measures = [f"{key} {number(own)} (random {number(fresh)})" for key, (own, fresh) in item["measures"].items()]
        numbers = [number(item[key]) for key in ("images_seen", "parameters", "loss_first", "loss_last")]
        texts = (item["checkpoint"], item["source"], item["objective"] or "")
        rows.append((*texts, *numbers, "; ".join(measures), " ".join(item["used_by"])))
    return csv_text(NETWORKS, rows)
