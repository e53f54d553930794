"""The callback that prunes units while a network trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.hooks import RemovableHandle

from lightning_unitrole.callbacks.foresight import Foresight
from lightning_unitrole.callbacks.measuring import callbacks_of
from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.errors import DataError, SettingError, UnitRoleError, refuse_newer
from lightning_unitrole.network.isolation import quantizers
from lightning_unitrole.pruning.coupling import torch_pruning
from lightning_unitrole.pruning.history import follow_state_dict
from lightning_unitrole.pruning.importance import GROUP_TAYLOR, IMPORTANCES
from lightning_unitrole.pruning.masking import UnitMask, shrink
from lightning_unitrole.pruning.removal import Removal, plan_removal
from lightning_unitrole.pruning.report import PruningReport
from lightning_unitrole.pruning.schedules import REGULARISED, Schedule
from lightning_unitrole.pruning.selection import AMOUNTS, EVIDENCE, LATENCY, ROLES, Limits
from lightning_unitrole.ranking.criteria import CRITERIA, Criterion, resolve_criterion
from lightning_unitrole.reports.storage import BROKEN

STATE_VERSION = 1
_MODES = ("remove", "mask")
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")


class UnitPruning(Foresight):
    """Prunes units, chosen by what was measured about them, while the network trains.

    At the start of an epoch that is due, the units of each layer are measured on the validation images of the trainer's
    :class:`~lightning_unitrole.callbacks.monitor.UnitRoleMonitor` (its data, functions and criterion; without one, with
    its defaults). Channels that hang together, in residual sums, concatenations, gates and depthwise convolutions, go
    together and are judged together. Training goes on with the same optimizers and schedulers, whose memory is sliced.

    A fault while units are measured, chosen or logged becomes a warning: training goes on with the network as it is,
    and pruning is tried again at the next epoch. What cannot work at all, such as an amount that cannot be reached, a
    model whose forward method has numbers of channels written into it, or an optimizer whose memory cannot be sliced,
    is tried out when training starts, and is an error then.

    A network that is no better than chance has no ablation curve to go by; then pruning is put off, with a warning.
    What measuring costs grows with the number of layers, the monitor's ``images_per_class`` and ``ablation_points``,
    and, for ``"evidence"`` without a ``criterion``, with the number of criteria.

    Units are chosen on validation images, so the accuracy on them is a little too good afterwards: keep test images
    aside for a figure to report.

    Checkpoints of a pruned network carry its removals. ``Trainer.fit`` and ``validate`` with this callback and a
    ``ckpt_path`` make a fresh LightningModule as small first; elsewhere use
    :func:`~lightning_unitrole.pruning.history.load_pruned`.

    Logged at the start, whenever units are pruned, and at the end, to every logger: ``unitrole/pruning/parameters``,
    ``unitrole/pruning/macs`` (of one image), ``unitrole/pruning/units``, ``unitrole/pruning/latency_ms`` (a forward
    pass of ``latency_batch`` images, milliseconds), ``unitrole/pruning/accuracy`` and, whenever units are pruned,
    ``unitrole/pruning/accuracy_before`` (both 0 to 1). TensorBoard also gets the figure ``unitrole/pruning/widths`` and
    the text ``unitrole/pruning/report``.

    Args:
        choose_by: ``"group_taylor"``: what the loss changes by without units, at most, for each multiply-accumulate
            that they cost, by first-order estimates, see :func:`~lightning_unitrole.pruning.importance.group_taylor`;
            ``"group_norm"``: squared norm of all weights that go with a unit; both over all layers that hang together.
            ``"evidence"``: units whose ablation costs least accuracy, by each layer's own ablation curve;
            ``"roles"``: units that are ``NEITHER`` for every class first; or a criterion, by name or as a function.
        amount: share to remove of what the network had in the beginning, in (0, 1), by the end of the schedule. The
            beginning is before anything was removed, in whatever run: a pruned network remembers it.
        of: what ``amount`` counts: ``"macs"``, ``"parameters"`` or ``"units"`` of the whole network, with units ranked
            across layers; ``"layer"``, the units of each layer; or ``"latency"``, the time of a forward pass on the
            device at hand, measured on networks without the units that would go.
        max_accuracy_drop: prune only units at whose turn the layer's ablation curve has lost no more accuracy than
            this, 0 to 1. Each layer is ablated on its own, so the drops of several layers add up until the network has
            been fine-tuned. Without an amount, all such units are pruned; 0.01 if neither is given.
        mode: ``"remove"``, channels leave the tensors at once; or ``"mask"``, they are held at zero, which suits any
            compiled model and can be taken back with :meth:`restore_masked`.
        schedule: ``"once"``, ``"linear"`` (equal amounts), ``"cubic"`` (much first, then less), or ``"regularised"``:
            units are chosen at ``start_epoch``, their weights shrink evenly from step to step, and at ``end_epoch``,
            when they are zero, they go.
        start_epoch: epoch, counted from 0, at whose start units are first pruned.
        end_epoch: epoch by which the amount is reached; not needed for ``"once"``.
        every_n_epochs: epochs between two times.
        criterion: how ``"evidence"`` and ``"roles"`` rank the units of a layer; None lets ``"evidence"`` take, in each
            layer, the criterion whose ablation curve turns out best, and ``"roles"`` the monitor's.
        layers: convolutions to prune: ``"all"``, which takes hidden linear layers and heads of attention too where
            units are chosen by ``"group_taylor"`` or ``"group_norm"``, ``"auto"``, or names or glob patterns.
        skip_layers: names or glob patterns of layers to leave alone, with everything that hangs on them. Layers without
            one of whose units the network does not work, as trying out shows when training starts, are left alone too.
        min_units: units that each layer keeps, at least; an attention keeps at least one head.
        round_to: keep a multiple of so many units in each layer that is pruned; 8 or 16 suits tensor cores. Of heads
            any number may stay: each has many channels.
        latency_batch: number of images of the forward pass whose time is measured; as many as the network will be given
            at once where it is used, since a network gets less faster for one image than for many. None for up to 32,
            as many as a processor core computes in some hundredths of a second.
        remove_at_end: with ``mode="mask"``, remove the masked units when training ends.
        monitor: the monitor whose data and settings to use, if it is not among the trainer's callbacks.

    Attributes:
        report: a :class:`~lightning_unitrole.pruning.report.PruningReport`, once training has started.

    Raises:
        SettingError: if a setting is out of range, or does not fit the model, the optimizers, the strategy or other
            callbacks: in the constructor, in ``setup`` or when training starts, before anything is changed.
        TraceError: when training starts, if the forward pass cannot be followed.
        BackendError: if Torch-Pruning is not installed.

    Source: the dependency graph is that of arXiv:2301.12900, the cubic schedule that of arXiv:1710.01878; evidence and
    roles build on arXiv:2103.09716v1 and arXiv:2011.00789.

    Example:
        >>> trainer = pl.Trainer(callbacks=[UnitPruning(amount=0.5)], logger=False)  # doctest: +SKIP
    """

    def __init__(
        self,
        *,
        choose_by: str | Criterion = GROUP_TAYLOR,
        amount: float | None = None,
        of: str = "macs",
        max_accuracy_drop: float | None = None,
        mode: str = "remove",
        schedule: str = "once",
        start_epoch: int = 1,
        end_epoch: int | None = None,
        every_n_epochs: int = 1,
        criterion: str | Criterion | None = None,
        layers: str | Sequence[str] = "all",
        skip_layers: Sequence[str] = (),
        min_units: int = 1,
        round_to: int = 1,
        latency_batch: int | None = None,
        remove_at_end: bool = False,
        monitor: UnitRoleMonitor | None = None,
    ) -> None:
        super().__init__()
        if not callable(choose_by) and choose_by not in (*IMPORTANCES, EVIDENCE, ROLES, *CRITERIA):
            raise SettingError(
                f"choose_by={choose_by!r}; expected {', '.join(map(repr, IMPORTANCES))}, 'evidence', 'roles', one of "
                f"{', '.join(CRITERIA)}, or a function."
            )
        if amount is not None and not (_is_number(amount) and 0 < amount < 1):
            raise SettingError(f"amount={amount!r}; expected a number between 0 and 1, both excluded.")
        if of not in AMOUNTS:
            raise SettingError(f"of={of!r}; expected one of {', '.join(AMOUNTS)}.")
        if of == LATENCY and (amount is None or mode != "remove"):
            raise SettingError("of='latency' needs an amount, and mode='remove': units at zero take as long as before.")
        if max_accuracy_drop is not None and not (_is_number(max_accuracy_drop) and 0 <= max_accuracy_drop < 1):
            raise SettingError(f"max_accuracy_drop={max_accuracy_drop!r}; expected a number of at least 0 and below 1.")
        if mode not in _MODES:
            raise SettingError(f"mode={mode!r}; expected one of {', '.join(_MODES)}.")
        for name, value in (("min_units", min_units), ("round_to", round_to)):
            if not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r}; expected an integer of at least 1.")
        if latency_batch is not None and (not isinstance(latency_batch, int) or latency_batch < 1):
            raise SettingError(f"latency_batch={latency_batch!r}; expected an integer of at least 1, or None.")
        if criterion is not None:
            resolve_criterion(criterion)
        self._limited_by_default = amount is None and max_accuracy_drop is None
        if self._limited_by_default:
            max_accuracy_drop = 0.01
        self.choose_by, self.criterion = choose_by, criterion
        self.amount, self.of = amount, of
        self.limits, self.latency_batch = Limits(min_units, round_to, max_accuracy_drop), latency_batch
        self.mode, self.remove_at_end = mode, remove_at_end
        self.schedule = Schedule(schedule, start_epoch, end_epoch, every_n_epochs)
        self.layers = layers
        self.skip_layers = [skip_layers] if isinstance(skip_layers, str) else list(skip_layers)
        self.monitor = monitor
        self._last_epoch = -1
        self._following: RemovableHandle | None = None

    @property
    def state_key(self) -> str:
        """Distinct for callbacks that prune differently."""
        return self._generate_state_key(
            choose_by=self.choose_by if isinstance(self.choose_by, str) else resolve_criterion(self.choose_by)[0],
            amount=self.amount,
            of=self.of,
            max_accuracy_drop=self.limits.max_drop,
            mode=self.mode,
            layers=self.layers,
        )

    def state_dict(self) -> dict[str, Any]:
        """What was pruned so far, as tensors and plain data alone."""
        return {
            "version": STATE_VERSION,
            "original": dict(self._original),
            "last_epoch": self._last_epoch,
            "masked": None if self._masked is None else self._masked.state_dict(),
            "chosen": self._chosen,
            "report": None if self.report is None else self.report.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint stopped.

        Raises:
            DataError: if it is damaged, or a newer version of the package wrote it.
        """
        try:
            refuse_newer("The checkpoint holds a UnitPruning state of version", state_dict["version"], STATE_VERSION)
            original = {str(name): int(size) for name, size in state_dict["original"].items()}
            last_epoch = int(state_dict["last_epoch"])
            masked, report = state_dict["masked"], state_dict["report"]
            removal = None if masked is None else Removal.from_state_dict(masked)
            found = None if report is None else PruningReport.from_state_dict(report)
            chosen = state_dict.get("chosen")  # which earlier versions did not have
            if chosen is not None:
                chosen = {str(group): [int(item) for item in items] for group, items in chosen.items()}
        except DataError:
            raise
        except BROKEN as error:
            raise DataError(
                f"The checkpoint's UnitPruning state is damaged: {type(error).__name__}: {error}."
            ) from error
        self._original, self._last_epoch, self._masked, self.report = original, last_epoch, removal, found
        self._chosen = chosen

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Refuse what cannot work, and let the module take the shape of a checkpoint that is loaded after this."""
        self._following = follow_state_dict(pl_module)
        if stage != "fit":
            return
        torch_pruning()
        strategy = type(trainer.strategy).__name__
        if strategy in _SHARDED:
            raise SettingError(
                f"UnitPruning needs whole parameters in each process, and {strategy} splits them. Train with DDP, or "
                "prune the trained network on one device."
            )
        for callback in callbacks_of(trainer):
            if any(kind.__name__ in _AVERAGING for kind in type(callback).__mro__):
                raise SettingError(
                    f"UnitPruning cannot prune the average of the weights that {type(callback).__name__} keeps. Prune "
                    "first, and average in a second fit."
                )
        if trainer.current_epoch == 0:  # another fit; a checkpoint's state is loaded after this
            self._original, self._masked, self._last_epoch, self.report = {}, None, -1, None
            self._chosen = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mask again what was masked when the checkpoint was written."""
        self._blocked, self._shrinking = {}, None
        self._drop_mask()
        if self._masked is not None:
            self._mask = UnitMask(pl_module, self._masked)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether the settings fit the model, try out what is to come, and measure the model as it is."""
        with self._going_on(trainer, "The network could not be measured before training", wrong=(UnitRoleError,)):
            _refuse_quantized(pl_module)
            if self.schedule.kind == REGULARISED and math.isinf(trainer.num_training_batches):
                raise SettingError(
                    "schedule='regularised' needs to know how many batches an epoch has, which the loader does "
                    "not say. Set limit_train_batches= of the Trainer, or take another schedule."
                )
            network = self._network(trainer, pl_module)
            self._rehearse(network, trainer, pl_module)
            self._begin(network, trainer)
            if self._chosen is not None:  # before training was resumed
                self._shrinking = plan_removal(network.graph, self._chosen)
            network.release()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, where this epoch is due."""
        if self.schedule.shrinks(trainer.current_epoch):
            self._let_shrink(trainer, pl_module, self.schedule.epochs[-1])
        due = self.schedule.latest(trainer.current_epoch)
        if due is None or due <= self._last_epoch:
            return
        if self._prune(trainer, pl_module, due):
            self._last_epoch = due

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Leave masked units out of the gradients' norm."""
        if self._mask is not None:
            self._mask.hold_gradients()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Hold masked units at zero, and let those shrink that are to go."""
        if self._mask is not None:
            self._mask.hold()
        if self._shrinking is not None:
            epochs_left = self.schedule.epochs[-1] - trainer.current_epoch
            shrink(pl_module, self._shrinking, epochs_left * int(trainer.num_training_batches) - batch_idx - 1)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remove what is masked, if that was asked for, and say what came of it."""
        if self.report is None:
            return
        if self._masked is not None and self.remove_at_end:
            self._drop_mask()
            with self._going_on(trainer, "The masked units could not be removed and stay at zero"):
                self._remove(trainer, pl_module, self._masked)
                self._masked = None
        with self._going_on(trainer, "The pruned network could not be measured"):
            network = self._network(trainer, pl_module)
            self.report = replace(self.report, after=network.size(self._masked, self.report.before.batch))
            network.release()
        self._log(trainer)
        rank_zero_info(f"Pruned while training:\n{self.report.table()}")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Detach from the network, keeping masked weights at zero."""
        self._drop_mask()
        self._analysis = self._state = None
        if self._following is not None:
            self._following.remove()
            self._following = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Detach after an error too, keeping masked weights at zero."""
        self.teardown(trainer, pl_module, "fit")

    def restore_masked(self) -> None:
        """Take the mask off, with every masked weight as it was when its unit was masked; while training runs.

        What was masked before training was resumed from a checkpoint comes back as zeros.

        Raises:
            SettingError: if nothing is masked.
        """
        if self._mask is None:
            raise SettingError("No unit is masked; restore_masked works while training runs with mode='mask'.")
        self._mask.restore()
        self._mask = self._masked = None


def _refuse_quantized(module: Any) -> None:
    found = next(iter(quantizers(module)), None)
    if found is not None:
        raise SettingError(
            f"UnitPruning cannot prune a network that is prepared for quantisation-aware training: {found!r} keeps a "
            "scale for each channel. Prune first, and prepare the pruned network in a second fit."
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
