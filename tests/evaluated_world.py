"""Invented results of evaluations, as the stage leaves them, for the tests of report and tracking."""

from collections.abc import Callable, Sequence
from pathlib import Path

from vpd.config.paths import evaluated
from vpd.evaluation.results import Metrics, Provenance, nested
from vpd.utils.digests import sha256
from vpd.utils.files import read_json, write_json
from vpd.utils.fingerprint import Fingerprint

MADE_FROM = Fingerprint("5e77" * 4, "c0de" * 4, {"data": "d1", "checkpoint": "c1"})
TIMING = {"started": 1.7e9, "ended": 1.7e9 + 90.5, "seconds": 90.5, "commit": "c0ffee" * 6 + "abcd"}


def write_evaluated(
    results: Path,
    name: str,
    rows: Sequence[dict],
    spec: str = "",
    made: Fingerprint = MADE_FROM,
    timing: dict | None = TIMING,
) -> None:
    """Metrics and provenance of ``rows``, one per seed and milestone."""
    out = evaluated(results, name)
    write_json(out.metrics, nested(rows))
    runs = {}
    for seed in {row["seed"] for row in rows}:
        files = {"final.safetensors": f"{seed:x}" * 64}
        runs[f"seed{seed}"] = {"fingerprint": made, "files": files, "timing": timing}
    about = Provenance(spec=spec, metrics=sha256(out.metrics), shown={}, fingerprint=made, runs=runs)
    write_json(out.provenance, about.model_dump())


def edit_evaluated(results: Path, name: str, edit: Callable[[dict], object]) -> None:
    """Apply ``edit`` to the content of a metrics file, as if it had been measured so."""
    out = evaluated(results, name)
    content = read_json(out.metrics)
    edit(content)
    write_json(out.metrics, Metrics.model_validate(content).model_dump())
    write_json(out.provenance, read_json(out.provenance) | {"metrics": sha256(out.metrics)})


DAMAGED_METRICS = [
    ('{"final"', "not valid JSON"),
    ('{"results": []}', "results: input should be a valid dictionary"),
    ('{"final": 1}', "final: input should be a valid dictionary"),
    ('{"final": {"x": {"seed0": NaN}}}', "NaN is no number"),
    ('{"final": {"x": {"seed0": "a"}}}', "final.x.seed0: input should be a valid number"),
    ('{"final": {"x": {"seed0": 1}}}', "is not a metrics file: final has no step and value for each seed"),
    ('{"final": {"step": {"seed0": 1}, "x": {"seed1": 1}}}', "final has no step and value for each seed"),
    ('{"final": {"step": {"seed0": 1, "seed1": 1}, "x": {"mean": 1, "seed0": 1}}}', "for each seed"),
    ('{"final": {"step": {"zero": 1}, "x": {"zero": 1}}}', "for each seed"),
    ("[]", "should be a valid dictionary"),
]
"""What a metrics file must not hold, and what is said."""
