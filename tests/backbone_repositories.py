"""Small model repositories in the layouts of the public ones, under their real names, and a hub cache that holds them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.models import get_pretrained_cfg
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForPreTraining,
    BlipConfig,
    BlipForConditionalGeneration,
    PreTrainedModel,
    SamConfig,
    SamModel,
)

from vpd.utils.files import write_json, write_text

WINDOWS = {"img_size": 64, "window_size": 4, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 2, 4)}
TOKENS = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2}
SMALL = {
    "swinv2": WINDOWS,
    "swin": WINDOWS,
    "convnext": {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)},
    "beitv2": TOKENS,
    "vit": TOKENS,
    "sam": {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64, "patch_size": 16,
        "window_size": 2, "global_attn_indexes": (1,), "output_channels": 16, "mlp_dim": 64,
    },
    "blip": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 64,
        "patch_size": 16,
    },
}  # fmt: skip
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "red", "left", "ball", "box", "##es")
BERT = {
    "vocab_size": len(WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 20,
}  # fmt: skip
TEXT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}


def small(architecture: str) -> dict:
    return next(options for beginning, options in SMALL.items() if architecture.startswith(beginning))


def randomise(model: nn.Module) -> nn.Module:
    """Give every parameter a value of its own: zeros and ones would hide that two were exchanged."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    return model


def write_timm(folder: Path, architecture: str, repo: str, options: dict, classes: int) -> nn.Module:
    """A repository of timm's: config.json and model.safetensors, classifier included; its whole network."""
    torch.manual_seed(3)
    model = randomise(timm.create_model(architecture, num_classes=classes, **options)).eval()
    folder.mkdir(parents=True)
    named, _, tag = repo.rpartition("/")[2].partition(".")
    known = get_pretrained_cfg(repo.rpartition("/")[2])
    cfg = {"tag": tag, "custom_load": False, "num_classes": classes, "mean": known.mean, "std": known.std}
    write_json(folder / "config.json", {"architecture": named, "num_classes": classes, "pretrained_cfg": cfg})
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def write_transformers(folder: Path, architecture: str, options: dict) -> PreTrainedModel:
    torch.manual_seed(4)
    model = randomise(WRITERS[architecture](options)).eval()
    model.save_pretrained(folder)
    return model


def _sam(options: dict) -> PreTrainedModel:
    prompt = {"hidden_size": 16, "image_size": 64, "image_embedding_size": 4, "mask_input_channels": 4}
    mask = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "mlp_dim": 16,
        "iou_head_hidden_dim": 16,
    }
    return SamModel(SamConfig(vision_config=options, prompt_encoder_config=prompt, mask_decoder_config=mask))


WRITERS = {
    "sam": _sam,
    "blip": lambda options: BlipForConditionalGeneration(BlipConfig(text_config=TEXT, vision_config=options)),
}


def write_bert(folder: Path) -> None:
    """A repository as google-bert/bert-base-uncased is: heads of the pre-training, and a norm's first names."""
    torch.manual_seed(5)
    model = randomise(BertForPreTraining(BertConfig(**BERT)))
    folder.mkdir(parents=True)
    write_json(folder / "config.json", model.config.to_dict())
    state = {  # TensorFlow's names
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor.clone()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_text(folder / "vocab.txt", "\n".join(WORDS) + "\n")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "tokenizer_class": "BertTokenizer"})


def write_cache(home: Path, repo: str, folder: Path) -> str:
    """Put a repository into a hub cache, as ``huggingface_hub`` lays it out; its commit."""
    place = home / "hub" / f"models--{repo.replace('/', '--')}"
    commit = hashlib.sha1(repo.encode()).hexdigest()
    (place / "blobs").mkdir(parents=True)
    (place / "snapshots" / commit).mkdir(parents=True)
    write_text(place / "refs/main", commit)
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (place / "blobs" / digest).write_bytes(file.read_bytes())
        (place / "snapshots" / commit / file.name).symlink_to(f"../../blobs/{digest}")
    return commit


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and the same bits."""
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)
