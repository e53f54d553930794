"""How much the items of channel groups matter, seen from all layers that a removal reaches.

Units that hang together are judged together: what their layers say is added up, so that the trunk of a residual
network, which many layers write to and read from, competes with the layers inside of its blocks on equal terms.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from lightning_unitrole.ablation.scores import ScoreFn, classification_score
from lightning_unitrole.data.batches import count_images
from lightning_unitrole.data.sample import Images, Sample
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import take_rows
from lightning_unitrole.pruning.coupling import everything_trainable
from lightning_unitrole.pruning.groups import LAYERS, ChannelGraph, ChannelGroup, Place
from lightning_unitrole.pruning.selection import Candidate, saving

GROUP_NORM, GROUP_TAYLOR = "group_norm", "group_taylor"
IMPORTANCES = (GROUP_NORM, GROUP_TAYLOR)
_IMAGES_AT_ONCE = 8
"""Images whose gradients are summed before they are squared: in larger sums they cancel out."""

_CORRELATION = 0.1
"""Of the effects of two items of a group. With 0 a layer was emptied; 0.3 and 1 left less accuracy after most cuts."""


def group_norm(groups: Sequence[ChannelGroup], model: nn.Module) -> dict[str, Tensor]:
    """``[N]`` float64 for each group: squared L2 norm of all weights that an item takes, over the group's mean.

    Biases do not count, and each layer that a removal reaches counts once.

    Source: Fang et al., arXiv:2301.12900, equation 4; Torch-Pruning's ``GroupMagnitudeImportance``.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    found = {}
    for group in groups:
        weights = [place for place in group.slices if place[0] in parameters and not place[0].endswith("bias")]
        norms = [
            _by_item(parameters[name].detach().double().square(), dim, group.slices[name, dim]) for name, dim in weights
        ]
        total = torch.stack(norms).sum(0)
        found[group.name] = total / total.mean().clamp(min=torch.finfo(total.dtype).tiny)
    return found


def group_taylor(
    groups: Sequence[ChannelGroup], runner: Runner, sample: Sample, score_fn: ScoreFn | None = None
) -> dict[str, Tensor]:
    """``[N]`` float64 for each group: squared first-order estimate of what the loss changes by without an item.

    The estimate is the sum of weight times gradient over everything that reads the item's channels, squared for a few
    images at a time and averaged: the gate of Molchanov et al. on the channels, at all places at which they are read.

    Args:
        groups: the groups.
        runner: runs the model.
        sample: images.
        score_fn: see :data:`~lightning_unitrole.ablation.scores.ScoreFn`.

    Raises:
        DataError: if no gradient is finite.

    Source: Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR 2019, equation 8.
    """
    model = runner.model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    readers = {group.name: _readers(group, model, parameters) for group in groups}
    names = list(dict.fromkeys(name for places in readers.values() for name, _ in places))
    totals = {group.name: torch.zeros(len(group), dtype=torch.float64) for group in groups}
    seen = torch.zeros(1, dtype=torch.float64)
    with runner.undisturbed(), everything_trainable(model), torch.enable_grad():
        for few in _few_at_once(sample):
            loss = (score_fn or classification_score)(runner.forward(few.inputs), few.targets)[0]
            gradients = torch.autograd.grad(loss.sum(), [parameters[name] for name in names], allow_unused=True)
            effects = {
                name: parameters[name].detach() * gradient
                for name, gradient in zip(names, gradients, strict=True)
                if gradient is not None
            }
            if not all(bool(effect.isfinite().all()) for effect in effects.values()):
                continue
            seen += 1
            for group in groups:
                gates = [
                    _by_item(effects[name].double(), dim, group.slices[name, dim])
                    for name, dim in readers[group.name]
                    if name in effects
                ]
                if gates:
                    totals[group.name] += torch.stack(gates).sum(0).square()
    count = float(runner.total(seen))
    if count == 0:
        raise DataError("No gradient of the loss is finite, so units cannot be chosen by them.")
    return {name: runner.total(total) / count for name, total in totals.items()}


def joint(scores: Tensor, gone: Collection[int] = ()) -> Tensor:
    """``[N]`` what each item adds to the importance of all that go before it, when the least important go first.

    Effects of several items add up before they are squared, and those of one layer go together a little: the mean
    square of a sum is taken to be that of effects with a correlation of 0.1. So each item that leaves makes the others
    of its group count for more, and no layer is emptied because its items are many and alike.

    Args:
        scores: ``[N]`` mean squared effect of each item.
        gone: items that are gone already.

    Example:
        >>> [round(float(effect), 3) for effect in joint(torch.tensor([1.0, 4.0, 1.0]))]
        [1.0, 4.8, 1.2]
    """
    order = sorted(range(len(scores)), key=lambda item: (item not in gone, float(scores[item])))
    roots = scores[order].sqrt()
    added = torch.empty_like(scores)
    added[order] = scores[order] + 2 * _CORRELATION * roots * (roots.cumsum(0) - roots)
    return added


def importance_candidates(
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, Tensor],
    graph: ChannelGraph,
    *,
    macs: int | None,
    gone: Mapping[str, Collection[int]],
    drops: Mapping[str, Tensor | None],
) -> list[Candidate]:
    """The groups with the importance of their items.

    Args:
        groups: the groups that may be pruned.
        scores: ``[N]`` importance of the items of each group.
        graph: the network's channel groups.
        macs: multiply-accumulate operations of the network, to count importance for each of them that an item costs;
            None to take it as it is.
        gone: items that are masked already, by the group's name.
        drops: ``[N]`` accuracy drop of the items, by the group's name; groups that it lacks have none.
    """
    found = []
    for group in groups:
        cost = 1.0 if macs is None else max(saving(graph, {group.name: [0]}, "macs"), 1) / macs
        masked = frozenset(gone.get(group.name, ()))
        found.append(Candidate(group, scores[group.name] / cost, drops.get(group.name), masked))
    return found


def _few_at_once(sample: Sample) -> Iterator[Images]:
    for images in sample:
        size = count_images(images.inputs)
        for rows in torch.split(torch.arange(size, device=images.groups.device), _IMAGES_AT_ONCE):
            inputs, targets = (take_rows(part, rows, size) for part in (images.inputs, images.targets))
            yield Images(inputs, targets, images.groups[rows], images.halves[rows])


def _readers(group: ChannelGroup, model: nn.Module, parameters: Mapping[str, Tensor]) -> list[Place]:
    """Where layers read the channels of a group; else its normalisations, else everything that a removal takes."""
    found = []
    for name, dim in group.slices:
        if name in parameters and parameters[name].dim() > 1:
            owner = model.get_submodule(name.rpartition(".")[0])
            if group.of_heads and not isinstance(owner, LAYERS):
                continue  # a table of an attention, with a column for each head
            if dim == (0 if getattr(owner, "transposed", False) else 1):
                found.append((name, dim))
    places = [place for place in group.slices if place[0] in parameters]
    return found or [place for place in places if place[0].rpartition(".")[0] not in group.channels] or places


def _by_item(values: Tensor, dim: int, items: Sequence[tuple[int, ...]]) -> Tensor:
    """``[N]`` on the CPU: sum of the values at the indices of each item along a dimension."""
    sums = values.transpose(0, dim).reshape(values.shape[dim], -1).sum(1).cpu()
    owner = torch.tensor([index for index, indices in enumerate(items) for _ in indices])
    return sums.new_zeros(len(items)).index_add(0, owner, sums[[index for indices in items for index in indices]])
