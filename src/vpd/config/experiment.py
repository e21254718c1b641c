"""The resolved spec of one experiment: every setting of its network, samples, training and evaluation.

``vpd.config.params`` resolves it from the layers of params.yaml. Ids such as S1 or G2 are those of docs/fidelity.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from pydantic import NonNegativeInt as NotNegativeInt

from vpd.utils.errors import pick
from vpd.utils.files import AGAIN, read_json
from vpd.utils.validation import Frozen, Name, checked

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]  # of what is dropped: all of it would leave nothing
NotNegative = Annotated[float, Field(ge=0.0)]
Side = Annotated[int, Field(ge=1, le=16384)]  # pixels
Width = Annotated[int, Field(ge=1, le=65536)]  # channels
Count = Annotated[int, Field(ge=0, lt=2**53)]  # of steps, images, parameters, ...
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # numpy's range


Depths = TypeVar("Depths", bound="DepthData | DepthEvaluation")


def check_depths(settings: Depths) -> Depths:
    """Return ``settings``; ValueError if their range of depths is empty."""
    if settings.min_depth >= settings.max_depth:
        raise ValueError(f"min_depth is {settings.min_depth}, not below max_depth, {settings.max_depth}")
    return settings


# ---------------------------------------------------------------------------------------------------------------- model
class AttentionSpec(Frozen):
    """Which cross-attention maps the decoder head gets (S6, S7, S14)."""

    places: tuple[Literal["down", "mid", "up"], ...]
    """Blocks of the U-Net whose maps are used; empty: none. Of a transformer, any of them stands for the blocks that are read."""
    limit: Fraction
    """Largest map side relative to the latent side: 0.5 is the paper's A32, 1.0 its A64, and 0.5 the grid of patches."""
    gradient: Literal["detached", "attached"]
    """Whether gradients flow through the maps (S14)."""


class PromptSpec(Frozen):
    """How the conditioning text is made."""

    strategy: Literal["empty", "empty-sequence", "class-names", "scene", "expression", "expression-pooled"]
    """One token of the empty prompt or all of them (S8), one per class (G3), one of the image's scene (D4), all of the image's
    expression (R4) or only its [EOS] (S5)."""
    templates: Literal["single", "imagenet-80"]
    """`a photo of a ...`, or the mean over 80 templates (G3, D5). Expressions use none."""
    length: PositiveInt
    """Tokens at most, [BOS] and [EOS] included; `expression` and `empty-sequence` are padded to it (R4)."""
    class_source: Literal["first-match", "exact", "mean"] = "first-match"
    """How a scene folder's name selects a scene class; only for `scene` (D4)."""


class AdapterSpec(Frozen):
    """Text adapter ``c + gamma * MLP(c)`` (S11)."""

    enabled: bool
    """Whether there is one."""
    gamma: float
    """Initial value of gamma."""
    factor: Literal["vector", "scalar"] = "vector"
    """Whether gamma is learned per channel, as released, or is one number."""


class HeadSpec(Frozen):
    """Decoder head. It reads the channels of its inputs from the backbone."""

    kind: Literal["semantic-fpn", "upernet", "simple-decoding", "depth-decoder"]
    """Architecture: Semantic FPN and UPerNet segment, simple decoding is LAVT's, the last regresses depth."""
    channels: Width
    """Semantic FPN: width of neck and head. UPerNet: width. Simple decoding: hidden width. Depth: width after out_layer."""
    dropout: Share = 0.0
    """Semantic FPN and UPerNet: dropout before the classifier (G10)."""
    pool_scales: tuple[PositiveInt, ...] = (1, 2, 3, 6)
    """UPerNet: sides of its pyramid pooling."""
    deconv_channels: Width = 32
    """Depth: width of the three transposed convolutions."""
    final_channels: Width = 192
    """Depth: width after them."""
    norm_groups: PositiveInt = 16
    """Depth: groups of GroupNorm."""
    max_depth: PositiveFloat = 10.0
    """Depth: metres at sigmoid = 1."""

    @model_validator(mode="after")
    def _check_groups(self) -> HeadSpec:
        if self.kind == "depth-decoder" and self.channels % self.norm_groups:
            raise ValueError(f"norm_groups is {self.norm_groups}, which does not divide channels, {self.channels}")
        return self


class TransformerSpec(Frozen):
    """How a diffusion transformer is read, whose blocks all have the size of its patches (U5)."""

    blocks: Annotated[tuple[Annotated[float, Field(gt=0.0, le=1.0)], ...], Field(min_length=1)] = (0.5,)
    """Depths at which hidden states, and maps of their blocks, are read: 0.5 is after half the blocks, 1.0 after the last."""
    pyramid_channels: Width = 256
    """Width of the simple feature pyramid that the head gets."""


class VPDModel(Frozen):
    """VPD: a diffusion model's U-Net or transformer as a feature extractor, prompted by text, and a decoder head."""

    kind: Literal["vpd"]
    """Selects this network."""
    unet: Literal["pretrained", "random"]
    """The checkpoint's weights of U-Net or transformer, or the same architecture with fresh ones: the zero point of Figure 3."""
    timestep: Annotated[int, Field(ge=0, le=999)]
    """The t that the network is told (S1, U6)."""
    latent_scale: PositiveFloat
    """Factor on the latents (S2)."""
    posterior: Literal["mode", "sample"] = "mode"
    """What of the VAE's posterior is the latent (S2). Samples are drawn anew at every step, in evaluation too."""
    canvas: Side | None = None
    """Side in pixels of the square zero canvas that smaller inputs are placed on, top-left (D10); null: inputs as they are."""
    attention: AttentionSpec
    # Left out where it says nothing, so that specs of U-Nets, and what was made from them, are as they were.
    transformer: Annotated[TransformerSpec, Field(exclude_if=lambda value: value == TransformerSpec())] = (
        TransformerSpec()
    )
    prompt: PromptSpec
    adapter: AdapterSpec
    head: HeadSpec


class BackboneModel(Frozen):
    """Baseline: a pre-trained image encoder and a decoder head, all of it trained."""

    kind: Literal["backbone"]
    """Selects this network."""
    backbone: Literal["pretrained", "random"]
    """The checkpoint's weights, or the same architecture with fresh ones."""
    pyramid_channels: Width
    """Width of the simple feature pyramid that an encoder with a single stride, such as a plain ViT, gets."""
    drop_path: Share
    """Stochastic depth of the encoder."""
    head: HeadSpec


class LavtModel(Frozen):
    """Baseline LAVT (Yang et al. 2022): a Swin Transformer that takes words in at every stage, and BERT."""

    kind: Literal["lavt"]
    """Selects this network."""
    backbone: Literal["pretrained", "random"]
    """The checkpoint's weights, or the same architecture with fresh ones."""
    length: PositiveInt
    """Tokens of an expression after cutting or padding, [CLS] and [SEP] included."""
    fusion_heads: tuple[PositiveInt, ...]
    """Attention heads between pixels and words, per stage."""
    fusion_dropout: Share
    """Dropout of that attention."""
    drop_path: Share
    """Stochastic depth of the Swin Transformer."""
    head: HeadSpec


ModelSpec = Annotated[VPDModel | BackboneModel | LavtModel, Field(discriminator="kind")]


# ----------------------------------------------------------------------------------------------------------------- data
class SegmentationData(Frozen):
    """Training augmentation of ADE20K (G9)."""

    short_side: Side
    """Pixels of the resized image's short side, before the random ratio."""
    long_side: PositiveInt
    """Pixels of its long side at most."""
    ratio_range: tuple[PositiveFloat, PositiveFloat]
    """Range of the random factor on both."""
    crop: Side
    """Side in pixels of the random square crop."""
    max_class_share: Fraction
    """A crop in which one class covers more than this is drawn again, up to ten times."""
    flip: Fraction
    """Probability of the horizontal mirror image."""
    photometric: bool
    """Whether brightness, contrast and colour are changed at random."""

    @model_validator(mode="after")
    def _check_ranges(self) -> SegmentationData:
        low, high = self.ratio_range
        if low > high:
            raise ValueError(f"ratio_range runs from {low} down to {high}; put the smaller number first")
        if self.short_side > self.long_side:
            raise ValueError(f"short_side is {self.short_side}, more than long_side, {self.long_side}")
        return self


class ReferringData(Frozen):
    """Training samples of RefCOCO: image and mask resized to a square, no augmentation (R2, R5)."""

    size: Side
    """Side of the square in pixels."""


class DepthData(Frozen):
    """Training augmentation of NYUv2 (D10, D17)."""

    crop: Side
    """Side in pixels of the random square crop."""
    flip: Fraction
    """Probability of the horizontal mirror image."""
    photometric: Fraction
    """Probability of the gamma, brightness and colour change."""
    cutdepth: Fraction
    """Probability of pasting a vertical strip of depth into the image."""
    cutdepth_width: Fraction
    """Widest strip relative to the image."""
    cutdepth_values: Literal["wrapped", "ramp"]
    """Values of the strip: millimetres cast to 8 bits, as released, or depth over the maximum depth."""
    min_depth: PositiveFloat
    """Smallest valid depth in metres."""
    max_depth: PositiveFloat
    """Largest valid depth in metres."""

    @model_validator(mode="after")
    def _check_depths(self) -> DepthData:
        return check_depths(self)


# ------------------------------------------------------------------------------------------------------------- training
class LearningRateRule(Frozen):
    """Rate of some parameters. A rule that matches none is an error."""

    match: str
    """Regular expression, searched for in the parameter's name."""
    multiplier: NotNegative
    """Factor on the rate; 1 where no rule matches."""


class DecayRule(Frozen):
    """Weight decay of some parameters. A rule that matches none is an error."""

    match: str
    """Regular expression, searched for in the parameter's name."""
    weight_decay: NotNegative
    """Decay instead of the optimizer's."""


class OptimizerSpec(Frozen):
    """AdamW with rules for some parameters; the first rule that matches wins (G2, R1, D7)."""

    lr: PositiveFloat
    """Peak learning rate."""
    betas: tuple[Share, Share]
    """Decay of the averages of the gradient and of its square."""
    weight_decay: NotNegative
    """Decoupled weight decay."""
    lr_rules: tuple[LearningRateRule, ...] = ()
    """Rates of some parameters (S3, G2, R1)."""
    decay_rules: tuple[DecayRule, ...] = ()
    """Weight decay of some parameters (G2)."""
    decay_vectors: bool = True
    """False: biases and tensors with at most one dimension are not decayed (D7)."""


class ScheduleSpec(Frozen):
    """Learning rate over the steps, relative to the peak."""

    kind: Literal["poly", "triangular", "constant"]
    """Polynomial decay after a linear warm-up, up and down again, or none."""
    power: PositiveFloat = 1.0
    """Exponent of the decay."""
    warmup: Fraction = 0.0
    """poly: share of all steps with a linear warm-up; 0.01875 is 1,500 of 80,000 (G11)."""
    warmup_ratio: PositiveFloat = 1e-6
    """poly: first rate relative to the peak."""
    min_ratio: Fraction = 0.0
    """triangular: lowest rate relative to the peak; 0.06 is 3e-5 of 5e-4 (D6)."""
    peak: Annotated[float, Field(gt=0.0, le=1.0)] = 0.5
    """triangular: share of all steps at which the peak is reached; 0.48 is 12 of 25 epochs (D6)."""


class LossSpec(Frozen):
    """Training loss."""

    kind: Literal["cross-entropy", "silog"]
    """Segmentation, or depth."""
    average: Literal["all-pixels", "valid-pixels"] = "valid-pixels"
    """Cross-entropy: whether ignored pixels count in the mean (G12)."""
    class_weights: tuple[NotNegative, ...] | None = None
    """Cross-entropy: weight of each class (R3)."""
    variance_focus: Fraction = 0.5
    """SiLog: lambda (D16)."""
    clamp: PositiveFloat = 1e-6
    """SiLog: smallest predicted depth in metres whose logarithm is taken (D18)."""


class TrainingSpec(Frozen):
    """Length, batches, optimizer and bookkeeping of a training run."""

    steps: PositiveInt | None = None
    """Length in steps; exactly one of `steps` and `epochs` is set."""
    epochs: PositiveInt | None = None
    """Length in epochs."""
    batch_size: PositiveInt
    """Effective batch, over all GPUs and micro-batches (G6)."""
    accumulate: PositiveInt = 1
    """Micro-batches per effective batch; more of them save memory."""
    drop_last: bool = True
    """Whether an epoch's short last batch is left out (D2)."""
    optimizer: OptimizerSpec
    schedule: ScheduleSpec
    loss: LossSpec
    milestones: dict[Name, Annotated[float, Field(gt=0.0, le=1.0)]]
    """Name -> share of all steps at which weights are saved and evaluated, such as `{half: 0.5, final: 1.0}` (G5)."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of training; with `bf16` weights, sums and optimizer stay in fp32 (drift: docs/gpu.md)."""
    gradient_checkpointing: bool = False
    """Compute parts of the forward pass twice to save memory."""
    workers: Annotated[int, Field(ge=0, le=256)] = 0
    """Processes that load samples."""
    threads: PositiveInt | None = None
    """CPU threads of training and evaluation; another number changes the last bits. null: torch decides."""
    log_every: PositiveInt
    """Steps between lines of the history."""
    save_every: PositiveInt
    """Steps between resumable states (D15)."""

    @model_validator(mode="after")
    def _check_length(self) -> TrainingSpec:
        if (self.steps is None) == (self.epochs is None):
            both = f"steps={self.steps} and epochs={self.epochs}"
            raise ValueError(f"training needs either steps or epochs, found {both}")
        if self.milestones.get("final") != 1.0:
            raise ValueError("training.milestones needs an entry final: 1.0")
        return self


# ----------------------------------------------------------------------------------------------------------- evaluation
class EvaluationSpec(Frozen):
    """What evaluation has in common for all tasks."""

    batch_size: PositiveInt
    """Network inputs at once; changes no result but the last bits."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Number format of the network; `bf16` is faster where the machine has it, and gives other digits (docs/gpu.md)."""
    best: bool = False
    """Report the best milestone as well, chosen on the reported split itself, which flatters it (R6, D14)."""
    panels: PositiveInt = 4
    """Samples in the figure of predictions."""


class SegmentationEvaluation(EvaluationSpec):
    """Sliding-window inference by ADE20K's protocol (G7, G8)."""

    short_side: Side
    """Pixels of the resized image's short side."""
    long_side: PositiveInt
    """Pixels of its long side at most."""
    crop: Side
    """Side of the sliding window in pixels (G8)."""
    stride: Side
    """Step of the sliding window in pixels (G8)."""
    ratios: Annotated[tuple[PositiveFloat, ...], Field(min_length=1)]
    """Image scales of the multi-scale and flip test (G7)."""
    multi_scale: bool
    """Whether the multi-scale and flip test is run as well."""

    @model_validator(mode="after")
    def _check_windows(self) -> SegmentationEvaluation:
        if self.stride > self.crop:
            raise ValueError(
                f"stride is {self.stride}, more than crop, {self.crop}: pixels between windows get no prediction"
            )
        if self.short_side > self.long_side:
            raise ValueError(f"short_side is {self.short_side}, more than long_side, {self.long_side}")
        return self


class ReferringEvaluation(EvaluationSpec):
    """IoU at the input size over every sentence (R7, R8)."""

    size: Side
    """Side in pixels of the square that image and mask are resized to (R7)."""
    thresholds: tuple[Fraction, ...]
    """IoU thresholds of the precisions (R8)."""


class DepthEvaluation(EvaluationSpec):
    """Shifted windows, flip and the Eigen crop (D11, D12)."""

    window: Side
    """Side of the shifted windows in pixels, the height of the images (D11)."""
    windows: PositiveInt
    """Windows spread evenly over the width; 2 on 640 pixels start at 0 and 160 (D11)."""
    flip: bool
    """Whether to average with the mirror image (D11)."""
    crop: tuple[NotNegativeInt, Side, NotNegativeInt, Side]
    """Rows from, to, columns from, to that are scored, in pixels (D12)."""
    min_depth: PositiveFloat
    """Scored depths are above this, in metres (D12)."""
    max_depth: PositiveFloat
    """Scored depths are below this, in metres (D12)."""

    @model_validator(mode="after")
    def _check_ranges(self) -> DepthEvaluation:
        top, bottom, left, right = self.crop
        if top >= bottom or left >= right:
            raise ValueError(f"crop is {list(self.crop)}, which holds no pixel; give rows from, to, columns from, to")
        return check_depths(self)


# ----------------------------------------------------------------------------------------------------------- experiment
class Named(Frozen):
    """What an experiment names."""

    schedule: str
    """`full`, `fast` or another of the task's `schedules`."""
    dataset: str
    """One of the scale's `datasets`."""
    variant: str | None = None
    """Set of expressions of a RefCOCO dataset: `refcoco`, `refcoco+` or `refcocog`."""
    method: str
    """One of the task's `methods`: the network `vpd` or `vpd-transformer`, or a baseline."""
    checkpoint: str
    """One of the scale's `checkpoints`; for a baseline one of `backbones`."""


class Spec(Named):
    """One experiment, resolved."""

    name: str
    """Its name in `experiments`."""
    scale: str
    """`smoke`, `mini`, `paper` or another block of `scales`."""
    protocol: str
    """`official`, `paper` or another block of `protocols`."""
    task: str
    """Decides which keys `data` and `evaluation` have."""
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    """One run each."""
    model: ModelSpec
    """The network; its `kind` decides which keys it has."""
    training: TrainingSpec
    """The optimisation."""
    data: SegmentationData | ReferringData | DepthData
    """Augmentation of training samples; the task decides which keys it has."""
    evaluation: SegmentationEvaluation | ReferringEvaluation | DepthEvaluation
    """The inference protocol; the task decides which keys it has."""


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


Task = Literal["segmentation", "referring", "depth"]
TASKS: dict[str, type[Spec]] = {"segmentation": SegmentationSpec, "referring": ReferringSpec, "depth": DepthSpec}


def load_spec(path: str | Path) -> Spec:
    """Read a resolved spec that ``vpd train`` wrote; UserError if it is missing, damaged or of another version."""
    value = read_json(path)
    return checked(pick(str(value.get("task")), TASKS, "task", str(path)), value, str(path), AGAIN)


def released_spec(spec: Spec) -> Spec:
    """Reduce a spec to what released weights can stand for: its first seed and only the final milestone."""
    training = spec.training.model_copy(update={"milestones": {"final": 1.0}})
    evaluation = spec.evaluation.model_copy(update={"best": False})
    return spec.model_copy(update={"seeds": spec.seeds[:1], "training": training, "evaluation": evaluation})
