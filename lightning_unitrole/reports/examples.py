"""The images that each unit contributes most to and responds to most: plain data, for showing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

KINDS = ("contribution", "activation")
"""By what the images of a unit are chosen: its contribution to the margin, and the largest value of its map."""


class Room(NamedTuple):
    """What is kept of each unit.

    Attributes:
        images: images of each kind.
        map_side: largest side of the maps laid over them.
    """

    images: int
    map_side: int


_ROOMS = (Room(3, 7), Room(2, 7), Room(1, 7), Room(1, 4))
_BYTES, _BYTES_EACH = 1 << 20, 12


def room_for(units: int) -> Room:
    """As many images for each unit as keep what is logged of one analysis within a megabyte, thumbnails apart.

    Args:
        units: of all layers together.

    Example:
        >>> room_for(200), room_for(8000), room_for(100_000)
        (Room(images=3, map_side=7), Room(images=1, map_side=4), Room(images=0, map_side=1))
    """
    for room in _ROOMS:
        if units * 2 * len(KINDS) * room.images * (_BYTES_EACH + room.map_side**2) <= _BYTES:
            return room
    return Room(0, 1)


@dataclass(frozen=True, repr=False)
class LayerExamples:
    """What the units of one layer respond to, among the images of one split (U units, K images of each kind).

    Attributes:
        images: ``[2, K, U]`` int64, for each of :data:`KINDS` the places of the images in
            :attr:`SplitExamples.thumbnails`, the largest value first; -1 where there are fewer images than K.
        values: ``[2, K, U]`` float32, contribution in nats and largest value of the map; NaN where there is no image.
        maps: ``[2, K, U, h, w]`` uint8, the unit's map of each, made small; 255 is the largest value among the
            maps of the unit, 0 is zero and below.
        twins: ``[T, U]`` int64, the units whose contributions to single images go most with those of this one; -1 for
            none. Empty where it was not looked for.
        correlation: ``[T, U]`` float32, Pearson correlation of the two over all images.
    """

    images: Tensor
    values: Tensor
    maps: Tensor
    twins: Tensor
    correlation: Tensor

    def __repr__(self) -> str:
        kinds, each, units = self.images.shape
        return f"LayerExamples({each} images of {kinds} kinds for each of {units} units)"


@dataclass(frozen=True, repr=False)
class SplitExamples:
    """The images of one split that units respond to.

    Attributes:
        thumbnails: ``[N, H, W, 1 or 3]`` uint8, each stretched to its own range of values, since how a user normalised
            the images is not known.
        classes: ``[N]`` int64, class of each.
        layers: by the name of the layer.
    """

    thumbnails: Tensor
    classes: Tensor
    layers: Mapping[str, LayerExamples]

    def __repr__(self) -> str:
        return f"SplitExamples({len(self.thumbnails)} images, {len(self.layers)} layers)"
