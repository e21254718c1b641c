"""Inference protocols against brute-force references: windows, scales, mirror images, batches."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from evaluation_fakes import Drawings, SmallModel, make_spec
from vpd.evaluation.inference import estimate_depth, refer, segment, views
from vpd.evaluation.windows import SlidingWindow, depth_windows, scaled_image, window_starts
from vpd.utils.errors import UserError

SEGMENTATION = make_spec("segmentation").evaluation
DEPTH = make_spec("depth").evaluation


def colour_classes(batch: dict) -> Tensor:
    """A pixel-wise network: logits are fixed mixtures of the pixel's own colour."""
    mixtures = torch.tensor([[1.0, 0.2, 0.1], [-0.5, 1.0, 0.3], [0.2, -0.7, 1.0], [-1.0, -1.0, 0.2]])
    return 3 * torch.einsum("kc,bchw->bkhw", mixtures, batch["image"])


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    """A smooth random uint8 image."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    return (255 * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)[0]).to(torch.uint8)


def labels(predict, images: list[Tensor], **changes) -> list[dict[str, Tensor]]:
    settings = SEGMENTATION.model_copy(update=changes)
    samples = [{"id": str(number), "image": image} for number, image in enumerate(images)]
    return [result for _, result in segment(predict, samples, settings)]


# -------------------------------------------------------------------------------------------------------------- windows
@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (300, [0]),
        (512, [0]),
        (513, [0, 1]),
        (683, [0, 171]),
        (853, [0, 341]),
        (854, [0, 341, 342]),
        (1024, [0, 341, 512]),
    ],
)
def test_window_starts_follow_the_published_grid(length, expected):
    assert window_starts(length, 512, 341) == expected


def test_depth_windows_and_windows_that_leave_a_gap():
    assert depth_windows(640, 480, 2) == [0, 160]
    with pytest.raises(UserError, match="at least 3"):
        depth_windows(100, 40, 2)
    with pytest.raises(UserError, match=r"evaluation\.stride 40 .* at most 32"):
        window_starts(100, 32, 40)


def test_overlapping_windows_average_to_a_per_pixel_reference():
    """Each window's output depends on where in the window a pixel lies, so the overlaps must be averaged right."""
    image, crop, stride = torch.randn(3, 45, 70), 32, 21
    position = torch.arange(crop * crop, dtype=torch.float32).view(1, crop, crop)
    window = SlidingWindow(image, crop, stride)
    for corner in window.corners:
        window.add(corner, window.window(corner)[:1] + position)
    expected = torch.zeros(45, 70)
    for row in range(45):
        for column in range(70):
            inside = [
                image[0, row, column] + (row - top) * crop + (column - left)
                for top in (0, 13)
                for left in (0, 21, 38)
                if top <= row < top + crop and left <= column < left + crop
            ]
            expected[row, column] = sum(inside) / len(inside)
    assert torch.allclose(window.mean()[0], expected, rtol=1e-6)


# --------------------------------------------------------------------------------------------------------- segmentation
def test_scaled_images_are_opencv_resized_bytes_over_127_5():
    image = noise(40, 56)
    resized = cv2.resize(image.permute(1, 2, 0).numpy(), (45, 32), interpolation=cv2.INTER_LINEAR)
    expected = resized.transpose(2, 0, 1).astype(np.float64) / 127.5 - 1
    assert np.allclose(scaled_image(image, SEGMENTATION, 1.0).numpy(), expected, atol=1e-6)


def test_single_scale_labels_of_a_pixelwise_network_are_those_of_the_whole_image():
    """Windows cannot matter to a network that looks at one pixel, so one pass over the whole image must agree."""
    image = noise(32, 75)
    whole = colour_classes({"image": image[None].float() / 127.5 - 1})[0]
    (result,) = labels(colour_classes, [image], multi_scale=False)
    assert set(result) == {"ss"}
    assert torch.equal(result["ss"], whole.argmax(0))


def test_coarse_logits_are_enlarged_to_the_window_and_then_to_the_image():
    """Half-resolution logits on one window: two bilinear steps, as the protocol says."""
    image = noise(40, 40)

    def half(batch: dict) -> Tensor:
        return F.avg_pool2d(colour_classes(batch), 2)

    small = scaled_image(image, SEGMENTATION, 1.0)[None]
    enlarged = F.interpolate(half({"image": small}), (32, 32), mode="bilinear", align_corners=False)
    expected = F.interpolate(enlarged, (40, 40), mode="bilinear", align_corners=False)[0].argmax(0)
    assert torch.equal(labels(half, [image], multi_scale=False)[0]["ss"], expected)


def test_multi_scale_labels_are_the_highest_mean_probability_over_scales_and_mirror_images():
    """Brute force with one whole-image pass per view, for a network that is not symmetric."""
    image = noise(32, 32)
    ramp = torch.linspace(-2, 2, 32)

    def ramped(batch: dict) -> Tensor:
        return colour_classes(batch) + ramp * torch.tensor([1.0, -1.0, 0.5, 0.0]).view(4, 1, 1)

    total = torch.zeros(4, 32, 32)
    for ratio in (1.0, 1.25):
        side = int(32 * ratio)
        picture = cv2.resize(image.permute(1, 2, 0).numpy(), (side, side), interpolation=cv2.INTER_LINEAR)
        scaled = torch.from_numpy(picture).permute(2, 0, 1).float() / 127.5 - 1
        for mirrored in (False, True):
            view = scaled.flip(-1) if mirrored else scaled
            logits, count = torch.zeros(4, side, side), torch.zeros(side, side)
            for top in {0, side - 32}:
                for left in {0, side - 32}:
                    rows, columns = slice(top, top + 32), slice(left, left + 32)
                    logits[:, rows, columns] += ramped({"image": view[None, :, rows, columns]})[0]
                    count[rows, columns] += 1
            logits = F.interpolate((logits / count)[None], (32, 32), mode="bilinear", align_corners=False)[0]
            probabilities = logits.softmax(0)
            total += probabilities.flip(-1) if mirrored else probabilities
    (result,) = labels(ramped, [image])
    agreement = (result["ms"] == total.argmax(0)).float().mean()
    assert agreement > 0.999
    assert not torch.equal(result["ms"], result["ss"])


def test_the_plain_view_is_shared_and_counts_for_multi_scale_only_if_its_ratio_is_listed():
    def by_key(batch: dict) -> Tensor:
        plain = torch.tensor(["/1.0/" in key for key in batch["key"]])
        logits = torch.where(plain.view(-1, 1), torch.tensor([[9.0, 0.0]]), torch.tensor([[0.0, 1.0]]))
        return logits.view(-1, 2, 1, 1)

    both = {"ratios": (1.0, 1.5)}
    assert views(SEGMENTATION.model_copy(update=both)) == [(1.0, False), (1.0, True), (1.5, False), (1.5, True)]
    assert views(SEGMENTATION.model_copy(update={"ratios": (1.5,)})) == [(1.0, False), (1.5, False), (1.5, True)]
    (result,) = labels(by_key, [noise(32, 32)], ratios=(1.5,))
    assert result["ss"].eq(0).all()
    assert result["ms"].eq(1).all()


# -------------------------------------------------------------------------------------------------------------- batches
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_do_not_depend_on_the_batch_size(batch_size):
    images = [noise(32, 60, 1), noise(40, 33, 2), noise(20, 100, 3), noise(32, 32, 4)]
    model = SmallModel("segmentation")
    with torch.inference_mode():
        alone = [labels(model, [image], batch_size=4)[0] for image in images]
        together = labels(model, images, batch_size=batch_size)
    for one, other in zip(alone, together, strict=True):
        assert (one["ss"] == other["ss"]).float().mean() > 0.999
        assert (one["ms"] == other["ms"]).float().mean() > 0.999


def test_samples_come_back_once_and_in_order_while_the_stream_runs():
    """Results appear before the last sample was read: memory does not grow with the split."""
    read = []

    def samples():
        for number in range(9):
            read.append(number)
            yield {"id": str(number), "image": noise(32, 32, number)}

    settings = SEGMENTATION.model_copy(update={"multi_scale": False, "batch_size": 2})
    results = segment(colour_classes, samples(), settings)
    assert next(results)[0]["id"] == "0"
    assert len(read) <= 3
    assert [sample["id"] for sample, _ in results] == [str(number) for number in range(1, 9)]


# -------------------------------------------------------------------------------------------------- referring and depth
def test_sentences_get_their_own_logits_and_share_the_images_key():
    drawings = Drawings("referring")
    samples = [drawings.sample(index) for index in range(5)]
    keys, model = [], SmallModel("referring")

    def predict(batch: dict) -> Tensor:
        keys.extend(batch["key"])
        scale = torch.tensor([float(len(text)) for text in batch["text"]]).view(-1, 1, 1, 1)
        return model(batch) * scale

    with torch.inference_mode():
        results = list(refer(predict, samples, make_spec("referring").evaluation))
        for (sample, logits), original in zip(results, samples, strict=True):
            assert sample is original
            alone = model({"image": sample["image"][None], "key": [""]})[0] * len(sample["text"])
            assert torch.allclose(logits, alone, atol=1e-5)
    assert keys == ["image-0", "image-0", "image-1", "image-1", "image-2"]


def depth_sample(width: int = 48) -> dict:
    return {"id": "a", "image": torch.rand(3, 32, width) * 2 - 1, "class_id": torch.tensor(1)}


def test_images_that_do_not_fit_the_depth_window_are_refused():
    with pytest.raises(UserError, match=r"sample a is 48x32 pixels, but evaluation\.window is 40"):
        list(estimate_depth(SmallModel("depth"), [depth_sample()], DEPTH.model_copy(update={"window": 40})))
