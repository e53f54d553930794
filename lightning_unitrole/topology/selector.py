"""Birth points and their histograms: checks what it is given and hands it to a backend."""

from types import ModuleType

import torch
from torch import Tensor

from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.topology.definition import (
    MAX_BIRTH,
    MAX_DENSITY,
    check_maps,
    check_settings,
    step_limit,
    widened,
)
from lightning_unitrole.topology.fallback import run
from lightning_unitrole.topology.histograms import scatter_births

BACKENDS = ("auto", "ripser", "torch", "numba", "triton")
_COUNT_DTYPES = (torch.int16, torch.int32, torch.int64)


def birth_points(
    maps: Tensor, *, max_birth: int = MAX_BIRTH, max_density: float = MAX_DENSITY, backend: str = "auto"
) -> Tensor:
    """Birth point of every feature map.

    The birth point is the number of filtration steps before the first 1-cycle appears in the flag complex of the map's
    graph (vertices are rows and columns, weights ``max(X[i, j], X[j, i])``, heaviest edges first, equal weights
    together). It depends on the order of the values only.

    Args:
        maps: ``[..., H, W]``, any floating-point type, any strides, any device.
        max_birth: larger birth points count as "no birth".
        max_density: the filtration ends after ``ceil(max_density * n(n-1)/2)`` steps, ``n = max(H, W)``.
        backend: ``auto`` takes triton for CUDA tensors and numba for CPU tensors where they can run, and torch
            otherwise; if they fail, a warning says why and torch takes over for the rest of the process. On a GPU the
            first maps of each size are computed with torch as well and compared. ``ripser`` is the slow truth, one
            map at a time. All give the same numbers.

    Returns:
        int64 ``[...]`` on the device of ``maps``; 0 means no birth. Maps with NaN or infinity have none;
        :func:`count_births` tells them apart.

    Raises:
        SettingError: a setting is out of range or names no backend.
        DataError: ``maps`` is not a floating-point tensor ``[..., H, W]``.
        BackendError: the backend named cannot run here; the text says what to install.

    Source: Zhao & Zhang (arXiv:2103.09716v1), section 3. The filtration in steps of equal weights follows their
    program.
    Deviations: non-square maps, maps below 4x4 and non-finite maps, which the paper leaves open
    (:mod:`lightning_unitrole.topology.definition` says how).

    >>> ring = torch.zeros(4, 4)
    >>> ring[0, 1], ring[1, 2], ring[2, 3], ring[3, 0] = 6.0, 5.0, 4.0, 3.0
    >>> birth_points(ring, backend="torch")
    tensor(3)
    """
    check_settings(max_birth, max_density)
    check_maps(maps)
    _check_backend(backend)
    if maps.dim() == 4:
        stacked = maps
    elif maps.dim() < 4:
        stacked = maps[(None,) * (4 - maps.dim())]
    else:
        stacked = maps.flatten(0, -4)
    stacked = widened(stacked)
    steps = step_limit(maps.shape[-2], maps.shape[-1], max_birth, max_density)
    births: Tensor = run(backend, stacked, steps, max_birth, lambda module: module.raw_births(stacked, steps))
    return births.clamp(min=0).long().reshape(maps.shape[:-2])


def count_births(
    maps: Tensor,
    groups: Tensor,
    counts: Tensor,
    non_finite: Tensor,
    *,
    max_birth: int = MAX_BIRTH,
    max_density: float = MAX_DENSITY,
    backend: str = "auto",
) -> None:
    """Add the births of a batch of feature maps to the histograms of their classes, in place.

    On CUDA the triton backend does this in its kernel, without waiting for the device; numba counts within its
    loop; torch and ripser scatter. Works under ``torch.inference_mode``.

    Args:
        maps: ``[images, units, H, W]``, any floating-point type and strides.
        groups: int64 ``[images]``, the class index of each image; images with -1 are skipped (not even computed).
            The values are the caller's to check: reading them here would stall a GPU.
        counts: ``[classes, units, max_birth + 1]``, int16, int32 or int64; bin 0 is "no birth". :func:`count_dtype`
            tells the smallest type that cannot overflow: per image and unit at most one bin grows by one.
        non_finite: ``[classes, units]``, int16, int32 or int64: maps with NaN or infinity, which enter no bin of
            ``counts``.
        max_birth: larger birth points count as "no birth".
        max_density: see :func:`birth_points`.
        backend: see :func:`birth_points`.

    Raises:
        SettingError: a setting is out of range or names no backend.
        DataError: shapes, types or devices do not fit together.
        BackendError: the backend named cannot run here.
    """
    check_settings(max_birth, max_density)
    check_maps(maps, dims=4)
    _check_counting(maps, groups, counts, non_finite, max_birth)
    _check_backend(backend)
    maps = widened(maps)
    steps = step_limit(maps.shape[2], maps.shape[3], max_birth, max_density)

    def job(module: ModuleType) -> None:
        if hasattr(module, "count") and module.count(maps, groups, counts, non_finite, steps):
            return
        kept_maps, kept_groups = maps, groups
        if maps.device.type == "cpu":  # elsewhere finding out which images are skipped would stall the device
            kept = groups >= 0
            if not bool(kept.all()):
                kept_maps, kept_groups = maps[kept], groups[kept]
        scatter_births(module.raw_births(kept_maps, steps), kept_groups, counts, non_finite)

    run(backend, maps, steps, max_birth, job, counts, non_finite)


def count_dtype(max_images: int) -> torch.dtype:
    """The smallest integer type whose histogram bins cannot overflow with ``max_images`` images a class.

    VGG-16 (4,224 units) with the 1,000 classes of ImageNet (at most 1,300 images each) and 51 bins takes 431 MB in
    int16.

    Raises:
        SettingError: ``max_images`` is negative.

    >>> count_dtype(1300), count_dtype(50_000)
    (torch.int16, torch.int32)
    """
    if max_images < 0:
        raise SettingError(f"max_images must not be negative, got {max_images}.")
    return next((dtype for dtype in _COUNT_DTYPES if max_images <= torch.iinfo(dtype).max), torch.int64)


def _check_counting(maps: Tensor, groups: Tensor, counts: Tensor, non_finite: Tensor, max_birth: int) -> None:
    images, units = maps.shape[:2]
    if tuple(groups.shape) != (images,) or groups.dtype != torch.int64:
        raise DataError(
            f"groups must be int64 with one class index per image ({images}), got {groups.dtype} {list(groups.shape)}."
        )
    if counts.dim() != 3 or tuple(counts.shape[1:]) != (units, max_birth + 1):
        raise DataError(
            f"counts must be [classes, {units} units, {max_birth + 1} bins] for these maps and max_birth={max_birth}, "
            f"got {list(counts.shape)}."
        )
    if tuple(non_finite.shape) != tuple(counts.shape[:2]):
        raise DataError(f"non_finite must be {list(counts.shape[:2])} as counts is, got {list(non_finite.shape)}.")
    for name, tensor in (("counts", counts), ("non_finite", non_finite)):
        if tensor.dtype not in _COUNT_DTYPES:
            raise DataError(f"{name} must be int16, int32 or int64, got {tensor.dtype}; see count_dtype.")
    devices = {tensor.device for tensor in (maps, groups, counts, non_finite)}
    if len(devices) > 1:
        raise DataError(
            f"maps, groups, counts and non_finite must be on one device, got {maps.device}, {groups.device}, "
            f"{counts.device} and {non_finite.device}."
        )


def _check_backend(name: str) -> None:
    if name not in BACKENDS:
        raise SettingError(f"backend must be one of {', '.join(BACKENDS)}; got {name!r}.")
