"""Birth points compiled by numba: the fast path on a CPU.

The values are read where they lie, whatever the strides, as integers that sort as the floats do (births depend on
order only), so half precisions need no copy and -0.0 equals 0.0. For each row the largest remaining entry is kept,
packed with its position into one integer; taking the next edge costs a maximum over rows and one over the row it
came from. Both off-diagonal halves are kept instead of symmetrising first: the larger half of an edge comes up
first, and then both are struck out.

The decision rule is the one of the torch backend: the first edge that closes a cycle without a common neighbour is
a *suspect*. Suspects of a step of equal weights wait for the rest of it, which fills most of them; what is left decides
nearly every step without linear algebra. Where it does not (one map in a hundred with heavily saturated 56x56
activations, far fewer otherwise) ripser has the last word.

Threads are Python's, over slices of the work, with the interpreter lock released: unlike numba's own threading
layers this is safe when several threads call at once and when the process forks, and it compiles faster.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_unitrole.topology.definition import UNSETTLED, trivial_births
from lightning_unitrole.topology.ordering import as_integers
from lightning_unitrole.topology.ripser_backend import birth

_MIN_WORK = 1 << 16
"""Elements below which a second thread costs more than it brings."""
_SLICES_PER_THREAD = 4


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``; None when it can."""
    if device.type != "cpu":
        return f"it works on CPU tensors, got a tensor on {device}; use backend='auto' or 'torch'"
    try:
        import numba  # noqa: F401
    except Exception as error:  # an installation that does not fit raises all sorts of errors
        return f'numba cannot be imported ({error}); install it with: pip install "lightning-unitrole[cpu]"'
    return None


def raw_births(maps: Tensor, steps: int) -> Tensor:
    """Births of ``maps [B, U, H, W]`` within ``steps`` filtration steps; int32 ``[B, U]``, ``NON_FINITE`` where so."""
    if steps == 0 or maps.numel() == 0:
        return trivial_births(maps)
    return torch.from_numpy(_births(maps.detach(), torch.arange(len(maps)).numpy(), steps))


def count(maps: Tensor, groups: Tensor, counts: Tensor, non_finite: Tensor, steps: int) -> bool:
    """Count the births of ``maps [B, U, H, W]`` in place; False where the caller has to do it.

    Args:
        maps: any floating-point type and strides.
        groups: int64 ``[B]``, class of each image, -1 to skip it.
        counts: ``[C, U, bins]``, any integer type.
        non_finite: ``[C, U]``, any integer type.
        steps: number of filtration steps.
    """
    if steps == 0 or maps.numel() == 0:
        return False
    images = (groups >= 0).nonzero().squeeze(1)
    if len(images) == 0:
        return True
    births = _births(maps.detach(), images.numpy(), steps)
    _kernels().add(births, groups[images].numpy(), counts.detach().numpy(), non_finite.detach().numpy())
    return True


def _births(maps: Tensor, images: NDArray[np.int64], steps: int) -> NDArray[np.int32]:
    """Births ``[len(images), U]`` of the chosen images of ``maps [B, U, H, W]``."""
    if maps.dtype == torch.float64:  # these are copied, so only the chosen ones
        maps, images = maps[torch.from_numpy(images)], np.arange(len(images))
    integers, infinity = as_integers(maps)
    units, height, width = maps.shape[1:]
    births = np.empty((len(images), units), np.int32)
    # A flat view of everything between the first and the last element, whatever the strides.
    span = 1 + sum((size - 1) * stride for size, stride in zip(integers.shape, integers.stride(), strict=True))
    flat = integers.as_strided((span,), (1,)).numpy()
    kernel = _kernels().scan(height, width, flat.dtype.itemsize)
    out = births.reshape(-1)

    def run(begin: int, end: int) -> int:
        unsettled: int = kernel(
            flat, images, *integers.stride(), units, height, width, steps, infinity, begin, end, out
        )
        return unsettled

    if sum(_in_threads(run, births.size, height * width)):
        for image, unit in zip(*np.nonzero(births == UNSETTLED), strict=True):
            births[image, unit] = birth(maps[images[image], unit].double().numpy(), steps)
    return births


def _in_threads(run: Callable[[int, int], int], maps: int, elements: int) -> list[int]:
    """``run(begin, end)`` over slices of ``range(maps)``, by as many threads as torch uses."""
    threads = min(torch.get_num_threads(), maps, 1 + maps * elements // _MIN_WORK)
    if threads == 1:
        return [run(0, maps)]
    slices = min(maps, threads * _SLICES_PER_THREAD)
    bounds = [maps * index // slices for index in range(slices + 1)]
    return list(_pool(os.getpid(), threads).map(run, bounds[:-1], bounds[1:]))


@lru_cache(maxsize=1)
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this process (a forked child must not inherit its parent's)."""
    return ThreadPoolExecutor(threads, thread_name_prefix="birth-points")


def _kernels() -> Any:
    """The compiled functions; numba loads here and not before."""
    from lightning_unitrole.topology import numba_kernels

    return numba_kernels
