"""How large and how fast a network is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_unitrole.forwards import undisturbed


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, each counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(forward: Callable[[Any], Any], model: nn.Module, inputs: Any, *, batch: int) -> int:
    """Multiply-accumulate operations of one image, by torch's own counter: half of its floating-point operations.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the network.
        inputs: one batch.
        batch: number of images in it.
    """
    with undisturbed(model), FlopCounterMode(display=False) as counter:
        forward(inputs)
    return int(counter.get_total_flops()) // (2 * batch)


def measure_latency(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any, *, device: torch.device, repeats: int = 9
) -> float:
    """Milliseconds of one forward pass in evaluation mode: the least of some, after three that do not count.

    The least, because other work on the machine only ever adds to it.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    with undisturbed(model):
        for index in range(repeats + 3):
            wait()
            start = time.perf_counter()
            forward(inputs)
            wait()
            if index >= 3:
                times.append(time.perf_counter() - start)
    return 1e3 * min(times)
