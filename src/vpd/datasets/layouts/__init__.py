"""The datasets' on-disk layouts: what files there are, what they count, and whether they are sound. Nothing here needs torch."""

from __future__ import annotations

from vpd.datasets.layouts import ade20k, captions, nyuv2, objects, refcoco

LAYOUTS = {"ade20k": ade20k, "nyuv2": nyuv2, "refcoco": refcoco, "captions": captions, "objects": objects}
"""Each has TOPS, members(root), counts(root), checks(root) and check(*arguments)."""
