"""How much a network is, and how much it computes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from lightning_unitrole.network.isolation import undisturbed, with_gradients

_FUSED_ON_CPU = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)


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
    # torch does not count attention on a CPU; it wants gradients of what modules are given, and fails where that is a
    # parameter.
    more = {} if _FUSED_ON_CPU is None else {_FUSED_ON_CPU: _fused}
    with (
        undisturbed(model),
        with_gradients(model.parameters(), False),
        FlopCounterMode(display=False, custom_mapping=more) as counter,
    ):
        forward(inputs)
    return int(counter.get_total_flops()) // (2 * batch)


def _fused(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Floating-point operations of attention, from the shapes ``[batch, heads, tokens, width]``."""
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]
