"""Which units to prune, from what was measured about them. Pure functions on reports and channel groups."""

from __future__ import annotations

import fnmatch
from bisect import bisect_left
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.tracing import channels_of
from lightning_unitrole.pruning.evidence import LayerEvidence
from lightning_unitrole.pruning.groups import ChannelGraph, ChannelGroup, Choice
from lightning_unitrole.reports.roles import UnitRole

EVIDENCE, ROLES = "evidence", "roles"
LATENCY = "latency"
AMOUNTS = ("macs", "parameters", "units", "layer", LATENCY)
_TIE = 1e-6


def rank_position(layer: LayerEvidence) -> Tensor:
    """``[U]`` float64 in (0, 1]: share of the layer's units that are no more effective, by the report's criterion."""
    order = layer.order.flip(0)
    position = torch.empty(len(order), dtype=torch.float64)
    position[order] = torch.arange(1, len(order) + 1, dtype=torch.float64) / len(order)
    return position


def accuracy_drop(layer: LayerEvidence) -> Tensor:
    """``[U]`` float64: accuracy lost, at most, by the time a unit is off, when the least effective go first.

    Read from the layer's ablation curve on validation images, between its points by straight lines. Never falls along
    the ranking, and is never negative.

    Raises:
        SettingError: if the report has no ablation curve.
    """
    curve = layer.curve
    if curve is None:
        raise SettingError(
            f"Layer {layer.name!r} has no ablation curve to read accuracy drops from; expected ablation_points of at "
            "least 2."
        )
    # Where an accuracy is not a number, all of it counts as lost.
    lost = (curve.accuracy[0] - curve.accuracy.nan_to_num(nan=0.0)).clamp(min=0).cummax(0).values
    ablated, wanted = curve.ablated.double(), torch.arange(1, int(curve.ablated[-1]) + 1, dtype=torch.float64)
    right = torch.searchsorted(ablated, wanted).clamp(max=len(ablated) - 1)
    left = (right - 1).clamp(min=0)
    weight = (wanted - ablated[left]) / (ablated[right] - ablated[left]).clamp(min=1)
    along = torch.lerp(lost[left], lost[right], weight)
    drop = torch.empty_like(along)
    drop[layer.order.flip(0)] = along
    return drop


def role_need(layer: LayerEvidence) -> Tensor:
    """``[U]`` float64 in [0, 1]: 0 for units that are ``NEITHER`` for every class, 1 for ``BOTH`` for every class.

    The mean over the classes of the role's number (0 ``NEITHER``, 1 ``TRAIN_ONLY``, 2 ``VAL_ONLY``, 3 ``BOTH``) over 3:
    a unit that helps on validation images is worth more than one that helps on training images alone.

    Raises:
        SettingError: if the report has no roles.
    """
    known = None if layer.roles is None else (layer.roles <= UnitRole.BOTH).all(1)
    if layer.roles is None or known is None or not bool(known.any()):
        raise SettingError(
            f"Layer {layer.name!r} has no roles to choose units by; expected ablation_points of at least 2."
        )
    return layer.roles[known].double().mean(0) / int(UnitRole.BOTH)


def unit_scores(layer: LayerEvidence, choose_by: str) -> Tensor:
    """``[U]`` float64, low for units that go first.

    Args:
        layer: what was measured.
        choose_by: ``"evidence"`` for :func:`accuracy_drop`, ``"roles"`` for :func:`role_need`, else
            :func:`rank_position`. Ties go by rank position.
    """
    position = rank_position(layer)
    if choose_by == EVIDENCE:
        return accuracy_drop(layer) + _TIE * position
    if choose_by == ROLES:
        return role_need(layer) + _TIE * position
    return position


def item_scores(
    group: ChannelGroup, by_layer: Mapping[str, Tensor], combine: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """``[N]`` score of each item, from all units that its removal takes; None if none of them was measured.

    Args:
        group: the group.
        by_layer: ``[U]`` scores of each measured layer, by module name.
        combine: from the scores ``[M]`` of the units of an item to one number.
    """
    measured = [name for name in group.channels if name in by_layer]
    if not measured:
        return None
    items = []
    for item in range(len(group)):
        values = [by_layer[name][channel] for name in measured for channel in group.channels[name][item]]
        items.append(combine(torch.stack(values)))
    return torch.stack(items)


@dataclass(frozen=True)
class Limits:
    """What a choice has to respect.

    Attributes:
        min_units: items that each group keeps, at least; of heads of attention one.
        round_to: the number of items that a group keeps is a multiple of this, unless the group is left alone or has
            heads of attention for items.
        max_drop: largest accuracy drop of an item, see :func:`accuracy_drop`; None for no limit.
    """

    min_units: int = 1
    round_to: int = 1
    max_drop: float | None = None


@dataclass(frozen=True)
class Candidate:
    """A group whose items may go.

    Attributes:
        group: the group.
        scores: ``[N]``, low goes first.
        drops: ``[N]`` accuracy drop of each item; None where no limit is set.
        gone: items that are masked already.
    """

    group: ChannelGroup
    scores: Tensor
    drops: Tensor | None = None
    gone: frozenset[int] = frozenset()


def prunable_groups(
    graph: ChannelGraph, measured: Sequence[str], *, by_name: Collection[str] = (), skip_layers: Sequence[str] = ()
) -> list[ChannelGroup]:
    """The channel groups that may be pruned.

    Args:
        graph: the network's channel groups.
        measured: names of the layers whose units were measured; ``name#1`` is the second call of the module ``name``.
        by_name: those that the user named, for which it is an error that they cannot be pruned.
        skip_layers: names or glob patterns of layers to leave alone, with everything that hangs on them.

    Raises:
        SettingError: if a layer that was named cannot be pruned, ``skip_layers`` names none, or none is left.
    """
    names = [layer for group in graph.groups for layer in group.channels]
    for pattern in skip_layers:
        if not fnmatch.filter(names, pattern):
            raise SettingError(f"skip_layers names {pattern!r}, which is none of the layers: {', '.join(names)}.")
    skipped = {name for pattern in skip_layers for name in fnmatch.filter(names, pattern)}
    known, named = (set(map(channels_of, layers)) for layers in (measured, by_name))
    found = []
    for group in graph.groups:
        wanted, left_alone = sorted(named & set(group.channels)), sorted(skipped & set(group.channels))
        if wanted and group.reason is not None:
            raise SettingError(f"Layer {wanted[0]!r} cannot be pruned: {group.reason}.")
        if wanted and left_alone:
            raise SettingError(
                f"Layer {wanted[0]!r} cannot be pruned without {left_alone[0]!r}, which skip_layers names: they share "
                "their channels. Take one of them out of its list."
            )
        if group.reason is None and not left_alone and known & set(group.channels):
            found.append(group)
    if not found:
        reasons = (f"{group.name!r}: {group.reason or 'skipped, or not measured'}" for group in graph.groups)
        raise SettingError(f"No layer is left that can be pruned. {'; '.join(reasons)}.")
    return found


def find_candidates(
    groups: Sequence[ChannelGroup],
    evidence: Sequence[LayerEvidence],
    *,
    choose_by: str,
    gone: Mapping[str, Collection[int]],
) -> list[Candidate]:
    """Scores of the items of channel groups, from what was measured of all units that a removal takes.

    Accuracy drops of the units of an item add up, and need is averaged. By rank positions the items of a group are
    ranked again: means of many layers lie close together in the middle, and would never go first.

    Args:
        groups: the groups that may be pruned.
        evidence: what was measured, by layer.
        choose_by: see :func:`unit_scores`.
        gone: items that are masked already, by the group's name.

    Raises:
        SettingError: if something was not measured that ``choose_by`` needs.
    """
    scores: dict[str, Tensor] = {}
    drops: dict[str, Tensor] = {}
    for layer in evidence:
        module = channels_of(layer.name)
        measured = [(scores, unit_scores(layer, choose_by))]
        if layer.curve is not None:
            measured.append((drops, accuracy_drop(layer)))
        for by_module, values in measured:
            # A module that is called twice has units of two kinds in the same channels: the more useful one counts.
            by_module[module] = torch.maximum(by_module[module], values) if module in by_module else values
    found = []
    for group in groups:
        score = item_scores(group, scores, torch.sum if choose_by == EVIDENCE else torch.mean)
        if score is not None:
            if choose_by not in (EVIDENCE, ROLES):
                score = torch.searchsorted(score.sort().values, score, right=True).double() / len(score)
            masked = frozenset(gone.get(group.name, ()))
            found.append(Candidate(group, score, item_scores(group, drops, torch.sum), masked))
    return found


@dataclass(frozen=True)
class _Chunk:
    """Items of one group that go together, so that what stays is round."""

    group: str
    items: tuple[int, ...]
    score: float


def _chunks(candidate: Candidate, limits: Limits, allowance: int | None) -> list[_Chunk]:
    """The items of a group in the order in which they may go, cut into chunks."""
    scores, size = candidate.scores, len(candidate.group)
    order = [item for item in scores.argsort(stable=True).tolist() if item not in candidate.gone]
    if limits.max_drop is not None and candidate.drops is not None:
        drops = candidate.drops
        order = [item for item in order if float(drops[item]) <= limits.max_drop]
    # A head has many channels, so how round their number is to be does not matter to heads.
    round_to, least = (1, 1) if candidate.group.of_heads else (limits.round_to, limits.min_units)
    keep = -(-max(least, 1) // round_to) * round_to
    chunks: list[_Chunk] = []
    left, start = size - len(candidate.gone), 0
    fewest = keep if allowance is None else max(keep, size - allowance)
    while True:
        target = (left - 1) // round_to * round_to
        count = left - target
        if target < fewest or start + count > len(order):
            return chunks
        items = tuple(order[start : start + count])
        chunks.append(_Chunk(candidate.group.name, items, max(float(scores[item]) for item in items)))
        left, start = target, start + count


def choose(
    candidates: Sequence[Candidate],
    graph: ChannelGraph,
    *,
    amount: float | None,
    of: str,
    limits: Limits,
    original: Mapping[str, int],
    now: Mapping[str, int],
) -> dict[str, list[int]]:
    """The items to remove, by group; items that are masked already are among them.

    Args:
        candidates: groups whose items may go.
        graph: the network's channel groups.
        amount: share to remove of what the network had in the beginning, in (0, 1); None for all that the limits
            allow.
        of: ``"macs"``, ``"parameters"`` or ``"units"`` of the whole network, or ``"layer"`` for the units of each
            layer.
        limits: what to respect.
        original: ``macs``, ``parameters`` and ``units`` of the network in the beginning.
        now: the same of the network as it is, with nothing masked.

    Raises:
        SettingError: if the amount cannot be reached; the message says how much can.
    """
    gone = {candidate.group.name: sorted(candidate.gone) for candidate in candidates if candidate.gone}
    allowances: dict[str, int | None] = {candidate.group.name: None for candidate in candidates}
    if of == "layer" and amount is not None:
        widths = {candidate.group.name: original[f"width/{candidate.group.name}"] for candidate in candidates}
        for candidate in candidates:
            name, size = candidate.group.name, len(candidate.group)
            allowances[name] = max(0, int(amount * widths[name] + _TIE) - (widths[name] - size))
    chunks = [chunk for one in candidates for chunk in _chunks(one, limits, allowances[one.group.name])]
    # Stable, and scores never fall within a group, so chunks of one group stay in their order.
    chunks.sort(key=lambda chunk: chunk.score)

    def chosen(count: int) -> dict[str, list[int]]:
        items = {name: list(masked) for name, masked in gone.items()}
        for chunk in chunks[:count]:
            items.setdefault(chunk.group, []).extend(chunk.items)
        return items

    if amount is None or of == "layer":
        return chosen(len(chunks))

    def removed(count: int) -> float:
        return 1 - (now[of] - saving(graph, chosen(count), of)) / original[of]

    needed = bisect_left(range(len(chunks) + 1), amount - 1e-9, key=removed)
    if needed > len(chunks):
        if limits.max_drop is not None:
            return chosen(len(chunks))
        may = {candidate.group.name for candidate in candidates}
        held = [
            f"{group.name!r} ({group.reason or 'left out by layers or skip_layers'})"
            for group in graph.groups
            if group.name not in may
        ]
        raise SettingError(
            f"amount={amount:.3g} of the network's {of} cannot be removed: the layers that may be pruned allow "
            f"{removed(len(chunks)):.3f} with min_units={limits.min_units} and round_to={limits.round_to}. Ask for "
            f"less, or skip fewer layers.{' What cannot be pruned: ' if held else ''}{'; '.join(held)}"
        )
    return chosen(needed)


def saving(graph: ChannelGraph, choice: Choice, of: str) -> int:
    """What a choice takes from the network.

    Args:
        graph: the network's channel groups.
        choice: items by group.
        of: ``"macs"`` of convolutions, linear layers and attention for one image, ``"parameters"`` or ``"units"``,
            which are output channels of convolutions and linear layers, and heads.
    """
    groups = graph.by_name
    if of == "units":
        return sum(
            len(channels[item])
            for name, items in choice.items()
            for channels in groups[name].channels.values()
            for item in items
        )
    leaving: dict[str, dict[int, int]] = {}
    for (tensor, dim), indices in graph.taken(choice).items():
        leaving.setdefault(tensor, {})[dim] = len(indices)
    total = sum(groups[name].macs * len(items) for name, items in choice.items()) if of == "macs" else 0
    for tensor, dims in leaving.items():
        if tensor not in graph.parameters:
            continue
        before = after = 1
        for dim, size in enumerate(graph.sizes[tensor]):
            before, after = before * size, after * (size - dims.get(dim, 0))
        total += (before - after) * (graph.positions.get(tensor, 0) if of == "macs" else 1)
    return total
