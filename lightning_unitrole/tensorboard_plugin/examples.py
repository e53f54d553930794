"""The images that units respond to, as the tab's own data.

A thumbnail is named by its pixels: one that was logged before is not logged again, whatever became of the run since.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from lightning_unitrole.reports.examples import KINDS, SplitExamples
from lightning_unitrole.reports.layer import SPLITS
from lightning_unitrole.tensorboard_plugin.packing import Array
from lightning_unitrole.tensorboard_plugin.schema import NO_CLASS

MAX_THUMBNAIL_BYTES = 8 << 20
"""Thumbnails of one run are logged up to this size; after that, units show only those that are there already."""


def thumbnail_names(split: SplitExamples) -> Array:
    """``[N]`` float64 whole numbers, one for each different picture."""
    digests = [hashlib.blake2b(picture.numpy().tobytes(), digest_size=6).digest() for picture in split.thumbnails]
    return np.array([1 + int.from_bytes(digest, "little") for digest in digests], np.float64)


def new_thumbnails(
    examples: Mapping[str, SplitExamples], names_of: Mapping[str, Array], known: Mapping[float, int]
) -> tuple[dict[float, int], dict[str, Array]]:
    """Pictures that are yet to be logged, within what a run may log.

    Args:
        examples: by split.
        names_of: names of their thumbnails, by split.
        known: bytes of each picture that was logged, by its name.

    Returns:
        The same with the new ones, and the arrays to log, empty where there is nothing new.
    """
    logged = dict(known)
    names: list[float] = []
    pixels: list[Array] = []
    room = MAX_THUMBNAIL_BYTES - sum(logged.values())
    for split, found in examples.items():
        for name, picture in zip(names_of[split].tolist(), found.thumbnails.numpy(), strict=True):
            fits = picture.nbytes <= room and (not pixels or pixels[0].shape == picture.shape)
            if name not in logged and fits:
                logged[name] = picture.nbytes
                room -= picture.nbytes
                names.append(name)
                pixels.append(picture)
    return logged, {"names": np.array(names), "pixels": np.stack(pixels)} if names else {}


def layer_examples(
    examples: Mapping[str, SplitExamples], names_of: Mapping[str, Array], layer: str, slots: Array, units: int
) -> tuple[dict[str, Any], dict[str, Array]]:
    """What is logged of the units of a layer: facts, and arrays over the units that it had at first.

    Args:
        examples: by split.
        names_of: names of their thumbnails, by split.
        layer: name of the layer.
        slots: ``[U]``, the original index of each unit that the layer has now.
        units: number of units that it had at first.
    """
    found = {split: examples[split].layers[layer] for split in SPLITS}
    kept, height, width = found["val"].images.shape[1], *found["val"].maps.shape[3:]
    shape = (len(SPLITS), len(KINDS), kept, units)
    arrays: dict[str, Array] = {
        "images": np.zeros(shape),
        "values": np.full(shape, np.nan, np.float16),
        "classes": np.full(shape, NO_CLASS, np.uint16),
        "maps": np.zeros((*shape, height * width), np.uint8),
    }
    for place, (split, each) in enumerate(found.items()):
        chosen = each.images.numpy()
        if kept and len(examples[split].thumbnails):
            names, classes = names_of[split], examples[split].classes.numpy().clip(max=NO_CLASS)
            arrays["images"][place][..., slots] = np.where(chosen >= 0, names[chosen], 0)
            arrays["classes"][place][..., slots] = np.where(
                chosen >= 0, np.minimum(classes[chosen], NO_CLASS), NO_CLASS
            )
        with np.errstate(over="ignore"):
            arrays["values"][place][..., slots] = each.values.numpy().astype(np.float16)
        arrays["maps"][place][:, :, slots] = each.maps.numpy().reshape(*chosen.shape, -1)
    twins = found["val"].twins.numpy()
    for name, fill, kind, values in (
        ("twins", np.iinfo(np.uint16).max, np.uint16, np.where(twins >= 0, slots[twins], np.iinfo(np.uint16).max)),
        ("correlation", np.nan, np.float16, found["val"].correlation.numpy()),
    ):
        arrays[name] = np.full((len(twins), units), fill, kind)
        arrays[name][:, slots] = values
    return {"map": [height, width]}, arrays
