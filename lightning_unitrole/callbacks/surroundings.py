"""What stands around a callback: other callbacks that exchange weights or wait for its keys, and its settings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from pytorch_lightning import Callback, Trainer
from torch import nn

from lightning_unitrole.errors import SettingError, deprecated
from lightning_unitrole.loggers.scalars import PREFIX, present_key

_AVERAGING, _AVERAGING_AT_THE_END = "WeightAveraging", "StochasticWeightAveraging"
"""Lightning's callbacks, known by name because there are two of each, one in either package."""
_AROUND_AN_EPOCH = ("on_validation_epoch_start", "on_validation_epoch_end")


def stand_before_averaging(callback: Callback, trainer: Trainer) -> None:
    """Move a callback in front of those that put other weights into the network for the time of a validation epoch.

    What is analysed at the end of the epoch is then the network that was validated, and not the one before averaging.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    own = next((place for place, one in enumerate(callbacks) if one is callback), 0)
    first = next((place for place, one in enumerate(callbacks[:own]) if _exchanges_weights(one)), own)
    if first < own:
        # A new list: Lightning may be going through the old one.
        trainer.callbacks = [  # type: ignore[attr-defined]
            *callbacks[:first],
            callback,
            *callbacks[first:own],
            *callbacks[own + 1 :],
        ]


def _exchanges_weights(callback: Any) -> bool:
    """Whether it is Lightning's weight averaging, or written by the user with something to do on both sides."""
    if _is_a(callback, _AVERAGING):
        return True
    package = type(callback).__module__.partition(".")[0]
    own = [getattr(type(callback), name, None) is not getattr(Callback, name) for name in _AROUND_AN_EPOCH]
    return all(own) and package not in ("lightning", "pytorch_lightning", "lightning_unitrole")


def refuse_split_parameters(trainer: Trainer) -> None:
    """Refuse a strategy by which processes hold parts of each parameter.

    They must run the network together then, on every batch, and the analysis runs it in each of them on images of its
    own: they would wait for each other for ever.

    Raises:
        SettingError: if it is one; the message says what to do.
    """
    strategy: Any = trainer.strategy
    if trainer.world_size > 1 and splits_parameters(strategy):
        raise SettingError(
            f"UnitRoleMonitor runs the network in each process on images of its own, and {type(strategy).__name__} "
            "splits its parameters over the processes. Train with strategy='ddp', or look at the trained network with "
            "analyze(model, train_data, val_data) in one process."
        )


def splits_parameters(strategy: Any) -> bool:
    """Whether several processes hold parts of each parameter, and not only of gradients and optimizers."""
    if _is_a(strategy, "DeepSpeedStrategy"):
        return bool(strategy.zero_stage_3)
    if _is_a(strategy, "FSDPStrategy"):
        return getattr(getattr(strategy, "sharding_strategy", None), "name", "") != "NO_SHARD"
    return _is_a(strategy, "ModelParallelStrategy")


def averages_at_the_end(trainer: Trainer) -> bool:
    """Whether a callback gives the network other weights when training has ended."""
    return any(_is_a(one, _AVERAGING) or _is_a(one, _AVERAGING_AT_THE_END) for one in _callbacks(trainer))


def _is_a(value: Any, name: str) -> bool:
    return any(kind.__name__ == name for kind in type(value).__mro__)


def is_waited_for(trainer: Trainer) -> bool:
    """Whether a callback or a schedule of the learning rate looks at a key of a report, and fails without it."""
    return any(name.startswith((f"{PREFIX}/", f"{PREFIX}_")) for name in _awaited(trainer))


def warn_of_former_keys(trainer: Trainer) -> None:
    """Warn of each key of an earlier version that a callback or a schedule of the learning rate looks at."""
    for name in _awaited(trainer):
        present = present_key(name)
        if present is not None:
            deprecated(f"The key {name!r}, which a callback monitors,", repr(present), until="0.3")


def _awaited(trainer: Trainer) -> list[str]:
    schedules = [one.monitor for one in trainer.lr_scheduler_configs]
    names = [getattr(one, "monitor", None) for one in _callbacks(trainer)] + schedules
    return [name for name in names if isinstance(name, str)]


def _callbacks(trainer: Trainer) -> Iterator[Any]:
    return iter(trainer.callbacks)  # type: ignore[attr-defined]


def same_name(callback: Any, trainer: Trainer) -> str | None:
    """What to tell the user where another callback of the same type logs under the same name; None where none does."""
    others = [one for one in _callbacks(trainer) if type(one) is type(callback) and one is not callback]
    if not trainer.loggers or callback.name not in [one.name for one in others]:
        return None
    return (
        f"Several callbacks of type {type(callback).__name__} log under the same keys, so that one hides the other. "
        "Give each of them a name=."
    )


def epochs_of(trainer: Trainer) -> int | None:
    """Epochs of the whole training, if the trainer knows."""
    return trainer.max_epochs if trainer.max_epochs is not None and trainer.max_epochs > 0 else None


def images_of_an_epoch(trainer: Trainer) -> int | None:
    """Images of an epoch of training in all processes; None where the loader does not tell the size of its batches."""
    loader = trainer.train_dataloader
    sizes = [getattr(one, "batch_size", None) for one in (loader, getattr(loader, "batch_sampler", None))]
    size = next((one for one in sizes if isinstance(one, int)), None)
    if size is None or not math.isfinite(trainer.num_training_batches):
        return None
    return int(trainer.num_training_batches) * size * trainer.world_size


def setting_name(value: Any) -> Any:
    """A setting as what tells it from another, the same in each run."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Callable):  # type: ignore[arg-type]
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    if isinstance(value, (list, tuple)):
        return [setting_name(item) for item in value]
    return type(value).__qualname__


def checksum(module: nn.Module) -> float:
    """A number that is another one when the weights are others."""
    with torch.inference_mode(False), torch.no_grad():
        return math.fsum(float(one.detach().double().square().sum()) for one in module.parameters() if one.numel())


def no_report(trainer: Trainer, every_n_epochs: Any) -> str:
    """Why there is no report at the end of training, for a reader."""
    validated = trainer.check_val_every_n_epoch
    return (
        f"UnitRoleMonitor made no report: no validation run fell due in {trainer.current_epoch} epochs, with "
        f"every_n_epochs={every_n_epochs} and check_val_every_n_epoch={validated}."
    )
