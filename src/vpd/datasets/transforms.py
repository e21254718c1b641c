"""Image and label transforms on numpy arrays; all randomness comes from the generator that is passed in.

Images are (H, W, 3) uint8 RGB until ``normalise``, labels (H, W) uint8 with 255 = ignored, depth (H, W) float32 metres. The
rules and their order are those of the released code (mmsegmentation's and GLPDepth's), which libraries of transforms round
and order differently.
"""

import cv2
import numpy as np
from numpy import ndarray
from numpy.random import Generator
from PIL import Image

from vpd.config.schema import DepthData, SegmentationData
from vpd.datasets.images import MILLIMETRES

cv2.setNumThreads(0)  # every worker of a data loader would start threads of its own, which costs more than it saves

IGNORE = 255
CENTRE = 127.5
CROP_REDRAWS = 10


def normalise(image: ndarray) -> ndarray:
    """uint8 to float32 in [-1, 1], as Stable Diffusion's VAE takes it."""
    return (image.astype(np.float32) - np.float32(CENTRE)) / np.float32(CENTRE)


def resize_image(image: ndarray, height: int, width: int) -> ndarray:
    """Bilinear, without smoothing."""
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def resize_labels(labels: ndarray, height: int, width: int) -> ndarray:
    """Nearest neighbour."""
    return cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)


def resize_square(image: ndarray, mask: ndarray, side: int) -> tuple[ndarray, ndarray]:
    """Resize image (smoothed bilinear) and mask (nearest) to ``side`` squared with Pillow; the aspect is not kept (R2)."""
    small = Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)
    return np.array(small), np.array(Image.fromarray(mask).resize((side, side), Image.Resampling.NEAREST))


def resized_size(height: int, width: int, short: int, long: int, ratio: float = 1.0) -> tuple[int, int]:
    """Return height and width of the largest image of this aspect within ``long`` x ``short``, both times ``ratio``.

    The rule of mmsegmentation: the limits are truncated to integers, the result is rounded half up.
    """
    limit_long, limit_short = int(long * ratio), int(short * ratio)
    scale = min(limit_long / max(height, width), limit_short / min(height, width))
    return int(height * scale + 0.5), int(width * scale + 0.5)


def reduce_zero_label(labels: ndarray) -> ndarray:
    """0 (no class) becomes ignored, every other label one less."""
    return np.where(labels == 0, IGNORE, labels - 1).astype(np.uint8)


# --------------------------------------------------------------------------------------------------------- segmentation
def augment_segmentation(
    image: ndarray, labels: ndarray, data: SegmentationData, rng: Generator
) -> tuple[ndarray, ndarray]:
    """Scale, crop, flip, distort, normalise and pad to (crop, crop, 3) in [-1, 1] and (crop, crop) labels (G9)."""
    ratio = rng.uniform(*data.ratio_range)
    height, width = resized_size(image.shape[0], image.shape[1], data.short_side, data.long_side, ratio)
    image, labels = resize_image(image, height, width), resize_labels(labels, height, width)
    window = random_crop(labels, data.crop, data.max_class_share, rng)
    image, labels = image[window], labels[window]
    if rng.random() < data.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    if data.photometric:
        image = distort(image, rng)
    return pad(normalise(image), data.crop, 0.0), pad(labels, data.crop, IGNORE)


def random_crop(labels: ndarray, side: int, max_class_share: float, rng: Generator) -> tuple[slice, slice]:
    """Draw a window, again up to ten times while it has only one class or one that fills too much of it."""
    window = draw_window(labels.shape, side, rng)
    for _ in range(CROP_REDRAWS if max_class_share < 1.0 else 0):
        shares = np.bincount(labels[window].ravel(), minlength=IGNORE + 1)[:IGNORE]
        if np.count_nonzero(shares) > 1 and shares.max() < max_class_share * shares.sum():
            break
        window = draw_window(labels.shape, side, rng)
    return window


def draw_window(shape: tuple[int, ...], side: int, rng: Generator) -> tuple[slice, slice]:
    """A uniformly drawn window, smaller where the image is."""
    top, left = (int(rng.integers(max(size - side, 0) + 1)) for size in shape)
    return slice(top, top + side), slice(left, left + side)


def pad(values: ndarray, side: int, value: float) -> ndarray:
    """Fill up to ``side`` squared at the bottom and right."""
    height, width = values.shape[:2]
    rest = ((0, 0),) * (values.ndim - 2)
    return np.pad(values, ((0, side - height), (0, side - width), *rest), constant_values=value)


def distort(image: ndarray, rng: Generator) -> ndarray:
    """mmsegmentation's: brightness, contrast, saturation and hue with probability 1/2 each; contrast may come last."""
    if rng.integers(2):
        image = _scale(image, 1.0, rng.uniform(-32.0, 32.0))
    contrast_first = bool(rng.integers(2))
    if contrast_first and rng.integers(2):
        image = _scale(image, rng.uniform(0.5, 1.5), 0.0)
    if rng.integers(2):
        hsv = _hsv(image)
        hsv[..., 1] = _scale(hsv[..., 1], rng.uniform(0.5, 1.5), 0.0)
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.integers(2):
        hsv = _hsv(image)
        hsv[..., 0] = (hsv[..., 0].astype(np.int64) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not contrast_first and rng.integers(2):
        image = _scale(image, rng.uniform(0.5, 1.5), 0.0)
    return image


def _hsv(image: ndarray) -> ndarray:
    return cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2HSV)


def _scale(values: ndarray, factor: float, offset: float) -> ndarray:
    """``values * factor + offset``, clipped and truncated to uint8."""
    return np.clip(values.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------------------- depth
def augment_depth(image: ndarray, depth: ndarray, data: DepthData, rng: Generator) -> tuple[ndarray, ndarray]:
    """CutDepth, flip, crop, then brightness and contrast, gamma and colour (D10, D17); both sides must be at least crop."""
    if rng.random() < data.cutdepth:
        image = cut_depth(image, depth, data, rng)
    if rng.random() < data.flip:
        image, depth = image[:, ::-1], depth[:, ::-1]
    window = draw_window(depth.shape, data.crop, rng)
    image, depth = np.ascontiguousarray(image[window]), np.ascontiguousarray(depth[window])
    for change in (_brightness_contrast, _gamma, _colour):
        if rng.random() < data.photometric:
            image = change(image, rng)
    return normalise(image), depth


def cut_depth(image: ndarray, depth: ndarray, data: DepthData, rng: Generator) -> ndarray:
    """Paste a vertical strip of the depth map into a copy of the image."""
    width = image.shape[1]
    start, share = rng.random(), rng.random()
    left = int(start * width)
    strip = slice(left, left + int(max((width - start * width) * share * data.cutdepth_width, 1)))
    if data.cutdepth_values == "wrapped":  # modulo 256, as the released code's cast of millimetres to 8 bits
        values = (np.rint(depth[:, strip] * np.float32(MILLIMETRES)).astype(np.int64) & 255).astype(np.uint8)
    else:
        values = (np.clip(depth[:, strip] / data.max_depth, 0.0, 1.0) * 255.0).astype(np.uint8)
    image = image.copy()
    image[:, strip] = values[..., None]
    return image


def _brightness_contrast(image: ndarray, rng: Generator) -> ndarray:
    return _scale(image, 1.0 + rng.uniform(-0.2, 0.2), 255.0 * rng.uniform(-0.2, 0.2))


def _gamma(image: ndarray, rng: Generator) -> ndarray:
    table = np.arange(256) / 255.0
    return (table ** rng.uniform(0.8, 1.2) * 255.0).astype(np.uint8)[image]


def _colour(image: ndarray, rng: Generator) -> ndarray:
    hsv = _hsv(image).astype(np.int64)
    hue, saturation, value = rng.integers(-20, 21), rng.integers(-30, 31), rng.integers(-20, 21)
    hsv[..., 0] = (hsv[..., 0] + hue) % 180
    hsv[..., 1:] = np.clip(hsv[..., 1:] + (saturation, value), 0, 255)
    return cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)
