"""params.yaml: load, check, and resolve one experiment to a ``Spec``."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveInt, ValidationError

from vpd.config.schema import (
    TASKS,
    BackboneModel,
    BackboneSpec,
    CheckpointSpec,
    DatasetSpec,
    Frozen,
    LanguageSpec,
    LavtModel,
    NetworkSpec,
    Objective,
    ObjectiveSpec,
    PretrainingSpec,
    ReleasedSpec,
    Spec,
    VPDModel,
)
from vpd.config.table_checks import FigureSpec, QuestionSpec, TableSpec
from vpd.utils.errors import UserError, nearest, pick

KINDS = {"vpd": VPDModel, "backbone": BackboneModel, "lavt": LavtModel}
LAYERS_WITHOUT_SPEC = ("schedules", "methods")
LANGUAGE = "masked-language"
"""Objective of the text encoders that come with a backbone."""


class Experiment(Frozen):
    """One line of the matrix: what it uses, and what it changes."""

    task: Literal["segmentation", "referring", "depth"]
    method: str
    dataset: str
    variant: str | None = None
    checkpoint: str
    schedule: str
    seeds: str
    model: dict[str, Any] = {}
    data: dict[str, Any] = {}
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}


class Backbone(Frozen):
    """One line of ``backbones``: an architecture, its family's objective and where its public weights are."""

    objective: Objective
    vision: NetworkSpec
    language: LanguageSpec | None = None
    repo: str
    revision: str = "main"
    mirrors: tuple[str, ...] = ()


class Backbones(Frozen):
    """What a scale does with backbones: fetch their public weights, or pre-train small ones on drawn images."""

    source: Literal["pretrained", "hub"]
    dataset: str
    """Dataset of captioned images that all families see."""
    objects: str
    """Dataset of the same images' classes and masks, for the families that learn from labels."""
    seed: int = 0
    threads: PositiveInt = 1
    vocabulary: PositiveInt | None = None
    networks: dict[str, dict[str, Any]] = {}
    """Beginning of an architecture's name -> options that give its size; the longest beginning counts."""
    objectives: dict[str, ObjectiveSpec] = {}
    """pretrained: by objective."""


class Resources(Frozen):
    """Where a training runs; it is in no digest, since the effective batch stays (for what does not, see G6)."""

    gpus: PositiveInt = 1
    """GPUs that share one effective batch, over all machines; fewer where there are fewer."""


class Scale(Frozen):
    """One block of ``scales``: everything that differs between smoke, mini and paper."""

    comparable: bool
    """Whether the paper's absolute numbers can be expected at this scale."""
    seeds: dict[str, tuple[int, ...]]
    datasets: dict[str, DatasetSpec]
    pretraining: PretrainingSpec
    checkpoints: dict[str, CheckpointSpec]
    backbones: Backbones
    released: dict[str, ReleasedSpec] = {}
    """Experiment -> the authors' own weights for it, which are measured too."""
    registered_checkpoints: Literal["copied", "referenced"] = "copied"
    """Whether a model in MLflow's registry holds its checkpoint or names the folder."""
    resources: dict[str, Resources] = {}
    """Task or experiment -> what each of its trainings runs on; the experiment's own counts."""
    tasks: dict[str, dict[str, Any]]


class Document(Frozen):
    """The whole of params.yaml."""

    scale: str
    protocol: str
    experiments: dict[str, Experiment] = Field(min_length=1)
    backbones: dict[str, Backbone] = {}
    tasks: dict[str, dict[str, Any]]
    protocols: dict[str, dict[str, dict[str, Any]]]
    scales: dict[str, Scale]
    tolerances: dict[str, float]
    tables: dict[str, TableSpec]
    figures: dict[str, FigureSpec]
    questions: tuple[QuestionSpec, ...] = ()
    registered: dict[Literal["segmentation", "referring", "depth"], str] = {}
    """Task -> the experiment that MLflow registers as its model."""


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
        self._specs: dict[str, Spec] = {}

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
    def backbones(self) -> dict[str, Backbone]:
        """All backbones beside Stable Diffusion."""
        return self.document.backbones

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
    def questions(self) -> tuple[QuestionSpec, ...]:
        """What is asked beyond the paper."""
        return self.document.questions

    @property
    def registered(self) -> dict[str, str]:
        """The experiment of each task that MLflow registers."""
        return self.document.registered

    @property
    def registered_checkpoints(self) -> str:
        """Whether registered models hold their checkpoints."""
        return self.block.registered_checkpoints

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
        sections = {"experiments", "tables", "figures", "questions", "registered", "tolerances"}
        return self.document.model_dump_json(include=sections)

    def dataset(self, name: str) -> DatasetSpec:
        """The dataset ``name`` at this scale."""
        return pick(name, self.datasets, "dataset", f"{self.source}: scales.{self.scale}.datasets")

    def checkpoint(self, name: str) -> CheckpointSpec:
        """The checkpoint ``name`` at this scale."""
        return pick(name, self.checkpoints, "checkpoint", f"{self.source}: scales.{self.scale}.checkpoints")

    def backbone(self, name: str) -> BackboneSpec:
        """The backbone ``name`` at this scale: public weights, or a small architecture and its pre-training."""
        line: Backbone = pick(name, self.backbones, "backbone", f"{self.source}: backbones")
        scale, where = self.block.backbones, f"{self.source}: scales.{self.scale}.backbones"
        merged = line.model_dump()
        for part in filter(None, (merged["vision"], merged["language"])):
            sized = _sized(part["architecture"], scale.networks)
            if sized is None and scale.source == "pretrained":
                found = f"has no beginning of '{part['architecture']}', so its small size is unknown"
                raise UserError(f"{where}.networks {found}; {nearest(part['architecture'], scale.networks)}")
            part["options"] = {**(sized or {}), **part["options"]}
        if scale.source == "hub":
            return checked(BackboneSpec, {"source": "hub", **merged}, where)
        merged = {key: merged[key] for key in ("objective", "vision", "language")}
        merged |= scale.model_dump(include={"source", "dataset", "objects", "seed", "threads", "vocabulary"})
        known = dict(scale.objectives)
        merged["training"] = pick(line.objective, known, "objective", f"{where}.objectives").model_dump()
        if line.language:
            merged["language_training"] = pick(LANGUAGE, known, "objective", f"{where}.objectives").model_dump()
        return checked(BackboneSpec, merged, where)

    def resources(self, name: str) -> Resources:
        """What a training of experiment ``name`` runs on: its own entry, else its task's, else one process."""
        known, line = self.block.resources, pick(name, self.experiments, "experiment", str(self.source))
        return known.get(name) or known.get(line.task) or Resources()

    def resolve(self, name: str) -> Spec:
        """Everything about experiment ``name``, merged from all layers and checked; each is made once."""
        if name not in self._specs:
            self._specs[name] = self._resolve(name)
        return self._specs[name]

    def _resolve(self, name: str) -> Spec:
        where = f"{self.source}: experiments.{name}"
        line: Experiment = pick(name, self.experiments, "experiment", str(self.source))
        pick(line.dataset, self.datasets, "dataset", where)
        pick(line.checkpoint, self.checkpoints | self.backbones, "checkpoint", where)
        merged = merge(*self._layers(line, where))
        merged |= {"name": name, "scale": self.scale, "protocol": self.protocol, "schedule": line.schedule}
        merged |= line.model_dump(include={"task", "method", "dataset", "variant", "checkpoint"})
        merged["seeds"] = pick(line.seeds, self.block.seeds, "seeds", where)
        spec = checked(TASKS[line.task], merged, where)
        own, other = (
            (self.checkpoints, self.backbones) if spec.model.kind == "vpd" else (self.backbones, self.checkpoints)
        )
        if line.checkpoint in other:
            raise UserError(
                f"{where}: method '{line.method}' cannot use checkpoint '{line.checkpoint}'; choose one of {', '.join(own)}"
            )
        return spec

    def _layers(self, line: Experiment, where: str) -> Iterator[Mapping[str, Any]]:
        base = pick(line.task, self.document.tasks, "task", where)
        pick(line.method, base.get("methods", {}), "method", where)
        scaled = self.block.tasks.get(line.task, {})
        for layer in (base, scaled, self.document.protocols[self.protocol].get(line.task, {})):
            yield {key: value for key, value in layer.items() if key not in LAYERS_WITHOUT_SPEC}
            yield _without(layer.get("methods", {}).get(line.method, {}), "variants")
        yield pick(line.schedule, base.get("schedules", {}), "schedule", where)
        yield scaled.get("schedules", {}).get(line.schedule, {})
        for layer in (base, scaled):
            yield layer.get("methods", {}).get(line.method, {}).get("variants", {}).get(line.variant, {})
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
    from vpd.config.table_checks import check_layout, load_reported

    pick(params.pretraining.dataset, params.datasets, "dataset", f"{params.source}: scales.{params.scale}.pretraining")
    for name, spec in params.checkpoints.items():
        if spec.source == "pretrained":
            where = f"{params.source}: scales.{params.scale}.checkpoints.{name}"
            pick(name, params.pretraining.milestones, "pre-training milestone", where)
    for name, released in params.released.items():
        where = f"{params.source}: scales.{params.scale}.released"
        pick(released.experiment or name, params.experiments, "experiment", where)
        if released.model and name in params.experiments:
            raise UserError(f"{where}.{name} is a public model under the name of an experiment; give it another name")
        if released.model and params.experiments[released.experiment].task != "depth":
            raise UserError(
                f"{where}.{name}.experiment is {released.experiment}, which is no depth experiment; name one"
            )
    for task, layer in params.block.tasks.items():
        base = pick(task, params.document.tasks, "task", f"{params.source}: scales.{params.scale}.tasks")
        for section in ("schedules", "methods"):
            for key in layer.get(section, {}):
                where = f"{params.source}: scales.{params.scale}.tasks.{task}.{section}"
                pick(key, base.get(section, {}), section[:-1], where)
        for method, block in layer.get("methods", {}).items():
            for key in block.get("variants", {}):
                where = f"{params.source}: scales.{params.scale}.tasks.{task}.methods.{method}.variants"
                pick(key, _variants(params, task), "variant", where)
    for name in params.block.resources:
        known = params.experiments | params.document.tasks
        pick(name, known, "task or experiment", f"{params.source}: scales.{params.scale}.resources")
    for name in params.backbones:
        if name in params.checkpoints:
            raise UserError(f"{params.source}: backbones.{name} is also a Stable Diffusion checkpoint; rename it")
        params.backbone(name)
    for part in ("dataset", "objects"):
        used = getattr(params.block.backbones, part)
        pick(used, params.datasets, "dataset", f"{params.source}: scales.{params.scale}.backbones.{part}")
    for name in params.experiments:
        params.resolve(name)
    public = [name for scale in params.document.scales.values() for name, line in scale.released.items() if line.model]
    names = [*params.experiments, *public]
    check_layout(params.tables, load_reported(), names, params.figures, params.tolerances, params.questions)
    for task, name in params.registered.items():
        line: Experiment = pick(name, params.experiments, "experiment", f"{params.source}: registered.{task}")
        if line.task != task:
            raise UserError(
                f"{params.source}: registered.{task} is '{name}', an experiment of {line.task}; choose another"
            )


def _without(layer: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in layer.items() if name != key}


def _sized(architecture: str, networks: Mapping[str, dict]) -> dict[str, Any] | None:
    """Options of the longest beginning of ``architecture`` that ``networks`` knows."""
    known = [beginning for beginning in networks if architecture.startswith(beginning)]
    return networks[max(known, key=len)] if known else None


def _variants(params: Params, task: str) -> dict[str, None]:
    return {line.variant: None for line in params.experiments.values() if line.task == task and line.variant}


class _UniqueKeys(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML loader that refuses a key written twice, which plain YAML would silently drop; in C where there is one."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key in (self.construct_object(key, True) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"):
            if key in seen:
                raise yaml.YAMLError(f"the key '{key}' stands twice (line {node.start_mark.line + 1} and after)")
            seen.add(key)
        return super().construct_mapping(node, deep)


def checked(model: type[BaseModel], value: Any, where: str) -> Any:
    """Validate ``value``; the first problem becomes a UserError that names its key path and the nearest valid keys."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise UserError(_sentence(model, error.errors()[0], where)) from None


def _sentence(model: type[BaseModel], problem: dict[str, Any], where: str) -> str:
    path = ".".join(str(part) for part in _plain(problem["loc"]))
    at = f"{where}: {path}" if path else where
    if problem["type"] == "extra_forbidden":
        fields = _fields_at(model, problem["loc"][:-1])
        return f"{at} is not a known key; {nearest(str(problem['loc'][-1]), fields)}"
    if problem["type"] == "missing":
        return f"{at} is missing; add it"
    message = problem["msg"].removeprefix("Value error, ")
    found = f", found {problem['input']!r}" if not isinstance(problem["input"], dict) else ""
    return f"{at}: {message[0].lower() + message[1:]}{found}; correct it"


def _plain(loc: tuple) -> tuple:
    """``loc`` without the tag that pydantic puts behind the key of a union."""
    return tuple(part for place, part in enumerate(loc) if not (place and loc[place - 1] == "model" and part in KINDS))


def _fields_at(model: Any, loc: tuple) -> list[str]:
    """Names of the fields of the model that ``loc`` leads to."""
    for part in loc:
        if part in KINDS:
            model = KINDS[part]
        elif isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
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
