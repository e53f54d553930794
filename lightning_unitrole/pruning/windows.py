"""torchvision's attention in windows, for fewer heads than its width holds; imported only beside torchvision's own."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2


class NarrowWindowAttention(ShiftedWindowAttention):  # type: ignore[misc]
    """``ShiftedWindowAttention`` that takes the width of a head from its weights, not from its input."""

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``[batch, height, width, channels]``."""
        return _attend(self, x, None)


class NarrowWindowAttentionV2(ShiftedWindowAttentionV2):  # type: ignore[misc]
    """``ShiftedWindowAttentionV2`` that takes the width of a head from its weights, not from its input."""

    def forward(self, x: Tensor) -> Tensor:
        """From and to ``[batch, height, width, channels]``."""
        return _attend(self, x, self.logit_scale)


NARROW = {
    ShiftedWindowAttention: NarrowWindowAttention,
    ShiftedWindowAttentionV2: NarrowWindowAttentionV2,
}


def fitting_windows(attention: Any) -> dict[str, object]:
    """Attributes of an attention in windows that repeat the shape of its weights, its class among them."""
    kinds = {kind: whole for whole, narrow in NARROW.items() for kind in (whole, narrow)}
    if type(attention) not in kinds:
        return {}
    v2 = isinstance(attention, ShiftedWindowAttentionV2)
    heads = len(attention.logit_scale) if v2 else attention.relative_position_bias_table.shape[1]
    rows, width = attention.qkv.weight.shape
    whole = kinds[type(attention)]
    return {"num_heads": heads, "__class__": whole if rows == 3 * width else NARROW[whole]}


def _attend(attention: Any, x: Tensor, scale: Tensor | None) -> Tensor:
    """Attention in shifted windows, as torchvision has it.

    Args:
        attention: the module.
        x: ``[batch, height, width, channels]``.
        scale: ``[heads, 1, 1]`` logarithm of what cosines are scaled by; None for products of queries and keys.
    """
    batch, height, width, _ = x.shape
    rows, columns = attention.window_size
    x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
    padded = x.shape[1:3]
    shift = [
        0 if size >= whole else by
        for by, size, whole in zip(attention.shift_size, attention.window_size, padded, strict=True)
    ]
    x = x.roll((-shift[0], -shift[1]), (1, 2))
    down, across = padded[0] // rows, padded[1] // columns
    x = x.view(batch, down, rows, across, columns, -1).transpose(2, 3)
    x = x.reshape(batch * down * across, rows * columns, -1)

    bias = attention.qkv.bias
    if scale is not None and bias is not None:  # keys have no bias
        query, _, value = bias.chunk(3)
        bias = torch.cat([query, torch.zeros_like(query), value])
    heads = attention.num_heads
    qkv = F.linear(x, attention.qkv.weight, bias)
    q, k, v = qkv.view(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
    if scale is None:
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
    else:
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * scale.clamp(max=math.log(100.0)).exp()
    scores = scores + attention.get_relative_position_bias()
    if any(shift):
        apart = _apart(padded, (rows, columns), shift, x.device)
        hidden = torch.where(apart, -100.0, 0.0)[:, None].to(scores.dtype)
        scores = scores + hidden.repeat(batch, 1, 1, 1)
    weights = F.dropout(scores.softmax(-1), attention.attention_dropout, attention.training)
    x = F.linear((weights @ v).transpose(1, 2).flatten(2), attention.proj.weight, attention.proj.bias)
    x = F.dropout(x, attention.dropout, attention.training)

    x = x.view(batch, down, across, rows, columns, -1).transpose(2, 3).reshape(batch, *padded, -1)
    x = x.roll((shift[0], shift[1]), (1, 2))
    return x[:, :height, :width].contiguous()


def _apart(padded: Any, window: tuple[int, int], shift: list[int], device: torch.device) -> Tensor:
    """``[windows, tokens, tokens]`` whether two tokens of a window are neighbours only because the map was rolled."""
    region = torch.zeros(*padded, dtype=torch.int64, device=device)
    for dim, (size, by) in enumerate(zip(window, shift, strict=True)):
        place = torch.arange(padded[dim], device=device).unsqueeze(1 - dim)
        if by:
            region = 3 * region + (place >= padded[dim] - size).long() + (place >= padded[dim] - by)
    rows, columns = window
    tiles = region.view(padded[0] // rows, rows, padded[1] // columns, columns).transpose(1, 2)
    tokens = tiles.reshape(-1, rows * columns)
    return tokens.unsqueeze(1) != tokens.unsqueeze(2)
