"""``nn.MultiheadAttention`` written out, so that its heads can be seen, and be fewer than its width suggests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` with the same parameters and results, for any number of heads of its ``head_dim``.

    torch's own computes all of it in one call, in which no head can be caught, and insists on as many heads as its
    width holds. An existing module becomes one of these by its ``__class__``, so that everything that refers to it goes
    on to. The tensors of padded batches that ``nn.TransformerEncoder`` nests are not taken.
    """

    @property
    def _qkv_same_embed_dim(self) -> bool:
        """False: by this ``nn.TransformerEncoderLayer`` decides whether to compute the attention itself."""
        return False

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See ``nn.MultiheadAttention``; ``is_causal`` is a hint that a mask comes with, and is not needed."""
        batched = query.dim() == 3
        tokens = [query, key, value]
        if not batched:
            tokens = [one.unsqueeze(0) for one in tokens]
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            tokens = [one.transpose(0, 1) for one in tokens]
        q, k, v = (
            part.view(*part.shape[:2], self.num_heads, self.head_dim).transpose(1, 2)
            for part in self._projected(*tokens, same=query is key is value)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.dropout((scores if mask is None else scores + mask).softmax(-1), dropout)
            joined = weights @ v
        else:
            joined = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = F.linear(joined.transpose(1, 2).flatten(2), self.out_proj.weight, self.out_proj.bias)
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, *, same: bool) -> tuple[Tensor, ...]:
        if same and self.in_proj_weight is not None:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        weights: tuple[Tensor, ...] = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        if self.in_proj_weight is not None:
            weights = self.in_proj_weight.chunk(3)
        biases = (None,) * 3 if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(map(F.linear, (query, key, value), weights, biases))

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores ``[batch, heads, queries, keys]``."""
        masks = []
        if attn_mask is not None:
            # [queries, keys], or one for each head of each image
            masks.append(
                attn_mask if attn_mask.dim() == 2 else attn_mask.view(len(q), self.num_heads, *attn_mask.shape[1:])
            )
        if key_padding_mask is not None:
            masks.append(key_padding_mask[:, None, None, :])
        added = [
            mask.to(q.dtype) if mask.is_floating_point() else q.new_zeros(mask.shape).masked_fill(mask, -math.inf)
            for mask in masks
        ]
        return sum(added[1:], added[0]) if added else None


@contextmanager
def open_attention(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Let heads inside of ``nn.MultiheadAttention`` be seen inside this context; results differ by rounding.

    Subclasses, and attention with a key and a value of its own beside those of the tokens, stay as they are.
    """
    opened = [module for module in modules if type(module) is nn.MultiheadAttention and is_plain(module)]
    for module in opened:
        module.__class__ = MultiheadAttention
    try:
        yield
    finally:
        for module in opened:
            module.__class__ = fitting_heads(module)["__class__"]


def is_plain(attention: nn.MultiheadAttention) -> bool:
    """Whether an attention computes nothing but what :class:`MultiheadAttention` does."""
    return attention.bias_k is None and not attention.add_zero_attn


def fitting_heads(attention: nn.MultiheadAttention) -> dict[str, Any]:
    """Attributes of an attention that repeat the shape of its weights, its class among them."""
    if type(attention) not in (nn.MultiheadAttention, MultiheadAttention) or not is_plain(attention):
        return {}
    packed, query = attention.in_proj_weight, attention.q_proj_weight
    rows = len(query) if packed is None else len(packed) // 3
    whole = rows == attention.embed_dim
    return {
        "num_heads": rows // attention.head_dim,
        "__class__": nn.MultiheadAttention if whole else MultiheadAttention,
    }
