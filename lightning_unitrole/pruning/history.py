"""The removals that a network went through, kept in its state dict so that a fresh network can take its weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lightning_unitrole.errors import DataError, refuse_newer
from lightning_unitrole.pruning.removal import Removal, regrow, remove
from lightning_unitrole.reports.storage import BROKEN

STATE_VERSION = 1
NAME = "unit_pruning_history"
_KEY = f"{NAME}._extra_state"
Model = TypeVar("Model", bound=nn.Module)


class RemovalHistory(nn.Module):
    """A child module without parameters that puts the removals of its parent into the parent's state dict.

    Attributes:
        removals: oldest first.
        original: what the network had before the first of them: ``macs``, ``parameters``, ``units``, and
            ``width/<layer>`` for the width of each channel group.
    """

    def __init__(self, removals: Sequence[Removal] = (), original: Mapping[str, int] | None = None) -> None:
        super().__init__()
        self.removals = list(removals)
        self.original = dict(original or {})

    def forward(self, inputs: Any) -> Any:
        """What it is given: an ``nn.Sequential`` runs every child that it has."""
        return inputs

    def get_extra_state(self) -> dict[str, Any]:
        """The removals as plain data, which load without pickle."""
        return {
            "version": STATE_VERSION,
            "removals": [removal.state_dict() for removal in self.removals],
            "original": dict(self.original),
        }

    def set_extra_state(self, state: Any) -> None:
        """Nothing: the removals were carried out before the weights were loaded."""


def removals_of(model: nn.Module) -> list[Removal]:
    """The removals that a network went through, oldest first."""
    history = model._modules.get(NAME)
    return list(history.removals) if isinstance(history, RemovalHistory) else []


def original_amounts(model: nn.Module) -> dict[str, int]:
    """What a network had before anything was removed; empty where nothing was, or an older version removed it."""
    history = model._modules.get(NAME)
    return dict(history.original) if isinstance(history, RemovalHistory) else {}


def record_removals(model: nn.Module, removals: Sequence[Removal], original: Mapping[str, int] | None = None) -> None:
    """Write down what a network went through in all.

    Args:
        model: the network.
        removals: oldest first.
        original: what it had before the first of them; by default what is written down already.
    """
    if removals:
        model.add_module(NAME, RemovalHistory(removals, original_amounts(model) if original is None else original))
    elif NAME in model._modules:
        del model._modules[NAME]


def kept_channels(removals: Sequence[Removal]) -> dict[str, Tensor]:
    """For each layer that lost output channels, the indices that those left had in the beginning, ``[K]`` int64."""
    kept: dict[str, Tensor] = {}
    for removal in removals:
        for layer, stays in removal.channels.items():
            kept[layer] = kept[layer][stays] if layer in kept else stays
    return kept


def original_widths(removals: Sequence[Removal]) -> dict[str, int]:
    """For each layer that lost output channels, how many it had in the beginning."""
    widths: dict[str, int] = {}
    for removal in removals:
        for layer in removal.channels:
            widths.setdefault(layer, removal.widths[layer])
    return widths


def follow_state_dict(model: nn.Module) -> RemovableHandle:
    """Let a network take the shape of each state dict that it loads from now on.

    Removals that the state dict has and the network has not are carried out; those that the network has and the state
    dict has not are taken back, as for the checkpoint of an earlier epoch.

    Args:
        model: the network.

    Returns:
        A handle; its ``remove`` ends this.
    """

    def before_loading(state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        if prefix == "":
            removals, original = _read_history(state_dict)
            reshape(model, removals)
            record_removals(model, removals, original)

    handle: RemovableHandle = model._register_load_state_dict_pre_hook(before_loading)  # type: ignore[no-untyped-call]
    return handle


def reshape(model: nn.Module, removals: Sequence[Removal]) -> None:
    """Bring a network to the shape that some removals leave, whatever it went through before.

    Weights that the network has lost come back as zeros; load a state dict afterwards.

    Args:
        model: the network; changed in place.
        removals: all removals that it shall have gone through, oldest first.

    Raises:
        DataError: if they do not fit the network. The network is as it was then.
    """
    present = removals_of(model)
    common = 0
    while common < min(len(present), len(removals)) and present[common].same_as(removals[common]):
        common += 1
    with ExitStack() as undo:
        for removal in reversed(present[common:]):
            undo.callback(regrow(model, removal).undo)
        for removal in removals[common:]:
            undo.callback(remove(model, removal).undo)
        undo.pop_all()
    record_removals(model, removals)


def _read_history(state_dict: Mapping[str, Any]) -> tuple[list[Removal], dict[str, int]]:
    state = state_dict.get(_KEY)
    if state is None:
        return [], {}
    try:
        refuse_newer("The removal history of the checkpoint has version", state["version"], STATE_VERSION)
        removals = [Removal.from_state_dict(removal) for removal in state["removals"]]
        original = {str(name): int(size) for name, size in state.get("original", {}).items()}
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(f"The removal history is damaged: {type(error).__name__}: {error}.") from error
    return removals, original


def load_pruned(
    model_class: Callable[..., Model],
    path: str | Path,
    *,
    map_location: Any = "cpu",
    weights_only: bool = True,
    **arguments: Any,
) -> Model:
    """Build a network, make it as small as it was when a checkpoint was written, and load the weights.

    Args:
        model_class: the class, or a function that builds the network as it was before units were removed.
        path: a Lightning checkpoint, or what ``torch.save(model.state_dict(), path)`` wrote.
        map_location: where to load the weights to.
        weights_only: refuse anything but tensors and plain data; pass False for a checkpoint whose hyperparameters hold
            other objects, and only if you trust it.
        arguments: for ``model_class``, before the hyperparameters in the checkpoint.

    Returns:
        The network, in evaluation mode.

    Raises:
        DataError: if the file is damaged, or does not fit the network; the message names the file.
        OSError: if it cannot be opened.

    Example:
        >>> model = load_pruned(Classifier, "epoch=9.ckpt", width=64)  # doctest: +SKIP
    """
    checkpoint = _read_checkpoint(path, map_location, weights_only)
    saved = _saved_arguments(checkpoint, model_class)
    name = getattr(model_class, "__name__", "model_class")
    try:
        model = model_class(**{**saved, **arguments})
    except Exception as error:
        if not saved:
            raise
        raise DataError(
            f"{path}: {name} could not be built with the hyperparameters in the file, {', '.join(map(str, saved))}. "
            f"Pass others as arguments. {type(error).__name__}: {error}"
        ) from error
    handle = follow_state_dict(model)
    try:
        model.load_state_dict(checkpoint.get("state_dict", checkpoint))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except Exception as error:
        raise DataError(f"{path} does not hold the weights of {name}. {type(error).__name__}: {error}") from error
    finally:
        handle.remove()
    return model.eval()


def _read_checkpoint(path: str | Path, map_location: Any, weights_only: bool) -> Mapping[str, Any]:
    with open(path, "rb") as file:  # that it cannot be opened is told by the operating system
        try:
            checkpoint = torch.load(file, map_location=map_location, weights_only=weights_only)
        except Exception as error:
            raise DataError(
                f"{path} is not a checkpoint that can be loaded, or damaged. {type(error).__name__}: {error}"
            ) from error
    if not isinstance(checkpoint, Mapping) or not isinstance(checkpoint.get("state_dict", checkpoint), Mapping):
        raise DataError(f"{path} holds a {type(checkpoint).__name__}; expected a checkpoint, or a state dict.")
    return checkpoint


def _saved_arguments(checkpoint: Mapping[str, Any], model_class: Callable[..., Any]) -> dict[str, Any]:
    """What ``save_hyperparameters`` wrote: arguments by name, or one argument that holds them all."""
    saved = checkpoint.get("hyper_parameters", {})
    whole = checkpoint.get("hparams_name", "kwargs")
    if isinstance(whole, str) and whole != "kwargs" and whole and _accepts(model_class, whole):
        return {whole: saved}
    if not isinstance(saved, Mapping):
        return {}
    return {name: value for name, value in saved.items() if isinstance(name, str) and _accepts(model_class, name)}


def _accepts(function: Callable[..., Any], name: str) -> bool:
    parameters = inspect.signature(function).parameters
    return name in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
