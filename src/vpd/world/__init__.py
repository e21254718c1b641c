"""Synthetic scenes: an integer seed becomes a furnished room, its picture, classes, depth, instances and sentences.

Coordinates are metres in the room's frame: x to the right, y up, z away from the camera; the origin lies on the floor in the
middle of the wall that the camera stands at. Images are (H, W) with row 0 at the top; their sizes are given as (width, height).

Every scene is the same bytes on every machine, so that datasets need not be shared: numbers come from PCG64 and pass only
through + - * / and sqrt, which IEEE 754 rounds exactly. Functions such as sin or exp differ between mathematical libraries,
and a sum over an array between vector units.
"""
