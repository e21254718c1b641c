"""Network outputs of any number of windows, and at any size, without ever holding all of a large one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from vpd.evaluation.inference import Predict, Request, answer

CHUNK = 1 << 22
"""Numbers that one piece of an enlarged map holds."""


def answer_all(predict: Predict, requests: Sequence[Request], batch_size: int) -> None:
    """Run ``requests`` in batches of at most ``batch_size``."""
    for first in range(0, len(requests), batch_size):
        answer(predict, list(requests[first : first + batch_size]))


def enlarged(maps: Tensor, height: int, width: int) -> Iterator[tuple[slice, Tensor]]:
    """Bring maps (K, h, w) to (K, height, width) bilinearly; yield pieces (rows, (K, rows, width)) from the top."""
    step = max(1, CHUNK // (len(maps) * width))
    for first in range(0, height, step):
        rows = slice(first, min(first + step, height))
        yield rows, enlarged_rows(maps, height, width, rows)


def enlarged_rows(maps: Tensor, height: int, width: int, rows: slice) -> Tensor:
    """The given rows of ``F.interpolate(maps, (height, width), mode="bilinear")`` from the rows of ``maps`` they need."""
    wanted = torch.arange(rows.start, rows.stop, device=maps.device, dtype=torch.float32)
    source = ((wanted + 0.5) * (maps.shape[1] / height) - 0.5).clamp(0, maps.shape[1] - 1)
    above = source.floor().long()
    below = (above + 1).clamp(max=maps.shape[1] - 1)
    share = (source - above)[:, None].to(maps.dtype)
    # Downwards first: the rows are still short.
    strip = maps.index_select(1, above) * (1 - share) + maps.index_select(1, below) * share
    return F.interpolate(strip[None], size=(len(wanted), width), mode="bilinear", align_corners=False)[0]
