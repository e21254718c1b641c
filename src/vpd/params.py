"""params.yaml: load, check, and resolve one experiment to a ``Spec``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, ValidationError

from vpd.errors import UserError, nearest, pick
from vpd.report.layout import FigureSpec, TableSpec
from vpd.spec import TASKS, CheckpointSpec, DatasetSpec, Frozen, PretrainingSpec, ReleasedSpec, Spec

LAYERS_WITHOUT_SPEC = ("schedules", "variants")


class Experiment(Frozen):
    """One line of the matrix: what it uses, and what it changes."""

    task: Literal["segmentation", "referring", "depth"]
    dataset: str
    variant: str | None = None
    checkpoint: str
    schedule: str
    seeds: str
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Scale(Frozen):
    """One block of ``scales``: everything that differs between smoke, mini and paper."""

    comparable: bool
    """Whether the paper's absolute numbers can be expected at this scale."""
    seeds: dict[str, tuple[int, ...]]
    datasets: dict[str, DatasetSpec]
    pretraining: PretrainingSpec
    checkpoints: dict[str, CheckpointSpec]
    released: dict[str, ReleasedSpec] = {}
    """Experiment -> the authors' own weights for it, which are measured too."""
    tasks: dict[str, dict[str, Any]]


class Document(Frozen):
    """The whole of params.yaml."""

    scale: str
    protocol: str
    experiments: dict[str, Experiment] = Field(min_length=1)
    tasks: dict[str, dict[str, Any]]
    protocols: dict[str, dict[str, dict[str, Any]]]
    scales: dict[str, Scale]
    tolerances: dict[str, float]
    tables: dict[str, TableSpec]
    figures: dict[str, FigureSpec]


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings deeply, later ones winning; lists are replaced whole."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            result[key] = merge(old, value) if both else copy.deepcopy(value)
    return result


class Params:
    """A checked params.yaml, at one scale and protocol."""

    def __init__(self, document: Document, source: Path) -> None:
        self.document, self.source = document, source
        self.scale, self.protocol = document.scale, document.protocol
        self.block: Scale = pick(self.scale, document.scales, "scale", str(source))
        pick(self.protocol, document.protocols, "protocol", str(source))

    @property
    def experiments(self) -> dict[str, Experiment]:
        """The matrix, in the order of the file."""
        return self.document.experiments

    @property
    def datasets(self) -> dict[str, DatasetSpec]:
        """This scale's datasets."""
        return self.block.datasets

    @property
    def checkpoints(self) -> dict[str, CheckpointSpec]:
        """This scale's Stable Diffusion checkpoints."""
        return self.block.checkpoints

    @property
    def released(self) -> dict[str, ReleasedSpec]:
        """This scale's released weights by experiment."""
        return self.block.released

    @property
    def pretraining(self) -> PretrainingSpec:
        """This scale's pre-training."""
        return self.block.pretraining

    @property
    def comparable(self) -> bool:
        """Whether this scale's numbers can be held against the paper's."""
        return self.block.comparable

    @property
    def tables(self) -> dict[str, TableSpec]:
        """Which experiment shows in which table cell."""
        return self.document.tables

    @property
    def figures(self) -> dict[str, FigureSpec]:
        """Which experiments the figures show."""
        return self.document.figures

    @property
    def tolerances(self) -> dict[str, float]:
        """Half-widths of a ``reproduced`` verdict by metric."""
        return self.document.tolerances

    def downloads(self, name: str) -> dict[str, Path]:
        """What ``vpd fetch`` has to complete for ``name``, a dataset or a single entry: entry -> folder, at any scale."""
        places: dict[str, dict[str, Path]] = {}
        for scale in self.document.scales.values():
            for dataset, spec in scale.datasets.items():
                own = {entry: Path(spec.path) for entry in spec.download if spec.path}
                places |= {entry: {entry: path} for entry, path in own.items()}
                places |= {dataset: own} if own else {}
            for released in scale.released.values():
                if released.download:
                    places[released.download] = {released.download: Path(released.path).parent}
        return pick(name, places, "download", str(self.source))

    def layout(self) -> str:
        """What the report and the tracking read, as JSON: a change of it reruns them and nothing else."""
        return self.document.model_dump_json(include={"experiments", "tables", "figures", "tolerances"})

    def dataset(self, name: str) -> DatasetSpec:
        """The dataset ``name`` at this scale."""
        return pick(name, self.datasets, "dataset", f"{self.source}: scales.{self.scale}.datasets")

    def checkpoint(self, name: str) -> CheckpointSpec:
        """The checkpoint ``name`` at this scale."""
        return pick(name, self.checkpoints, "checkpoint", f"{self.source}: scales.{self.scale}.checkpoints")

    def resolve(self, name: str) -> Spec:
        """Everything about experiment ``name``, merged from all layers and checked."""
        where = f"{self.source}: experiments.{name}"
        line: Experiment = pick(name, self.experiments, "experiment", str(self.source))
        pick(line.dataset, self.datasets, "dataset", where)
        pick(line.checkpoint, self.checkpoints, "checkpoint", where)
        merged = merge(*self._layers(line, where))
        merged |= {"name": name, "scale": self.scale, "protocol": self.protocol, "schedule": line.schedule}
        merged |= {"task": line.task, "dataset": line.dataset, "variant": line.variant, "checkpoint": line.checkpoint}
        merged["seeds"] = pick(line.seeds, self.block.seeds, "seeds", where)
        return checked(TASKS[line.task], merged, where)

    def _layers(self, line: Experiment, where: str) -> Iterator[Mapping[str, Any]]:
        base = pick(line.task, self.document.tasks, "task", where)
        scaled = self.block.tasks.get(line.task, {})
        for layer in (base, scaled):
            yield {key: value for key, value in layer.items() if key not in LAYERS_WITHOUT_SPEC}
        yield self.document.protocols[self.protocol].get(line.task, {})
        yield pick(line.schedule, base.get("schedules", {}), "schedule", where)
        yield scaled.get("schedules", {}).get(line.schedule, {})
        for layer in (base, scaled):
            yield layer.get("variants", {}).get(line.variant, {})
        yield {key: getattr(line, key) for key in ("model", "data", "training", "evaluation")}


def load_params(path: str | Path = "params.yaml", scale: str | None = None, protocol: str | None = None) -> Params:
    """Read and check params.yaml; ``scale`` and ``protocol`` replace the file's own choice.

    Raises UserError for anything misspelt, missing or of the wrong type, in any experiment of the matrix.
    """
    path = Path(path)
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; run vpd in the project's folder or name the file with --params"
        ) from None
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct that line") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__} instead of sections; restore it from the repository")
    raw |= {key: value for key, value in (("scale", scale), ("protocol", protocol)) if value is not None}
    params = Params(checked(Document, raw, str(path)), path)
    _check_references(params)
    return params


def _check_references(params: Params) -> None:
    """Resolve every experiment and look up every name, so that a mistake shows before any work starts."""
    from vpd.report.layout import check_layout, load_reported

    pick(params.pretraining.dataset, params.datasets, "dataset", f"{params.source}: scales.{params.scale}.pretraining")
    for name, spec in params.checkpoints.items():
        if spec.source == "pretrained":
            where = f"{params.source}: scales.{params.scale}.checkpoints.{name}"
            pick(name, params.pretraining.milestones, "pre-training milestone", where)
    for name in params.released:
        pick(name, params.experiments, "experiment", f"{params.source}: scales.{params.scale}.released")
    for task, layer in params.block.tasks.items():
        base = pick(task, params.document.tasks, "task", f"{params.source}: scales.{params.scale}.tasks")
        for section in LAYERS_WITHOUT_SPEC:
            for key in layer.get(section, {}):
                where = f"{params.source}: scales.{params.scale}.tasks.{task}.{section}"
                known = base.get(section, {}) if section == "schedules" else _variants(params, task)
                pick(key, known, section[:-1], where)
    for name in params.experiments:
        params.resolve(name)
    check_layout(params.tables, load_reported(), params.experiments, params.figures, params.tolerances)


def _variants(params: Params, task: str) -> dict[str, None]:
    return {line.variant: None for line in params.experiments.values() if line.task == task and line.variant}


class _UniqueKeys(yaml.SafeLoader):
    """YAML loader that refuses a key written twice, which plain YAML would silently drop."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"the key '{key}' stands twice (line {node.start_mark.line + 1} and after)")
        return super().construct_mapping(node, deep)


def checked(model: type[BaseModel], value: Any, where: str) -> Any:
    """Validate ``value``; the first problem becomes a UserError that names its key path and the nearest valid keys."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(_sentence(model, error.errors()[0], where)) from None


def _sentence(model: type[BaseModel], problem: dict[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    at = f"{where}: {path}" if path else where
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        return f"{at} is not a known key; {nearest(str(problem['loc'][-1]), fields)}"
    if problem["type"] == "missing":
        return f"{at} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    found = f", found {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
    return f"{at}: {message[0].lower() + message[1:]}{found}; correct it"


def _fields_at(model: Any, loc: tuple) -> list[str]:
    """Names of the fields of the model that ``loc`` leads to."""
    for part in loc:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation)
    return list(model.model_fields) if isinstance(model, type) and issubclass(model, BaseModel) else []


def _model_in(annotation: Any) -> Any:
    """The model class inside an annotation such as ``dict[str, DatasetSpec]`` or ``AutoencoderSpec | None``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for inner in getattr(annotation, "__args__", ()):
        found = _model_in(inner)
        if found is not None:
            return found
    return None
