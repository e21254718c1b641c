"""What experiments cost agrees with what was measured on the authors' own code, and with what a real step does.

``parity`` marks figures measured on the released code at Stable Diffusion's real size (mmcv's own counter included).
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch.utils.flop_counter import FlopCounterMode

from families import read_parts
from fixtures.parity.narrow import make_spec, with_training, write_checkpoint
from test_docs import code, tables
from vpd.config.params import load_params
from vpd.config.schema import AttentionSpec, TransformerSpec
from vpd.models.base import LatentCache
from vpd.models.diffusion import network_class, token_width
from vpd.planning.cost import REFERENCES, all_costs, cost, forward_passes, resources, write_costs
from vpd.planning.costs import GIB, figures, paper_gflops
from vpd.planning.latents import encodings
from vpd.planning.networks import CLASSES, FORMATS, build, count, make_batch
from vpd.pretrained.stable_diffusion import FAMILIES, configs
from vpd.training.losses import loss
from vpd.training.optim import build_optimizer
from vpd.utils.errors import UserError

NAMES = {"seg": "seg-full", "refer": "refcoco-full", "refer 77": "refcocog-full", "depth": "depth-full"}
OUTPUT_LAYER = 12_164
"""Parameters of the U-Net's output layer, which the released networks carry and never use: not built here."""
POST_QUANT = 20
"""The same of the VAE's convolution before its decoder."""


@pytest.fixture(scope="module")
def params():
    return load_params("params.yaml", "paper")


@pytest.fixture(scope="module")
def costs(params):
    return {name: cost(params.resolve(experiment)) for name, experiment in NAMES.items()}


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("narrow"))


# ------------------------------------------------------------------------------------------------------------- parameters
@pytest.mark.parametrize(
    ("task", "total", "trainable", "unused"),
    [
        ("seg", 902_376_766, 868_213_082, OUTPUT_LAYER),
        ("refer", 934_043_562, 899_879_878, OUTPUT_LAYER),
        ("depth", 906_391_845, 872_228_161, 0),  # parity: the depth code deletes the output layer
    ],
)
def test_parameters_are_the_originals_without_its_unused_layers(costs, task, total, trainable, unused):
    assert costs[task].total.parameters == total - unused - POST_QUANT
    assert costs[task].total.trainable == trainable - unused


def test_parameters_by_part(costs):
    seg = {name: (part.parameters, part.trainable) for name, part in costs["seg"].parts.items()}
    assert seg == {
        "vae": (34_163_664, 0),
        "unet": (859_520_964 - OUTPUT_LAYER,) * 2,
        "adapter": (1_181_184 + 768,) * 2,
        "neck": (3_339_264,) * 2,
        "head": (4_170_902,) * 2,
    }
    assert costs["refer"].parts["head"].parameters == 39_176_962
    assert costs["depth"].parts["head"].parameters == 1_844_480 + 3_687_040 + 5_411_328 + 260_864 + 333_697


def test_only_expressions_need_the_text_encoder_in_memory(costs):
    assert costs["refer"].text_parameters == 123_060_480  # CLIP ViT-L/14's text tower
    assert costs["seg"].text_parameters == costs["depth"].text_parameters == 0


# ---------------------------------------------------------------------------------------------------------- multiply-adds
@pytest.mark.parametrize(
    ("task", "part", "expected"),
    [
        ("seg", "vae", 558.33), ("seg", "unet", 404.68), ("seg", "adapter", 0.18), ("seg", "neck", 3.87),
        ("seg", "head", 4.72), ("refer", "unet", 400.03), ("refer", "head", 54.09), ("refer 77", "unet", 401.59),
        ("refer 77", "head", 54.36), ("depth", "unet", 385.56), ("depth", "head", 3.51 + 77.70),
        ("seg", "", 971.77), ("refer", "", 1012.49), ("refer 77", "", 1014.37),
    ],
)  # fmt: skip
def test_multiply_adds_by_part(costs, task, part, expected):
    macs = costs[task].parts[part].macs if part else costs[task].total.macs
    assert macs / 1e9 == pytest.approx(expected, abs=0.011 if part else 1e-5 * expected)


def test_depth_saves_what_a_single_token_makes_superfluous(costs):
    """With one token the original still projects every pixel's query and every pixel's output; we need neither."""
    layers = [(320, 64 * 64)] * 5 + [(640, 32 * 32)] * 5 + [(1280, 16 * 16)] * 5 + [(1280, 8 * 8)]
    queries = sum(width**2 * pixels for width, pixels in layers)
    keys = sum(768 * width for width, _ in layers)
    products = sum(2 * width * pixels for width, pixels in layers)
    outputs = sum(width**2 * (pixels - 1) for width, pixels in layers)
    original = costs["depth"].total.macs + queries + keys + products + outputs
    assert original / 1e9 == pytest.approx(1037.90, rel=2e-5)


def test_the_papers_891_giga_are_reproduced(costs, params):
    """parity: mmcv's counter on the original."""
    for part, expected in {"vae": 541.97, "unet": 340.12, "adapter": 0.18, "neck": 3.87, "head": 4.73}.items():
        assert costs["seg"].parts[part].mmcv_macs / 1e9 == pytest.approx(expected, abs=0.011)
    assert costs["seg"].total.mmcv_macs / 1e9 == pytest.approx(890.86, rel=1e-4)
    assert round(costs["seg"].total.mmcv_macs / 1e9) == paper_gflops(params)["seg-full"] == 891


def test_training_is_three_forward_passes_of_what_is_trained(params, costs):
    """Against torch's own count of a forward and a backward pass, and parity's 1236.9 without the frozen encoder."""
    spec = params.resolve("seg-full")
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model, batch = build(spec, configs(), 150).train(), make_batch(spec, 1, 150)
        loss(spec.training.loss, model(batch), batch).backward()
    assert costs["seg"].training_macs == pytest.approx(counter.get_total_flops() / 2, rel=2e-3)
    trained = costs["seg"].training_macs - costs["seg"].parts["vae"].macs
    assert trained / 1e9 == pytest.approx(1236.9, rel=5e-3)


# --------------------------------------------------------------------------------------------------- other diffusion models
OUTPUT_LAYERS = {"pixart-alpha": 2 * 1152 + 36_896, "stable-diffusion-3": 4_721_664 + 98_368}
"""Parameters of the norm and projection behind a transformer's last block."""
T5 = 4_762_310_656


def with_model(spec, **changes):
    """The spec with other settings of the network; a transformer is read after all its blocks, or after ``blocks``."""
    blocks = {"transformer": TransformerSpec(blocks=changes.pop("blocks", (1.0,)))}
    return spec.model_copy(update={"model": spec.model.model_copy(update=blocks | changes)})


@pytest.mark.parametrize(("family", "network", "text"), [
    ("stable-diffusion-1", 859_520_964, 123_060_480),
    ("stable-diffusion-2", 865_910_724, 340_387_840),
    ("stable-diffusion-xl", 2_567_463_684, 123_060_480 + 694_659_840),
    ("stable-diffusion-3", 2_028_328_000, 123_650_304 + 694_659_840 + T5),
    ("pixart-alpha", 610_856_096, T5),
])  # fmt: skip
def test_sizes_of_each_family_are_the_published_ones(params, family, network, text):
    found = cost(with_model(params.resolve("refcoco-full")), configs(family))
    assert found.parts["unet"].parameters == network - OUTPUT_LAYERS.get(family, OUTPUT_LAYER)
    assert found.text_parameters == found.encoder_parameters == text
    encoded = cost(with_model(params.resolve("seg-full")), configs(family))  # prompts, and then without the encoders
    assert (encoded.text_parameters, encoded.encoder_parameters) == (0, text)
    for stage, gpus in (("evaluate", 1), ("train", 8)):
        needed = gpus * 4 * (encoded.total.parameters + text)
        assert resources(encoded, 8)[stage]["mem_mb"] * 2**20 > needed + gpus * 3072 * 2**20


@pytest.mark.parametrize("family", FAMILIES)
def test_multiply_adds_of_each_family_are_those_of_diffusers_own_forward_pass(params, family):
    given, kind = configs(family), FAMILIES[family]
    config, latents = given[kind.denoiser], torch.zeros(1, kind.latent, 64, 64, device="meta")
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        network = network_class(config).from_config(config)
        tokens, step = torch.zeros(1, 150, token_width(config)), torch.ones(1)
        added = {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}
        if kind.denoiser == "unet":
            network(latents, 1, tokens, added_cond_kwargs=added)
        elif family == "pixart-alpha":
            network(latents, tokens, step, added_cond_kwargs={"resolution": None, "aspect_ratio": None})
        else:
            network(latents, tokens, torch.zeros(1, 2048), step)
    flops, name = counter.get_flop_counts(), type(network).__name__
    output = [flops[f"{name}.{part}"] for part in ("conv_out", "norm_out", "proj_out") if f"{name}.{part}" in flops]
    whole, last = (sum(sum(kinds.values()) for kinds in one) // 2 for one in ([flops["Global"]], output))
    spec = params.resolve("seg-full")
    attention = (
        spec.model.attention if kind.denoiser == "unet" else AttentionSpec(places=(), limit=0.5, gradient="attached")
    )
    assert cost(with_model(spec, attention=attention), given).parts["unet"].macs == pytest.approx(
        whole - last, rel=1e-6
    )


def test_half_a_transformer_costs_half_and_maps_of_joint_attention_are_formed_beside_it(params):
    """Of SD3 at 512 pixels, 1,024 patches and 150 tokens of text: one more projection of each, and their product."""
    spec, given = params.resolve("seg-full"), configs("stable-diffusion-3")
    none = AttentionSpec(places=(), limit=0.5, gradient="attached")
    whole, half = (cost(with_model(spec, attention=none, blocks=(d,)), given).parts["unet"] for d in (1.0, 0.5))
    assert half.macs / whole.macs == pytest.approx(0.5, abs=0.01)
    assert half.parameters / whole.parameters == pytest.approx(0.5, abs=0.01)
    recorded = cost(with_model(spec, blocks=(0.5,)), given).parts["unet"]
    assert recorded.macs - half.macs == (1024 + 150) * 1536**2 + 1024 * 150 * 1536


@pytest.mark.slow
def test_costs_of_other_checkpoints_are_those_that_the_documentation_shows(params):
    (shown,) = (
        table for table in tables(Path("docs/paper-scale.md").read_text(encoding="utf-8")) if "checkpoint" in table[0]
    )
    assert {code(row["checkpoint"])[0] for row in shown} == {"sd-1-5", "sd-2-1", "sdxl", "pixart-xl", "sd-3-medium"}
    for row in shown:
        name, checkpoint = code(row["experiment"])[0], code(row["checkpoint"])[0]
        found = figures(all_costs(params, [name], checkpoint)[name])
        found["V100-hours"] = found.pop("GPU-hours")
        assert {column: float(row[column]) for column in found} == found


# -------------------------------------------------------------------------------------------------------------- baselines
@pytest.fixture(scope="module")
def baselines(params):
    """Parts of some baselines at real size."""
    names = ["seg-swin-l", "seg-convnext-l", "seg-convnext-xl", "seg-clip", "lavt-refcoco-full"]
    specs = [params.resolve(name) for name in names]
    return {spec.name: count(spec, params.backbone(spec.checkpoint), 150) for spec in specs}


def total(parts: dict, value: str) -> int:
    return sum(getattr(part, value) for part in parts.values())


@pytest.mark.parametrize(
    ("name", "published", "third_level"),
    [("seg-swin-l", 234e6, 768), ("seg-convnext-l", 235e6, 768), ("seg-convnext-xl", 391e6, 1024)],
)
def test_parameters_of_upernets_are_the_published_ones_without_the_auxiliary_head(
    baselines, name, published, third_level
):
    """Published in whole millions; the authors' second head, for training only, is a 3x3 convolution of the third level to
    256 channels, batch norm and a 1x1 to 150 classes."""
    auxiliary = third_level * 9 * 256 + 2 * 256 + 257 * 150
    assert total(baselines[name], "parameters") + auxiliary == pytest.approx(published, abs=0.5e6)


@pytest.mark.parametrize(("name", "printed"), [("seg-swin-l", 647), ("seg-convnext-l", 614), ("seg-convnext-xl", 834)])
def test_the_papers_gflops_of_upernets_are_reproduced(baselines, params, name, printed):
    """The paper's Table 1; ours are 646.7, 614.7 and 834.0."""
    assert paper_gflops(params)[name] == printed
    assert total(baselines[name], "mmcv_macs") / 1e9 == pytest.approx(printed, abs=1.0)


def test_parts_of_the_baselines(baselines):
    swin, lavt = baselines["seg-swin-l"], baselines["lavt-refcoco-full"]
    assert list(swin) == ["backbone", "neck", "head"]
    assert list(lavt) == ["backbone", "language", "fusion", "head"]
    assert all(part.trainable == part.parameters > 0 for parts in baselines.values() for part in parts.values())
    # Swin-L without its classifier and the norm before it; BERT-base without its pooler.
    assert swin["backbone"].parameters == 195_198_516 - 2 * 1536
    assert lavt["language"].parameters == 109_482_240 - 768 * 769
    assert swin["neck"].parameters == 2 * (192 + 384 + 768 + 1536)


@pytest.mark.parametrize("name", ["seg-clip", "lavt-refcoco-full"])
def test_all_multiply_adds_belong_to_a_part(params, baselines, name):
    """LAVT calls its backbone's stages one by one, which a counter by modules does not see as the backbone's."""
    spec = params.resolve(name)
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        build(spec, params.backbone(spec.checkpoint), 150).eval()(make_batch(spec, 1, 150))
    assert total(baselines[name], "macs") == pytest.approx(counter.get_total_flops() / 2, rel=1e-6)
    assert all(part.macs > 0 for part in baselines[name].values())


def test_layers_of_a_backbone_count_as_those_of_a_transformer(baselines):
    """ViT-B/16 at 640 pixels by hand: four projections and two layers of an MLP per block, and two products of tokens."""
    tokens, width = 40 * 40 + 1, 768
    block = tokens * (4 * width**2 + 2 * 4 * width**2) + 2 * tokens**2 * width
    patches = 40 * 40 * 3 * 16**2 * width
    assert baselines["seg-clip"]["backbone"].macs == 12 * block + patches


# ----------------------------------------------------------------------------------------------------------------- memory
@pytest.mark.parametrize(("task", "expected"), [("seg", 1.97), ("refer", 2.12), ("depth", 2.33)])
def test_activations_at_true_size(costs, task, expected):
    """Resident memory after the forward pass (docs/paper-scale.md), less the imports' 0.83 GiB and the weights."""
    found = costs[task]
    assert found.total.activations / GIB == pytest.approx(expected, rel=0.25)


def test_memory_of_weights_gradients_and_moments_is_that_of_a_real_step(narrow):
    spec, parts = make_spec("segmentation"), read_parts(narrow)
    model, batch = build(spec, parts, 150).train(), make_batch(spec, 1, 150)
    optimizer = build_optimizer(model, spec.training.optimizer)
    loss(spec.training.loss, model(batch), batch).backward()
    optimizer.step()
    weights = sum(p.nbytes for p in model.parameters())
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = sum(t.nbytes for s in optimizer.state.values() for name, t in s.items() if name.startswith("exp_avg"))
    assert cost(spec, parts).state == weights + gradients + moments


def test_memory_grows_with_the_micro_batch_only(narrow):
    spec, parts = with_training(make_spec("segmentation"), batch_size=16), read_parts(narrow)
    one, halved = cost(spec, parts), cost(with_training(spec, accumulate=2), parts)
    assert one.gpu_bytes() - halved.gpu_bytes() == 8 * (one.total.activations + one.encoder)
    assert one.gpu_bytes(2) == halved.gpu_bytes()
    checkpointed = cost(with_training(spec, gradient_checkpointing=True), parts)
    mixed = cost(with_training(spec, precision="bf16"), parts)
    assert mixed.state < checkpointed.gpu_bytes() < mixed.gpu_bytes() < one.gpu_bytes()


# -------------------------------------------------------------------------------------------------------------- GPU-hours
RELEASED = {"seg": 413.44 + 558.33, "refer": 1012.49, "depth": 1037.90}
"""parity: 10**9 multiply-adds of the released networks' forward passes."""


def test_hours_are_the_authors_for_what_their_code_computes(params, costs):
    """parity: of the U-Net, its neck and head, 1594.8 with LDM's checkpointing of residual and transformer blocks."""
    saved = RELEASED["depth"] - costs["depth"].total.macs / 1e9  # with one token; in the blocks too
    for task, more in {"seg": 0.0, "refer": 0.0, "depth": saved}.items():
        spec = params.resolve(NAMES[task])
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
            model = build(spec, configs(), CLASSES[FORMATS[spec.task]]).eval()
            model(make_batch(spec, 1, CLASSES[FORMATS[spec.task]]))
        flops = {name: sum(kinds.values()) / 2e9 for name, kinds in counter.get_flop_counts().items()}
        blocks = [n for n, m in model.unet.named_modules() if isinstance(m, ResnetBlock2D | BasicTransformerBlock)]
        repeated = sum(flops[f"VPD.unet.{name}"] for name in blocks) + more
        step = costs[task].training_macs / 1e9 + 3 * more + repeated
        if task == "seg":
            assert step - 558.33 == pytest.approx(1594.8, rel=2e-3)
        images = {"seg": 80_000 * 16, "refer": 40 * 42404, "depth": 25 * 24231}[task]
        validated = 40 * 8 * 10834 * RELEASED["refer"] if task == "refer" else 0.0
        hours, computed = REFERENCES[spec.task]
        assert hours == {"seg": 26, "refer": 83, "depth": 12}[task]
        assert computed / 1e9 == pytest.approx(images * step + validated, rel=1e-4)


def test_hours_by_hand(costs):
    """10**9 multiply-adds of a training image, and of a forward pass, at the authors' pace (above)."""
    seg, refer = costs["seg"], costs["refer"]
    assert seg.gpu_hours == pytest.approx(208 * 1798.66 / 2153.7, rel=1e-4)
    windows = 2000 * 48
    assert seg.evaluation_hours == pytest.approx(208 * windows * 971.77 / (1_280_000 * 2153.7), rel=1e-4)
    pace = 664 / (40 * (42404 * 2271.2 + 8 * 10834 * 1012.5))
    seen = 40 * 42400  # the last incomplete batch is dropped
    assert refer.gpu_hours == pytest.approx(pace * (seen * 1920.82 - refer.kept * 558.33), rel=1e-4)
    assert refer.evaluation_hours == pytest.approx(pace * (10834 * 454.16 + 1500 * 558.33), rel=1e-4)


def test_latents_that_a_gibibyte_keeps(params):
    """16,384 of 4 x 64 x 64 floats: the windows of two milestones at one scale, and a part of those at five."""
    found = all_costs(params, ["seg-sd-1-1", "seg-fast", "seg-swin-l", "refcocog-fast", "depth-fast"])
    assert {name: one.evaluation_kept for name, one in found.items()} == {
        "seg-sd-1-1": 4000, "seg-fast": 16_384, "seg-swin-l": 0, "refcocog-fast": 4896 - 1300, "depth-fast": 0
    }  # fmt: skip
    assert {name for name, one in found.items() if one.kept} == {"refcocog-fast"}
    spec = params.resolve("refcoco-full")
    sampled = spec.model_copy(update={"model": spec.model.model_copy(update={"posterior": "sample"})})
    assert (cost(sampled).kept, cost(sampled).evaluation_kept) == (0, 0)


@pytest.mark.parametrize(("space", "epochs"), [(1000, 1), (1000, 8), (700, 1), (700, 30), (0, 2)])
def test_encodings_are_those_of_real_caches(space, epochs):
    """1,000 images with two or three objects each, shared by eight processes; each latent has one float."""
    random, images = np.random.default_rng(0), 1000
    objects = np.arange(2500) % images
    caches = [LatentCache(4 * space) for _ in range(8)]
    for _ in range(epochs):
        for place, image in enumerate(random.permutation(objects)):
            caches[place % 8].get(int(image), lambda: torch.zeros(1))
    expected = 8 * encodings(2500 * epochs / 8, images, space)
    assert sum(cache.misses for cache in caches) == pytest.approx(expected, rel=0.05)


# ------------------------------------------------------------------------------------------------------ table and reserves
def test_reserves_of_a_gpu_run(params, costs):
    spec = params.resolve("seg-full")
    reserved, shared = resources(costs["seg"])["train"], resources(costs["seg"], gpus=8)["train"]
    assert reserved["cpus"] == 1 + spec.training.workers
    assert reserved["gpu_mem_mb"] * 2**20 >= costs["seg"].gpu_bytes() > (reserved["gpu_mem_mb"] - 1) * 2**20
    assert 174 * 60 < reserved["runtime"] < 1.5 * 174 * 60
    assert 22 * 60 < shared["runtime"] < 1.5 * 22 * 60
    assert shared["gpu_mem_mb"] < 32 * 1024  # two images per V100, as the authors ran it
    for found in costs.values():  # an evaluation takes less than training on one GPU
        reserved = resources(found)
        assert reserved["evaluate"]["gpu_mem_mb"] < reserved["train"]["gpu_mem_mb"]


def test_the_file_for_schedulers_has_resources_and_hours_by_stage(params, tmp_path):
    names = ["seg-full", "seg-fast", "seg-sd-1-1", "seg-fast-a64", "seg-empty", "refcocog-fast", "depth-fast"]
    write_costs(params, all_costs(params, names), tmp_path / "costs.json")
    entries = json.loads((tmp_path / "costs.json").read_text())
    assert list(entries) == names
    figures = {name: entry["figures"] for name, entry in entries.items()}
    assert figures["seg-sd-1-1"] == figures["seg-fast"] != figures["seg-fast-a64"]
    wanted = {"gpus", "gpu_mem_mb", "mem_mb", "runtime", "cpus"}
    for entry in entries.values():
        assert all(set(entry["resources"][stage]) == wanted for stage in ("train", "evaluate"))
        assert (entry["resources"]["train"]["gpus"], entry["resources"]["evaluate"]["gpus"]) == (8, 1)
        assert entry["hours"]["train"] > 0


def test_an_evaluation_passes_every_window_view_and_mirror(params):
    """Windows of 512 with stride 341 on 512 x 683, scaled by 1, 1.125, 1.25, 1.375 and 1.5: 2, 4, 6, 6 and 6 (G7, G8)."""
    assert forward_passes(params.resolve("seg-fast-a64")) == 2000 * 2 * (2 + 4 + 6 + 6 + 6)
    assert forward_passes(params.resolve("seg-sd-1-1")) == 2000 * 2
    depth = params.resolve("depth-full")
    assert forward_passes(depth) == 654 * depth.evaluation.windows * (2 if depth.evaluation.flip else 1)
    assert forward_passes(params.resolve("refcoco-full")) == 10834


def test_a_scale_that_generates_its_data_is_refused():
    with pytest.raises(UserError, match=r"scale smoke generates its data .* use --scale paper"):
        all_costs(load_params("params.yaml", "smoke"))
