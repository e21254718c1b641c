"""Every family of diffusion models: features, maps and texts are those of diffusers' own pipeline, and its networks train."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import pytest
import sentencepiece
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import T5EncoderModel

from families import read_parts, write_family
from fixtures.parity.narrow import CLASSES, attention, build, make_batch, make_spec, with_training
from vpd.config.params import Params, load_params
from vpd.config.schema import CheckpointSpec, DiffusionFamily, PromptSpec, Spec
from vpd.datasets.pictures import as_batch
from vpd.evaluation.run import predictor
from vpd.models.diffusion import FrozenEncoder, load_vae
from vpd.models.extractor import FeatureExtractor
from vpd.models.prompts import encode_prompts, imagenet_templates, project_prompts
from vpd.models.text import load_text_encoder, load_tokenizer
from vpd.planning.networks import CLASSES as CLASSES_OF
from vpd.planning.networks import FORMATS
from vpd.planning.networks import build as build_random
from vpd.pretrained.checkpoints import assemble
from vpd.pretrained.stable_diffusion import FAMILIES, configs
from vpd.training.losses import loss
from vpd.training.optim import build_optimizer, parameter_groups
from vpd.utils.errors import UserError
from vpd.utils.files import read_json
from vpd.utils.tensors import set_up_inference

TEXTS = ["A photo of a Red ball", "the left box in the dining room"]
ACCURACY = 1e-5
SD1, SD2, XL, SD3, PIXART = FAMILIES


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: write_family(name, tmp_path_factory.mktemp(name) / "pipeline") for name in FAMILIES}


@dataclass
class Case:
    """A family's folder, and its pipeline as diffusers loads it."""

    name: str
    folder: Path

    @cached_property
    def pipeline(self) -> Any:
        """The pipeline."""
        missing = {} if (self.folder / "text_encoder_3").is_dir() else {"text_encoder_3": None, "tokenizer_3": None}
        return DiffusionPipeline.from_pretrained(self.folder, **(missing if self.name == SD3 else {}))

    @property
    def projects(self) -> bool:
        """Whether the network is told a projected text."""
        return self.name in ("stable-diffusion-xl", "stable-diffusion-3")

    @property
    def network(self) -> Any:
        """The pipeline's U-Net or transformer."""
        return getattr(self.pipeline, FAMILIES[self.name].denoiser)

    def texts(self, sentences: list[str]) -> tuple[Tensor, Tensor | None]:
        """Tokens, and the projected texts or PixArt's mask if there is one, of the pipeline's own encoders."""
        options = {"prompt_2": None, "prompt_3": None} if self.name == "stable-diffusion-3" else {}
        found = self.pipeline.encode_prompt(
            sentences, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False, **options
        )
        return found[0], found[2] if self.projects else found[1] if self.name == "pixart-alpha" else None

    def run(
        self, images: Tensor, sentences: list[str], timestep: int, blocks: Sequence[int] = (1,)
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        """Hidden states of each level, and mean softmax of queries and keys of its layers, by hooks on the pipeline's network.

        A transformer's only level has those of ``blocks``, by default the second of four.
        """
        tokens, told = self.texts(sentences)
        latents = self.pipeline.vae.encode(images).latent_dist.mode()
        size = tuple(images.shape[-2:])
        if hasattr(self.pipeline, "unet"):
            return self._run_unet(latents, tokens, told, size, timestep)
        latents = latents - (self.pipeline.vae.config.shift_factor or 0)
        rows, columns = (-(-side // 2) for side in latents.shape[-2:])
        latents = F.pad(latents, (0, 2 * columns - latents.shape[-1], 0, 2 * rows - latents.shape[-2]), "replicate")
        options = {"pooled_projections": told} if self.projects else {"encoder_attention_mask": told}
        if self.name == "pixart-alpha":
            ratio = [torch.tensor([number]).expand(len(images)) for number in (*size, size[0] / size[1])]
            own = {"resolution": torch.stack(ratio[:2], 1).float(), "aspect_ratio": ratio[2][:, None].float()}
            options["added_cond_kwargs"] = own if self.network.use_additional_conditions else dict.fromkeys(own)
        states, maps = list[Tensor](), list[Tensor]()
        with recording(self.network.transformer_blocks, states, maps, None if self.projects else told):
            self.network(
                latents, encoder_hidden_states=tokens, timestep=torch.full((len(images),), timestep), **options
            )
        means = torch.cat([states[i] for i in blocks], dim=-1), torch.stack([maps[i] for i in blocks]).mean(dim=0)
        grids = [x.transpose(1, 2).unflatten(2, (rows, columns)) for x in means]
        return grids[:1], {0: grids[1]}

    def _run_unet(self, latents, tokens, projected, size, timestep) -> tuple[list[Tensor], dict[int, Tensor]]:
        unet, states, maps = self.pipeline.unet, list[Tensor](), defaultdict[int, list[Tensor]](list)
        levels, handles, queries = len(unet.up_blocks), [], dict[str, Tensor]()

        def keep(_module, _inputs, output) -> None:
            states.insert(0, output if torch.is_tensor(output) else output[0])

        def attend(module, name: str, level: int):
            def hook(_module, _inputs, keys: Tensor) -> None:
                maps[level].append(shares(queries[name], keys, module.heads))

            return hook

        for block in unet.up_blocks:
            layers = getattr(block, "attentions", block.resnets)
            handles.append(layers[-1 if block.upsamplers is None else -2].register_forward_hook(keep))
        for name, module in unet.named_modules():
            place = name.split(".")
            if place[-1] != "attn2" or place[0] == "mid_block":
                continue
            level = int(place[1]) if place[0] == "down_blocks" else levels - 1 - int(place[1])
            handles += [
                module.to_q.register_forward_hook(lambda _m, _i, out, name=name: queries.update({name: out})),
                module.to_k.register_forward_hook(attend(module, name, level)),
            ]
        added = None
        if projected is not None:
            arguments = {"dtype": projected.dtype, "text_encoder_projection_dim": projected.shape[1]}
            ids = self.pipeline._get_add_time_ids(size, (0, 0), size, **arguments)
            added = {"text_embeds": projected, "time_ids": ids.expand(len(latents), -1)}
        unet(latents, timestep, tokens, added_cond_kwargs=added)
        for handle in handles:
            handle.remove()
        sizes = [state.shape[-2:] for state in states]
        means = {level: torch.stack(one).mean(0).transpose(1, 2) for level, one in maps.items()}
        return states, {level: one.unflatten(2, tuple(sizes[level])) for level, one in means.items()}


def shares(queries: Tensor, keys: Tensor, heads: int, mask: Tensor | None = None) -> Tensor:
    """Softmax of queries and keys, the mean over heads (batch, pixels, tokens); where a ``mask`` is 0 there is none."""
    query, key = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (queries, keys))
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if mask is not None:
        scores = scores.masked_fill(mask[:, None, None] == 0, -torch.inf)
    return scores.softmax(dim=-1).mean(dim=1)


@contextlib.contextmanager
def recording(blocks, states: list[Tensor], maps: list[Tensor], mask: Tensor | None):
    """Record the hidden states of a transformer's blocks, and how the image shares its attention among the text."""
    handles, queries = [], []
    for block in blocks:
        joint = hasattr(block, "attn")
        attention = block.attn if joint else block.attn2
        norms = [norm or torch.nn.Identity() for norm in (attention.norm_q, getattr(attention, "norm_added_k", None))]

        def normed(x: Tensor, norm, heads: int) -> Tensor:
            return norm(x.unflatten(-1, (heads, -1))).flatten(2)

        def ask(_module, _inputs, out, norm=norms[0], heads=attention.heads) -> None:
            queries.append(normed(out, norm, heads))

        def answer(_module, _inputs, out, norm=norms[1], heads=attention.heads) -> None:
            maps.append(shares(queries[-1], normed(out, norm, heads), heads, mask))

        handles += [
            attention.to_q.register_forward_hook(ask),
            (attention.add_k_proj if joint else attention.to_k).register_forward_hook(answer),
            block.register_forward_hook(lambda _m, _i, out: states.append(out if torch.is_tensor(out) else out[1])),
        ]
    yield
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, folders) -> Case:
    folder = folders[request.param]
    return Case(request.param, folder)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("source", ["folder", "object"])
@pytest.mark.parametrize("size", [(64, 64), (100, 71), (48, 200)])
def test_features_and_maps_are_those_of_diffusers_own_pipeline(case, size, source):
    extractor = FeatureExtractor(case.folder if source == "folder" else case.pipeline, timestep=7)
    images = torch.rand(2, 3, *size)
    found = extractor(images, TEXTS)
    states, maps = case.run(as_batch(images), TEXTS, 7)
    assert [error(*pair) <= ACCURACY for pair in zip(found.maps, states, strict=True)] == [True] * len(states)
    recorded = [level for level, one in enumerate(found.attention) if one is not None]
    assert recorded == [level for level in sorted(maps) if extractor.unet.strides[level] >= 2]
    for level in recorded:
        assert error(found.attention[level], maps[level]) <= ACCURACY


@torch.no_grad()
def test_latents_are_those_of_the_pipelines_vae_shifted_and_multiplied(case):
    images, vae = torch.rand(2, 3, 40, 72) * 2 - 1, case.pipeline.vae
    expected = (vae.encode(images).latent_dist.mode() - (vae.config.shift_factor or 0)) * 2.0
    assert error(FrozenEncoder(load_vae(case.folder), 2.0)(images), expected) <= ACCURACY
    assert (vae.config.shift_factor == 0.0609) == (case.name == SD3)


VARIANTS = {
    "several blocks": (SD3, {}, {"blocks": [1.0, 0.25]}, [0, 3]),
    "the first block": (PIXART, {}, {"blocks": [0.1]}, [0]),
    "without T5": (SD3, {"t5": False}, {"blocks": [0.75]}, [2]),
    "normed queries and two attentions": (SD3, {"qk_norm": "rms_norm", "dual_attention_layers": [0, 1]}, {}, [1]),
    "sizes and ratios": (PIXART, {"sample_size": 128, "attention_head_dim": 36, "cross_attention_dim": 144}, {}, [1]),
}


@torch.no_grad()
@pytest.mark.parametrize("name", VARIANTS)
def test_transformers_of_every_kind_are_read_after_the_blocks_of_choice(tmp_path, name):
    family, settings, options, blocks = VARIANTS[name]
    case = Case(family, write_family(family, tmp_path / "own", **settings))
    images = torch.rand(2, 3, 72, 100)
    states, maps = case.run(as_batch(images), TEXTS, 40, blocks)
    for source in (case.folder, case.pipeline):
        extractor = FeatureExtractor(source, timestep=40, **options)
        found = extractor(images, TEXTS)
        assert error(found.maps[0], states[0]) <= ACCURACY
        assert error(found.attention[0], maps[0]) <= ACCURACY
        assert (found.strides, found.maps[0].shape[-2:]) == ([16], (5, 6))
        assert len(extractor.unet.transformer_blocks) == blocks[-1] + 1


@pytest.mark.parametrize("family", [SD3, PIXART])
def test_every_layer_of_a_transformer_that_is_kept_is_needed(folders, family):
    """Blocks after the last one that is read, and what becomes of the text in that one, are neither kept nor computed."""
    extractor, used = FeatureExtractor(folders[family], places=()), set()
    leaves = [module for module in extractor.unet.modules() if not any(module.children())]
    layers = {module for module in leaves if len(list(module.parameters()))}
    for module in layers:
        module.register_forward_hook(lambda module, *_: used.add(module))
    found = extractor(torch.rand(1, 3, 32, 32), TEXTS[0])
    assert found.attention == [None]
    assert len(extractor.unet.transformer_blocks) == 2
    assert used == layers
    found.maps[0].square().mean().backward()
    assert all(parameter.grad is not None for parameter in extractor.unet.parameters())


@pytest.mark.parametrize(("family", "options", "size", "sentence"), [
    (PIXART, {"limit": 0.25}, 32, "a transformer's have 1/2 of the latent side, more than limit=0.25; raise the limit"),
    (SD3, {"blocks": [0.0]}, 32, "blocks.*greater than 0"),
    (SD3, {"blocks": []}, 32, "blocks.*at least 1"),
    (SD3, {}, 264, "knows positions of 32x32 latents, found 34x34; use smaller images"),
])  # fmt: skip
def test_what_a_transformer_cannot_do_is_a_sentence(folders, family, options, size, sentence):
    with pytest.raises(UserError, match=sentence):
        FeatureExtractor(folders[family], **options)(torch.rand(1, 3, size, size), TEXTS[0])


@pytest.mark.parametrize("family", [SD1, SD3, PIXART])
def test_a_text_is_seen_whole_up_to_the_most_tokens_of_an_encoder(folders, family):
    """SD3's T5 has more than its CLIP; all of them add an end, and CLIP a beginning."""
    text = load_text_encoder(folders[family])
    length, tokenizer = (text.third_length, text.third_tokenizer) if family == SD3 else (text.length, text.tokenizer)
    added = len(tokenizer("").input_ids)
    per_word = len(tokenizer.tokenize("a a a")) - len(tokenizer.tokenize("a a"))
    most = (length - added) // per_word
    assert text.unseen(" ".join(["a"] * most)) == ""
    assert text.unseen(" ".join(["a"] * (most + 1))).endswith(f"of which the network sees {length}; shorten it")


def test_words_are_those_of_both_kinds_of_tokens(folders):
    """CLIP's tokens end words, T5's begin them; SD3 has both, one after the other."""
    sentence = "A photo of the Left zebra, red!"
    three, five = (load_text_encoder(folders[family], 20) for family in (SD3, PIXART))
    words = five.words(sentence)
    assert list(dict.fromkeys(words)) == ["a", "photo", "of", "the", "left", "zebra", "red", ""]
    assert len(words) == five.tokens == 20
    assert dict.fromkeys(three.words(sentence)[20:]) == dict.fromkeys(words)
    assert len(three.words(sentence)) == three.tokens == 40
    assert three.words(sentence)[:20] == load_text_encoder(folders[XL], 20).words(sentence)


@torch.no_grad()
def test_each_image_of_a_batch_is_as_alone_and_says_where_its_words_look(case):
    extractor = FeatureExtractor(case.folder)
    images = torch.rand(2, 3, 64, 96)
    both = extractor(images, TEXTS)
    for number, text in enumerate(TEXTS):
        alone = extractor(images[number], text)
        for together, one in zip(both.maps, alone.maps, strict=True):
            assert error(together[number], one[0]) <= 1e-4
    where = extractor(images, TEXTS[0]).attention_of("ball")
    assert where.shape == (2, 64, 96)
    assert (where > 0).all()


@torch.no_grad()
def test_prompts_are_the_pipelines_own_tokens_averaged_over_templates(case):
    text = load_text_encoder(case.folder)
    for templates, forms in (("single", ["a photo of a {}"]), ("imagenet-80", imagenet_templates())):
        spec = PromptSpec(strategy="class-names", templates=templates, length=text.length)
        tokens, whole = [], []
        for name in CLASSES:
            sentences = [form.format(name) for form in forms]
            states, projected = case.texts(sentences)
            ids = case.pipeline.tokenizer(sentences, padding="max_length", truncation=True, max_length=text.length)
            ends = [row.index(case.pipeline.tokenizer.eos_token_id) for row in ids.input_ids]
            tokens.append(states[range(len(ends)), ends].mean(0))
            whole.append(projected.mean(0) if case.projects else None)
        assert error(encode_prompts(spec, text, CLASSES), torch.stack(tokens)) <= ACCURACY
        found = project_prompts(spec, text, CLASSES)
        assert (found is not None) == case.projects
        if found is not None:
            assert error(found, torch.stack(whole)) <= ACCURACY


def gradients(folder: Path, checkpointing: bool) -> dict[str, Tensor]:
    torch.manual_seed(0)
    extractor = FeatureExtractor(folder, places=["down", "mid", "up"], limit=1.0, gradient_checkpointing=checkpointing)
    found = extractor.train()(torch.rand(2, 3, 64, 40), TEXTS)
    levels = [*found.maps, *(level for level in found.attention if level is not None)]
    sum(level.square().mean() for level in levels).backward()
    return {name: parameter.grad for name, parameter in extractor.unet.named_parameters()}


def test_gradients_reach_the_whole_unet_with_and_without_checkpointing(case):
    plain, checkpointed = gradients(case.folder, False), gradients(case.folder, True)
    assert all(gradient is not None and gradient.isfinite().all() for gradient in plain.values())
    assert ("add_embedding.linear_1.weight" in plain) == (case.name == "stable-diffusion-xl")
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-4, atol=1e-7)


def spec_of(task: str) -> Spec:
    return make_spec(task, attention=attention(() if task == "depth" else ("down", "up")))


@torch.inference_mode()
@pytest.mark.parametrize("task", ["segmentation", "referring", "depth"])
def test_a_network_of_each_task_predicts_nearly_the_same_in_bf16(case, task):
    spec, batch = spec_of(task), make_batch(64, 96) | {"id": ["first", "second"]}
    exact = predictor(spec, build(spec, case.folder).eval())(batch)
    model = build(spec, case.folder)
    set_up_inference(model, "cpu", "bf16")
    kernels = [m.weight for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    assert (predictor(spec, model)(batch) - exact).norm() < 0.1 * exact.norm()


@pytest.mark.parametrize("task", ["segmentation", "referring", "depth"])
def test_a_network_of_each_task_trains_a_step(case, task):
    spec = spec_of(task)
    # AdamW's first step changes every weight by the rate itself.
    spec = with_training(spec, optimizer=spec.training.optimizer.model_copy(update={"lr": 1e-4}))
    model = build(spec, case.folder).train()
    assert model.strides == ([8, 16, 32, 64][: len(model.unet.channels)] if model.neck is None else [4, 8, 16, 32])
    size = (64, 64)
    batch = make_batch(*size) | {"label": torch.randint(0, 2, (2, *size)), "depth": torch.rand(2, *size) + 1}
    optimizer, before = (
        build_optimizer(model, spec.training.optimizer),
        {name: x.clone() for name, x in model.trained_state().items()},
    )
    first = loss(spec.training.loss, model(batch), batch)
    first.backward()
    optimizer.step()
    assert loss(spec.training.loss, model(batch), batch) < first
    # With one token (depth) the queries, keys and their norms have no effect; the depth decoder starts constant.
    moved = {name.split(".")[0] for name, x in model.trained_state().items() if not torch.equal(x, before[name])}
    assert {"unet", "head"} <= moved
    other = build(spec, case.folder, seed=5)
    other.load_trained_state(model.trained_state())
    assert torch.equal(other(batch), model.eval()(batch))


def test_the_planned_network_has_the_tensors_of_the_real_one(case):
    """What ``vpd cost`` counts is what is trained."""
    for task in ("segmentation", "referring", "depth"):
        spec, real = spec_of(task), build(spec_of(task), case.folder)
        with torch.device("meta"):
            planned = build_random(spec, read_parts(case.folder), 0 if task == "referring" else len(CLASSES))
        found, wanted = (
            {name: x.shape for name, x in model.state_dict().items() if not name.startswith("text.")}
            for model in (planned, real)
        )
        assert found == wanted


# ------------------------------------------------------------------------------------------------------------ checkpoints
def made(folder: Path, family: str, tmp_path: Path) -> Path:
    spec = CheckpointSpec(source="folder", path=str(folder), family=family)
    assemble("mine", spec, tmp_path / "none", tmp_path / "out")
    return tmp_path / "out"


def test_a_folder_becomes_a_checkpoint_that_diffusers_loads(case, tmp_path):
    shutil.copytree(case.folder, tmp_path / "own")
    (tmp_path / "own/text_encoder_4").mkdir()
    out = made(tmp_path / "own", case.name, tmp_path)
    again = DiffusionPipeline.from_pretrained(out)
    assert type(again) is type(case.pipeline)
    names = [part for part in FAMILIES[case.name].components if part.startswith(("unet", "transformer", "vae", "text"))]
    counted = read_json(out / "manifest.json")["parameters"]
    assert counted == {name: getattr(case.pipeline, name).num_parameters() for name in names}
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(FAMILIES[case.name].components)


INDEX, UNET, TEXT, SCHEDULER = (
    "model_index.json",
    "unet/config.json",
    "text_encoder/config.json",
    "scheduler/scheduler_config.json",
)
DIT = "transformer/config.json"
REFUSED = {
    "1 in a line of 2": (SD2, SD1, {}, r"is a Stable Diffusion 1 U-Net .*, not one of Stable Diffusion 2 \(1024\)"),
    "1 in a line of XL": (XL, SD1, {}, "is a Stable Diffusion 1 U-Net .*, not one of Stable Diffusion XL"),
    "2 in a line of 1": (SD1, SD2, {}, "is a Stable Diffusion 2 U-Net .*, not one of Stable Diffusion 1"),
    "2 in a line of XL": (XL, SD2, {}, "is a Stable Diffusion 2 U-Net .*, not one of Stable Diffusion XL"),
    "XL in a line of 1": (SD1, XL, {}, "is a Stable Diffusion XL U-Net .*, not one of Stable Diffusion 1"),
    "XL in a line of 2": (SD2, XL, {}, "is a Stable Diffusion XL U-Net .*, not one of Stable Diffusion 2"),
    "2, inpainting": (SD2, SD2, {UNET: {"in_channels": 9}}, "takes 9 channels, but Stable Diffusion 2 takes 4; inpainting"),
    "2, depth to image": (SD2, SD2, {UNET: {"in_channels": 5}}, "takes 5 channels"),
    "XL, inpainting": (XL, XL, {UNET: {"in_channels": 9}}, "takes 9 channels, but Stable Diffusion XL takes 4"),
    "2, text of 1": (SD2, SD2, {TEXT: {"hidden_size": 32}}, "makes tokens 32 wide, but the U-Net takes 48"),
    "XL, text of 2": (XL, XL, {TEXT: {"hidden_size": 48}}, "makes tokens 96 wide, but the U-Net takes 80"),
    "XL, sizes left out": (
        XL, XL, {UNET: {"projection_class_embeddings_input_dim": 88}},
        "makes projections 48 wide, but the U-Net takes 40",
    ),
    "2, unCLIP": (SD2, SD2, {UNET: {"class_embed_type": "projection"}}, r"more than a text \(class_embed_type=projection\)"),
    "2, upscaler": (SD2, SD2, {UNET: {"num_class_embeds": 1000}}, r"more than a text \(num_class_embeds=1000\)"),
    "XL, refiner": (XL, XL, {INDEX: {"text_encoder": [None, None]}}, "lists no text_encoder; .* has .*text_encoder_2"),
    "XL, one tokenizer": (XL, XL, {INDEX: {"tokenizer_2": [None, None]}}, "lists no tokenizer_2"),
    "XL, T5": (XL, XL, {INDEX: {"text_encoder_2": ["transformers", "T5EncoderModel"]}}, "but .* a CLIPTextModelWithProjection"),
    "2, a width in words": (SD2, SD2, {TEXT: {"hidden_size": "48"}}, "own is damaged or cut off"),
    "XL, no width": (XL, XL, {"text_encoder_2/config.json": {"projection_dim": None}}, "makes projections None wide"),
    "2, other output": (SD2, SD2, {SCHEDULER: {"prediction_type": "sample"}}, "predicts 'epsilon' or 'v_prediction'"),
    "PixArt in a line of 1": (SD1, PIXART, {}, "is a PixArt transformer, not one of Stable Diffusion 1; correct `family`"),
    "PixArt in a line of 3": (SD3, PIXART, {}, "is a PixArt transformer, not one of Stable Diffusion 3"),
    "3 in a line of PixArt": (PIXART, SD3, {}, "is a Stable Diffusion 3 transformer, not one of PixArt"),
    "3 in a line of XL": (XL, SD3, {}, "is a Stable Diffusion 3 transformer, not one of Stable Diffusion XL"),
    "XL in a line of 3": (SD3, XL, {}, "is a Stable Diffusion XL U-Net, not one of Stable Diffusion 3"),
    "another transformer": (SD3, SD3, {DIT: {"_class_name": "FluxTransformer2DModel"}}, "FluxTransformer2DModel is of no family"),
    "another class, in a line of 1": (SD1, SD3, {DIT: {"_class_name": "FluxTransformer2DModel"}}, "is of no family here"),
    "PixArt, inpainting": (PIXART, PIXART, {DIT: {"in_channels": 9}}, "the transformer takes 9 channels, but PixArt takes 4"),
    "PixArt, CLIP": (PIXART, PIXART, {INDEX: {"text_encoder": ["transformers", "CLIPTextModel"]}}, "but PixArt has a T5Enc"),
    "PixArt, narrow T5": (PIXART, PIXART, {TEXT: {"d_model": 48}}, "makes tokens 48 wide, but the transformer takes 96"),
    "3, narrow T5": (SD3, SD3, {"text_encoder_3/config.json": {"d_model": 48}}, "makes tokens 80 wide, but .* takes 96"),
    "3, other projections": (SD3, SD3, {DIT: {"pooled_projection_dim": 90}}, "makes projections 80 wide, but .* takes 90"),
    "3, half of T5": (SD3, SD3, {INDEX: {"tokenizer_3": [None, None]}}, "lists no tokenizer_3"),
    "3, T5 not listed": (
        SD3, SD3, {INDEX: {"tokenizer_3": [None, None], "text_encoder_3": [None, None]}},
        "leaves text_encoder_3 out, but there is a folder text_encoder_3/; remove it",
    ),
    "3, latents of 1": (SD3, SD3, {"vae/config.json": {"latent_channels": 4}}, "makes 4 channels, but the transformer takes 16"),
    "3, noise": (SD3, SD3, {SCHEDULER: {"prediction_type": "epsilon"}}, "'epsilon', but .* 3 predicts 'flow_prediction'"),
    "16 latent channels": (SD2, SD2, {"vae/config.json": {"latent_channels": 16}}, "the VAE makes 16 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_line_does_not_say_is_refused_in_a_sentence(folders, tmp_path, name):
    family, own, changes, sentence = REFUSED[name]
    folder = shutil.copytree(folders[own], tmp_path / "own")
    for file, values in changes.items():
        (folder / file).write_text(json.dumps(read_json(folder / file) | values))
    with pytest.raises(UserError, match=sentence) as caught:
        made(folder, family, tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", [SD3, PIXART])
def test_large_weights_may_be_in_parts(folders, tmp_path, family):
    folder, part = (
        shutil.copytree(folders[family], tmp_path / "own"),
        "text_encoder_3" if family == SD3 else "text_encoder",
    )
    whole = made(folder, family, tmp_path)
    (folder / part / "model.safetensors").unlink()
    T5EncoderModel.from_pretrained(whole / part).save_pretrained(folder / part, max_shard_size="100KB")
    shards = sorted(path.name for path in (folder / part).glob("model-*.safetensors"))
    assert len(shards) > 1
    shutil.move(whole, tmp_path / "whole")
    parts = made(folder, family, tmp_path)
    assert read_json(parts / "manifest.json")["parameters"] == read_json(tmp_path / "whole/manifest.json")["parameters"]
    assert set(shards) <= {path.name for path in (parts / part).iterdir()}
    tokens = [load_text_encoder(one, 12)(TEXTS) for one in (parts, tmp_path / "whole")]
    assert torch.equal(*tokens)
    (folder / part / shards[-1]).unlink()
    shutil.rmtree(parts)
    with pytest.raises(UserError, match=f"{part} lacks {shards[-1]}, which model.safetensors.index.json lists; fetch"):
        made(folder, family, tmp_path)


def test_pixart_is_known_as_it_was_published(folders, tmp_path):
    """Under an older class, and with the null caption of its training."""
    folder = shutil.copytree(folders[PIXART], tmp_path / "own")
    for file, values in (
        (INDEX, {"transformer": ["diffusers", "Transformer2DModel"], "tokenizer": ["transformers", "T5TokenizerFast"]}),
        (DIT, {"_class_name": "Transformer2DModel", "double_self_attention": False, "num_vector_embeds": None}),
    ):
        (folder / file).write_text(json.dumps(read_json(folder / file) | values))
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    extra = {"caption_projection.y_embedding": torch.zeros(120, 96)}
    save_file(load_file(weights) | extra, weights, metadata={"format": "pt"})
    made(folder, PIXART, tmp_path)
    images = torch.rand(1, 3, 32, 32)
    one, other = (FeatureExtractor(source)(images, TEXTS[0]) for source in (tmp_path / "out", folders[PIXART]))
    assert torch.equal(one.maps[0], other.maps[0])


def test_pixarts_vocabulary_of_sentencepiece_is_read_as_that_reads_it(tmp_path):
    sentences = ["a photo of a red ball", "a kitchen with a table", "the green plant by the wall"]
    numbers = {"vocab_size": 31, "pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1, "minloglevel": 2}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20), model_prefix=str(tmp_path / "spiece"), **numbers
    )
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "T5Tokenizer", "extra_ids": 0}')
    tokens = sentencepiece.SentencePieceProcessor(str(tmp_path / "spiece.model")).encode("a red plant")
    assert load_tokenizer(tmp_path, "T5Tokenizer")("a red plant").input_ids == [*tokens, 1]


@pytest.mark.parametrize("damage", ["missing", "other weights", "other words"])
def test_the_second_text_encoder_is_checked_as_the_first(folders, tmp_path, damage):
    folder = shutil.copytree(folders[XL], tmp_path / "own")
    if damage == "missing":
        (folder / "text_encoder_2/model.safetensors").unlink()
    elif damage == "other weights":
        shutil.copy(folder / "text_encoder/model.safetensors", folder / "text_encoder_2/model.safetensors")
    else:
        path = folder / "tokenizer_2/tokenizer.json"
        text = read_json(path)
        vocabulary = text["model"]["vocab"]
        vocabulary["red</w>"], vocabulary["left</w>"] = vocabulary["left</w>"], vocabulary["red</w>"]
        path.write_text(json.dumps(text))
    sentence = {
        "missing": "text_encoder_2 has no weights where model.safetensors is needed",
        "other weights": "the text_encoder_2 is not as its config.json describes it",
        "other words": "the two tokenizers number words differently",
    }[damage]
    with pytest.raises(UserError, match=sentence):
        FeatureExtractor(folder) if damage == "other words" else made(folder, XL, tmp_path)


# ------------------------------------------------------------------------------------------------------------- params.yaml
def test_a_line_may_name_every_family():
    assert get_args(DiffusionFamily) == tuple(FAMILIES)


def test_an_original_file_of_another_family_is_refused():
    with pytest.raises(ValueError, match="an original file cannot be a stable-diffusion-2"):
        CheckpointSpec(source="file", path="sd2.ckpt", repo="a/b", family=SD2)


def test_lines_of_the_hub_that_no_experiment_uses_are_known_but_made_by_no_workflow():
    params = load_params("params.yaml", "paper")
    lines = {name: params.checkpoint(name).family for name in ("sd-1-5", "sd-2-1", "sdxl")}
    assert lines == {"sd-1-5": SD1, "sd-2-1": SD2, "sdxl": XL}
    assert set(params.checkpoints) == {spec.checkpoint for spec in params.experiments.values()} & set(
        params.block.checkpoints
    )
    assert "sdxl" not in params.checkpoints
    experiments = params.experiments | {
        "mine": params.experiments["seg-full"].model_copy(update={"checkpoint": "sdxl"})
    }
    more = Params(params.document.model_copy(update={"experiments": experiments}), params.source)
    assert set(more.checkpoints) - set(params.checkpoints) == {"sdxl"}
    assert more.resolve("mine").checkpoint == "sdxl"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["seg-full", "refcoco-full", "depth-full"])
def test_the_papers_settings_hold_for_every_family(family, name):
    """Rules match some of each U-Net's parameters; one that matches none, as transformers have no such norms, is an error."""
    spec = load_params("params.yaml", "paper").resolve(name)
    with torch.device("meta"):
        network = build_random(spec, configs(family), CLASSES_OF[FORMATS[spec.task]])
    optimizer = spec.training.optimizer
    if FAMILIES[family].denoiser == "transformer" and name != "depth-full":
        with pytest.raises(UserError, match="decides no parameter"):
            parameter_groups(network, optimizer)
        rules = optimizer.model_dump() | {"lr_rules": [{"match": r"^unet\.", "multiplier": 0.1}], "decay_rules": []}
        optimizer = type(optimizer).model_validate(rules)
    assert all(group["params"] for group in parameter_groups(network, optimizer))
