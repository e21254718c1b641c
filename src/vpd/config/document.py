"""The structure of params.yaml: the matrix of experiments, the layers that their specs are merged from, and the scales."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from vpd.config.experiment import Named, NotNegative, Seed, Task
from vpd.config.schema import (
    CheckpointSpec,
    DatasetSpec,
    DiffusionSpec,
    MeasuresSpec,
    ObjectiveSpec,
    Pretrained,
    PretrainingSpec,
    ReleasedSpec,
    Small,
)
from vpd.config.tables import FigureSpec, QuestionSpec, TableSpec
from vpd.utils.validation import Frozen, Name

SCHEMA = 1  # version of params.yaml's structure; CHANGELOG.md says what each one changed
Settings = dict[str, Any]  # part of a section of a spec; checked when an experiment is resolved


# --------------------------------------------------------------------------------------------------------------- layers
class Layer(Frozen):
    """Settings that one layer contributes, with the keys of a spec."""

    model: Settings = {}
    """The network."""
    data: Settings = {}
    """Training samples."""
    training: Settings = {}
    """Length, optimizer, loss, bookkeeping."""
    evaluation: Settings = {}
    """How it is measured."""


class MethodLayer(Layer):
    """What one method adds to its task."""

    variants: dict[Name, Layer] = {}
    """What differs for one set of expressions."""


class TaskLayer(Layer):
    """What all experiments of a task share; at a scale, what is smaller there."""

    methods: dict[Name, MethodLayer] = {}
    """Method -> its own settings. A scale has only names that the task has."""
    schedules: dict[Name, Layer] = {}
    """Schedule -> length and what goes with it. A scale has only names that the task has."""


class ProtocolLayer(Layer):
    """Where the paper's text and the released code disagree on a task."""

    methods: dict[Name, Layer] = {}
    """Method -> its own settings."""


class Experiment(Layer, Named):
    """One line of the matrix: what it uses, and what it changes."""

    task: Task
    """Which task, and so which layers."""
    seeds: str
    """One of the scale's lists of `seeds`: `ablations` where small differences count, `claims` for other short runs that are
    compared, `single` for long ones."""


# ---------------------------------------------------------------------------------------------------------------- scale
class Backbone(Pretrained):
    """One line of the top-level `backbones`: an architecture, its pre-training objective and its public weights."""

    repo: str
    """Hub repository of the public weights."""
    revision: str = "main"
    """Its commit, tag or branch."""
    mirrors: tuple[str, ...] = ()
    """Repositories with the same files, tried in order if `repo` is gone."""


class Backbones(Small):
    """What a scale does with backbones: fetch their public weights, or pre-train small ones on synthetic scenes."""

    source: Literal["pretrained", "hub", "shipped"]
    """Which of the two, or small ones that are in git (`shipped` of the scale)."""
    dataset: str
    """Dataset of captioned images that all of them see."""
    objects: str
    """Dataset of the same images' classes and masks, for objectives that learn from labels."""
    networks: dict[str, dict[str, Any]] = {}
    """Beginning of an architecture's name -> options that give its size; the longest beginning counts."""
    objectives: dict[str, ObjectiveSpec] = {}
    """pretrained: training by objective; `masked-language` is that of text encoders."""


class Resources(Frozen):
    """What a training runs on. It is in no digest, since the effective batch stays (for what does not, see G6)."""

    gpus: PositiveInt = 1
    """GPUs that share one effective batch; a machine with fewer uses those it has."""


class Scale(Frozen):
    """One block of `scales`: everything that differs between smoke, mini and paper."""

    comparable: bool
    """Whether the paper's absolute numbers can be expected at this scale."""
    seeds: dict[Name, Annotated[tuple[Seed, ...], Field(min_length=1)]]
    """Name -> seeds; an experiment names one of these lists."""
    datasets: dict[Name, DatasetSpec]
    pretraining: PretrainingSpec
    shipped: str | None = None
    """Scale that made the weights in weights/, which this scale's sources `shipped` take."""
    checkpoints: dict[Name, CheckpointSpec]
    diffusion: dict[Name, DiffusionSpec] = {}
    """Checkpoint -> how it is pre-trained, if it is no milestone of the small Stable Diffusion; beyond the paper."""
    measures: MeasuresSpec | None = None
    """What is measured of the checkpoints; they do not depend on it."""
    backbones: Backbones
    released: dict[Name, ReleasedSpec] = {}
    """Experiment, or name of a public model -> weights of others, which are measured too."""
    registered_checkpoints: Literal["copied", "referenced"] = "copied"
    """Whether a model in MLflow's registry holds its checkpoint or names the folder, where it is large."""
    resources: dict[Name, Resources] = {}
    """Task or experiment -> what each of its trainings runs on; the experiment's own counts."""
    tasks: dict[Task, TaskLayer]
    """Task -> what is smaller at this scale."""


class Document(Frozen):
    """The whole of params.yaml."""

    version: Literal[1] = Field(alias="schema")
    """Version of this structure."""
    scale: str
    """Which of `scales` is used; `--scale` replaces it."""
    protocol: str
    """Which of `protocols` is used; `--protocol` replaces it."""
    experiments: dict[Name, Experiment] = Field(min_length=1)
    backbones: dict[Name, Backbone] = {}
    tasks: dict[Task, TaskLayer]
    """Task -> the paper's hyper-parameters at real size."""
    protocols: dict[Name, dict[Task, ProtocolLayer]]
    """`official` is what the released code does, `paper` what the text says (docs/fidelity.md)."""
    scales: dict[Name, Scale]
    tolerances: dict[str, NotNegative]
    """Metric -> half-width of a `reproduced` verdict, from independent re-runs (docs/fidelity.md, section 0)."""
    tables: dict[Name, TableSpec]
    figures: dict[Name, FigureSpec]
    questions: tuple[QuestionSpec, ...] = ()
    """What is asked beyond the paper."""
    registered: dict[Task, str] = {}
    """Task -> the experiment that `vpd track` puts into MLflow's model registry."""
