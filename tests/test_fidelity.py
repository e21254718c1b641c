"""Every id of docs/fidelity.md has a setting that does what its row says, or a sentence.

Here are the ids of all tasks (S); the modules imported below have the others. Specs are those of params.yaml at paper scale.
"""

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from safetensors.torch import load_file
from torch import nn

import test_fidelity_depth  # noqa: F401  (these add to EFFECTS)
import test_fidelity_segmentation  # noqa: F401
import test_fidelity_training  # noqa: F401
from fidelity_fakes import EFFECTS, checkpoint_of_factor_8, experiment, params, shows
from fixtures.parity.narrow import CLASSES, build, make_batch
from test_docs import KEY, code, fidelity_rows
from test_prompts import reference
from training_fakes import MADE_FROM, Samples, network, tiny_spec
from vpd.evaluation.inference import segment
from vpd.models import build_model
from vpd.models.diffusion import FeatureUNet, FrozenEncoder
from vpd.training.loop import fit
from vpd.training.optim import build_optimizer

FIXED = {
    "S4": "Features are taken where the released code takes them, which test_models.py compares with diffusers' forward.",
    "S9": "The paper's VQGAN is the checkpoint's AutoencoderKL, as in the released code; there is nothing to choose.",
    "R10": "The released test script cannot run, so that evaluation is this project's own.",
    "R13": "Overlaps of one object's polygons are background, as in the released code; test_readers.py shows it.",
    "D8": "The released settings for drop path and layer decay have no effect, so that none exist here.",
    "D13": "One process evaluates, and each image counts once.",
    "D19": "KITTI has no released reader and is out of scope.",
    "U1": "A time step is a level of noise in every family; test_families.py compares the features at the same step.",
    "U2": "Texts are encoded by the pipeline's own encoders; test_families.py compares them with diffusers' pipeline.",
    "U3": "The size is the input's; test_families.py compares the features with those of diffusers' pipeline.",
    "U4": "Levels are those of the U-Net; test_families.py trains each head on each family.",
    "U5": "Hidden states and maps behind each choice of blocks are those of diffusers' pipeline in test_families.py.",
    "U6": "The number is told as it is; test_families.py compares the features at several.",
    "U7": "Tokens, masks and maps are those of diffusers' pipeline in test_families.py.",
    "U8": "test_families.py compares latents and features with those that diffusers' VAE gives, shift and all.",
    "U9": "test_small_families.py compares what the models are shown, what they predict and the parts that they share.",
}
SMALL_HEAD = {"model.head.channels": 16}
SMALL_CANVAS = {"model.canvas": 64}


# ------------------------------------------------------------------------------------------------------------- coverage
def test_every_id_has_an_effect_or_a_sentence_and_none_has_both():
    assert sorted([*EFFECTS, *FIXED]) == sorted(fidelity_rows())


def test_every_setting_that_a_row_names_is_shown_to_have_its_effect():
    named = {
        (name, key[0])
        for name, row in fidelity_rows().items()
        for span in code(row["here"])
        if (key := KEY.match(span))
    }
    shown = {(name, key) for name, keys in EFFECTS.items() for key in keys}
    assert len(named) > 70
    assert sorted(named - shown) == []


@pytest.mark.parametrize("key", ["model.drop_path", "training.optimizer.layer_decay", "data.kitti"])
def test_settings_that_a_sentence_denies_do_not_exist(key):
    """D8, D19."""
    with pytest.raises(Exception, match=f"{key} is not a known key"):
        experiment("depth-full", {key: 0.5})


# --------------------------------------------------------------------------------------------------------------- tools
@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return checkpoint_of_factor_8(tmp_path_factory.mktemp("checkpoint"))


def measured(model, spec):
    """Each trained parameter's rate and decay, from how far real steps of the optimizer move ones and zeros."""
    moved = {}
    for start in (0.0, 1.0):
        optimizer = build_optimizer(model.double(), spec.training.optimizer)
        for value in model.parameters():
            nn.init.constant_(value, start)
            value.grad = torch.ones_like(value) if value.requires_grad else None
        optimizer.step()
        moved[start] = {n: start - v.flatten()[0].item() for n, v in model.named_parameters() if v.requires_grad}
    return {name: (rate, moved[1.0][name] / rate - 1) for name, rate in moved[0.0].items()}


def kinds(model):
    """Name -> norm (of the U-Net's transformers, which the released rules single out), unet or rest."""
    found = {n: "unet" if n.startswith("unet.") else "rest" for n, v in model.named_parameters() if v.requires_grad}
    for outer, transformer in model.named_modules():
        if isinstance(transformer, Transformer2DModel):
            norms = [n for n, m in transformer.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)]
            found |= {f"{outer}.{norm}.{part}": "norm" for norm in norms for part in ("weight", "bias")}
    return found


# -------------------------------------------------------------------------------------------------------- rates, decays
OPTIMIZERS = {
    # experiment, protocol, changes -> kind: rate, decay of matrices, decay of vectors
    "segmentation": ("seg-full", "official", {}, {
        "norm": (8e-5, 0, 0), "unet": (8e-6, 1e-3, 1e-3), "rest": (8e-5, 1e-3, 1e-3)}),
    "segmentation, paper": ("seg-full", "paper", {}, {
        "norm": (8e-6, 1e-3, 1e-3), "unet": (8e-6, 1e-3, 1e-3), "rest": (8e-5, 1e-3, 1e-3)}),
    "referring": ("refcoco-full", "official", SMALL_HEAD, {
        "norm": (5e-5, 0, 0), "unet": (5e-5, 1e-2, 1e-2), "rest": (5e-5, 1e-2, 1e-2)}),
    "referring, paper": ("refcoco-full", "paper", SMALL_HEAD, {
        "norm": (5e-6, 1e-2, 1e-2), "unet": (5e-6, 1e-2, 1e-2), "rest": (5e-5, 1e-2, 1e-2)}),
    "depth": ("depth-full", "official", SMALL_HEAD, {
        "norm": (5e-6, 0.1, 0), "unet": (5e-6, 0.1, 0), "rest": (5e-4, 0.1, 0)}),
    "depth, paper": ("depth-full", "paper", SMALL_HEAD, {
        "norm": (5e-5, 0.1, 0), "unet": (5e-5, 0.1, 0), "rest": (5e-4, 0.1, 0)}),
    "TADP's decay": ("seg-full", "official", {"training.optimizer.weight_decay": 5e-3}, {
        "norm": (8e-5, 0, 0), "unet": (8e-6, 5e-3, 5e-3), "rest": (8e-5, 5e-3, 5e-3)}),
    "vectors decayed": ("depth-full", "official", SMALL_HEAD | {"training.optimizer.decay_vectors": True}, {
        "norm": (5e-6, 0.1, 0.1), "unet": (5e-6, 0.1, 0.1), "rest": (5e-4, 0.1, 0.1)}),
    "other rules": ("refcoco-full", "official", SMALL_HEAD | {
        "training.optimizer.lr": 1e-4,
        "training.optimizer.lr_rules": [{"match": r"^(adapter|head)\.", "multiplier": 3}],
        "training.optimizer.decay_rules": [{"match": r"^unet\.", "weight_decay": 0.2}],
    }, {"norm": (1e-4, 0.2, 0.2), "unet": (1e-4, 0.2, 0.2), "rest": (3e-4, 1e-2, 1e-2)}),
}  # fmt: skip


@shows(
    S3="training.optimizer.lr_rules",
    G1="training.optimizer.weight_decay",
    G2="training.optimizer.lr_rules training.optimizer.decay_rules",
    R1="training.optimizer.lr_rules training.optimizer.decay_rules",
    R5="training.optimizer.lr training.optimizer.weight_decay",
    D6="training.optimizer.lr",
    D7="training.optimizer.weight_decay training.optimizer.decay_vectors",
)
@pytest.mark.parametrize("case", OPTIMIZERS)
def test_a_step_of_the_optimizer_moves_each_parameter_by_its_rate_and_decay(checkpoint, case):
    name, protocol, changes, expected = OPTIMIZERS[case]
    spec = experiment(name, changes, protocol=protocol)
    model = build(spec, checkpoint)
    found, kind = measured(model, spec), kinds(model)
    assert found.keys() == kind.keys()
    assert set(kind.values()) == set(expected)
    for parameter, (rate, decay) in found.items():
        base, matrices, vectors = expected[kind[parameter]]
        assert rate == pytest.approx(base, rel=1e-6), parameter
        is_vector = model.get_parameter(parameter).ndim == 1
        assert decay == pytest.approx(vectors if is_vector else matrices, rel=1e-5, abs=1e-7), parameter


# ------------------------------------------------------------------------------------------------------ latents and time
@shows(S1="model.timestep")
@pytest.mark.parametrize("name", ["seg-full", "refcoco-full", "depth-full"])
def test_the_unet_is_told_step_1_and_under_paper_step_0(checkpoint, name):
    features = []
    for protocol, step in (("official", 1), ("paper", 0)):
        changes = SMALL_HEAD | (SMALL_CANVAS if name == "depth-full" else {}) | {"model.attention.places": []}
        model, seen = build(experiment(name, changes, protocol=protocol), checkpoint), []
        model.unet.time_embedding.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(given[0]))
        features.append(model.features(make_batch()).maps[0])
        angles = step * 10_000 ** (-torch.arange(8) / 8)
        torch.testing.assert_close(seen[0], torch.cat([angles.cos(), angles.sin()]).expand(2, -1))
    assert (features[0] - features[1]).norm() > 1e-5 * features[0].norm()


@shows(S2="model.latent_scale")
def test_scaled_latents_are_exactly_the_scale_times_the_others(checkpoint):
    image = make_batch()["image"]
    plain, scaled = (
        build(experiment("seg-fast", change), checkpoint).vae(image) for change in ({}, {"model.latent_scale": 0.18215})
    )
    with torch.no_grad():
        mode = AutoencoderKL.from_pretrained(checkpoint / "vae").encode(image).latent_dist.mode()
    torch.testing.assert_close(plain, mode)
    assert torch.equal(scaled, plain * 0.18215)


@shows(S2="model.posterior")
def test_sampled_latents_have_the_mean_and_deviation_of_the_posterior(checkpoint):
    vae, draws = AutoencoderKL.from_pretrained(checkpoint / "vae"), 3000
    image = make_batch(16, 16)["image"][:1]
    spec = experiment("seg-fast", {"model.posterior": "sample", "model.latent_scale": 2.0})
    encoder = FrozenEncoder(vae, spec.model.latent_scale, spec.model.posterior)
    found = encoder(image.expand(draws, -1, -1, -1))
    with torch.no_grad():
        posterior = vae.encode(image).latent_dist
    deviation = 2 * posterior.std[0]
    assert ((found.mean(0) - 2 * posterior.mean[0]).abs() < 5 * deviation / draws**0.5).all()
    torch.testing.assert_close(found.std(0), deviation, rtol=0.08, atol=0.0)


@shows(S2="model.posterior")
def test_the_mode_is_kept_and_a_sample_is_drawn_anew(checkpoint):
    batch = make_batch() | {"key": ["a", "b"]}
    for posterior, same in (("mode", True), ("sample", False)):
        model = build(experiment("seg-fast", {"model.posterior": posterior}), checkpoint)
        assert torch.equal(model(batch), model(batch)) == same


@shows(S12="checkpoint")
def test_the_unet_is_the_standard_file_of_the_experiments_checkpoint(tmp_path):
    """The file without EMA that may lie beside it is not read."""
    for release in ("1-1", "1-5"):
        source = params().checkpoint(experiment({"1-1": "seg-sd-1-1", "1-5": "seg-fast"}[release]).checkpoint)
        assert f"v{release}" in f"{source.path} {source.repo}"
    folder, other = checkpoint_of_factor_8(tmp_path / "one"), checkpoint_of_factor_8(tmp_path / "two", seed=2)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    (other / "unet" / file.name).rename(folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    state = build(experiment("seg-full"), folder).trained_state()
    expected = {f"unet.{name}": value for name, value in load_file(file).items() if not name.startswith("conv_")}
    assert len(expected) > 100
    assert all(torch.equal(state[name], value) for name, value in expected.items())


# ------------------------------------------------------------------------------------------------------------- attention
@shows(S6="model.attention.places model.attention.limit")
@pytest.mark.parametrize(("name", "changes", "sides"), [
    ("seg-fast", {}, [32, 16]), ("seg-fast-a64", {}, [64, 32, 16]), ("refcoco-full", {}, [32, 16]),
    ("seg-fast", {"model.attention.limit": 0.25}, [16]), ("seg-adapter", {}, []),
    ("seg-down", {"model.attention.limit": 1.0}, [64, 32, 16]),
])  # fmt: skip
def test_maps_of_these_sides_are_recorded_for_512_pixels(checkpoint, name, changes, sides):
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    features = FeatureUNet(unet, experiment(name, changes).model.attention)
    _, maps = features(torch.randn(1, 4, 512 // 8, 512 // 8), 1, torch.randn(1, 5, 32))
    assert [found.shape[1:] for found in maps if found is not None] == [(5, side, side) for side in sides]


@shows(S6="model.attention.places")
@pytest.mark.parametrize(("name", "layers"), [("seg-down", 1), ("seg-up", 2), ("seg-fast", 3)])
def test_a_map_is_the_mean_over_heads_after_the_softmax_and_over_the_layers_of_its_places(checkpoint, name, layers):
    unet = UNet2DConditionModel.from_pretrained(checkpoint / "unet")
    spec, latents, context = experiment(name).model.attention, torch.randn(1, 4, 16, 16), torch.randn(1, 5, 32)
    features, maps = FeatureUNet(unet, spec), []

    def by_hand(layer, given):
        for head in range(4):
            rows = slice(head * 8, head * 8 + 8)
            query, key = given[0] @ layer.to_q.weight[rows].T, context @ layer.to_k.weight[rows].T
            maps.append((query @ key.transpose(1, 2) / 8**0.5).softmax(-1))

    blocks = {"down": unet.down_blocks[1], "up": unet.up_blocks[2]}
    for place in spec.places:
        for attention in blocks[place].attentions:
            attention.transformer_blocks[0].attn2.register_forward_pre_hook(by_hand)
    with torch.no_grad():
        found = features(latents, 1, context)[1][1]
    assert len(maps) == 4 * layers
    torch.testing.assert_close(found, torch.stack(maps).mean(0).transpose(1, 2).reshape(1, 5, 8, 8))


@shows(S7="model.attention.places")
def test_middle_maps_widen_the_coarsest_level_only(checkpoint):
    widths = {}
    for name in ("seg-adapter", "seg-mid"):
        widths[name] = [x.shape[1] for x in build(experiment(name), checkpoint).features(make_batch()).maps]
    assert widths == {"seg-adapter": [16, 32, 64, 64], "seg-mid": [16, 32, 64, 64 + len(CLASSES)]}


@shows(S14="model.attention.gradient")
def test_attached_maps_have_the_true_gradient_and_detached_ones_none(checkpoint):
    """By a difference quotient: attached is the derivative of the loss; detached misses what flows through maps."""
    batch = {"image": make_batch()["image"].double()}
    direction = torch.randn(32, 32, dtype=torch.double)
    found = {}
    for gradient in ("detached", "attached"):
        model = build(experiment("seg-fast", {"model.attention.gradient": gradient}), checkpoint).double()
        weight = model.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_q.weight

        def losses(model=model):
            """What a head reads from the U-Net's channels, and from the recorded maps."""
            features = model.features(batch)
            maps = [x for x in features.attention if x is not None]
            whole = [x[:, : x.shape[1] - len(CLASSES) * (0 < i < 3)] for i, x in enumerate(features.maps)]
            return sum(x.square().mean() for x in whole), 1e3 * sum((x**3).mean() for x in maps)

        channels, maps = losses()
        found[gradient] = (torch.autograd.grad(channels + maps, weight, retain_graph=True)[0] * direction).sum()
        alone = (torch.autograd.grad(channels, weight)[0] * direction).sum()
    with torch.no_grad():
        weight.add_(1e-4 * direction)
        above = sum(losses())
        weight.sub_(2e-4 * direction)
        below = sum(losses())
    torch.testing.assert_close(found["attached"], (above - below) / 2e-4, rtol=1e-4, atol=0.0)
    torch.testing.assert_close(found["detached"], alone)
    assert abs(found["attached"] - found["detached"]) > 0.01 * abs(found["attached"])


# --------------------------------------------------------------------------------------------------------------- prompts
PROMPTS = {
    # experiment, changes -> sentences, length, whether only [EOS] is kept
    "class names": ("seg-prompt", {}, [f"a photo of a {name}" for name in CLASSES], 77, True),
    "empty": ("seg-empty", {}, [""], 77, True),
    "empty, all tokens": ("seg-empty", {"model.prompt.strategy": "empty-sequence"}, [""], 77, False),
    "expression": ("refcoco-full", {}, ["red ball"], 40, False),
    "expression of RefCOCOg": ("refcocog-full", {}, ["red ball"], 77, False),
    "expression, pooled": ("refcocog-full", {"model.prompt.strategy": "expression-pooled"}, ["red ball"], 77, True),
    "scene": ("depth-full", {"model.prompt.templates": "single"}, ["a photo of a box"], 20, True),
}


@shows(
    S5="model.prompt.strategy",
    S8="model.prompt.strategy",
    R4="model.prompt.strategy model.prompt.length",
    S11="model.adapter.enabled",
)
@pytest.mark.parametrize("case", PROMPTS)
def test_the_unet_attends_to_these_tokens_of_clip(checkpoint, case):
    name, changes, sentences, length, pooled = PROMPTS[case]
    spec = experiment(name, SMALL_HEAD | {"model.adapter.enabled": False} | changes)
    with torch.no_grad():
        found = build(spec, checkpoint).context({key: value[:1] for key, value in make_batch().items()})
    expected = reference(checkpoint, sentences, length)
    torch.testing.assert_close(found, expected.pooler_output[None] if pooled else expected.last_hidden_state)


@shows(S8="model.prompt.strategy", R4="model.prompt.strategy model.prompt.length")
@pytest.mark.parametrize(("name", "strategy", "tokens"), [
    ("seg-empty", "empty", 1), ("seg-empty", "empty-sequence", 77), ("refcoco-full", "expression", 40),
    ("refcoco-plus-full", "expression", 40), ("refcocog-full", "expression", 77),
    ("refcocog-full", "expression-pooled", 1),
])  # fmt: skip
def test_there_is_one_map_per_token(checkpoint, name, strategy, tokens):
    changes = SMALL_HEAD | {"model.attention.places": ["down", "up"], "model.prompt.strategy": strategy}
    features = build(experiment(name, changes), checkpoint).features(make_batch())
    assert [x.shape[1] for x in features.attention if x is not None] == [tokens, tokens]
    assert [x.shape[1] for x in features.maps] == [16, 32 + tokens, 64 + tokens, 64]


@shows(S11="model.adapter.gamma model.adapter.factor model.adapter.enabled")
def test_the_adapter_adds_gamma_times_a_perceptron(checkpoint):
    batch, gradients = make_batch(), {}
    for factor, numbers in (("vector", 32), ("scalar", 1)):
        model = build(experiment("seg-fast", {"model.adapter.factor": factor}), checkpoint)
        assert torch.equal(model.adapter.gamma, torch.full((numbers,), 1e-4))
        model.context(batch).square().sum().backward()
        gradients[factor] = model.adapter.gamma.grad
    torch.testing.assert_close(gradients["scalar"][0], gradients["vector"].sum(), rtol=1e-4, atol=1e-4)
    plain, one = (
        build(experiment("seg-fast", change), checkpoint).context(batch)
        for change in ({"model.adapter.enabled": False}, {"model.adapter.gamma": 1.0})
    )
    torch.testing.assert_close(one - plain, model.adapter.fc(plain), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- seeds and sizes
@shows(S10="seeds")
def test_a_seed_decides_a_run(tmp_path):
    assert experiment("seg-fast", scale="mini").seeds == params(scale="mini").block.seeds["ablations"] == (0,)
    runs = []
    for number, seed in enumerate((0, 0, 1)):
        out = tmp_path / str(number)
        fit(network(), Samples(), tiny_spec(steps=4), seed, out, tmp_path / "state", MADE_FROM)
        runs.append(load_file(out / "final.safetensors"))
    first, again, other = runs
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["unet.weight"], other["unet.weight"])


@shows(S13="evaluation.crop")
@pytest.mark.parametrize("crop", [512, 640])
def test_short_images_are_padded_with_mid_grey_to_the_window(crop):
    """An image of 2100x500 becomes 2048x488."""
    settings = experiment("seg-fast", {"evaluation.crop": crop, "evaluation.multi_scale": False}).evaluation
    image, seen = torch.full((3, 500, 2100), 200, dtype=torch.uint8), []

    def predict(batch):
        seen.extend(batch["image"])
        return batch["image"][:, :2, ::8, ::8]

    ((_, labels),) = segment(predict, [{"id": "long", "image": image}], settings)
    assert {tuple(x.shape) for x in seen} == {(3, crop, crop)}
    assert all((x[:, :488] == (200 - 127.5) / 127.5).all() and not x[:, 488:].any() for x in seen)
    assert labels["ss"].shape == (500, 2100)


@shows(S13="model.canvas")
@pytest.mark.parametrize("size", [(64, 64), (96, 128)])
def test_without_a_canvas_images_have_any_size(checkpoint, size):
    output = build_model(experiment("seg-fast"), checkpoint, CLASSES)(make_batch(*size))
    assert output.shape[-2:] == (size[0] // 8, size[1] // 8)
