"""Forward and backward pass of each task at Stable Diffusion's real size, 512 pixels, random weights, on the CPU.

Some minutes and 14 GiB of memory each: ``pytest -m slow tests/test_true_size.py``. Figures are those of the released code.
"""

import pytest
import torch

from vpd.config.params import load_params
from vpd.planning.networks import CLASSES, FORMATS, build, make_batch
from vpd.pretrained.stable_diffusion import configs
from vpd.training.losses import loss

pytestmark = pytest.mark.slow

UNET, ENCODER, ADAPTER = 859_508_800, 34_163_664, 1_181_952
HEADS = {"seg-full": 3_339_264 + 4_170_902, "refcoco-full": 39_176_962, "depth-full": 11_537_409}
OUTPUTS = {"seg-full": (1, 150, 64, 64), "refcoco-full": (1, 2, 512, 512), "depth-full": (1, 1, 480, 480)}
FEATURES = {
    "seg-full": [(320, 64), (640 + 150, 32), (1280 + 150, 16), (1280, 8)],
    "refcoco-full": [(320, 64), (640 + 40, 32), (1280 + 40, 16), (1280, 8)],
    "depth-full": [(320, 64), (640, 32), (1280, 16), (1280, 8)],
}
IDLE = {"seg-full": 0, "refcoco-full": 0, "depth-full": 64}
"""Tensors whose gradient is exactly zero: with one text token, norm2 and the query and key of all 16 cross-attentions."""


@pytest.mark.parametrize(
    ("name", "checkpointing"), [("seg-full", False), ("seg-full", True), ("refcoco-full", False), ("depth-full", False)]
)
def test_one_step_at_true_size(name, checkpointing):
    torch.set_num_threads(2)
    spec = load_params("params.yaml", "paper").resolve(name)
    training = spec.training.model_copy(update={"gradient_checkpointing": checkpointing})
    spec = spec.model_copy(update={"training": training})
    model = build(spec, configs(), CLASSES[FORMATS[spec.task]]).train()
    sizes = {part: sum(p.numel() for p in module.parameters()) for part, module in model.named_children()}
    assert sizes | {"text": 0} == {"vae": ENCODER, "unet": UNET, "adapter": ADAPTER, "head": HEADS[name], "text": 0}

    shapes = []
    model.head.register_forward_pre_hook(lambda _, inputs: shapes.extend(x.shape for x in inputs[0].maps))
    batch = make_batch(spec, 1, CLASSES[FORMATS[spec.task]])
    prediction = model(batch)
    assert prediction.shape == OUTPUTS[name]
    assert shapes == [(1, channels, side, side) for channels, side in FEATURES[name]]
    value = loss(spec.training.loss, prediction, batch)
    assert value.isfinite()
    value.backward()
    del prediction

    idle = check_gradients(model)
    assert len(idle) == IDLE[name]
    assert all("attn2.to_q" in n or "attn2.to_k" in n or ".norm2." in n for n in idle)


def check_gradients(model: torch.nn.Module) -> list[str]:
    """Frozen tensors have no gradient, all others a finite one; return the names of those whose gradient is zero."""
    idle = []
    for name, parameter in model.named_parameters():
        if name.startswith(("vae.", "text.")):
            assert parameter.grad is None, name
            assert not parameter.requires_grad, name
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not parameter.grad.any():
            idle.append(name)
    return idle
