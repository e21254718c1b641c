"""Frozen, typed specs: a resolved ``Spec`` says everything about one experiment, and later code is a pure function of it.

``vpd.config.params`` resolves them from params.yaml. Ids such as S1 or G2 are those of docs/fidelity.md.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

from vpd.utils.digests import digest

Fraction = Field(ge=0.0, le=1.0)


class Frozen(BaseModel):
    """Base of all specs: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def digest(self) -> str:
        """Sixteen hex digits that change when any value changes."""
        return digest(self.model_dump(mode="json"))


# ------------------------------------------------------------------------------------------------------------- datasets
class DatasetSpec(Frozen):
    """One dataset at one scale: where it comes from and how large it is."""

    layout: Literal["ade20k", "nyuv2", "refcoco", "captions", "objects"]
    """On-disk layout, which is also what reads it; RefCOCO, RefCOCO+ and RefCOCOg share one."""
    source: Literal["drawn", "folder", "download"]
    """``drawn``: the procedural world writes it. ``folder``: it is already at ``path`` and is only verified.
    ``download``: what is missing at ``path`` is fetched first."""
    path: str | None = None
    """Where a dataset that is not drawn lies."""
    download: tuple[str, ...] = ()
    """Names in fetch/sources.yaml that together make the dataset (``vpd fetch``)."""
    seed: int = 0
    """First scene seed of a drawn dataset; split s, scene i uses a seed of its own."""
    draw: dict[str, int] = {}
    """Images to draw per split (drawn)."""
    expect: dict[str, int] = {}
    """Counts that the manifest must show, by the manifest's own keys; any other count is an error."""
    size: tuple[PositiveInt, PositiveInt] | None = None
    """Width and height in pixels of drawn images; ADE20K-like images alternate with the transposed size."""


# ---------------------------------------------------------------------------------------------------------- pretraining
class AutoencoderSpec(Frozen):
    """The small VAE and its training."""

    channels: tuple[PositiveInt, ...]
    layers_per_block: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    kl_weight: PositiveFloat


class TextSpec(Frozen):
    """The small CLIP (text and image towers) and its contrastive training; only the text tower is kept."""

    vocabulary: PositiveInt
    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    length: PositiveInt
    patch_size: PositiveInt
    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat


class DenoiserSpec(Frozen):
    """The small U-Net and its training with Stable Diffusion's objective (epsilon, scaled-linear betas)."""

    channels: tuple[PositiveInt, ...]
    layers_per_block: PositiveInt
    heads: PositiveInt
    norm_groups: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    warmup_steps: int
    ema_decay: float
    caption_dropout: float


class PretrainingSpec(Frozen):
    """Pre-training of a small Stable Diffusion; with no milestones (paper scale) nothing is trained."""

    dataset: str
    seed: int
    threads: PositiveInt
    """CPU threads; part of the spec because another number gives other last bits."""
    milestones: dict[str, PositiveInt]
    """U-Net training steps at which each named checkpoint is kept."""
    autoencoder: AutoencoderSpec | None = None
    text: TextSpec | None = None
    denoiser: DenoiserSpec | None = None
    sample_prompts: tuple[str, ...] = ()
    sample_steps: PositiveInt = 20
    guidance: float = 4.0

    @model_validator(mode="after")
    def _networks_for_milestones(self):
        if self.milestones and None in (self.autoencoder, self.text, self.denoiser):
            raise ValueError("pretraining with milestones needs autoencoder, text and denoiser")
        return self


class CheckpointSpec(Frozen):
    """One Stable Diffusion checkpoint at one scale."""

    source: Literal["pretrained", "folder", "hub", "file"]
    """``pretrained``: a milestone of this scale's own pre-training. ``folder``: a diffusers pipeline folder at ``path``.
    ``hub``: a repository of the Hugging Face hub. ``file``: an original .ckpt or .safetensors file at ``path``."""
    path: str | None = None
    repo: str | None = None
    """Hub repository, such as CompVis/stable-diffusion-v1-4; for ``file``, where its tokenizer comes from, or a
    folder that has it."""
    revision: str | None = None
    """Commit, tag or branch of ``repo``."""
    mirrors: tuple[str, ...] = ()
    """Repositories with the same files, tried in order where ``repo`` is gone."""
    sha256: dict[str, str] = {}
    """File name -> digest, or the beginning of one, that the file must have."""


# ------------------------------------------------------------------------------------------------------------ backbones
Objective = Literal[
    "classification", "masked-image", "self-distillation", "contrast", "caption-contrast", "promptable-masks"
]
"""How a family of backbones was pre-trained, and how the miniature pre-trains it on the drawn world."""


class NetworkSpec(Frozen):
    """Architecture of a backbone other than Stable Diffusion's, without weights."""

    library: Literal["timm", "transformers"]
    architecture: str
    """timm: name of a model, such as swin_large_patch4_window12_384. transformers: sam, blip or blip-2."""
    options: dict[str, Any] = {}
    """Settings of the architecture that differ from its own (a scale's small sizes)."""


class LanguageSpec(Frozen):
    """Text encoder that comes with a backbone (LAVT's BERT)."""

    architecture: Literal["bert"]
    repo: str
    revision: str = "main"
    options: dict[str, Any] = {}


class ObjectiveSpec(Frozen):
    """Length and batches of a family's miniature pre-training."""

    steps: PositiveInt
    batch_size: PositiveInt
    lr: PositiveFloat
    weight_decay: float = 0.05
    mask_share: float = Field(default=0.6, ge=0.0, le=1.0)
    """masked-image: share of hidden patches; language: share of hidden tokens is always 0.15, BERT's."""
    momentum: float = 0.99
    """self-distillation: of the teacher's average."""


class BackboneSpec(Frozen):
    """One backbone at one scale: its architecture and where its weights come from."""

    source: Literal["pretrained", "hub", "folder"]
    """``pretrained``: by this scale itself, on drawn images. ``hub``: the public weights in ``repo``. ``folder``: a copy of
    that repository at ``path``."""
    objective: Objective
    vision: NetworkSpec
    language: LanguageSpec | None = None
    repo: str | None = None
    revision: str | None = None
    mirrors: tuple[str, ...] = ()
    path: str | None = None
    dataset: str | None = None
    """pretrained: dataset of captioned images."""
    objects: str | None = None
    """pretrained: dataset of the same images' classes and masks."""
    seed: int = 0
    threads: PositiveInt = 1
    training: ObjectiveSpec | None = None
    language_training: ObjectiveSpec | None = None
    vocabulary: PositiveInt | None = None
    """pretrained: tokens of the text models' vocabulary."""


class ReleasedSpec(Frozen):
    """Weights that others trained: the authors' own for one experiment, or a public depth model under its own name."""

    path: str | None = None
    """The file; of a public model also the folder of a copy of its repository."""
    download: str | None = None
    """Name in fetch/sources.yaml of what puts it there."""
    model: Literal["zoedepth", "dpt-hybrid"] | None = None
    """Public depth model, fed and read as its authors do on NYUv2."""
    experiment: str | None = None
    """With ``model``: the depth experiment whose test set, crop and depth range it is measured with."""
    repo: str | None = None
    """With ``model``: hub repository that has it, in place of ``path``."""
    revision: str | None = None
    mirrors: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_place(self):
        if (self.path is None) == (self.repo is None):
            raise ValueError("released weights need either path or repo")
        if (self.model is None) != (self.experiment is None) or (self.repo and self.model is None):
            raise ValueError(
                "a public model needs both model and experiment; the authors' own weights have a path alone"
            )
        if (self.repo and self.download) or (self.path and (self.revision or self.mirrors)):
            raise ValueError("download goes with path, revision and mirrors with repo")
        return self


# ---------------------------------------------------------------------------------------------------------------- model
class AttentionSpec(Frozen):
    """Which cross-attention maps are recorded and handed to the decoder head (S6, S7, S14)."""

    places: tuple[Literal["down", "mid", "up"], ...]
    limit: float = Fraction
    """Largest recorded map side relative to the latent side: 0.5 is the paper's A32, 1.0 its A64."""
    gradient: Literal["detached", "attached"]


class PromptSpec(Frozen):
    """How the conditioning text is made."""

    strategy: Literal["empty", "empty-sequence", "class-names", "scene", "expression", "expression-pooled"]
    """One token of the empty prompt or all of them (S8), one token per class (G3), one of the image's scene (D4), all
    tokens of the image's expression or only [EOS] (R4, S5)."""
    templates: Literal["single", "imagenet-80"]
    length: PositiveInt
    """Tokens after padding, [BOS] and [EOS] included."""
    class_source: Literal["first-match", "exact", "mean"] = "first-match"
    """How a scene folder's name selects a scene class (D4)."""


class AdapterSpec(Frozen):
    """Text adapter ``c + gamma * MLP(c)`` (S11)."""

    enabled: bool
    gamma: float
    factor: Literal["vector", "scalar"] = "vector"
    """Whether gamma is learned per channel, as released, or is one number."""


class HeadSpec(Frozen):
    """Decoder head; channel counts of its inputs are read from the backbone."""

    kind: Literal["semantic-fpn", "upernet", "simple-decoding", "depth-decoder"]
    channels: PositiveInt
    """Semantic FPN: neck and head width (256). UPerNet: width (512). Referring: hidden width (640). Depth: width after
    out_layer (1536)."""
    dropout: float = 0.0
    pool_scales: tuple[PositiveInt, ...] = (1, 2, 3, 6)
    """UPerNet: sides of the pyramid pooling."""
    deconv_channels: PositiveInt = 32
    """Depth: width of the three transposed convolutions."""
    final_channels: PositiveInt = 192
    """Depth: width after them."""
    norm_groups: PositiveInt = 16
    """Depth: GroupNorm groups."""
    max_depth: PositiveFloat = 10.0
    """Depth: metres at sigmoid = 1."""


class VPDModel(Frozen):
    """The VPD network of one experiment."""

    kind: Literal["vpd"]
    unet: Literal["pretrained", "random"]
    """``random``: the checkpoint's U-Net architecture with fresh weights, the zero point of Figure 3."""
    timestep: int
    latent_scale: PositiveFloat
    posterior: Literal["mode", "sample"] = "mode"
    """What of the VAE's posterior is the latent (S2); samples are drawn anew at every step, and in evaluation too."""
    canvas: PositiveInt | None = None
    """Side of the square zero canvas that smaller inputs are placed on, top-left (D10); None: inputs as they are."""
    attention: AttentionSpec
    prompt: PromptSpec
    adapter: AdapterSpec
    head: HeadSpec


class BackboneModel(Frozen):
    """A pre-trained image encoder and a decoder head, all of it trained: the baselines."""

    kind: Literal["backbone"]
    backbone: Literal["pretrained", "random"]
    """``random``: the same architecture with fresh weights."""
    pyramid_channels: PositiveInt
    """Width of the simple feature pyramid that a backbone with a single stride gets."""
    drop_path: float = Fraction
    """Stochastic depth of the backbone."""
    head: HeadSpec


class LavtModel(Frozen):
    """LAVT (Yang et al. 2022): a Swin Transformer that takes words in at every stage, and BERT."""

    kind: Literal["lavt"]
    backbone: Literal["pretrained", "random"]
    length: PositiveInt
    """Tokens of an expression after cutting or padding, [CLS] and [SEP] included."""
    fusion_heads: tuple[PositiveInt, ...]
    """Attention heads of the pixel-word attention, per stage."""
    fusion_dropout: float = Fraction
    drop_path: float = Fraction
    head: HeadSpec


ModelSpec = Annotated[VPDModel | BackboneModel | LavtModel, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------------- data
class SegmentationData(Frozen):
    """Training augmentation of ADE20K (G9)."""

    short_side: PositiveInt
    long_side: PositiveInt
    ratio_range: tuple[PositiveFloat, PositiveFloat]
    crop: PositiveInt
    max_class_share: float = Fraction
    """A crop in which one class covers more than this is drawn again, up to ten times."""
    flip: float = Fraction
    photometric: bool


class ReferringData(Frozen):
    """RefCOCO: image and mask resized to a square, no augmentation (R2, R5)."""

    size: PositiveInt


class DepthData(Frozen):
    """NYUv2 training augmentation (D10, D17)."""

    crop: PositiveInt
    flip: float = Fraction
    photometric: float = Fraction
    """Probability of the gamma, brightness and colour change."""
    cutdepth: float = Fraction
    """Probability of pasting a vertical strip of depth into the image."""
    cutdepth_width: float = Fraction
    """Largest strip width relative to the image."""
    cutdepth_values: Literal["wrapped", "ramp"]
    """``wrapped``: millimetres cast to 8 bits, as released; ``ramp``: depth over the maximum depth."""
    min_depth: PositiveFloat
    max_depth: PositiveFloat


# ------------------------------------------------------------------------------------------------------------- training
class LearningRateRule(Frozen):
    """Parameters whose name matches ``match`` (regular expression, ``re.search``) get ``multiplier`` times the rate."""

    match: str
    multiplier: float


class DecayRule(Frozen):
    """Parameters whose name matches ``match`` get this weight decay instead of the optimizer's."""

    match: str
    weight_decay: float


class OptimizerSpec(Frozen):
    """AdamW with per-parameter rules; the first rule that matches wins (G2, R1, D7)."""

    lr: PositiveFloat
    betas: tuple[float, float]
    weight_decay: float
    lr_rules: tuple[LearningRateRule, ...] = ()
    decay_rules: tuple[DecayRule, ...] = ()
    decay_vectors: bool = True
    """False: tensors with at most one dimension, and biases, are not decayed."""


class ScheduleSpec(Frozen):
    """Learning-rate factor over the steps."""

    kind: Literal["poly", "triangular", "constant"]
    power: PositiveFloat = 1.0
    warmup: float = Field(default=0.0, ge=0.0, le=1.0)
    """poly: share of all steps with a linear warm-up; 0.01875 is 1500 of 80,000."""
    warmup_ratio: PositiveFloat = 1e-6
    min_ratio: float = 0.0
    """triangular: lowest rate relative to the peak (3e-5 / 5e-4)."""
    peak: float = Field(default=0.5, gt=0.0, le=1.0)
    """triangular: share of all steps at which the peak is reached (12 of 25 epochs)."""


class LossSpec(Frozen):
    """Training loss."""

    kind: Literal["cross-entropy", "silog"]
    average: Literal["all-pixels", "valid-pixels"] = "valid-pixels"
    """Cross-entropy: whether ignored pixels count in the mean (G12)."""
    class_weights: tuple[float, ...] | None = None
    variance_focus: float = 0.5
    """SiLog: lambda (D16)."""
    clamp: float = 1e-6
    """SiLog: smallest predicted depth in metres whose logarithm is taken (D18)."""


class TrainingSpec(Frozen):
    """Length, batches, optimizer and bookkeeping of a training run."""

    steps: PositiveInt | None = None
    epochs: PositiveInt | None = None
    batch_size: PositiveInt
    """Effective batch."""
    accumulate: PositiveInt = 1
    """Micro-batches per effective batch."""
    drop_last: bool = True
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    loss: LossSpec
    milestones: dict[str, float]
    """Name -> share of all steps at which weights are kept and evaluated, such as ``{half: 0.5, final: 1.0}``."""
    precision: Literal["fp32", "bf16"] = "fp32"
    gradient_checkpointing: bool = False
    workers: int = 0
    threads: PositiveInt | None = None
    """CPU threads of training and evaluation (None: torch's choice); another number gives other last bits."""
    log_every: PositiveInt
    save_every: PositiveInt
    """Steps between resumable states."""

    @model_validator(mode="after")
    def _one_length(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(
                f"training needs either steps or epochs, found steps={self.steps} and epochs={self.epochs}"
            )
        if "final" not in self.milestones or self.milestones["final"] != 1.0:
            raise ValueError("training.milestones needs an entry final: 1.0")
        return self


# ----------------------------------------------------------------------------------------------------------- evaluation
class SegmentationEvaluation(Frozen):
    """Sliding-window inference at ADE20K's protocol (G7, G8)."""

    short_side: PositiveInt
    long_side: PositiveInt
    crop: PositiveInt
    stride: PositiveInt
    ratios: tuple[PositiveFloat, ...]
    """Image scales of the multi-scale + flip test."""
    multi_scale: bool
    """Whether the multi-scale + flip figure is measured as well."""
    batch_size: PositiveInt
    best: bool = False
    """Whether the best milestone is reported as well, chosen on the reported split itself (R6, D14)."""
    panels: PositiveInt = 4


class ReferringEvaluation(Frozen):
    """IoU at the input size over every sentence (R7, R8)."""

    size: PositiveInt
    thresholds: tuple[float, ...]
    batch_size: PositiveInt
    best: bool = False
    """Whether the best milestone is reported as well, chosen on the reported split itself (R6, D14)."""
    panels: PositiveInt = 4


class DepthEvaluation(Frozen):
    """Shifted windows, flip and the Eigen crop (D11, D12)."""

    window: PositiveInt
    windows: PositiveInt
    """Windows spread evenly over the width; 2 on 640 pixels start at 0 and 160."""
    flip: bool
    crop: tuple[int, int, int, int]
    """Rows from, to, columns from, to that are scored."""
    min_depth: PositiveFloat
    max_depth: PositiveFloat
    batch_size: PositiveInt
    best: bool = False
    """Whether the best milestone is reported as well, chosen on the reported split itself (R6, D14)."""
    panels: PositiveInt = 4


# ----------------------------------------------------------------------------------------------------------- experiment
class Spec(Frozen):
    """One experiment, resolved."""

    name: str
    scale: str
    protocol: str
    schedule: str
    task: str
    dataset: str
    variant: str | None = None
    """Which set of expressions of a RefCOCO-family dataset: refcoco, refcoco+ or refcocog."""
    method: str
    """Block of ``tasks.<task>.methods`` that the network comes from: vpd, or a baseline."""
    checkpoint: str
    """Stable Diffusion checkpoint (vpd), or backbone."""
    seeds: tuple[int, ...]
    model: ModelSpec
    training: TrainingSpec

    def training_digest(self) -> str:
        """Sixteen hex digits of all that decides the weights of a run with a given seed: not how it is evaluated."""
        return digest(self.model_dump(mode="json", exclude={"seeds", "evaluation"}))


class SegmentationSpec(Spec):
    """Semantic segmentation."""

    task: Literal["segmentation"]
    data: SegmentationData
    evaluation: SegmentationEvaluation


class ReferringSpec(Spec):
    """Referring image segmentation."""

    task: Literal["referring"]
    data: ReferringData
    evaluation: ReferringEvaluation


class DepthSpec(Spec):
    """Monocular depth estimation."""

    task: Literal["depth"]
    data: DepthData
    evaluation: DepthEvaluation


TASKS: dict[str, type[Spec]] = {"segmentation": SegmentationSpec, "referring": ReferringSpec, "depth": DepthSpec}


def load_spec(path) -> Spec:
    """Read a resolved spec that ``vpd`` wrote."""
    from vpd.utils.files import read_json

    value = read_json(path)
    return TASKS[value["task"]].model_validate(value)
