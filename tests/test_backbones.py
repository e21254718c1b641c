"""Backbones keep one contract for every architecture and size; their maps are those of the libraries' own forwards."""

import copy
import shutil
from functools import cache

import pytest
import timm
import torch
from timm.layers import resize_rel_pos_bias_table
from torch import Tensor, nn
from transformers import SwinConfig
from transformers.models.swin.modeling_swin import SwinLayer

from vpd.config.schema import TASKS, NetworkSpec
from vpd.models.backbones import Backbone, build_backbone, load_backbone, save_backbone
from vpd.models.backbones.any_size import bias_for
from vpd.models.baseline import Baseline, build_baseline
from vpd.models.necks import STRIDES, LevelNorms, SimplePyramid
from vpd.utils.errors import UserError
from vpd.utils.tensors import set_up_inference

SWIN = {
    "img_size": 64, "patch_size": 4, "window_size": 4,
    "embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8],
}  # fmt: skip
VIT = {"img_size": 64, "patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 4}
BLIP = {
    "image_size": 64, "patch_size": 8, "hidden_size": 96,
    "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4,
}  # fmt: skip
SAM = {
    "image_size": 64, "patch_size": 8, "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "window_size": 4, "global_attn_indexes": [1, 3], "output_channels": 64,
}  # fmt: skip
SPECS = {
    "swin": ("timm", "swin_large_patch4_window12_384", SWIN),
    "swinv2": ("timm", "swinv2_large_window12_192", SWIN),
    "convnext": ("timm", "convnext_xlarge", {"dims": [32, 64, 128, 256], "depths": [2, 2, 4, 2]}),
    "mae": ("timm", "vit_large_patch16_224", VIT | {"pretrained_cfg": "mae"}),
    "dino": ("timm", "vit_base_patch8_224.dino", VIT),
    "clip": ("timm", "vit_base_patch16_clip_quickgelu_224", VIT),
    "dinov2": ("timm", "vit_base_patch14_reg4_dinov2", VIT | {"img_size": 70, "patch_size": 14}),
    "beit": ("timm", "beit_base_patch16_224", VIT | {"use_shared_rel_pos_bias": True, "use_abs_pos_emb": True}),
    "beitv2": ("timm", "beitv2_large_patch16_224", VIT),
    "sam": ("transformers", "sam", SAM),
    "blip": ("transformers", "blip", BLIP),
}
HIERARCHICAL = ("swin", "swinv2", "convnext")
SIZES = [(64, 64), (88, 64), (65, 83), (20, 130)]
NAMES = pytest.mark.parametrize("name", SPECS)


def network_spec(name: str, **options) -> NetworkSpec:
    library, architecture, own = SPECS[name]
    return NetworkSpec(library=library, architecture=architecture, options=own | options)


def build(name: str, *, seed: int = 0, **settings) -> Backbone:
    torch.manual_seed(seed)
    return shaken(build_backbone(network_spec(name), **settings))


def shaken(backbone: Backbone) -> Backbone:
    """Away from what is zero, one or tiny at first (biases, norms, layer scales), where faults would not show."""
    with torch.no_grad():
        for parameter in backbone.network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return backbone


@cache
def evaluated(name: str) -> Backbone:
    """One network for the tests that do not change it."""
    return build(name).eval()


def images(*size: int, batch: int = 2, seed: int = 1) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def normalised(backbone: Backbone, pictures: Tensor) -> Tensor:
    return (pictures * 0.5 + 0.5 - backbone.mean) / backbone.std


def grids(size: tuple[int, int], strides: list[int]) -> list[tuple[int, int]]:
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------- for every architecture
@NAMES
@torch.no_grad()
def test_maps_have_the_announced_channels_and_strides_at_any_size(name):
    backbone = evaluated(name)
    assert backbone.strides == ([4, 8, 16, 32] if name in HIERARCHICAL else [14] if name == "dinov2" else [8])
    for size in SIZES:
        maps = backbone(images(*size))
        assert [x.shape[1] for x in maps] == backbone.channels
        assert [tuple(x.shape[2:]) for x in maps] == grids(size, backbone.strides)
        assert all(x.isfinite().all() for x in maps)


@NAMES
@torch.no_grad()
def test_evaluation_gives_equal_bits_whatever_sizes_came_before(name):
    backbone, picture = build(name, drop_path=0.3).eval(), images(65, 83)
    before = backbone(picture)
    for size in SIZES:
        backbone(images(*size))
    assert all(torch.equal(x, y) for x, y in zip(before, backbone(picture), strict=True))
    assert all(torch.equal(x, y) for x, y in zip(before, copy.deepcopy(backbone)(picture), strict=True))


@NAMES
def test_every_parameter_gets_a_gradient(name):
    backbone = build(name).train()
    sum((x * torch.randn_like(x)).sum() for x in backbone(images(96, 80))).backward()
    assert [n for n, p in backbone.network.named_parameters() if p.grad is None or not p.grad.any()] == []


@NAMES
def test_gradient_checkpointing_changes_no_gradient(name):
    gradients = []
    for checkpointing in (False, True):
        backbone = build(name, gradient_checkpointing=checkpointing).train()
        first, other = backbone(images(65, 83)), backbone(images(64, 40))  # Recomputed after a pass of another size.
        sum(x.square().mean() for x in first + other).backward()
        gradients.append([p.grad for p in backbone.network.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-6)


@NAMES
def test_drop_path_is_random_in_training_only(name):
    backbone, still = build(name, drop_path=0.5), build(name)
    picture = images(64, 64, batch=4)
    with torch.no_grad():
        one, two = backbone.train()(picture)[-1], backbone(picture)[-1]
        assert not torch.equal(one, two)
        assert torch.equal(backbone.eval()(picture)[-1], still.eval()(picture)[-1])
        assert torch.equal(still.train()(picture)[-1], still.eval()(picture)[-1])


@NAMES
@torch.no_grad()
def test_fresh_weights_come_from_the_seed_alone_and_carry_the_image_to_the_map(name):
    """The configurations of SAM and BLIP would start at 1e-10, from which nothing can be learned."""
    backbones = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        backbones.append(build_backbone(network_spec(name)).eval())
    first, *states = (backbone.network.state_dict() for backbone in backbones)
    same, other = ([torch.equal(first[n], state[n]) for n in state] for state in states)
    assert all(same)
    assert not all(other)
    one, two = (backbones[0](images(64, 64, seed=seed))[-1] for seed in (1, 2))
    assert (one - two).abs().mean() > 1e-3 * one.abs().mean()


@NAMES
@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(name, tmp_path):
    backbone = build(name, seed=5)
    save_backbone(backbone, network_spec(name), tmp_path)
    assert sorted(path.name for path in (tmp_path / "vision").iterdir()) == ["model.safetensors", "network.json"]
    loaded = load_backbone(tmp_path)
    state = loaded.network.state_dict()
    assert state.keys() == backbone.network.state_dict().keys()
    assert all(torch.equal(x, state[n]) for n, x in backbone.network.state_dict().items())
    picture = images(72, 50)
    pairs = zip(backbone.eval()(picture), loaded.eval()(picture), strict=True)
    assert all(torch.equal(x, y) for x, y in pairs)


@NAMES
@torch.no_grad()
def test_hidden_patches_do_not_show(name):
    backbone, size = evaluated(name), (65, 83)
    stride, (rows, columns) = backbone.mask_stride, grids(size, [backbone.mask_stride])[0]
    mask = torch.zeros(2, rows, columns, dtype=torch.bool)
    mask[:, 1:3, 2:] = True
    picture = images(*size)
    other = picture.clone()
    other[:, :, stride : 3 * stride, 2 * stride :] = images(*size, seed=9)[:, :, stride : 3 * stride, 2 * stride :]
    token = torch.linspace(-1, 1, backbone.mask_width)
    seen, hidden = backbone(picture), backbone(picture, mask, token)
    assert all(torch.equal(x, y) for x, y in zip(hidden, backbone(other, mask, token), strict=True))
    assert not torch.equal(hidden[0], backbone(picture, mask, -token)[0])
    assert not torch.equal(seen[0], hidden[0])
    assert not torch.equal(seen[0], backbone(other)[0])
    unmasked = backbone(picture, torch.zeros_like(mask), token)
    assert all(torch.equal(x, y) for x, y in zip(seen, unmasked, strict=True))


@NAMES
@torch.no_grad()
def test_padding_is_the_mean_colour_below_and_on_the_right(name):
    backbone = evaluated(name)
    unit = backbone.multiple
    height, width = (70 - 3, 98 - 5) if unit == 14 else (64 - 3, 96 - 5)
    picture = images(height, width)
    mean = (backbone.mean * 2 - 1).expand(2, 3, -(-height // unit) * unit, -(-width // unit) * unit).clone()
    mean[:, :, :height, :width] = picture
    for x, y in zip(backbone(picture), backbone(mean), strict=True):
        close(x, y[:, :, : x.shape[2], : x.shape[3]])


# ---------------------------------------------------------------------------------------------- the libraries' own forwards
@pytest.mark.parametrize("name", HIERARCHICAL)
@torch.no_grad()
def test_levels_are_timms_own_features_at_the_native_size(name):
    backbone, spec = evaluated(name), network_spec(name)
    own = timm.create_model(spec.architecture, features_only=True, **spec.options).eval()
    state = {key.replace("layers_", "layers.", 1).replace("stages_", "stages.", 1): key for key in own.state_dict()}
    state = {key.replace("stem_", "stem.", 1): name for key, name in state.items()}
    own.load_state_dict({state[n]: x for n, x in backbone.network.state_dict().items()})
    picture = images(64, 64)
    expected = own(normalised(backbone, picture))
    for x, y in zip(backbone(picture), expected, strict=True):
        close(x, y if name == "convnext" else y.permute(0, 3, 1, 2))


@pytest.mark.parametrize("name", ["swin", "swinv2"])
@torch.no_grad()
def test_a_larger_image_shifts_windows_wherever_there_are_several(name):
    """Beyond the native size, timm with that size built in and the same windows is the reference."""
    spec = network_spec(name, img_size=128)
    backbone = shaken(build_backbone(spec)).eval()
    own = timm.create_model(spec.architecture, **spec.options | {"img_size": (256, 384), "num_classes": 0}).eval()
    own.load_state_dict(backbone.network.state_dict(), strict=False)
    picture = images(256, 384, batch=1)
    expected = own.forward_intermediates(normalised(backbone, picture), intermediates_only=True)
    for x, y in zip(backbone(picture), expected, strict=True):
        close(x, y)


class Windows(nn.Module):
    """timm's attention within windows, called as transformers does."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, windows: Tensor, mask: Tensor | None, **_) -> tuple[Tensor, None]:
        # transformers repeats the mask for every image and head, or does not: one image and a plain mask are the same.
        if mask is not None and mask.dim() == 4:
            mask = mask[:, 0]
        return self.attention(windows, mask=mask), None


@pytest.mark.parametrize("size", [(10, 7), (8, 8), (5, 9)])
@torch.no_grad()
def test_maps_that_are_no_multiple_of_the_window_are_padded_before_they_are_shifted(size):
    """transformers' Swin pads first as well; timm's own order would mix opposite borders."""
    block = evaluated("swin").network.layers[0].blocks[1]
    reference = SwinLayer(SwinConfig(window_size=4), 32, size, 1, shift_size=2).eval()
    reference.attention = Windows(block.attn)
    reference.layernorm_before, reference.layernorm_after, reference.mlp = block.norm1, block.norm2, block.mlp
    x = torch.randn(1, *size, 32)
    expected = reference(x.flatten(1, 2), size)[0].view_as(x)
    close(block(x), expected)


@pytest.mark.parametrize("name", ["mae", "dino", "clip", "dinov2", "beit", "beitv2"])
@torch.no_grad()
def test_the_map_is_timms_own_patch_tokens_at_the_native_size_and_a_new_one(name):
    backbone, spec = evaluated(name), network_spec(name)
    own = timm.create_model(spec.architecture, num_classes=0, **spec.options).eval()
    own.load_state_dict(backbone.network.state_dict())
    native = spec.options["img_size"] // backbone.strides[0]
    for grid, tolerance in ((native, native), 1e-4), ((12, 15), 1e-3):
        size = [side * backbone.strides[0] for side in grid]
        if grid != (native, native):
            own.set_input_size(size)
        picture = images(*size)
        tokens = own.fc_norm(own.forward_features(normalised(backbone, picture)))[:, own.num_prefix_tokens :]
        expected = tokens.transpose(1, 2).reshape(2, -1, *grid)
        torch.testing.assert_close(backbone(picture)[0], expected, rtol=tolerance, atol=tolerance)


def test_larger_grids_spread_the_bias_table_geometrically():
    table = torch.randn((2 * 7 - 1) * (2 * 5 - 1) + 3, 4)
    found = bias_for(table, (7, 5), (11, 9))
    resized = resize_rel_pos_bias_table(table, (11, 9), ((2 * 11 - 1) * (2 * 9 - 1) + 3, 4), (7, 5))
    torch.testing.assert_close(found, bias_for(resized, (11, 9), (11, 9)), rtol=1e-3, atol=1e-3)


def test_smaller_grids_use_the_middle_of_the_bias_table():
    table = torch.randn((2 * 7 - 1) * (2 * 5 - 1) + 3, 4)
    whole, part = bias_for(table, (7, 5), (7, 5)), bias_for(table, (7, 5), (3, 2))
    kept = [0] + [1 + 5 * row + column for row in range(3) for column in range(2)]
    torch.testing.assert_close(part, whole[:, kept][:, :, kept])


@pytest.mark.parametrize("name", ["sam", "blip"])
@torch.no_grad()
def test_the_map_is_transformers_own_output_at_the_native_size(name):
    backbone, picture = evaluated(name), images(64, 64)
    own = type(backbone.network)(backbone.network.config).eval()
    own.load_state_dict(backbone.network.state_dict())
    expected = own(normalised(backbone, picture)).last_hidden_state
    if name != "sam":
        expected = expected[:, 1:].transpose(1, 2).reshape(2, 96, 8, 8)
    close(backbone(picture)[0], expected)


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CLIP = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
HALVES = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("name", "statistics"),
    [("swin", IMAGENET), ("mae", IMAGENET), ("sam", IMAGENET), ("clip", CLIP), ("blip", CLIP), ("beit", HALVES)],
)
def test_images_are_normalised_as_in_pretraining(name, statistics):
    """The papers' own numbers; a tag such as ``mae`` selects them where one architecture had several."""
    mean, std = statistics
    white = evaluated(name).prepare(torch.ones(1, 3, 64, 64))[0, :, 0, 0]
    close(white, torch.tensor([(1 - m) / s for m, s in zip(mean, std, strict=True)]))


# ------------------------------------------------------------------------------------------------------------------ files
def test_random_weights_need_only_the_architecture_and_errors_name_the_file(tmp_path):
    with pytest.raises(UserError, match=r"network\.json does not exist"):
        load_backbone(tmp_path)
    save_backbone(build("mae"), network_spec("mae"), tmp_path)
    with pytest.raises(UserError, match="unknown choice of weights 'pretraind'; did you mean 'pretrained'"):
        load_backbone(tmp_path, "pretraind")
    shutil.rmtree(tmp_path / "vision")
    save_backbone(build("mae"), network_spec("mae", depth=5), tmp_path)
    with pytest.raises(UserError, match=r"model\.safetensors does not fit its network\.json \(12 missing, first 'bl"):
        load_backbone(tmp_path)
    weights = tmp_path / "vision" / "model.safetensors"
    weights.unlink()
    with pytest.raises(UserError, match=r"model\.safetensors does not exist"):
        load_backbone(tmp_path)
    torch.manual_seed(3)
    fresh = load_backbone(tmp_path, "random", drop_path=0.1, gradient_checkpointing=True)
    torch.manual_seed(3)
    expected = build_backbone(network_spec("mae", depth=5)).network.state_dict()
    assert all(torch.equal(x, expected[n]) for n, x in fresh.network.state_dict().items())
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{ broken")
    with pytest.raises(UserError, match=r"model\.safetensors is damaged"):
        load_backbone(tmp_path)
    (tmp_path / "vision" / "network.json").write_text('{"library": "timm"}')
    with pytest.raises(UserError, match=r"network\.json: architecture is missing; make the checkpoint again"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("library", "architecture", "options", "message"),
    [
        ("timm", "swin_larg_patch4_window12_384", {}, "did you mean 'swin_large_patch4_window12_384'"),
        ("timm", "resnet50", {}, "of the family 'resnet', which has no backbone here"),
        ("timm", "convnext_base", {"dim": [8] * 4}, "has no option 'dim'; did you mean 'dims'"),
        ("timm", "convnext_base", {"dims": [8]}, "cannot build 'convnext_base' with options"),
        ("timm", "vit_base_patch16_224", {"pretrained_cfg": "maee"}, "Invalid pretrained tag"),
        ("transformers", "blip2", {}, "did you mean 'blip'"),
        ("transformers", "sam", {"window": 4}, "has no option 'window'; did you mean 'window_size'"),
        ("transformers", "blip", {"hidden_size": 97}, "cannot build 'blip' with options"),
        ("transformers", "blip", {"hidden_size": "wide"}, "cannot build 'blip' with options"),
    ],
)
def test_unknown_architectures_and_options_are_refused(library, architecture, options, message):
    with pytest.raises(UserError, match=message) as caught:
        build_backbone(NetworkSpec(library=library, architecture=architecture, options=options))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------------ necks
@pytest.mark.parametrize("stride", [4, 8, 14, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (65, 83), (20, 130), (224, 112)])
def test_the_pyramid_has_strides_4_to_32_at_any_size(stride, size):
    pyramid = SimplePyramid(48, stride, 24)
    maps = pyramid([torch.randn(2, 48, *grids(size, [stride])[0])], size)
    assert [tuple(x.shape) for x in maps] == [(2, 24, *grid) for grid in grids(size, STRIDES)]
    assert (pyramid.channels, pyramid.strides) == ([24] * 4, [4, 8, 16, 32])
    sum(x.square().sum() for x in maps[:3]).backward()


def test_resampling_stride_14_keeps_positions():
    """A map of its own pixel centres gives, at stride 16, the centres of the new pixels (away from the border)."""
    pyramid, size = SimplePyramid(2, 14, 8), (168, 230)
    pyramid.levels = nn.ModuleList([nn.Identity()] * 4)
    rows, columns = (torch.arange(side) * 14.0 + 7.0 for side in grids(size, [14])[0])
    centres = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))[None]
    found = pyramid([centres], size)[2][0]
    rows, columns = (torch.arange(side) * 16.0 + 8.0 for side in grids(size, [16])[0])
    expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij"))
    assert found.shape == expected.shape
    torch.testing.assert_close(found[:, :-1, :-1], expected[:, :-1, :-1])


def test_the_coarse_level_pools_the_map_and_the_fine_level_doubles_it():
    """The pyramid's levels, written out with functions for one stride."""
    pyramid, x = SimplePyramid(16, 16, 8), torch.randn(1, 16, 6, 4)
    maps = pyramid([x], (96, 64))

    def ending(level: nn.Sequential, y: Tensor) -> Tensor:
        for convolution, norm in ((level[-4], level[-3]), (level[-2], level[-1])):
            y = nn.functional.conv2d(y, convolution.weight, padding=convolution.kernel_size[0] // 2)
            y = (y - y.mean(1, keepdim=True)) / (y.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
        return y

    close(maps[3], ending(pyramid.levels[3], nn.functional.max_pool2d(x, 2)))
    close(maps[2], ending(pyramid.levels[2], x))
    double = pyramid.levels[1][0]
    close(maps[1], ending(pyramid.levels[1], nn.functional.conv_transpose2d(x, double.weight, double.bias, stride=2)))


def test_every_level_of_a_hierarchy_gets_its_norm():
    norms = LevelNorms([8, 16], [4, 8])
    maps = norms([5 + 3 * torch.randn(2, 8, 6, 6), torch.randn(2, 16, 3, 3)], (24, 24))
    for x in maps:
        torch.testing.assert_close(x.mean(1), torch.zeros_like(x[:, 0]), rtol=0, atol=1e-5)
        torch.testing.assert_close(x.std(1, unbiased=False), torch.ones_like(x[:, 0]), rtol=0, atol=1e-3)


# --------------------------------------------------------------------------------------------------------------- baseline
HEADS = {
    "segmentation": {"kind": "semantic-fpn", "channels": 16},
    "referring": {"kind": "simple-decoding", "channels": 16},
    "depth": {
        "kind": "depth-decoder", "channels": 32, "deconv_channels": 8, "final_channels": 16, "norm_groups": 8,
    },
}  # fmt: skip
OUTPUTS = {"segmentation": 5, "referring": 2, "depth": 1}


def make_spec(task: str, **model):
    from fixtures.parity.narrow import make_spec as vpd_spec

    fields = vpd_spec(task).model_dump()
    fields["model"] = {
        "kind": "backbone", "backbone": "pretrained", "pyramid_channels": 24, "drop_path": 0.0, "head": HEADS[task],
    } | model  # fmt: skip
    return TASKS[task].model_validate(fields)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["swin", "dinov2"])
def test_a_baseline_predicts_and_trains_every_tensor(task, name):
    model = Baseline(make_spec(task), build(name), OUTPUTS["segmentation"])
    batch = {"image": images(64, 96)}
    features = model.features(batch)
    assert features.strides == STRIDES
    assert features.attention == [None] * 4
    assert [tuple(x.shape[2:]) for x in features.maps] == grids((64, 96), STRIDES)
    predicted = model(batch)
    assert predicted.shape[:2] == (2, OUTPUTS[task])
    (predicted * torch.randn_like(predicted)).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert {n.split(".")[0] for n in model.state_dict()} == {"backbone", "neck", "head"}
    assert all(n.split(".")[1] == "network" for n in model.state_dict() if n.startswith("backbone."))


@NAMES
@pytest.mark.parametrize("task", TASKS)
@torch.inference_mode()
def test_a_baseline_in_bf16_predicts_nearly_the_same(task, name):
    model, batch = Baseline(make_spec(task), build(name), OUTPUTS["segmentation"]).eval(), {"image": images(64, 96)}
    exact = model(batch)
    set_up_inference(model, "cpu", "bf16")
    found = model({"image": batch["image"].bfloat16()})
    assert found.dtype == torch.bfloat16
    assert (found - exact).norm() < 0.1 * exact.norm()


def test_a_baselines_new_weights_do_not_depend_on_its_backbones(tmp_path):
    save_backbone(build("beitv2", seed=7), network_spec("beitv2"), tmp_path)
    states = {}
    for weights in ("pretrained", "random"):
        torch.manual_seed(11)
        states[weights] = build_baseline(
            make_spec("segmentation", backbone=weights), tmp_path, list("abcde")
        ).state_dict()
    new = [n for n in states["random"] if not n.startswith("backbone.")]
    assert all(torch.equal(states["random"][n], states["pretrained"][n]) for n in new)
    inner = "backbone.network.patch_embed.proj.weight"
    assert not torch.equal(states["random"][inner], states["pretrained"][inner])
