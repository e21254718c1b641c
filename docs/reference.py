"""Write params.schema.json, and what stands below the marker in docs/params.md and docs/claims.md, from src/vpd/config.

Run it as ``python docs/reference.py`` (``make reference``) after an edit of src/vpd/config.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vpd.config.claims import POINT, Claim, load_claims
from vpd.config.document import Document
from vpd.config.reported import Row, load_reported, say
from vpd.config.schema import TASKS, Spec
from vpd.report.paired import ALPHA, half_width, seeds_to_decide
from vpd.report.wording import heading, ordinal

ROOT = Path(__file__).parents[1]
MARKER = "<!-- Everything below is made by `make reference` from src/vpd/config. Edit the docstrings there. -->"
Schema = dict[str, Any]
SECTIONS = {
    "Document": ("The file", ""),
    "Experiment": ("Experiments", "experiments.<name>."),
    "Layer": ("A layer", "<layer>."),
    "TaskLayer": ("A task", "tasks.<task>."),
    "MethodLayer": ("A method", "tasks.<task>.methods.<method>."),
    "ProtocolLayer": ("A protocol", "protocols.<protocol>.<task>."),
    "Backbone": ("Backbones", "backbones.<name>."),
    "TableSpec": ("Tables", "tables.<name>."),
    "TableRow": ("Rows of a table", "tables.<name>.rows[]."),
    "FigureSpec": ("Figures", "figures.<name>."),
    "QuestionSpec": ("Questions", "questions[]."),
    "Scale": ("A scale", "scales.<scale>."),
    "DatasetSpec": ("Datasets of a scale", "datasets.<name>."),
    "PretrainingSpec": ("Pre-training of a scale", "pretraining."),
    "CheckpointSpec": ("Checkpoints of a scale", "checkpoints.<name>."),
    "DiffusionSpec": ("Other diffusion models of a scale", "diffusion.<name>."),
    "MeasuresSpec": ("Measures of a scale", "measures."),
    "Backbones": ("Backbones of a scale", "backbones."),
    "ReleasedSpec": ("Released weights of a scale", "released.<name>."),
    "Spec": ("A resolved spec", ""),
    "VPDModel": ("Model: VPD", "model."),
    "BackboneModel": ("Model: backbone", "model."),
    "LavtModel": ("Model: LAVT", "model."),
    "HeadSpec": ("Decoder head", "model.head."),
    "SegmentationData": ("Data: segmentation", "data."),
    "ReferringData": ("Data: referring segmentation", "data."),
    "DepthData": ("Data: depth", "data."),
    "TrainingSpec": ("Training", "training."),
    "SegmentationEvaluation": ("Evaluation: segmentation", "evaluation."),
    "ReferringEvaluation": ("Evaluation: referring segmentation", "evaluation."),
    "DepthEvaluation": ("Evaluation: depth", "evaluation."),
}
"""Model -> heading of its section, and what stands before its keys."""
LAYERS = ("Layer", "MethodLayer", "TaskLayer", "ProtocolLayer", "Experiment")
SEEDS, MANY = 5, 100  # of the last column of the plan; more than so many seeds are not told apart
RANGES = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
WORDS = {"boolean": "true or false", "string": "text", "null": "null", "integer": "integer", "number": "number"}


# ---------------------------------------------------------------------------------------------------------- JSON schema
def json_schema() -> Schema:
    """Return the JSON schema of params.yaml, in which a layer may have any part of a spec."""
    schema = Document.model_json_schema()
    parts = {f"Part.{name}": _partial(model) for name, model in _definitions().items()}
    choices = {section: [] for section in ("model", "data", "training", "evaluation")}
    for task in TASKS.values():
        for section, found in choices.items():
            found += [
                choice for choice in _references(task.model_json_schema()["properties"][section]) if choice not in found
            ]
    for layer in LAYERS:
        for section, found in choices.items():
            old = schema["$defs"][layer]["properties"][section] if layer in schema["$defs"] else {}
            old.pop("additionalProperties", None)
            old["anyOf"] = [{"$ref": f"#/$defs/Part.{name}"} for name in found]
    return {"title": "params.yaml of vpd", **schema, "$defs": {**schema["$defs"], **parts}}


def _definitions() -> dict[str, Schema]:
    """Return the JSON schema of every model inside a spec."""
    return {name: model for task in TASKS.values() for name, model in task.model_json_schema()["$defs"].items()}


def _references(part: Any) -> list[str]:
    """Return the names of the models that a schema refers to."""
    return re.findall(r'"#/\$defs/([^"]+)"', json.dumps({key: part[key] for key in part if key != "discriminator"}))


def _partial(model: Schema) -> Schema:
    """Return the schema of a model of which any part may be given."""
    text = json.dumps({key: value for key, value in model.items() if key != "required"})
    return json.loads(text.replace("#/$defs/", "#/$defs/Part."))


# ------------------------------------------------------------------------------------------------------------- Markdown
def markdown() -> str:
    """Return the reference: one section per model, one row per key."""
    schema = Document.model_json_schema()
    models = {"Document": schema, "Spec": Spec.model_json_schema(), **_definitions(), **schema["$defs"]}
    return "\n".join(line for name in SECTIONS for line in _section(name, models))


def _section(name: str, models: dict[str, Schema]) -> Iterator[str]:
    (title, prefix), model = SECTIONS[name], models[name]
    yield from (f"### {title}", "", _marked(model["description"]), "")
    if name in LAYERS[1:]:
        own = {key: part for key, part in model["properties"].items() if key not in models["Layer"]["properties"]}
        model = {**model, "properties": own}
        yield from ("It also has the keys of [a layer](#a-layer).", "")
    yield from ("| key | type | default | meaning |", "|---|---|---|---|")
    for row in _rows(model, prefix, models):
        yield f"| {' | '.join(row)} |"
    yield ""


def _rows(model: Schema, prefix: str, models: dict[str, Schema]) -> Iterator[tuple[str, str, str, str]]:
    """Yield (key, type, default, meaning); models without a section of their own are shown in place."""
    for key, part in model["properties"].items():
        inner = _references(part)
        default = "required" if key in model.get("required", ()) else f"`{json.dumps(part['default'])}`"
        meaning = part.get("description") or (models[inner[0]]["description"] if len(inner) == 1 else "")
        yield f"`{prefix}{key}`", _type(part), default, _marked(meaning)
        if len(inner) == 1 and inner[0] not in SECTIONS:
            below = {"array": "[].", "object": ".<name>."}.get(part.get("type", ""), ".")
            yield from _rows(models[inner[0]], f"{prefix}{key}{below}", models)


def _type(part: Schema) -> str:
    """Say in words what a schema accepts."""
    if "$ref" in part:
        title, _ = SECTIONS.get(part["$ref"].rpartition("/")[2], ("section", ""))
        anchor = re.sub("[^a-z0-9- ]", "", title.lower()).replace(" ", "-")
        return title if title == "section" else f"[{title}](#{anchor})"
    if "enum" in part or "const" in part:
        return ", ".join(f"`{value}`" for value in part.get("enum", [part.get("const")]))
    if "anyOf" in part or "oneOf" in part:
        return " or ".join(map(_type, part.get("anyOf", part.get("oneOf"))))
    if part.get("type") == "array":
        fixed = part.get("prefixItems")
        return f"list of {len(fixed)}: {_type(fixed[0])}" if fixed else f"list of {_type(part['items'])}"
    if part.get("type") == "object":
        inner = part.get("additionalProperties")
        return f"name: {_type(inner)}" if isinstance(inner, dict) else "settings"
    ranges = "".join(f" {sign} {part[key]:g}" for key, sign in RANGES.items() if key in part)
    return WORDS[part["type"]] + ranges


def _marked(text: str) -> str:
    """Return a docstring as Markdown on one line."""
    return " ".join(text.replace("``", "`").split()).replace("|", "\\|")


# --------------------------------------------------------------------------------------------------------------- claims
def claims_markdown() -> str:
    """Return the plan of the claims: what is compared, from which difference on it counts, and what the noise allows."""
    heads = ("claim", "shown in", "compared", "tests", "margin", "its reason", "noise", "seeds", f"seen with {SEEDS}")
    lines = [f"| {' | '.join(heads)} |", "|---|---|---|---:|---:|---|---:|---:|---:|"]
    lines += [f"| {' | '.join(_plan(claim))} |" for claim in load_claims()]
    return "\n".join((*lines, ""))


def _plan(claim: Claim) -> tuple[str, ...]:
    seeds = seeds_to_decide(claim.margin, claim.noise, claim.comparisons)
    seen = half_width(claim.noise, SEEDS, ALPHA / claim.comparisons)
    place = ", ".join((ordinal(claim.source), *map(heading, claim.columns)))
    needed = str(seeds) if seeds <= MANY else f"> {MANY}"
    numbers = (str(claim.comparisons), f"{claim.margin:g}", claim.reason, f"{claim.noise:g}", needed, f"{seen:.2g}")
    return tuple(map(_marked, (claim.title, place, _compared(claim), *numbers)))


def _compared(claim: Claim) -> str:
    """Say which rows a claim compares, and in which direction."""
    if claim.trend:
        return "slope of all points, per doubling of the pre-training"
    names = [_row_name(claim, row) for row in claim.rows]
    sign = "=" if claim.equal else ">"
    return f" {sign} ".join(names) if claim.order else f"{names[0]} {sign} {', '.join(names[1:])}"


def _row_name(claim: Claim, row: Row) -> str:
    if POINT in row:
        return str(row[POINT])
    source = load_reported()[claim.source]
    return "; ".join(say(key, value) for key, value in source.rows[source.matching(row)[0]].items() if key in row)


def outputs() -> dict[Path, str]:
    """Return the files to write and their content."""
    pages = {ROOT / "docs" / "params.md": f"## Reference\n\n{markdown()}"}
    pages[ROOT / "docs" / "claims.md"] = f"## The plan\n\n{claims_markdown()}"
    kept = {page: page.read_text(encoding="utf-8").partition(MARKER)[0] for page in pages}
    schema = json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"
    return {ROOT / "params.schema.json": schema} | {
        page: f"{kept[page]}{MARKER}\n\n{text}" for page, text in pages.items()
    }


if __name__ == "__main__":
    for path, text in outputs().items():
        path.write_text(text, encoding="utf-8")
