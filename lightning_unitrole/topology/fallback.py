"""Runs a job on the backend asked for, or on the best one, and knows what to do when that one fails.

A backend that was asked for by name fails with an error that says what to do. One that ``auto`` chose must neither kill
a training run nor spoil its figures: torch takes over, and a warning says why. The Triton kernels are tried before
they are believed, for what a compiler makes of them depends on the device and on the size of the maps.
"""

import importlib.util
import os
import warnings
from collections.abc import Callable, Hashable
from importlib import import_module
from types import ModuleType
from typing import TypeVar

import torch
from torch import Tensor

from lightning_unitrole.errors import BackendError
from lightning_unitrole.topology import torch_backend
from lightning_unitrole.topology.histograms import scatter_births

T = TypeVar("T")

_ADVICE = {
    "numba": "install a numba that fits this NumPy, and let NUMBA_CACHE_DIR name a folder that can be written to",
    "triton": "install the Triton that this PyTorch asks for",
}
_TRIAL_MAPS = 64
"""Maps that the trial of a kernel compares with torch: at least one image, all of its units."""

_faulty: set[Hashable] = set()
"""A backend, or the device and size of maps on which the Triton kernels failed."""
_tried: set[Hashable] = set()
"""What the Triton kernels have passed their trial with."""
_said = False


def run(
    backend: str, maps: Tensor, steps: int, max_birth: int, job: Callable[[ModuleType], T], *histograms: Tensor
) -> T:
    """``job(module)`` for the module of ``backend``, or with ``auto`` of the best one that works.

    Args:
        backend: name of a backend, or ``auto``.
        maps: the maps ``[B, U, H, W]`` that the job is about.
        steps: number of filtration steps.
        max_birth: the largest birth point.
        job: run again, on torch, if it fails with numba; it must have changed nothing then.
        histograms: ``counts`` and ``non_finite`` of a job that counts.

    Raises:
        BackendError: the backend named cannot run here.
    """
    if backend == "auto":
        backend = _choose(maps, max_birth)
        if backend == "numba":
            try:
                return job(_module("numba"))
            except MemoryError:
                raise
            except Exception as error:
                _give_up("numba", "numba", "", _text(error))
        elif backend == "triton" and _passes(maps, steps, histograms):
            # Not guarded: what is half counted cannot be begun again, and the trial was of these very kernels.
            return job(_module("triton"))
        return job(torch_backend)
    module = _module(backend)
    reason: str | None = module.unavailable(maps.device)
    if reason is None and backend == "triton":
        reason = module.unfit(max(maps.shape[2:]), max_birth)
    if reason is not None:
        raise BackendError(f"The birth point backend {backend!r} cannot run here: {reason}.")
    if backend not in _ADVICE:
        return job(module)
    try:
        return job(module)
    except (MemoryError, torch.cuda.OutOfMemoryError, BackendError):
        raise
    except Exception as error:
        raise BackendError(
            f"The birth point backend {backend!r} failed ({_text(error)}); {_ADVICE[backend]}, or use backend='torch'."
        ) from error


def _choose(maps: Tensor, max_birth: int) -> str:
    if maps.device.type == "cpu" and "numba" not in _faulty:
        if importlib.util.find_spec("numba") is None:
            _say_once()
            return "torch"
        reason = _module("numba").unavailable(maps.device)
        if reason is None:
            return "numba"
        _give_up("numba", "numba", "", reason)
    elif (
        maps.device.type == "cuda"
        and _faulty.isdisjoint(("triton", _place(maps)))
        and importlib.util.find_spec("triton") is not None
    ):
        triton = _module("triton")
        reason = triton.unavailable(maps.device)
        if reason is not None:
            _give_up("triton", "triton", "", reason)
        elif triton.unfit(max(maps.shape[2:]), max_birth) is None:
            return "triton"
    return "torch"


def _passes(maps: Tensor, steps: int, histograms: tuple[Tensor, ...]) -> bool:
    """Whether the Triton kernels agree with torch on some of these maps; tried once for each kind of launch."""
    kinds = (tensor.dtype for tensor in (maps, *histograms))
    launch = (maps.device, maps.shape[1:], maps.stride(), steps, *kinds)
    if steps == 0 or maps.numel() == 0 or launch in _tried:
        return True
    try:
        fault = _disagreement(_module("triton"), maps, steps, histograms)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:
        fault = _text(error)
    if fault is None:
        _tried.add(launch)
        return True
    _give_up(_place(maps), "triton", f" for {maps.shape[2]}x{maps.shape[3]} maps on {maps.device}", fault)
    return False


def _disagreement(triton: ModuleType, maps: Tensor, steps: int, histograms: tuple[Tensor, ...]) -> str | None:
    images, units = maps.shape[:2]
    few = min(images, max(1, _TRIAL_MAPS // units))
    truth = torch_backend.raw_births(maps[:few], steps)
    wrong = int((triton.raw_births(maps, steps)[:few] != truth).sum())
    if wrong:
        return f"{wrong} of {truth.numel()} births differ from those that torch finds"
    if histograms:
        # The whole batch is launched, as it will be, and all but a few images are skipped. Two classes make the number
        # of 16-bit bins even, without which births are not counted in the kernel.
        groups = torch.where(torch.arange(images, device=maps.device) < few, 1, -1)
        found = [histogram.new_zeros(2, *histogram.shape[1:]) for histogram in histograms]
        expected = [torch.zeros_like(histogram) for histogram in found]
        triton.count(maps, groups, *found, steps)
        scatter_births(truth, groups[:few], *expected)
        if not all(map(torch.equal, found, expected)):
            return "the births that it counts are not those that torch counts"
    return None


def _module(backend: str) -> ModuleType:
    return import_module(f"lightning_unitrole.topology.{backend}_backend")


def _place(maps: Tensor) -> Hashable:
    return maps.device, maps.shape[2:]


def _text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _give_up(fault: Hashable, backend: str, where: str, reason: str) -> None:
    """Remember that a backend fails, and say so: in every process, for the fault may be in one machine of many."""
    _faulty.add(fault)
    warnings.warn(
        f"Birth points{where} are computed with torch from now on, because the faster {backend} backend does not work "
        f"here: {reason}. To use it, {_ADVICE[backend]}.",
        UserWarning,
        stacklevel=5,
    )


def _say_once() -> None:
    """On the first process, once: how to get the fast CPU backend."""
    global _said
    if _said or os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) != "0":
        return
    _said = True
    warnings.warn(
        "Birth points are computed with torch, which is several times slower on a CPU than numba. "
        'To install it: pip install "lightning-unitrole[cpu]"',
        UserWarning,
        stacklevel=5,
    )
