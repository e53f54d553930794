"""Trying out what pruning will have to do, so that what cannot work fails before anything is trained."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_unitrole.errors import SettingError, TraceError
from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.pruning.equivalence import remove_checked, remove_running
from lightning_unitrole.pruning.groups import ChannelGraph, ChannelGroup
from lightning_unitrole.pruning.optimizers import check_optimizers, try_optimizers
from lightning_unitrole.pruning.removal import Change, plan_removal
from lightning_unitrole.pruning.selection import Candidate, Limits, choose


def rehearse_amount(
    groups: Sequence[ChannelGroup],
    graph: ChannelGraph,
    *,
    amount: float | None,
    of: str,
    limits: Limits,
    original: Mapping[str, int],
    now: Mapping[str, int],
    gone: Mapping[str, Collection[int]],
) -> None:
    """Refuse an amount that cannot be reached, whatever will be measured.

    With a largest accuracy drop the amount is a wish, and only that anything can be pruned at all is required.

    Args:
        groups: the groups that may be pruned.
        graph: the network's channel groups.
        amount: see :func:`~lightning_unitrole.pruning.selection.choose`, as are the others.
        of: what the amount counts.
        limits: what to respect.
        original: the network in the beginning.
        now: the network as it is.
        gone: items that are masked already, by the group's name.

    Raises:
        SettingError: if it cannot; the message says how much can, and what holds it back.
    """
    candidates = [
        Candidate(group, torch.zeros(len(group)), gone=frozenset(gone.get(group.name, ()))) for group in groups
    ]
    wish = limits.max_drop is not None and of != "layer"
    choice = choose(
        candidates,
        graph,
        amount=None if wish else amount,
        of=of,
        limits=replace(limits, max_drop=None),
        original=original,
        now=now,
    )
    if not any(choice.values()) and _whole(groups, original):
        widths = ", ".join(f"{group.name!r} with {len(group)}" for group in groups)
        share = "" if amount is None else f" with amount={amount:.3g} of={of!r}"
        raise SettingError(
            f"No unit can be pruned{share}: min_units={limits.min_units} and round_to={limits.round_to} leave every "
            f"layer as it is ({widths}). Lower them, or ask for more."
        )


def _whole(groups: Sequence[ChannelGroup], original: Mapping[str, int]) -> bool:
    """Whether nothing was pruned yet."""
    return all(len(group) == original.get(f"width/{group.name}", len(group)) for group in groups)


def blocked_groups(
    forward: Callable[[Any], Any],
    model: nn.Module,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    inputs: Any,
) -> dict[str, str]:
    """Remove a unit of each layer that may be pruned, see that the network still works, and put them back.

    Args:
        forward: called with ``inputs``; runs ``model``.
        model: the network; as it was afterwards.
        graph: the network's channel groups.
        groups: those that may be pruned.
        inputs: a batch; two images are enough.

    Returns:
        For each group that the network does not work without a unit of, by name, what happens then. The others may
        all shrink together.
    """

    def fault(make: Callable[..., Change], chosen: Sequence[str]) -> TraceError | None:
        try:
            make(forward, model, plan_removal(graph, {name: [0] for name in chosen}), inputs).undo()
        except TraceError as error:
            return error
        return None

    # Layers of one kind, as in the blocks of a transformer, as a rule work together, or none of them does.
    names = sorted((group.name for group in groups if len(group) > 1), key=lambda name: re.sub(r"\d+", "", name))
    with torch.inference_mode(False), undisturbed(model):
        running, failing = _sorted_out(names, partial(fault, remove_running))
        _, differing = _sorted_out(running, partial(fault, remove_checked))
    return failing | differing


def _sorted_out(
    names: Sequence[str], fault: Callable[[Sequence[str]], TraceError | None]
) -> tuple[list[str], dict[str, str]]:
    """The names that are without fault together, and for each of the others what its fault is."""
    working: list[str] = []
    blocked: dict[str, str] = {}
    waiting = [[*names]]
    while waiting:
        chunk = waiting.pop()
        error = fault([*working, *chunk]) if chunk else None
        if error is None:
            working += chunk
        elif len(chunk) == 1:
            blocked[chunk[0]] = _what_happened(error)
        else:
            half = len(chunk) // 2
            waiting += [chunk[half:], chunk[:half]]
    return working, blocked


def _what_happened(error: TraceError) -> str:
    cause = error.__cause__
    if cause is None:
        return "tried out, the network without one of its units computes something else than with that unit at zero"
    text = str(cause).partition("\n")[0]
    return f"tried out, the network without one of its units fails with {type(cause).__name__}: {text}"


def rehearse_optimizers(
    optimizers: Sequence[Optimizer], model: nn.Module, graph: ChannelGraph, groups: Sequence[ChannelGroup]
) -> None:
    """See that the memory of the optimizers can be carried over when units of ``groups`` leave ``model``.

    Raises:
        SettingError: if it cannot.
    """
    removal = plan_removal(graph, {group.name: [0] for group in groups if len(group) > 1})
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    check_optimizers(optimizers, by_id, removal)
    try_optimizers(optimizers, by_id, removal)
