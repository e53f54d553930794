"""Birth points of feature maps: when the first 1-cycle of a map's graph appears."""

from lightning_unitrole.topology.betti import betti_curve
from lightning_unitrole.topology.definition import MAX_BIRTH, MAX_DENSITY
from lightning_unitrole.topology.selector import BACKENDS, birth_points, count_births, count_dtype

__all__ = [
    "BACKENDS",
    "MAX_BIRTH",
    "MAX_DENSITY",
    "betti_curve",
    "birth_points",
    "count_births",
    "count_dtype",
]
