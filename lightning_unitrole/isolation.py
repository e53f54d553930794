"""Reading data without leaving a trace in any random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def preserve_rng(*, devices: bool = True) -> Iterator[None]:
    """Leave the random states of torch, NumPy and Python as they were found.

    Args:
        devices: the states of all CUDA devices too.
    """
    in_use = devices and torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    cpu, cuda = torch.get_rng_state(), torch.cuda.get_rng_state_all() if in_use else []
    numpy, python = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        np.random.set_state(numpy)  # noqa: NPY002
        random.setstate(python)
