"""Specs of what experiments start from: datasets, pre-training, checkpoints, backbones and released weights.

Other rooms import these and the experiment's own specs (``vpd.config.experiment``) from here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vpd.config.experiment import *  # noqa: F403 - other rooms import every spec from one module
from vpd.config.experiment import Fraction, NotNegative, NotNegativeInt, Share, Side
from vpd.utils.validation import Frozen, Name


# ------------------------------------------------------------------------------------------------------------- datasets
class DatasetSpec(Frozen):
    """One dataset at one scale: where it comes from and how large it is."""

    format: Literal["ade20k", "nyuv2", "refcoco", "captions", "objects"]
    """Files on disk, and so the reader; RefCOCO, RefCOCO+ and RefCOCOg share one format."""
    source: Literal["synthetic", "folder", "download"]
    """``synthetic``: scenes are generated. ``folder``: the files are already at ``path`` and are only checked.
    ``download``: what is missing at ``path`` is fetched first."""
    path: str | None = None
    """Where the files of a dataset lie that is not synthetic."""
    download: tuple[str, ...] = ()
    """Names in download/sources.yaml that together make the dataset (``vpd fetch``)."""
    seed: NotNegativeInt = 0
    """First scene seed of a synthetic dataset; split s, scene i uses a seed of its own."""
    images: dict[Name, NotNegativeInt] = {}
    """Split -> images to generate (synthetic)."""
    expect: dict[str, NotNegativeInt] = {}
    """Counts that the manifest must show, by the manifest's own keys; any other count is an error."""
    size: tuple[Side, Side] | None = None
    """Width and height in pixels of synthetic images; ADE20K-like images alternate with the transposed size."""
    captions: PositiveInt = 1
    """Captions of each synthetic image (format captions). The first ones name its room and every thing with colour and place."""


# ---------------------------------------------------------------------------------------------------------- pretraining
class _Batches(Frozen):
    batch_size: PositiveInt
    """Images, captions, pairs of both, or latents per step."""
    lr: PositiveFloat
    """Learning rate."""


class _Steps(Frozen):
    steps: PositiveInt
    """Training steps."""


class AutoencoderSpec(_Steps, _Batches):
    """Small VAE and its training."""

    channels: tuple[PositiveInt, ...]
    """Widths; n widths reduce the image side by 2 to the power of n - 1."""
    layers_per_block: PositiveInt
    """Residual blocks per width."""
    kl_weight: PositiveFloat
    """Weight of the KL term."""


class TextSpec(_Steps, _Batches):
    """Small CLIP (text and image towers) and its contrastive training; only the text tower is used later."""

    vocabulary: PositiveInt
    """Size of the tokenizer."""
    width: PositiveInt
    """Width of the text encoder and of the prompt tokens."""
    layers: PositiveInt
    """Transformer layers of each tower."""
    heads: PositiveInt
    """Attention heads of each tower."""
    length: PositiveInt
    """Tokens of a text at most."""
    patch_size: PositiveInt
    """Side in pixels of the image tower's patches."""


class Denoising(_Batches):
    """Training of a diffusion model to denoise latents."""

    warmup_steps: NotNegativeInt
    """Steps of the linear warm-up."""
    ema_decay: Share
    """Decay of the averaged weights, which are the ones saved (S12)."""
    noise_weighting: NotNegative = 0.0
    """Power g of the loss weight (1 - alpha_bar_t)^g, which stresses the noisy steps where text matters; 0: all alike, as
    in Stable Diffusion."""
    noises: PositiveInt = 1
    """Times and noises for each image of a batch. The network learns from each as from another image, and the images seen
    stay as many as those of the backbones that it is compared with."""
    caption_dropout: Fraction
    """Probability that the empty caption replaces an image's own."""


def _check_widths(channels: tuple[int, ...], **divisors: int) -> None:
    for width in channels:
        for name, number in divisors.items():
            if width % number:
                raise ValueError(f"{name} is {number}, which does not divide a width of channels, {width}")


class UNetSizes(Frozen):
    """What the U-Nets of Stable Diffusion 1 and 2 have in common."""

    channels: tuple[PositiveInt, ...]
    """Widths, one per level."""
    layers_per_block: PositiveInt
    """Residual blocks per level."""
    norm_groups: PositiveInt
    """Groups of GroupNorm."""


class DenoiserSpec(UNetSizes, Denoising):
    """Small U-Net and its training with Stable Diffusion's objective (epsilon, scaled-linear betas)."""

    heads: PositiveInt
    """Attention heads."""

    @model_validator(mode="after")
    def _check(self) -> DenoiserSpec:
        _check_widths(self.channels, norm_groups=self.norm_groups, heads=self.heads)
        return self


class SmallUNetSpec(UNetSizes):
    """U-Net with the design of Stable Diffusion 2, which predicts v and reads the text encoder of `pretraining` (U9)."""

    head_width: PositiveInt
    """Channels of an attention head: a wider level has more heads."""

    @model_validator(mode="after")
    def _check(self) -> SmallUNetSpec:
        _check_widths(self.channels, norm_groups=self.norm_groups, head_width=self.head_width)
        return self


class SmallT5Spec(_Steps, _Batches):
    """Small T5, trained to fill in what is left out of captions; it never sees an image."""

    vocabulary: PositiveInt
    """Size of the tokenizer: the captions' most frequent words, and letters."""
    width: PositiveInt
    """Width of the text encoder."""
    layers: PositiveInt
    """Layers of the encoder; the decoder, which is not kept, has one."""
    heads: PositiveInt
    """Attention heads."""
    length: PositiveInt
    """Tokens of a caption."""

    @model_validator(mode="after")
    def _check(self) -> SmallT5Spec:
        _check_widths((self.width,), heads=self.heads)
        return self


class SmallTransformerSpec(Frozen):
    """Diffusion transformer with the design of PixArt, which predicts noise and reads a T5 of its own (U9)."""

    width: Annotated[int, Field(gt=0, multiple_of=4)]
    """Channels of its hidden states; sines of four phases say where a patch is."""
    layers: PositiveInt
    """Blocks."""
    heads: PositiveInt
    """Attention heads."""
    patch_size: PositiveInt
    """Side of a patch in latent pixels."""
    language: SmallT5Spec

    @model_validator(mode="after")
    def _check(self) -> SmallTransformerSpec:
        _check_widths((self.width,), heads=self.heads)
        return self


DiffusionFamily = Literal[
    "stable-diffusion-1", "stable-diffusion-2", "stable-diffusion-xl", "stable-diffusion-3", "pixart-alpha"
]


class DiffusionSpec(Denoising):
    """Small diffusion model of another design and its training; exactly one of `unet` and `transformer` is set.

    Images, captions, budget and seed are those of `pretraining`, and so is the autoencoder, which is taken as it is.
    """

    unet: SmallUNetSpec | None = None
    """Stable Diffusion 2: the checkpoint's `family` is `stable-diffusion-2`."""
    transformer: SmallTransformerSpec | None = None
    """PixArt: the checkpoint's `family` is `pixart-alpha`."""

    @property
    def family(self) -> DiffusionFamily:
        """Family of the checkpoint."""
        return "stable-diffusion-2" if self.unet else "pixart-alpha"

    @property
    def shared(self) -> set[str]:
        """Keys of `pretraining` that decide it, too; the text encoder's are of no concern to PixArt."""
        return {"dataset", "seed", "threads", "images_seen", "autoencoder", *(("text",) if self.unet else ())}

    @model_validator(mode="after")
    def _check_design(self) -> DiffusionSpec:
        if (self.unet is None) == (self.transformer is None):
            raise ValueError("a small diffusion model needs either unet or transformer")
        return self


class PretrainingSpec(Frozen):
    """Pre-training of a small Stable Diffusion; without milestones (paper scale) nothing is trained."""

    dataset: str
    """Dataset of captioned images."""
    seed: NotNegativeInt
    """Of everything random in it."""
    threads: PositiveInt
    """CPU threads; part of the spec because another number changes the last bits."""
    images_seen: PositiveInt | None = None
    """Images (with a caption each) that the U-Net sees in all: the budget that all pre-trainings of a scale share."""
    milestones: dict[Name, PositiveInt]
    """Checkpoint -> images that the U-Net has seen when it is saved; the last one is saved at `images_seen`."""
    autoencoder: AutoencoderSpec | None = None
    text: TextSpec | None = None
    denoiser: DenoiserSpec | None = None

    @model_validator(mode="after")
    def _check_networks(self) -> PretrainingSpec:
        if not self.milestones:
            return self
        if self.images_seen is None or self.autoencoder is None or self.text is None or self.denoiser is None:
            raise ValueError("pretraining with milestones needs images_seen, autoencoder, text and denoiser")
        if max(self.milestones.values()) != self.images_seen:
            last = max(self.milestones, key=lambda name: self.milestones[name])
            raise ValueError(
                f"milestone {last} is at {self.milestones[last]} images, but images_seen is {self.images_seen}"
            )
        batch = self.denoiser.batch_size
        for name, images in self.milestones.items():
            if images % batch:
                raise ValueError(
                    f"milestone {name} is at {images} images, which batches of {batch} never reach exactly"
                )
        return self


class HubWeights(Frozen):
    """Where public weights are on the Hugging Face hub."""

    repo: str | None = None
    """Repository, such as `CompVis/stable-diffusion-v1-4`."""
    revision: str | None = None
    """Its commit, tag or branch."""
    mirrors: tuple[str, ...] = ()
    """Repositories with the same files, tried in order if `repo` is gone."""


class CheckpointSpec(HubWeights):
    """One Stable Diffusion checkpoint at one scale. If an original file holds both sets, the EMA weights are used (S12)."""

    source: Literal["pretrained", "shipped", "folder", "hub", "file"]
    """Pre-trained by this scale (a milestone, or one of its `diffusion`), weights in git (`shipped` of the scale), a diffusers
    pipeline folder at `path`, the hub's `repo`, or an original `.ckpt` or `.safetensors` file at `path`, whose tokenizer comes
    from `repo` (a hub name or a folder)."""
    family: DiffusionFamily = "stable-diffusion-1"
    """Architecture that it must have; an original file is a Stable Diffusion 1."""
    path: str | None = None
    """Only `folder` and `file`."""
    recipe: dict[str, Any] = {}
    """shipped: what the weights must have been made with; vpd takes it from the scale that made them."""
    sha256: dict[str, str] = {}
    """File name -> SHA-256 that it must have, or the beginning of one."""

    @model_validator(mode="after")
    def _check_family(self) -> CheckpointSpec:
        if self.source == "file" and self.family != "stable-diffusion-1":
            raise ValueError(f"an original file cannot be a {self.family}; give a diffusers folder or a repository")
        return self


# ------------------------------------------------------------------------------------------------------------- measures
class OracleSpec(_Steps, _Batches):
    """Network that says which things of which colour an image shows, and which room."""

    scenes: PositiveInt
    """Scenes of its own that it is trained on."""
    width: Annotated[int, Field(ge=2)]
    """Channels, and features of the Fréchet distance."""


class MeasuresSpec(Frozen):
    """What is measured of each Stable Diffusion of a scale, on scenes that no dataset shows."""

    seed: NotNegativeInt = 0
    """Of everything random in it."""
    threads: PositiveInt = 1
    """CPU threads; part of the spec because another number changes the last bits."""
    sample_prompts: Annotated[tuple[str, ...], Field(min_length=1)]
    """Prompts of the pictures that the report shows, in words of the checkpoints' vocabulary."""
    sample_steps: PositiveInt = 10
    """Denoising steps of a picture, by DPM-Solver++."""
    guidance: NotNegative = 4.0
    """Scale of its classifier-free guidance."""
    scenes: Annotated[int, Field(ge=2)]
    """Scenes to measure with; a picture is drawn for a prompt of each."""
    timestep: Annotated[int, Field(ge=0, le=999)] = 1
    """Time step of the attention maps, as VPD's (S1)."""
    times: Annotated[tuple[Annotated[int, Field(ge=0, le=999)], ...], Field(min_length=1)] = (
        100,
        200,
        300,
        400,
        500,
        600,
        700,
    )
    """Time steps at which the right caption is compared with a wrong one."""
    oracle: OracleSpec


# ------------------------------------------------------------------------------------------------------------ backbones
Objective = Literal[
    "classification", "masked-image", "self-distillation", "contrast", "caption-contrast", "promptable-masks"
]


class NetworkSpec(Frozen):
    """Architecture of a backbone other than Stable Diffusion's, without weights."""

    library: Literal["timm", "transformers"]
    """Library that has it."""
    architecture: str
    """timm: name of a model, such as `swin_large_patch4_window12_384`. transformers: `sam` or `blip`."""
    options: dict[str, Any] = {}
    """Settings that differ from the architecture's own, such as a scale's small sizes."""


class LanguageSpec(Frozen):
    """Text encoder that is trained together with a backbone (LAVT's BERT)."""

    architecture: Literal["bert"]
    """Its architecture."""
    repo: str
    """Hub repository of its weights."""
    revision: str = "main"
    """Commit, tag or branch."""
    options: dict[str, Any] = {}
    """Settings that differ from the architecture's own."""


class ObjectiveSpec(_Batches):
    """Batches of a backbone's small pre-training."""

    weight_decay: NotNegative = 0.05
    """AdamW's decoupled weight decay."""
    mask_share: Annotated[float, Field(ge=0.0, le=1.0)] = 0.6
    """masked-image: share of hidden patches. (masked-language always hides 0.15 of the tokens, as BERT does.)"""
    momentum: Fraction = 0.99
    """self-distillation: momentum of the teacher's average."""


class Pretrained(Frozen):
    """A backbone's networks and how they were pre-trained."""

    objective: Objective
    """How it was pre-trained, and how a small one is pre-trained here."""
    vision: NetworkSpec
    language: LanguageSpec | None = None


class Small(Frozen):
    """What the pre-training of all backbones of a scale has in common."""

    seed: NotNegativeInt = 0
    """Of everything random in the pre-training."""
    threads: PositiveInt = 1
    """CPU threads; another number changes the last bits."""
    images_seen: PositiveInt | None = None
    """Images that every backbone sees, and texts that its language model sees: the budget of the small Stable Diffusion."""
    vocabulary: PositiveInt | None = None
    """Tokens of the text models' vocabulary."""


class BackboneSpec(HubWeights, Pretrained, Small):
    """One backbone at one scale: its line of the top-level `backbones` and what the scale's block makes of it."""

    source: Literal["pretrained", "shipped", "hub", "folder"]
    """Pre-trained by this scale on synthetic scenes, weights in git (`shipped` of the scale), public weights in `repo`, or a
    copy of that repository at `path`."""
    path: str | None = None
    """Only `folder`."""
    recipe: dict[str, Any] = {}
    """shipped: as of a checkpoint."""
    dataset: str | None = None
    """pretrained: dataset of captioned images."""
    objects: str | None = None
    """pretrained: dataset of the same images' classes and masks."""
    training: ObjectiveSpec | None = None
    language_training: ObjectiveSpec | None = None

    def steps(self, training: ObjectiveSpec) -> int:
        """Training steps until the budget of images is spent; the rest of a last batch is left out."""
        return (self.images_seen or 0) // training.batch_size

    @model_validator(mode="after")
    def _check_budget(self) -> BackboneSpec:
        for training in filter(None, (self.training, self.language_training)):
            if self.source == "pretrained" and not self.steps(training):
                raise ValueError(f"images_seen is {self.images_seen}, less than one batch of {training.batch_size}")
        return self


class ReleasedSpec(HubWeights):
    """Weights that others trained: the authors' own for one experiment, or a public depth model under its own name."""

    path: str | None = None
    """The file; of a public model also the folder of a copy of its repository. Either `path` or `repo` is set."""
    download: str | None = None
    """Name in download/sources.yaml of what puts it there."""
    model: Literal["zoedepth", "dpt-hybrid"] | None = None
    """Public depth model, run on whole images as its authors do on NYUv2."""
    experiment: str | None = None
    """With `model`: the depth experiment whose test set, crop and depth range it is measured with."""

    @model_validator(mode="after")
    def _check_origin(self) -> ReleasedSpec:
        if (self.path is None) == (self.repo is None):
            raise ValueError("released weights need either path or repo")
        if (self.model is None) != (self.experiment is None) or (self.repo and self.model is None):
            raise ValueError("a public model needs model and experiment; the authors' own weights have a path alone")
        if (self.repo and self.download) or (self.path and (self.revision or self.mirrors)):
            raise ValueError("download goes with path, revision and mirrors with repo")
        return self
