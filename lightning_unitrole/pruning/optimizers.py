"""Carrying the memory of optimizers over to the parameters of a changed network, inside the same optimizers."""

from __future__ import annotations

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.isolation import preserve_rng
from lightning_unitrole.pruning.removal import Change, Removal, Replaced


def check_optimizers(optimizers: Sequence[Optimizer], names: dict[int, str], removal: Removal) -> None:
    """Refuse optimizers whose memory cannot be sliced.

    Args:
        optimizers: the optimizers.
        names: name of each parameter, by its ``id``.
        removal: the removal that is to come.

    Raises:
        SettingError: if a state has neither one entry nor the shape of its parameter, as in Adafactor or LBFGS.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, torch.optim.LBFGS):
            held = (names.get(id(parameter)) for group in optimizer.param_groups for parameter in group["params"])
            for name in held:
                if name in removal.kept:
                    raise SettingError(
                        f"LBFGS keeps one memory for all parameters, {name!r} among them, which cannot be sliced. Use "
                        "mode='mask', or an optimizer such as SGD, RMSprop, Adam or AdamW."
                    )
        for parameter, state in optimizer.state.items():
            name = names.get(id(parameter))
            if name not in removal.kept or not isinstance(state, dict):
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.numel() > 1 and value.shape != parameter.shape:
                    raise SettingError(
                        f"{type(optimizer).__name__} keeps {key!r} of shape {list(value.shape)} for the parameter "
                        f"{name!r} of shape {list(parameter.shape)}; only states of the parameter's own shape can be "
                        "sliced. Use mode='mask', or an optimizer such as SGD, RMSprop, Adam or AdamW."
                    )


def try_optimizers(optimizers: Sequence[Optimizer], names: dict[int, str], removal: Removal) -> None:
    """Refuse optimizers whose memory could not be sliced, before they have any: see what a step of a copy remembers.

    Args:
        optimizers: the optimizers; left as they are.
        names: name of each parameter, by its ``id``.
        removal: a removal like the ones to come.

    Raises:
        SettingError: see :func:`check_optimizers`.
    """
    for optimizer in optimizers:
        smallest: dict[int, tuple[nn.Parameter, dict[str, Any]]] = {}
        for group in optimizer.param_groups:
            for one in group["params"]:
                known = smallest.get(one.dim())
                if names.get(id(one)) in removal.kept and (known is None or one.numel() < known[0].numel()):
                    smallest[one.dim()] = one, group
        for parameter, group in smallest.values():
            trial, copied = _after_a_step(optimizer, parameter, group)
            if trial is not None:
                check_optimizers([trial], {id(copied): names[id(parameter)]}, removal)


def _after_a_step(
    optimizer: Optimizer, parameter: nn.Parameter, group: dict[str, Any]
) -> tuple[Optimizer | None, nn.Parameter]:
    """A copy of an optimizer that has taken a step with a copy of one parameter; None where that does not work."""
    with torch.inference_mode(False), torch.no_grad(), preserve_rng():
        copied = nn.Parameter(parameter.detach().clone())
        copied.grad = torch.zeros_like(copied)
        trial = object.__new__(type(optimizer))
        own = {
            name: copy.copy(value) if isinstance(value, (list, dict)) else value
            for name, value in vars(optimizer).items()
        }
        own |= {"param_groups": [{**group, "params": [copied]}], "state": defaultdict(dict)}
        own |= {name: OrderedDict() for name in own if name.endswith("_hooks")}
        vars(trial).update(own)
        try:
            type(optimizer).step(trial)
        except Exception:  # it may want a closure, or all of its parameters; then the first removal will tell
            return None, copied
    return trial, copied


def carry_over(optimizers: Sequence[Optimizer], change: Change) -> Callable[[], None]:
    """Slice the states of the parameters that were replaced; nothing is changed yet.

    Args:
        optimizers: the optimizers.
        change: the change of the network.

    Returns:
        A function that puts the new parameters where the old ones were, with the same groups and sliced states. The
        optimizers stay the same objects, so that schedulers stay valid.
    """
    replaced = {id(one.before): one for one in change.replaced}
    states = [
        (optimizer, parameter, replaced[id(parameter)].after, _sliced(state, replaced[id(parameter)]))
        for optimizer in optimizers
        for parameter, state in optimizer.state.items()
        if id(parameter) in replaced
    ]

    def put() -> None:
        for optimizer, before, after, state in states:
            del optimizer.state[before]
            optimizer.state[after] = state
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                parameters = group["params"]
                for index, parameter in enumerate(parameters):
                    if id(parameter) in replaced:
                        parameters[index] = replaced[id(parameter)].after

    return put


def _sliced(state: dict[str, Any], one: Replaced) -> dict[str, Any]:
    with torch.inference_mode(False), torch.no_grad():
        return {
            key: one.change(value)
            if isinstance(value, Tensor) and value.shape == one.before.shape and value.dim()
            else value
            for key, value in state.items()
        }
