"""Where units lie in a tensor: whatever its dimensions, it is looked at as maps ``[batch, units, height, width]``.

Maps of two dimensions are these already. The output of a linear layer has its units last, that of a convolution in one
or three dimensions has other dimensions than two; their positions make one row, unless they lie on a grid.
"""

from __future__ import annotations

from torch import Tensor

from lightning_unitrole.network.units import UnitLayer


def are_units(layer: UnitLayer, output: Tensor) -> bool:
    """Whether a tensor can be the output of a layer."""
    dims = output.dim()
    if layer.dim == 1 and layer.grid:
        return dims == 4 and output.shape[1] == layer.num_units
    return dims > 1 and output.shape[layer.dim] == layer.num_units


def as_maps(layer: UnitLayer, output: Tensor) -> Tensor:
    """The output of a layer as ``[batch, units, height, width]``."""
    if layer.dim == 1 and layer.grid:
        return output
    maps = output.movedim(layer.dim, 1)
    return maps if layer.grid and maps.dim() == 4 else maps.reshape(*maps.shape[:2], 1, -1)


def from_maps(layer: UnitLayer, maps: Tensor, output: Tensor) -> Tensor:
    """Maps in the layout of ``output``, the reverse of :func:`as_maps`."""
    if layer.dim == 1 and layer.grid:
        return maps
    places = output.shape[1:-1] if layer.dim == -1 else output.shape[2:]
    return maps.reshape(-1, layer.num_units, *places).movedim(1, layer.dim)


def on_grid(layer: UnitLayer, maps: Tensor) -> Tensor | None:
    """The part of the maps that has a birth point, ``[batch, units, height, width]``; None where there is none."""
    if not layer.grid:
        return None
    if layer.dim == -1 and maps.shape[2] == 1:
        return maps[:, :, 0, layer.extra :].reshape(*maps.shape[:2], *layer.map_size)
    return maps
