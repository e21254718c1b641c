"""LAVT: words go where its paper says, padding goes nowhere, and all of it is trained."""

import math
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

from fixtures.parity.narrow import make_spec
from vpd.config.schema import HeadSpec, LavtModel, NetworkSpec, Spec
from vpd.models.backbones import build_backbone, load_backbone, save_backbone
from vpd.models.lavt import Lavt, PixelWordAttention, build_lavt, load_language
from vpd.planning.networks import _full_sentences
from vpd.utils.errors import UserError

SWIN = NetworkSpec(
    library="timm",
    architecture="swin_base_patch4_window12_384",
    options={"img_size": 64, "window_size": 4, "embed_dim": 32, "depths": [2, 2, 2, 2], "num_heads": [1, 2, 4, 8]},
)
CONVNEXT = NetworkSpec(
    library="timm", architecture="convnext_large", options={"depths": [1] * 4, "dims": [8, 16, 32, 64]}
)
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "ball", "box", "left", "right", "the", "on"]
TEXTS = ["red ball", "the blue box on the left", "right"]


def write_checkpoint(folder: Path, vision: NetworkSpec = SWIN) -> Path:
    """A backbone's checkpoint folder with random weights, text encoder included."""
    torch.manual_seed(3)
    save_backbone(build_backbone(vision), vision, folder)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder / "language")
    tokens = {token: number for number, token in enumerate(VOCABULARY)}
    BertTokenizer(vocab=tokens).save_pretrained(folder / "language")
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("lavt"))


def lavt_spec(**model) -> Spec:
    """A small spec of LAVT; ``model`` replaces settings of the network."""
    settings = {"kind": "lavt", "backbone": "pretrained", "length": 10, "fusion_heads": (1, 2, 4, 8)}
    head = HeadSpec(kind="simple-decoding", channels=16)
    network = LavtModel(**settings | {"drop_path": 0.0, "fusion_dropout": 0.0, "head": head} | model)
    return make_spec("referring").model_copy(update={"method": "lavt", "checkpoint": "tiny", "model": network})


def build(checkpoint: Path, seed: int = 0, **model):
    """LAVT with fresh parts drawn from ``seed``, in evaluation mode, its gates opened."""
    torch.manual_seed(seed)
    network = build_lavt(lavt_spec(**model), checkpoint).eval()
    for name, weight in network.fusion.gates.named_parameters():
        nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(len(name)))
    return network


def make_batch(texts: list[str], size: tuple[int, int] = (64, 64)) -> dict:
    """One image per text."""
    images = torch.rand(len(texts), 3, *size, generator=torch.Generator().manual_seed(5)) * 2 - 1
    return {"image": images, "text": texts}


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------- pixel-word attention
def words_and_mask(batch: int = 2, length: int = 7, width: int = 12):
    """Random words, of which the second sentence has three."""
    mask = torch.ones(batch, length, dtype=torch.bool)
    mask[1, 3:] = False
    return torch.randn(batch, length, width), mask


@pytest.mark.parametrize("heads", [1, 4])
def test_pixel_word_attention_equals_torchs_attention_between_instance_norms(heads):
    """torch.nn.MultiheadAttention does the projections of words, the softmax and the projection of what is gathered."""
    pwam, x, (words, mask) = PixelWordAttention(16, 12, heads), torch.randn(2, 3, 5, 16), words_and_mask()
    reference = nn.MultiheadAttention(16, heads, kdim=12, vdim=12, batch_first=True)
    with torch.no_grad():
        reference.q_proj_weight.copy_(torch.eye(16))
        reference.k_proj_weight.copy_(pwam.key.weight)
        reference.v_proj_weight.copy_(pwam.value.weight)
        reference.in_proj_bias.copy_(torch.cat([torch.zeros(32), pwam.value.bias]))
        reference.out_proj.weight.copy_(pwam.gathered.weight)
    norm, pixels = nn.InstanceNorm1d(16), x.reshape(2, 15, 16)
    queries = norm((pixels @ pwam.query.weight.T).mT).mT
    gathered = norm(reference(queries, words, words, key_padding_mask=~mask)[0].mT).mT
    visual = F.gelu(F.linear(pixels, pwam.visual[0].weight, pwam.visual[0].bias))
    expected = F.gelu(F.linear(visual * gathered, pwam.mixed[0].weight, pwam.mixed[0].bias)).reshape(2, 3, 5, 16)
    close(pwam(x, words, mask), expected)


def test_a_pixel_gathers_the_word_it_asks_for():
    """By hand: logits 0 and ln 3 for two words give them the weights 1/4 and 3/4, 0 and -ln 3 the same exchanged."""
    pwam = PixelWordAttention(1, 2, 1)
    with torch.no_grad():
        pwam.query.weight.fill_(1.0)
        pwam.key.weight.copy_(torch.tensor([[0.0, 1.0]]))
        pwam.value.weight.copy_(torch.tensor([[1.0, 0.0]]))
        pwam.value.bias.fill_(2.0)
    pixels = torch.tensor([[[-1.0], [1.0]]])  # Mean 0 and variance 1 already.
    words = torch.tensor([[[8.0, 0.0], [4.0, math.log(3.0)], [1e3, 1e3]]])
    found = pwam._attend(pixels, words, torch.tensor([[True, True, False]]))
    expected = torch.tensor([[[2 + 0.75 * 8 + 0.25 * 4], [2 + 0.25 * 8 + 0.75 * 4]]])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------------------- the network
def test_padding_of_expressions_has_no_influence(checkpoint):
    """Nor has the length that other expressions of a batch are padded to."""
    short, long = build(checkpoint, length=9), build(checkpoint, length=16)
    batch = make_batch(TEXTS)
    close(short(batch), long(batch))


def test_expressions_are_cut_to_the_length(checkpoint):
    """[CLS], two words and [SEP] remain."""
    network = build(checkpoint, length=4)
    whole, cut, other = (network(make_batch([text])) for text in ("red ball left", "red ball", "red box left"))
    assert torch.equal(whole, cut)
    assert not torch.equal(whole, other)


def test_every_word_has_influence_on_every_level(checkpoint):
    network = build(checkpoint)
    found = network.features(make_batch(["the red ball on the left"]))
    for text in ("the red ball on the right", "the blue ball on the left", "ball the red on the left"):
        changed = network.features(make_batch([text]))
        for one, other in zip(found.maps, changed.maps, strict=True):
            assert (one - other).abs().max() > 1e-3
    assert found.strides == [4, 8, 16, 32]
    assert found.attention == [None] * 4


@pytest.mark.parametrize("size", [(64, 64), (50, 70), (33, 20), (96, 64)])
def test_logits_have_the_size_of_the_image(checkpoint, size):
    network, batch = build(checkpoint), make_batch(TEXTS, size)
    assert network(batch).shape == (3, 2, *size)
    for x, stride in zip(network.features(batch).maps, (4, 8, 16, 32), strict=True):
        assert x.shape[-2:] == (-(-size[0] // stride), -(-size[1] // stride))


def test_closed_gates_leave_the_backbone_as_it_was(checkpoint):
    """Then each level fuses words with the plain backbone's map; open gates change all levels but the first."""
    network, batch = build(checkpoint), make_batch(TEXTS)
    words, mask = network.language(batch["text"])
    expected = [
        norm(attention(x.movedim(1, -1), words, mask)).movedim(-1, 1)
        for norm, attention, x in zip(
            network.fusion.norms, network.fusion.attention, network.backbone(batch["image"]), strict=True
        )
    ]
    opened = network.features(batch).maps
    for weight in network.fusion.gates.parameters():
        nn.init.zeros_(weight)
    for closed, plain in zip(network.features(batch).maps, expected, strict=True):
        close(closed, plain)
    assert torch.equal(opened[0], expected[0])
    assert all((x - plain).abs().max() > 1e-2 for x, plain in zip(opened[1:], expected[1:], strict=True))


def test_a_gate_adds_its_share_of_the_fused_map(checkpoint):
    """By hand for one stage: x + tanh(W relu(V f)) f."""
    fusion, x, (words, mask) = build(checkpoint).fusion, torch.randn(2, 4, 4, 32), words_and_mask(width=24)
    f = fusion.attention[0](x, words, mask)
    first, second = (fusion.gates[0][i].weight for i in (0, 2))
    share = torch.tanh((f @ first.T).clamp(min=0) @ second.T)
    close(fusion(0, x, words, mask)[1], x + share * f)
    assert fusion(3, torch.randn(2, 2, 2, 256), words, mask)[0].shape == (2, 256, 2, 2)


def test_gradients_reach_every_parameter(checkpoint):
    """A key's bias adds the same to all logits of a softmax, in BERT too: only rounding moves it."""
    network = build(checkpoint).train()
    network(make_batch(TEXTS)).square().mean().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name.endswith("key.bias"), name
    assert {name.split(".")[0] for name, _ in network.named_parameters()} == {"backbone", "language", "fusion", "head"}


# ---------------------------------------------------------------------------------------------------- weights and sizes
def test_new_weights_come_from_the_seed_whatever_the_backbone(checkpoint):
    def new(**model):
        torch.manual_seed(4)
        return build_lavt(lavt_spec(**model), checkpoint).trained_state()

    stored, again, fresh = new(), new(), new(backbone="random")
    assert all(torch.equal(stored[name], again[name]) for name in stored)
    equal = {name for name in stored if torch.equal(stored[name], fresh[name])}
    assert {name for name in stored if name.startswith(("language.", "fusion.", "head."))} <= equal
    assert "backbone.network.patch_embed.proj.weight" not in equal
    backbone, (bert, tokenizer) = load_backbone(checkpoint), load_language(checkpoint)
    torch.manual_seed(4)
    composed = Lavt(lavt_spec(), backbone, bert, tokenizer).trained_state()
    assert all(torch.equal(stored[name], composed[name]) for name in stored)
    vision = load_file(checkpoint / "vision" / "model.safetensors")
    assert all(torch.equal(stored[f"backbone.network.{name}"], tensor) for name, tensor in vision.items())
    bert = load_file(checkpoint / "language" / "model.safetensors")
    kept = {name: tensor for name, tensor in bert.items() if not name.startswith("pooler.")}
    assert kept.keys() == {n.removeprefix("language.bert.") for n in stored if n.startswith("language.")}
    assert all(torch.equal(stored[f"language.bert.{name}"], tensor) for name, tensor in kept.items())


def test_lavt_of_true_size_has_the_published_number_of_parameters():
    """118.8 million without BERT, counting a fourth gate and biases: they exist in the published network without effect."""
    spec = lavt_spec(length=20, fusion_heads=(1, 1, 1, 1), head=HeadSpec(kind="simple-decoding", channels=512))
    with torch.device("meta"):
        backbone = build_backbone(NetworkSpec(library="timm", architecture=SWIN.architecture))
        network = Lavt(spec, backbone, BertModel(BertConfig()), _full_sentences)
        assert network({"image": torch.zeros(1, 3, 480, 480), "text": ["a"]}).shape == (1, 2, 480, 480)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in network.named_children()}
    assert sizes == {"backbone": 86_876_536, "language": 108_891_648, "fusion": 9_217_408, "head": 20_651_010}
    widths = (128, 256, 512, 1024)
    without_effect = 2 * widths[-1] ** 2 + 3 * sum(widths)
    assert sum(sizes.values()) - sizes["language"] + without_effect == 118_847_866


# -------------------------------------------------------------------------------------------------------- what is wrong
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"fusion_heads": (1, 1, 1)}, "fusion_heads has 3 numbers for 4 stages"),
        ({"fusion_heads": (1, 1, 1, 7)}, "fusion_heads has 7, which does not divide a stage's 256 channels"),
        ({"length": 17}, r"model\.length is 17, but the checkpoint's BERT takes at most 16"),
    ],
)
def test_settings_that_do_not_fit_are_named(checkpoint, model, message):
    with pytest.raises(UserError, match=message):
        build(checkpoint, **model)


def test_other_backbones_and_tasks_are_refused(tmp_path, checkpoint):
    convnext = write_checkpoint(tmp_path, CONVNEXT)
    with pytest.raises(UserError, match="needs a Swin Transformer, but checkpoint 'tiny' is a ConvNeXt"):
        build(convnext)
    spec = make_spec("segmentation").model_copy(update={"method": "lavt", "model": lavt_spec().model})
    with pytest.raises(UserError, match="needs expressions, which task 'segmentation' lacks"):
        build_lavt(spec, checkpoint)


def test_images_of_a_single_coarse_pixel_are_refused(checkpoint):
    with pytest.raises(UserError, match="32x24 pixels is a single pixel at LAVT's coarsest stage"):
        build(checkpoint)(make_batch(TEXTS, (32, 24)))


def test_text_encoders_that_are_missing_or_damaged_are_named(tmp_path, checkpoint):
    folder = tmp_path / "copy"
    shutil.copytree(checkpoint, folder)
    weights = folder / "language" / "model.safetensors"
    tensors = load_file(weights)
    del tensors["encoder.layer.1.output.dense.weight"]
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"no whole BERT \(1 missing, first 'encoder\.layer\.1\.output\.dense"):
        build(folder)
    for damage in (lambda: weights.write_bytes(b"no tensors"), weights.unlink):
        damage()
        with pytest.raises(UserError, match=r"language is incomplete or damaged"):
            build(folder)
    shutil.rmtree(folder / "language")
    with pytest.raises(UserError, match="has no folder language/"):
        build(folder)
