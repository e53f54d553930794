"""Birth points on a GPU: Triton reads the activations where they lie and decides, without waiting for the host.

The first kernel handles nearly everything, hard ties included: it follows one cohomology class through a step of
equal weights. Maps that need more are put on a list on the device, which a second kernel works off, and a third
launch of it, with room for every class there can be, what is left then. All three are always launched, so the host
never has to look.
"""

import os
from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.topology.definition import trivial_births
from lightning_unitrole.topology.ordering import as_integers

MAX_SIDE = 256
_PER_THREAD = 64
"""32-bit registers a thread spends on the edges of its maps; with 128 the compiler reports spilling (sm_90)."""
_SCRATCH_BYTES = 64 << 20


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``; None when it can."""
    try:
        import triton  # noqa: F401
    except Exception as error:  # an installation that does not fit raises all sorts of errors
        return f"Triton cannot be imported ({error}); it comes with PyTorch for CUDA on Linux, or: pip install triton"
    if device.type != "cuda" and not _interpreted():
        return (
            f"it works on CUDA tensors, got a tensor on {device}; use backend='auto' or 'torch' "
            "(for tests, set TRITON_INTERPRET=1 before Python starts)"
        )
    return None


def unfit(n: int, max_birth: int) -> str | None:
    """Why maps of side ``n`` are beyond this backend; None when they are not."""
    if n > MAX_SIDE:
        return f"it takes maps up to {MAX_SIDE}x{MAX_SIDE}, got side {n}; use backend='torch'"
    return None


def raw_births(maps: Tensor, steps: int) -> Tensor:
    """Births of ``maps [B, U, H, W]`` within ``steps`` filtration steps; int32 ``[B, U]``, ``NON_FINITE`` where so."""
    if steps == 0 or maps.numel() == 0:
        return trivial_births(maps)
    births = torch.empty(maps.shape[:2], dtype=torch.int32, device=maps.device)
    _launch(maps.detach(), steps, births=births)
    return births


def count(maps: Tensor, groups: Tensor, counts: Tensor, non_finite: Tensor, steps: int) -> bool:
    """Count the births of ``maps [B, U, H, W]`` in place; False where the caller has to do it.

    Args:
        maps: any floating-point type and strides.
        groups: int64 ``[B]``, class of each image, -1 to skip it.
        counts: ``[C, U, bins]``, int16, int32 or int64.
        non_finite: ``[C, U]``, likewise.
        steps: number of filtration steps.
    """
    if steps == 0 or maps.numel() == 0 or not (_addable(counts) and _addable(non_finite)):
        return False
    _launch(maps.detach(), steps, counting=(groups.contiguous(), counts.detach(), non_finite.detach()))
    return True


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _addable(histogram: Tensor) -> bool:
    """Whether atomic additions of whole 32-bit words reach every element and nothing else."""
    pairs = histogram.dtype != torch.int16 or (histogram.numel() % 2 == 0 and histogram.data_ptr() % 4 == 0)
    return histogram.is_contiguous() and pairs


def _words(histogram: Tensor) -> Tensor:
    return histogram.view(-1).view(torch.int32) if histogram.dtype == torch.int16 else histogram


@lru_cache(maxsize=64)
def _ends(n: int, size: int, device: torch.device) -> Tensor:
    """The edges of the complete graph as ``u << 8 | v``, int32 ``[size]``, filled up with -1."""
    u, v = torch.triu_indices(n, n, 1)
    ends = torch.full((size,), -1, dtype=torch.int32)
    ends[: len(u)] = (u << 8 | v).to(torch.int32)
    # A copy from pageable memory would wait for the device; this one is made once per size.
    return ends.to(device)


def _launch(
    maps: Tensor, steps: int, births: Tensor | None = None, counting: tuple[Tensor, Tensor, Tensor] | None = None
) -> None:
    from lightning_unitrole.topology import triton_kernels

    integers, infinity = as_integers(maps)
    images, units, height, width = integers.shape
    n, total, device = max(height, width), images * units, maps.device
    side = 1 << (n - 1).bit_length()
    edges = 1 << (n * (n - 1) // 2 - 1).bit_length()
    half = integers.dtype == torch.int16
    truncated = not half and side <= 16
    wide = not half and not truncated
    per_warp = 32 * (_PER_THREAD // 2 if wide else _PER_THREAD)
    together = max(1, min(32, per_warp // edges))
    warps = max(1, min(16, edges * together // per_warp))

    none = torch.empty(1, dtype=torch.int32, device=device)
    groups, counts, non_finite = counting or (none, none, none)
    bins = counts.shape[-1]
    bits = [8 * histogram.element_size() for histogram in (counts, non_finite)]
    shared: dict[str, Any] = {
        "MAGNITUDE": 0x7FFF if half else 0x7FFFFFFF,
        "COUNTING": counting is not None,
        "COUNT_BITS": bits[0],
        "ODD_BITS": bits[1],
    }
    target = (groups, none if births is None else births, _words(counts), _words(non_finite))
    ends = _ends(n, edges, device)
    work = torch.empty(2, total, dtype=torch.int64, device=device)
    sizes = torch.zeros(3, dtype=torch.int32, device=device)
    geometry = (units, height, width, *integers.stride(), steps, bins, infinity)

    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        triton_kernels.scan[((total + together - 1) // together,)](
            integers, ends, *target, work[0], sizes[0:], total, *geometry,
            EDGES=edges, MAPS=together, SIDE=side, WORDS=max(1, side // 64), WIDE=wide,
            VERTEX_BITS=4 if truncated else 8, TRUNCATED=truncated, num_warps=warps, **shared,
        )  # fmt: skip
        most = max(1, -(-(n * n // 4) // 64))  # words for every class that a flag complex on n vertices can have
        for source, words in ((0, 1), (1, most)):
            programs = _programs(side, words, total)
            adjacency = torch.empty(programs * side * side, dtype=torch.int8, device=device)
            labels = torch.empty(programs * side * side * words, dtype=torch.int64, device=device)
            vectors = torch.empty(programs * 3 * words, dtype=torch.int64, device=device)
            triton_kernels.settle[(programs,)](
                integers, ends, *target, work[source], sizes[source:], work[1 - source], sizes[source + 1 :],
                adjacency, labels, vectors, *geometry, words, programs,
                EDGES=edges, SIDE=side, num_warps=max(1, min(16, edges // 2048)), **shared,
            )  # fmt: skip


def _programs(side: int, words: int, total: int) -> int:
    """How many maps the second kernel works on at once: as many as its working memory allows, within reason."""
    if _interpreted():
        return min(2, total)
    return max(1, min(1024 if words == 1 else 16, total, _SCRATCH_BYTES // (side * side * 8 * words)))
