"""Public depth models of others compute what their authors' code does, and the ``released`` stage measures them."""

import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.ndimage import map_coordinates
from timm.layers import StdConv2dSame
from timm.models.resnetv2 import ResNetV2
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import HybridEmbed
from torch import Tensor, nn
from transformers import (
    BeitConfig,
    DPTConfig,
    DPTForDepthEstimation,
    ZoeDepthConfig,
    ZoeDepthForDepthEstimation,
    ZoeDepthImageProcessor,
)

from hub_server import Hub, Repository, settings
from vpd.config.params import load_params
from vpd.datasets import build_dataset
from vpd.evaluation.results import read_metrics
from vpd.models.base import misfits
from vpd.models.monocular import DPTHybrid, Monocular
from vpd.pretrained.monocular import DPT_HYBRID, convert_dpt, open_monocular
from vpd.utils.digests import sha256
from vpd.utils.errors import UserError
from vpd.utils.files import read_json, write_json

ROOT = Path(__file__).parent.parent
STAGES, WIDTH, HEADS, NECK, FUSION = (128, 256, 256), 32, 2, (128, 256, 24, 40), 16
BIT = {
    "model_type": "bit", "layer_type": "bottleneck", "global_padding": "same", "embedding_dynamic_padding": True,
    "embedding_size": 32, "depths": [1, 2, 1], "hidden_sizes": list(STAGES), "out_features": ["stage1", "stage2", "stage3"],
}  # fmt: skip
TINY = {
    **DPT_HYBRID, "hidden_size": WIDTH, "num_attention_heads": HEADS, "intermediate_size": 2 * WIDTH,
    "neck_hidden_sizes": list(NECK), "fusion_hidden_size": FUSION, "backbone_featmap_shape": [1, STAGES[-1], 24, 24],
    "backbone_config": BIT,
}  # fmt: skip


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, padding=1) for _ in range(2))

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.conv2(self.conv1(maps.relu()).relu())


class Fusion(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(width, width, 1)
        self.resConfUnit1, self.resConfUnit2 = Residual(width), Residual(width)

    def forward(self, maps: Tensor, finer: Tensor | None = None) -> Tensor:
        maps = maps if finer is None else maps + self.resConfUnit1(finer)
        return self.out_conv(twice(self.resConfUnit2(maps)))


class Readout(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.project(torch.cat([tokens[:, 1:], tokens[:, :1].expand_as(tokens[:, 1:])], -1))


def twice(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


class Authors(nn.Module):
    """DPT-Hybrid over timm's encoder, under the names of the authors' files."""

    def __init__(self) -> None:
        super().__init__()
        stem = ResNetV2(
            layers=(1, 2, 1), channels=STAGES, num_classes=0, global_pool="", stem_chs=32, stem_type="same", preact=False,
            conv_layer=partial(StdConv2dSame, eps=1e-8),
        )  # fmt: skip
        self.pretrained = nn.Module()
        self.pretrained.model = VisionTransformer(
            img_size=384, embed_dim=WIDTH, depth=12, num_heads=HEADS, mlp_ratio=2, num_classes=7, patch_size=1,
            embed_layer=partial(HybridEmbed, backbone=stem),
        )  # fmt: skip
        third, fourth = (nn.Conv2d(WIDTH, width, 1) for width in NECK[2:])
        halve, blank = nn.Conv2d(NECK[3], NECK[3], 3, stride=2, padding=1), (nn.Identity(), nn.Identity())
        self.pretrained.act_postprocess3 = nn.Sequential(Readout(WIDTH), *blank, third)
        self.pretrained.act_postprocess4 = nn.Sequential(Readout(WIDTH), *blank, fourth, halve)
        self.scratch = nn.Module()
        for level, width in enumerate(NECK, 1):
            self.scratch.add_module(f"layer{level}_rn", nn.Conv2d(width, FUSION, 3, padding=1, bias=False))
            self.scratch.add_module(f"refinenet{level}", Fusion(FUSION))
        self.scratch.output_conv = nn.Sequential(
            nn.Conv2d(FUSION, FUSION // 2, 3, padding=1), nn.Identity(), nn.Conv2d(FUSION // 2, 32, 3, padding=1),
            nn.ReLU(), nn.Conv2d(32, 1, 1), nn.ReLU(),
        )  # fmt: skip

    def levels(self, images: Tensor) -> list[Tensor]:
        vit, rows, columns = self.pretrained.model, images.shape[-2] // 16, images.shape[-1] // 16
        stem = vit.patch_embed.backbone
        first = stem.stages[0](stem.stem(images))
        second = stem.stages[1](first)
        patches = vit.patch_embed.proj(stem.stages[2](second)).flatten(2).transpose(1, 2)
        grid = vit.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (24, 24))
        grid = F.interpolate(grid, (rows, columns), mode="bilinear").flatten(2).transpose(1, 2)
        tokens = torch.cat([vit.cls_token.expand(len(images), -1, -1), patches], 1)
        tokens = tokens + torch.cat([vit.pos_embed[:, :1], grid], 1)
        kept = []
        for index, block in enumerate(vit.blocks):
            tokens = block(tokens)
            kept += [tokens] if index in (8, 11) else []
        posts = (self.pretrained.act_postprocess3, self.pretrained.act_postprocess4)
        deep = [
            post[3:](post[0](x).transpose(1, 2).unflatten(2, (rows, columns)))
            for post, x in zip(posts, kept, strict=True)
        ]
        return [first, second, *deep]

    def forward(self, images: Tensor) -> Tensor:
        levels = [getattr(self.scratch, f"layer{i}_rn")(x) for i, x in enumerate(self.levels(images), 1)]
        maps = self.scratch.refinenet4(levels[3])
        for i in (3, 2, 1):
            maps = getattr(self.scratch, f"refinenet{i}")(maps, levels[i - 1])
        head = self.scratch.output_conv
        inverse = head[1:](twice(head[0](maps)))[:, 0]
        return 1 / (0.000305 * inverse + 0.1378)


@pytest.fixture(scope="module")
def authors() -> Authors:
    torch.manual_seed(3)
    model = Authors().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter) / max(parameter.shape[-1], 1) ** 0.5)
        model.pretrained.model.pos_embed.normal_()
        model.scratch.output_conv[4].weight.mul_(3000)
        model.scratch.output_conv[4].bias.fill_(1000.0)
    return model


@pytest.fixture(scope="module")
def dpt_file(authors, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dpt") / "dpt_hybrid_nyu.pt"
    torch.save(authors.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def zoe(tmp_path_factory) -> Path:
    torch.manual_seed(4)
    backbone = BeitConfig(
        image_size=384, num_hidden_layers=4, hidden_size=16, intermediate_size=32, num_attention_heads=2,
        use_relative_position_bias=True, reshape_hidden_states=False, out_features=[f"stage{i}" for i in range(1, 5)],
    )  # fmt: skip
    config = ZoeDepthConfig(
        backbone_config=backbone, neck_hidden_sizes=[8, 8, 8, 8], fusion_hidden_size=16, bottleneck_features=16,
        num_relative_features=8, bin_embedding_dim=16, num_attractors=[4, 2, 2, 1],
        bin_configurations=[{"name": "nyu", "n_bins": 8, "min_depth": 1e-3, "max_depth": 10.0}],
    )  # fmt: skip
    model = ZoeDepthForDepthEstimation(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.15)
    folder = tmp_path_factory.mktemp("zoe")
    model.save_pretrained(folder)
    return folder


def picture(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(height).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)


def batch(image: np.ndarray) -> dict:
    return {"image": torch.from_numpy(image.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]}


def corner_resized(values: np.ndarray, height: int, width: int) -> np.ndarray:
    rows, columns = (np.linspace(0, old - 1, new) for old, new in zip(values.shape, (height, width), strict=True))
    return map_coordinates(values, np.meshgrid(rows, columns, indexing="ij"), order=1)


@torch.no_grad()
@pytest.mark.parametrize("size", [(480, 640), (61, 97), (97, 61)])
def test_zoedepth_equals_transformers_own_processor_without_padding(zoe, size):
    image, model = picture(*size), open_monocular("zoedepth", zoe)
    processor = ZoeDepthImageProcessor(
        do_pad=False, keep_aspect_ratio=False, ensure_multiple_of=32, size={"height": 384, "width": 512}
    )
    network = ZoeDepthForDepthEstimation.from_pretrained(zoe).eval()
    pixels = processor(Image.fromarray(image), return_tensors="pt")["pixel_values"]
    expected = corner_resized(network(pixels).predicted_depth[0].numpy(), *size)
    found = model(batch(image))
    assert found.shape == (1, 1, *size)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("size", "inside"), [((480, 640), (480, 640)), ((61, 97), (416, 640)), ((230, 110), (480, 224))]
)
def test_dpts_own_file_computes_what_its_authors_code_computes(authors, dpt_file, size, inside):
    image, model = picture(*size), open_monocular("dpt-hybrid", dpt_file, TINY)
    assert model.input_size(*size) == inside
    given = cv2.resize(image / 255.0, inside[::-1], interpolation=cv2.INTER_CUBIC)
    metres = authors(batch(255.0 * given)["image"])[0].numpy()
    expected = cv2.resize(metres, size[::-1], interpolation=cv2.INTER_CUBIC)
    found = model(batch(image))[0, 0].numpy()
    assert expected.std() > 0.05
    assert 0 < expected.min() < expected.max() < 1 / 0.1378
    np.testing.assert_allclose(found, expected, atol=2e-4)


@torch.no_grad()
def test_rectangular_dpt_equals_transformers_where_that_can_run():
    torch.manual_seed(5)
    plain = DPTForDepthEstimation(DPTConfig(**TINY)).eval()
    own = DPTHybrid(DPTConfig(**TINY)).eval()
    own.load_state_dict(plain.state_dict())
    images = torch.rand(2, 3, 384, 384) * 2 - 1
    torch.testing.assert_close(own(images).predicted_depth, plain(images).predicted_depth)


def test_every_encoder_tensor_of_the_real_dpt_has_its_place():
    with torch.device("meta"):
        network = DPTHybrid(DPTConfig(**DPT_HYBRID))
        encoder = timm.create_model("vit_base_r50_s16_384")
    own = {name: tensor for name, tensor in network.state_dict().items() if name.startswith("dpt.")}
    given = {f"pretrained.model.{name}": tensor for name, tensor in encoder.state_dict().items()}
    assert not misfits(own, convert_dpt(given, Path("real.pt")))
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(123e6, rel=0.01)  # the paper's


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scratch.output_conv.4.bias": None}, "1 missing, first 'head.head.4.bias'"),
        ({"auxlayer.0.weight": torch.ones(1)}, "has a tensor 'auxlayer.0.weight', which"),
        ({"scratch.output_conv.4.bias": torch.ones(2)}, "(2,) instead of (1,)"),
    ],
)
def test_other_dpt_files_are_refused(authors, tmp_path, change, said):
    state = {name: tensor for name, tensor in (authors.state_dict() | change).items() if tensor is not None}
    torch.save(state, tmp_path / "other.pt")
    with pytest.raises(UserError) as refusal:
        open_monocular("dpt-hybrid", tmp_path / "other.pt", TINY)
    assert said in str(refusal.value)


def test_incomplete_and_other_repositories_are_refused(zoe, tmp_path):
    copy = shutil.copytree(zoe, tmp_path / "copy")
    state = load_file(copy / "model.safetensors")
    lost = next(name for name in state if name.startswith("metric_head.conv2"))
    save_file({name: x for name, x in state.items() if name != lost}, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=f"1 missing, first '{lost}'"):
        open_monocular("zoedepth", copy)
    with pytest.raises(UserError, match="type zoedepth, but dpt-hybrid is wanted"):
        open_monocular("dpt-hybrid", zoe)
    (copy / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(UserError, match="does not hold zoedepth"):
        open_monocular("zoedepth", copy)
    (copy / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no model\.safetensors"):
        open_monocular("zoedepth", copy)


def written(folder: Path, released: dict) -> Path:
    document = yaml.safe_load((ROOT / "params.yaml").read_text()) | {"scale": "smoke"}
    document["scales"]["smoke"]["released"] = released
    document["scales"]["smoke"]["datasets"]["nyuv2"]["images"] = {"train": 1, "test": 2}
    (path := folder / "params.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    return path


PUBLIC = {"model": "zoedepth", "experiment": "depth-full"}


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("zoedepth", {**PUBLIC, "repo": "a/b", "path": "c"}, "either path or repo"),
        ("zoedepth", PUBLIC, "either path or repo"),
        ("zoedepth", {"model": "zoedepth", "repo": "a/b"}, "needs model and experiment"),
        ("depth-full", {"repo": "a/b"}, "path alone"),
        ("zoedepth", {**PUBLIC, "path": "c", "revision": "main"}, "revision and mirrors with repo"),
        ("zoedepth", {**PUBLIC, "repo": "a/b", "experiment": "depth-ful"}, "depth-full"),
        ("zoedepth", {**PUBLIC, "repo": "a/b", "experiment": "seg-full"}, "not a depth experiment"),
        ("depth-fast", {**PUBLIC, "repo": "a/b"}, "give it another name"),
    ],
)
def test_mistakes_in_released_lines(tmp_path, name, line, said):
    with pytest.raises(UserError) as refusal:
        load_params(written(tmp_path, {name: line})).check_released()
    assert said in str(refusal.value)


def reference(spec, data: Path, model: Monocular) -> dict[str, float]:
    """RMSE and delta1 by hand, over our crop and depth range."""
    top, bottom, left, right = spec.evaluation.crop
    rmse, delta1, dataset = [], [], build_dataset(spec, data, "val")
    for sample in map(dataset.sample, range(len(dataset))):
        with torch.no_grad():
            depth, mirrored = model({"image": torch.stack([sample["image"], sample["image"].flip(-1)])})[:, 0].double()
        depth = (depth + mirrored.flip(-1)) / 2 if model.protocol.flip else depth
        truth, depth = (values[top:bottom, left:right].double() for values in (sample["depth"], depth.clamp(1e-3, 10)))
        truth, depth = truth[truth > 1e-3], depth[truth > 1e-3]
        rmse.append((truth - depth).square().mean().sqrt().item())
        delta1.append((torch.maximum(truth / depth, depth / truth) < 1.25).double().mean().item())
    return {"rmse": np.mean(rmse), "delta1": np.mean(delta1)}


@pytest.mark.slow
def test_stage_measures_public_models_and_records_a_vanished_repository(zoe, dpt_file, tmp_path):
    folder = tmp_path / "dpt"
    open_monocular("dpt-hybrid", dpt_file, TINY).network.save_pretrained(folder)
    repository = Repository(zoe)
    lines = {
        "zoe": {**PUBLIC, "repo": "other/zoe", "revision": repository.commit},
        "gone": {**PUBLIC, "repo": "other/gone"},
        "dpt": {"model": "dpt-hybrid", "experiment": "depth-full", "path": str(folder)},
    }
    params, data, out = written(tmp_path, lines), tmp_path / "data/smoke", tmp_path / "results/smoke/released"
    write_json(tmp_path / "checkpoints/smoke/sd-1-5/manifest.json", {})  # depth-full's, which is not read
    with Hub(**{"other/zoe": repository}) as hub:
        given = {"cwd": tmp_path, "env": settings(tmp_path / "home", HF_ENDPOINT=hub.url), "check": False}
        for stage in (["data", "nyuv2"], ["released"]):
            command = [sys.executable, "-m", "vpd", *stage, "--params", str(params)]
            done = subprocess.run(command, **given, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
    assert "released weights of gone: released.gone: other/gone is not at" in done.stderr
    assert "weights are not available: gone" in done.stdout

    index = read_json(out / "index.json")
    assert index["released"] == {}
    found = index["public"]
    assert (found["zoe"]["repo"], found["zoe"]["revision"]) == ("other/zoe", repository.commit)
    assert found["zoe"]["sha256"] == sha256(zoe / "model.safetensors")
    assert "is not at" in found["gone"]["missing"]
    assert sorted(path.name for path in (out / "metrics").iterdir()) == ["dpt.json", "zoe.json"]

    spec = load_params(params).resolve("depth-full")
    for name, model, place in (("zoe", "zoedepth", zoe), ("dpt", "dpt-hybrid", folder)):
        (result,) = read_metrics(out / "metrics" / f"{name}.json")
        assert result["milestone"] == "final"
        assert set(result["metrics"]) == {"rmse", "delta1", "delta2", "delta3", "rel", "log10"}
        expected = reference(spec, data / "nyuv2", open_monocular(model, place))
        assert {key: result["metrics"][key] for key in expected} == pytest.approx(expected, abs=2e-6)
