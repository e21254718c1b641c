"""params.yaml: read it, check it, and resolve one experiment to a ``Spec``.

``load_params`` checks the structure of the file. Names are looked up where they are used, so a mistake in a table stops the
report and not a training; ``Params.check_all`` looks up everything.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vpd.config.claims import check_claims, load_claims
from vpd.config.document import SCHEMA, Document, Experiment, Layer, ProtocolLayer, Resources, Scale, TaskLayer
from vpd.config.experiment import Named, Task
from vpd.config.paths import Paths, shipped
from vpd.config.reported import load_reported
from vpd.config.schema import TASKS, BackboneSpec, CheckpointSpec, DatasetSpec, DiffusionSpec, Small, Spec, VPDModel
from vpd.config.tables import check_layout
from vpd.utils.documents import read_yaml
from vpd.utils.errors import UserError, nearest, pick
from vpd.utils.files import MANIFEST
from vpd.utils.validation import Frozen, checked

__all__ = ["Document", "Experiment", "Params", "Scale", "checked", "load_params", "merge"]

LANGUAGE = "masked-language"  # objective of the text encoders that come with a backbone
SECTIONS = ("model", "data", "training", "evaluation")


def load_params(path: str | Path = "params.yaml", scale: str | None = None, protocol: str | None = None) -> Params:
    """Read params.yaml and check its structure; ``scale`` and ``protocol`` replace the file's own choice."""
    path = Path(path)
    raw = read_yaml(path, "run vpd in the project's folder or name the file with --params")
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds {type(raw).__name__} instead of sections; restore it from the repository")
    if raw.get("schema") != SCHEMA:
        found = f"schema {raw['schema']}" if "schema" in raw else "no schema version"
        cure = f"change what CHANGELOG.md lists for it and set schema: {SCHEMA}, or use the vpd that the file was written for"
        raise UserError(f"{path} has {found}, but this vpd reads schema {SCHEMA}; {cure}")
    options = {key: value for key, value in (("scale", scale), ("protocol", protocol)) if value is not None}
    return Params(checked(Document, raw | options, str(path)), path, options)


def merge(*layers: Mapping[str, Any]) -> dict[str, Any]:
    """Merge mappings deeply, later ones winning; lists are replaced whole."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            old = result.get(key)
            both = isinstance(old, dict) and isinstance(value, Mapping)
            result[key] = merge(old or {}, value) if both else copy.deepcopy(value)
    return result


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of every value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


class Params:
    """params.yaml (``source``) at one scale and protocol; ``options`` are keys that the command line replaced."""

    def __init__(self, document: Document, source: Path, options: Iterable[str] = ()) -> None:
        self.document, self.source, self._options = document, source, frozenset(options)
        self.scale, self.protocol = document.scale, document.protocol
        self.block = pick(self.scale, document.scales, "scale", str(source))
        pick(self.protocol, document.protocols, "protocol", str(source))
        self._specs: dict[str, Spec] = {}
        self.experiments, self.backbones = document.experiments, document.backbones
        self.tables, self.figures, self.questions = document.tables, document.figures, document.questions
        self.tolerances, self.registered = document.tolerances, document.registered
        self.datasets, self.pretraining = self.block.datasets, self.block.pretraining
        self.checkpoints, self.measures, self.released = (
            self._needed_checkpoints(),
            self.block.measures,
            self.block.released,
        )
        self.comparable, self.registered_checkpoints = self.block.comparable, self.block.registered_checkpoints

    def _needed_checkpoints(self) -> dict[str, CheckpointSpec]:
        """Return the scale's checkpoints without those of the hub that no experiment uses, which nobody has to download."""
        used = {line.checkpoint for line in self.experiments.values()}
        return {name: spec for name, spec in self.block.checkpoints.items() if spec.source != "hub" or name in used}

    def _at(self, path: str = "") -> str:
        """Say where a section of this scale is."""
        return f"{self.source}: scales.{self.scale}.{path}"

    # ---------------------------------------------------------------------------------------------- one entry
    def dataset(self, name: str) -> DatasetSpec:
        """Return the dataset ``name`` of this scale."""
        return pick(name, self.datasets, "dataset", self._at("datasets"))

    def checkpoint(self, name: str) -> CheckpointSpec:
        """Return the checkpoint ``name`` of this scale."""
        spec = pick(name, self.block.checkpoints, "checkpoint", self._at("checkpoints"))
        if spec.source == "pretrained" and self.small_diffusion(name) is None:
            pick(name, self.pretraining.milestones, "pre-training milestone", self._at(f"checkpoints.{name}"))
        if spec.source == "shipped":
            maker = self.shipped(f"checkpoints.{name}")
            return spec.model_copy(update={"path": str(shipped(maker.scale, name)), "recipe": maker.recipe(name)})
        return spec

    def small_diffusion(self, name: str) -> DiffusionSpec | None:
        """Return how the checkpoint ``name`` is pre-trained here if not as a milestone; UserError if that cannot make it."""
        checkpoint, spec = self.block.checkpoints.get(name), self.block.diffusion.get(name)
        if spec is None or checkpoint is None or checkpoint.source != "pretrained":
            return None
        where, common = self._at(f"diffusion.{name}"), self.pretraining
        if name in common.milestones:
            raise UserError(f"{where} is also a milestone of the small Stable Diffusion; rename it")
        if checkpoint.family != spec.family:
            found = f"describes a {spec.family}, but checkpoints.{name}.family is {checkpoint.family}"
            raise UserError(f"{where} {found}; correct one of them")
        if (common.images_seen or 0) < spec.batch_size:
            found = f"pretraining.images_seen is {common.images_seen}"
            raise UserError(f"{where}.batch_size is {spec.batch_size}, but {found}; lower the one or raise the other")
        return spec

    def shipped(self, user: str) -> Params:
        """Return the settings of the scale that made the weights in git; UserError if this scale names none."""
        if self.block.shipped is None:
            raise UserError(
                f"{self._at(user)} has source 'shipped', but the scale names no scale in `shipped`; name one"
            )
        pick(self.block.shipped, self.document.scales, "scale", self._at("shipped"))
        return Params(self.document.model_copy(update={"scale": self.block.shipped}), self.source)

    @property
    def milestones(self) -> dict[str, int]:
        """Images that each small Stable Diffusion of this scale has seen, pre-trained here or shipped; empty at paper scale."""
        if self.block.shipped is None:
            return self.pretraining.milestones
        made = self.shipped("shipped").pretraining.milestones
        return {
            name: made[name] for name, spec in self.checkpoints.items() if spec.source == "shipped" and name in made
        }

    def small_source(self, paths: Paths) -> Path:
        """Return the small Stable Diffusion whose parts other small ones take: pre-trained here, or else in git."""
        milestones = self.milestones
        if not milestones or (self.block.shipped is None and (paths.pretraining / MANIFEST).is_file()):
            return paths.pretraining
        return shipped(self.maker.scale, max(milestones, key=lambda name: milestones[name]))

    @property
    def measured(self) -> dict[str, CheckpointSpec]:
        """Checkpoints that ``measures`` are about: those of Stable Diffusion 1."""
        return {name: spec for name, spec in self.checkpoints.items() if spec.family == "stable-diffusion-1"}

    @property
    def maker(self) -> Params:
        """The settings of the scale that pre-trained this scale's small networks: another one's if they are shipped."""
        return self.shipped("shipped") if self.block.shipped else self

    def images_seen(self, name: str) -> int | None:
        """Return how many images a checkpoint has seen if it was pre-trained small, here or where it is shipped from."""
        spec, maker = self.checkpoints.get(name), self.maker
        if spec and spec.source in ("pretrained", "shipped") and maker.small_diffusion(name):
            return maker.pretraining.images_seen
        return self.milestones.get(name)

    def recipe(self, name: str) -> dict[str, Any]:
        """Return all settings that decide a pre-trained checkpoint or backbone of this scale, as plain data."""
        block, specs, own = self.block.backbones, dict[str, Frozen](), dict[str, Any]()
        if name in self.block.checkpoints:
            self.checkpoint(name)
            datasets = [self.pretraining.dataset]
            if spec := self.small_diffusion(name):
                specs["diffusion"] = spec
                own["pretraining"] = self.pretraining.model_dump(mode="json", include=spec.shared)
            else:
                specs["pretraining"] = self.pretraining
        else:
            specs["backbone"], datasets = self.backbone(name), [block.dataset, block.objects]
        specs |= {f"datasets.{dataset}": self.dataset(dataset) for dataset in datasets}
        return own | {key: spec.model_dump(mode="json") for key, spec in specs.items()}

    def backbone(self, name: str) -> BackboneSpec:
        """Return the backbone ``name`` at this scale: public weights, or a small architecture and its pre-training."""
        line = pick(name, self.backbones, "backbone", f"{self.source}: backbones")
        if name in self.block.checkpoints:
            raise UserError(f"{self.source}: backbones.{name} is also a Stable Diffusion checkpoint; rename it")
        scale, where = self.block.backbones, self._at("backbones")
        for part in ("dataset", "objects"):
            pick(getattr(scale, part), self.datasets, "dataset", f"{where}.{part}")
        merged = line.model_dump()
        for network in filter(None, (merged["vision"], merged["language"])):
            network["options"] = self._size(network["architecture"]) | network["options"]
        if scale.source == "hub":
            return checked(BackboneSpec, {"source": "hub", **merged}, where)
        merged = {key: merged[key] for key in ("objective", "vision", "language")}
        if scale.source == "shipped":
            maker = self.shipped("backbones")
            origin = {"source": "shipped", "path": str(shipped(maker.scale, name)), "recipe": maker.recipe(name)}
            return checked(BackboneSpec, origin | merged, where)
        merged |= scale.model_dump(include={"source", "dataset", "objects", *Small.model_fields})
        merged["training"] = pick(line.objective, scale.objectives, "objective", f"{where}.objectives")
        if line.language:
            merged["language_training"] = pick(LANGUAGE, scale.objectives, "objective", f"{where}.objectives")
        return checked(BackboneSpec, merged, where)

    def _size(self, architecture: str) -> dict[str, Any]:
        """Return the options under the longest beginning of ``architecture`` that the scale knows."""
        networks = self.block.backbones.networks
        known = [beginning for beginning in networks if architecture.startswith(beginning)]
        if not known and self.block.backbones.source != "hub":
            problem = f"networks has no beginning of '{architecture}', so its small size is unknown"
            raise UserError(f"{self._at('backbones')}.{problem}; {nearest(architecture, networks)}")
        return networks[max(known, key=len)] if known else {}

    def resources(self, name: str) -> Resources:
        """Return what a training of experiment ``name`` runs on: its own entry, else its task's, else one process."""
        line = pick(name, self.experiments, "experiment", str(self.source))
        for key in self.block.resources:
            known = dict.fromkeys([*self.experiments, *self.document.tasks])
            pick(key, known, "task or experiment", self._at("resources"))
        return self.block.resources.get(name) or self.block.resources.get(line.task) or Resources()

    def downloads(self, name: str) -> dict[str, Path]:
        """Return what ``vpd fetch`` has to complete for ``name``, a dataset or an entry: entry -> folder, at any scale."""
        folders: dict[str, dict[str, Path]] = {}
        for scale in self.document.scales.values():
            for dataset, spec in scale.datasets.items():
                own = {entry: Path(spec.path) for entry in spec.download if spec.path}
                folders |= {entry: {entry: path} for entry, path in own.items()} | ({dataset: own} if own else {})
            for released in scale.released.values():
                if released.download and released.path:
                    folders[released.download] = {released.download: Path(released.path).parent}
        return pick(name, folders, "download", str(self.source))

    def layout(self) -> str:
        """Return what report and tracking read, as JSON: a change of it reruns them and nothing else."""
        sections = {"experiments", "tables", "figures", "questions", "registered", "tolerances"}
        own = self.block.model_dump_json(include={"comparable", "released", "registered_checkpoints"})
        return self.document.model_dump_json(include=sections) + own

    # ---------------------------------------------------------------------------------------------- experiments
    def resolve(self, name: str) -> Spec:
        """Return the spec of experiment ``name``, merged from its layers and checked; UserError names what is wrong."""
        if name in self._specs:
            return self._specs[name]
        where = f"{self.source}: experiments.{name}"
        line = pick(name, self.experiments, "experiment", str(self.source))
        pick(line.dataset, self.datasets, "dataset", where)
        pick(line.checkpoint, {**self.block.checkpoints, **self.backbones}, "checkpoint", where)
        merged = merge(*(settings for _, settings in self._layers(name, line)))
        spec = checked(TASKS[line.task], merged, where)
        usable = list(self.block.checkpoints if spec.model.kind == "vpd" else self.backbones)
        if line.checkpoint not in usable:
            choice = f"choose one of {', '.join(usable)}"
            raise UserError(f"{where}: method '{line.method}' cannot use checkpoint '{line.checkpoint}'; {choice}")
        self._specs[name] = spec
        return spec

    def _layers(self, name: str, line: Experiment) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield (key path, settings) of every layer of an experiment, the strongest last."""
        task, method, schedule, where = line.task, line.method, line.schedule, f"{self.source}: experiments.{name}"
        base = pick(task, {str(key): layer for key, layer in self.document.tasks.items()}, "task", where)
        pick(method, base.methods, "method", where)
        pick(schedule, base.schedules, "schedule", where)
        seeds = pick(line.seeds, self.block.seeds, "seeds", where)
        self._check_names(task)
        scaled = self.block.tasks.get(task, TaskLayer())
        protocol = self.document.protocols[self.protocol].get(task, ProtocolLayer())
        both = ((f"tasks.{task}", base), (f"scales.{self.scale}.tasks.{task}", scaled))
        every: tuple[tuple[str, TaskLayer | ProtocolLayer], ...]
        every = (*both, (f"protocols.{self.protocol}.{task}", protocol))
        layers: list[tuple[str, Layer | None]] = []
        for path, settings in every:
            layers += [(path, settings), (f"{path}.methods.{method}", settings.methods.get(method))]
        layers += [(f"{path}.schedules.{schedule}", layer.schedules.get(schedule)) for path, layer in both]
        for path, layer in both:
            variants = layer.methods[method].variants if method in layer.methods else {}
            layers.append((f"{path}.methods.{method}.variants.{line.variant}", variants.get(line.variant or "")))
        layers.append((f"experiments.{name}", line))
        yield from ((path, {key: getattr(layer, key) for key in SECTIONS}) for path, layer in layers if layer)
        for key in ("scale", "protocol"):
            yield f"--{key}" if key in self._options else key, {key: getattr(self, key)}
        yield f"experiments.{name}", {"name": name, **line.model_dump(include={"task", *Named.model_fields})}
        yield f"scales.{self.scale}.seeds.{line.seeds}", {"seeds": seeds}

    def _check_names(self, task: Task) -> None:
        """Refuse methods, schedules and variants that only the scale or the protocol knows: they would have no effect."""
        base, scaled = self.document.tasks[task], self.block.tasks.get(task, TaskLayer())
        protocol = self.document.protocols[self.protocol].get(task, ProtocolLayer())
        variants = [line.variant for line in self.experiments.values() if line.task == task and line.variant]
        where = self._at(f"tasks.{task}")
        for schedule in scaled.schedules:
            pick(schedule, base.schedules, "schedule", f"{where}.schedules")
        for method, layer in scaled.methods.items():
            pick(method, base.methods, "method", f"{where}.methods")
            for variant in layer.variants:  # of an experiment, or of one that was there
                known = dict.fromkeys([*variants, *base.methods[method].variants])
                pick(variant, known, "variant", f"{where}.methods.{method}.variants")
        for method in protocol.methods:
            pick(method, base.methods, "method", f"{self.source}: protocols.{self.protocol}.{task}.methods")

    def origins(self, name: str) -> list[str]:
        """Return a line per value of an experiment: key, value, and the layer that set it (``default``: the schema)."""
        spec, layers = self.resolve(name).model_dump(mode="json"), self._layers(name, self.experiments[name])
        set_by = {key: path for path, settings in layers for key, _ in _flat(settings)}
        rows = [(key, json.dumps(value), set_by.get(key, "default")) for key, value in _flat(spec)]
        keys, values = (max(min(len(row[column]), 40) for row in rows) for column in (0, 1))
        return [f"{key:{keys}}  {value:{values}}  {origin}" for key, value, origin in rows]

    # ---------------------------------------------------------------------------------------------- everything
    def check_all(self) -> None:
        """Look up every name in the file at this scale and protocol; UserError for the first that does not exist."""
        pick(self.pretraining.dataset, self.datasets, "dataset", self._at("pretraining"))
        if self.block.shipped is not None:
            self.shipped("shipped")
        for name in self.block.checkpoints:
            self.checkpoint(name)
        for name in self.block.diffusion:
            pick(name, self.block.checkpoints, "checkpoint", self._at("diffusion"))
        for name in self.backbones:
            self.backbone(name)
        for task in self.document.tasks:
            self._check_names(task)
        for name in self.experiments:
            self._check_prompt(self.resolve(name))
            self.resources(name)
        self.check_released()
        self.check_tables()
        self.check_registered()

    def _check_prompt(self, spec: Spec) -> None:
        """Refuse prompts that are longer than what a text encoder reads that was pre-trained small."""
        if not isinstance(spec.model, VPDModel) or self.images_seen(spec.checkpoint) is None:
            return
        maker = self.maker
        design = maker.small_diffusion(spec.checkpoint)
        if design and design.transformer:  # T5 reads texts of any length
            return
        assert maker.pretraining.text is not None  # the schema demands it where there are milestones
        if spec.model.prompt.length > (limit := maker.pretraining.text.length):
            found = f"model.prompt.length is {spec.model.prompt.length}"
            reads = f"the text encoder of {spec.checkpoint} reads {limit} tokens (scales.{maker.scale}.pretraining.text.length)"
            raise UserError(f"{self.source}: {spec.name}: {found}, but {reads}; lower it")

    def check_tables(self) -> None:
        """Look up what tables, figures, questions and claims name."""
        every = (scale.released.items() for scale in self.document.scales.values())
        names = [*self.experiments, *(name for lines in every for name, line in lines if line.model)]
        check_layout(self.tables, load_reported(), names, self.figures, self.tolerances, self.questions)
        check_claims(load_claims(), load_reported(), self.figures)

    def check_released(self) -> None:
        """Look up the experiments of this scale's released weights."""
        where = self._at("released")
        for name, released in self.released.items():
            experiment = pick(released.experiment or name, self.experiments, "experiment", where)
            if released.model and name in self.experiments:
                problem = "is a public model under the name of an experiment"
                raise UserError(f"{where}.{name} {problem}; give it another name")
            if released.model and experiment.task != "depth":
                problem = f"experiment is {released.experiment}, which is not a depth experiment"
                raise UserError(f"{where}.{name}.{problem}; name one")

    def check_registered(self) -> None:
        """Look up the experiment of each task that MLflow registers."""
        for task, name in self.registered.items():
            where = f"{self.source}: registered.{task}"
            line = pick(name, self.experiments, "experiment", where)
            if line.task != task:
                raise UserError(f"{where} is '{name}', an experiment of {line.task}; choose one of {task}")
