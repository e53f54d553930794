"""The callback that prunes units while a network trains."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities import rank_zero_info
from torch.utils.hooks import RemovableHandle

from lightning_unitrole.analysis.options import options_of
from lightning_unitrole.callbacks.faults import in_words, where
from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.callbacks.trainer import TrainerAnalysis
from lightning_unitrole.errors import DataError, SettingError, UnitRoleError, refuse_newer
from lightning_unitrole.pruning.coupling import ChannelGroup, torch_pruning
from lightning_unitrole.pruning.equivalence import remove_checked
from lightning_unitrole.pruning.evidence import LayerEvidence, gather_evidence
from lightning_unitrole.pruning.history import follow_state_dict, original_amounts, record_removals, removals_of
from lightning_unitrole.pruning.logs import log_pruning, pruning_scalars
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import NetworkState, units_left
from lightning_unitrole.pruning.optimizers import carry_over, check_optimizers
from lightning_unitrole.pruning.rehearsal import rehearse_amount, rehearse_removal
from lightning_unitrole.pruning.removal import Change, Removal, plan_removal
from lightning_unitrole.pruning.report import NetworkSize, PruningReport, PruningStep
from lightning_unitrole.pruning.schedules import Schedule
from lightning_unitrole.pruning.selection import (
    AMOUNTS,
    EVIDENCE,
    ROLES,
    Limits,
    choose,
    find_candidates,
    prunable_groups,
)
from lightning_unitrole.ranking.criteria import CRITERIA, Criterion, resolve_criterion
from lightning_unitrole.reports.storage import BROKEN

STATE_VERSION = 1
_MODES = ("remove", "mask")
_SHARDED = ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy")
_AVERAGING = ("WeightAveraging", "StochasticWeightAveraging")
_ABLATION_POINTS = 16
_log = logging.getLogger(__name__)
_EVIDENCE_CRITERIA = [name for name in CRITERIA if name not in ("random", "contribution")]


class _Plan(NamedTuple):
    """What is to be removed, before it is."""

    choice: dict[str, list[int]]
    accuracy: float


class UnitPruning(pl.Callback):
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
    pass of up to 32 images, milliseconds), ``unitrole/pruning/accuracy`` and, whenever units are pruned,
    ``unitrole/pruning/accuracy_before`` (both 0 to 1). TensorBoard also gets the figure ``unitrole/pruning/widths`` and
    the text ``unitrole/pruning/report``.

    Args:
        choose_by: ``"evidence"``: units whose ablation costs least accuracy, by each layer's own ablation curve;
            ``"roles"``: units that are ``NEITHER`` for every class first; or a criterion, by name or as a function.
        amount: share to remove of what the network had in the beginning, in (0, 1), by the end of the schedule. The
            beginning is before anything was removed, in whatever run: a pruned network remembers it.
        of: what ``amount`` counts: ``"macs"``, ``"parameters"`` or ``"units"`` of the whole network, with units ranked
            across layers, or ``"layer"``, the units of each layer.
        max_accuracy_drop: prune only units at whose turn the layer's ablation curve has lost no more accuracy than
            this, 0 to 1. Each layer is ablated on its own, so the drops of several layers add up until the network has
            been fine-tuned. Without an amount, all such units are pruned; 0.01 if neither is given.
        mode: ``"remove"``, channels leave the tensors at once; or ``"mask"``, they are held at zero, which suits any
            compiled model and can be taken back with :meth:`restore_masked`.
        schedule: ``"once"``, ``"linear"`` (equal amounts) or ``"cubic"`` (much first, then less).
        start_epoch: epoch, counted from 0, at whose start units are first pruned.
        end_epoch: epoch by which the amount is reached; not needed for ``"once"``.
        every_n_epochs: epochs between two times.
        criterion: how ``"evidence"`` and ``"roles"`` rank the units of a layer; None lets ``"evidence"`` take, in each
            layer, the criterion whose ablation curve turns out best, and ``"roles"`` the monitor's.
        layers: convolutions to prune: ``"all"``, ``"auto"``, or names or glob patterns.
        skip_layers: names or glob patterns of layers to leave alone, with everything that hangs on them.
        min_units: units that each layer keeps, at least.
        round_to: keep a multiple of so many units in each layer that is pruned; 8 or 16 suits tensor cores.
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
        choose_by: str | Criterion = EVIDENCE,
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
        remove_at_end: bool = False,
        monitor: UnitRoleMonitor | None = None,
    ) -> None:
        super().__init__()
        if not callable(choose_by) and choose_by not in (EVIDENCE, ROLES, *CRITERIA):
            raise SettingError(
                f"choose_by={choose_by!r}; expected 'evidence', 'roles', one of {', '.join(CRITERIA)}, or a function."
            )
        if amount is not None and not 0 < amount < 1:
            raise SettingError(f"amount={amount!r}; expected a number between 0 and 1, both excluded.")
        if of not in AMOUNTS:
            raise SettingError(f"of={of!r}; expected one of {', '.join(AMOUNTS)}.")
        if max_accuracy_drop is not None and not 0 <= max_accuracy_drop < 1:
            raise SettingError(f"max_accuracy_drop={max_accuracy_drop!r}; expected a number of at least 0 and below 1.")
        if mode not in _MODES:
            raise SettingError(f"mode={mode!r}; expected one of {', '.join(_MODES)}.")
        for name, value in (("min_units", min_units), ("round_to", round_to)):
            if not isinstance(value, int) or value < 1:
                raise SettingError(f"{name}={value!r}; expected an integer of at least 1.")
        if criterion is not None:
            resolve_criterion(criterion)
        if amount is None and max_accuracy_drop is None:
            max_accuracy_drop = 0.01
        self.choose_by, self.criterion = choose_by, criterion
        self.amount, self.of = amount, of
        self.limits = Limits(min_units, round_to, max_accuracy_drop)
        self.mode, self.remove_at_end = mode, remove_at_end
        self.schedule = Schedule(schedule, start_epoch, end_epoch, every_n_epochs)
        self.layers = layers
        self.skip_layers = [skip_layers] if isinstance(skip_layers, str) else list(skip_layers)
        self.monitor = monitor
        self.report: PruningReport | None = None
        self._original: dict[str, int] = {}
        self._masked: Removal | None = None
        self._mask: UnitMask | None = None
        self._last_epoch = -1
        self._analysis: TrainerAnalysis | None = None
        self._state: NetworkState | None = None
        self._following: RemovableHandle | None = None
        self._warned: set[str] = set()

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
        except DataError:
            raise
        except BROKEN as error:
            raise DataError(
                f"The checkpoint's UnitPruning state is damaged: {type(error).__name__}: {error}."
            ) from error
        self._original, self._last_epoch, self._masked, self.report = original, last_epoch, removal, found

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
        for callback in _callbacks(trainer):
            if any(kind.__name__ in _AVERAGING for kind in type(callback).__mro__):
                raise SettingError(
                    f"UnitPruning cannot prune the average of the weights that {type(callback).__name__} keeps. Prune "
                    "first, and average in a second fit."
                )
        if trainer.current_epoch == 0:  # another fit; a checkpoint's state is loaded after this
            self._original, self._masked, self._last_epoch, self.report = {}, None, -1, None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Mask again what was masked when the checkpoint was written."""
        self._drop_mask()
        if self._masked is not None:
            self._mask = UnitMask(pl_module, self._masked)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """See whether the settings fit the model, try out what is to come, and measure the model as it is."""
        with self._going_on(trainer, "The network could not be measured before training", wrong=UnitRoleError):
            network = self._network(trainer, pl_module)
            self._rehearse(network, trainer, pl_module)
            self._begin(network, trainer, pl_module)
            network.release()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Prune, where this epoch is due."""
        due = self.schedule.latest(trainer.current_epoch)
        if due is None or due <= self._last_epoch:
            return
        if self._prune(trainer, pl_module, due):
            self._last_epoch = due

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        """Leave masked units out of the gradients' norm."""
        if self._mask is not None:
            self._mask.hold_gradients()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Hold masked units at zero."""
        if self._mask is not None:
            self._mask.hold()

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

    def _begin(self, network: NetworkState, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note how the network was in the beginning; once a run."""
        found = network.amounts | {f"width/{group.name}": len(group) for group in network.graph.groups}
        # What was removed in an earlier run, whatever its settings, counts too.
        self._original = found | self._original | original_amounts(pl_module)
        if self.report is None:
            size = network.size(self._masked)
            self.report = PruningReport(size, size, skipped=_reasons(network.graph.groups))
            self._log(trainer)

    def _rehearse(self, network: NetworkState, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot work, before anything is trained."""
        groups = self._groups(network)
        rehearse_amount(
            groups,
            network.graph,
            amount=self.amount,
            of=self.of,
            limits=self.limits,
            original=network.amounts
            | {f"width/{group.name}": len(group) for group in groups}
            | self._original
            | original_amounts(pl_module),
            now=network.amounts,
            gone=network.gone(self._masked),
        )
        if self.mode == "remove" or self.remove_at_end:
            session = network.session
            self._drop_mask()
            try:
                rehearse_removal(
                    session.runner.forward, pl_module, network.graph, groups, session.example_inputs, trainer.optimizers
                )
            finally:
                if self._masked is not None:
                    self._mask = UnitMask(pl_module, self._masked)

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> bool:
        """Measure, choose, and remove or mask; False where nothing was done."""
        plan: _Plan | None = None
        with self._going_on(trainer, "Units to prune could not be chosen"):
            plan = self._plan(trainer, pl_module, epoch)
        if not _all_agree(trainer, plan is not None) or plan is None:
            return False
        # Every process measures the same; this makes sure that all prune the same.
        choice: dict[str, list[int]] = trainer.strategy.broadcast(plan.choice)
        before, now, done = units_left(pl_module, self._masked), None, False
        with self._going_on(trainer, "No unit was pruned"):
            network = self._network(trainer, pl_module)
            removal = plan_removal(network.graph, choice)
            now = network.counts(removal)
            if removal.kept and self.mode == "remove":
                self._remove(trainer, pl_module, removal)
            elif removal.kept:
                self._put_mask(pl_module, removal)
            done = True
        if not done or now is None:
            return False
        self._note_step(trainer, pl_module, before, plan.accuracy, self._size(trainer, pl_module, now))
        self._log(trainer)
        return True

    def _plan(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> _Plan | None:
        """What to remove; None, with a warning, where there is nothing to choose by."""
        network = self._network(trainer, pl_module)
        self._begin(network, trainer, pl_module)
        accuracy = network.accuracy()
        if self._needs_accuracy and not network.knows_something(accuracy):
            if trainer.is_global_zero:
                warnings.warn(
                    f"Nothing was pruned at the start of epoch {trainer.current_epoch}: the network gets "
                    f"{100 * accuracy:.1f} % of the validation images right, which may be chance, so its "
                    "ablation curves say nothing yet. UnitPruning tries again at the next epoch; start later with "
                    "start_epoch=, or choose units by a criterion.",
                    stacklevel=2,
                )
            return None
        choice = choose(
            find_candidates(
                self._groups(network),
                self._evidence(network, trainer, pl_module),
                choose_by=self.choose_by if isinstance(self.choose_by, str) else "criterion",
                gone=network.gone(self._masked),
            ),
            network.graph,
            amount=None if self.amount is None else self.amount * self.schedule.share(epoch),
            of=self.of,
            limits=self.limits,
            original=self._original,
            now=network.amounts,
        )
        network.release()
        return _Plan(choice, accuracy)

    def _size(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, counted: tuple[int, int, dict[str, int]]
    ) -> NetworkSize:
        """The network now; where it cannot be measured, what can be counted."""
        assert self.report is not None
        batch = self.report.before.batch
        with self._going_on(trainer, "The pruned network could not be measured"):
            network = self._network(trainer, pl_module)
            size = network.size(self._masked, batch)
            network.release()
            return size
        parameters, macs, widths = counted
        return NetworkSize(parameters, macs, widths, latency=math.nan, batch=batch, accuracy=math.nan)

    def _note_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        before: dict[str, torch.Tensor],
        accuracy: float,
        size: NetworkSize,
    ) -> None:
        assert self.report is not None
        left = units_left(pl_module, self._masked)
        step = PruningStep(
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            units={
                layer: sorted(set(units.tolist()) - set(left[layer].tolist()))
                for layer, units in before.items()
                if len(left[layer]) < len(units)
            },
            parameters=size.parameters,
            macs=size.macs,
            accuracy_before=accuracy,
            accuracy_after=size.accuracy,
        )
        start = self.report.before if self.report.steps else replace(self.report.before, accuracy=accuracy)
        self.report = replace(self.report, before=start, after=size, steps=(*self.report.steps, step))

    def _remove(self, trainer: pl.Trainer, pl_module: pl.LightningModule, removal: Removal) -> None:
        """Take units out of the network and out of the memory of the optimizers; all of it or nothing."""
        change: Change | None = None
        try:
            names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
            check_optimizers(trainer.optimizers, names, removal)
            session = self._trainer_analysis(trainer).session(trainer, pl_module)
            with torch.inference_mode(False):
                change = remove_checked(session.runner.forward, pl_module, removal, session.example_inputs)
        finally:
            agreed = _all_agree(trainer, change is not None)
            if change is not None and not agreed:
                change.undo()
        assert change is not None
        if not agreed:
            raise RuntimeError("the removal failed in another process")
        earlier = removals_of(pl_module)
        try:
            record_removals(pl_module, [*earlier, removal], self._original)
            carry_over(trainer.optimizers, change)
        except BaseException:
            change.undo()
            record_removals(pl_module, earlier, self._original)
            raise
        with self._going_on(trainer, "After a removal not everything could be told of it"):
            self._model_changed(trainer, pl_module)

    def _put_mask(self, pl_module: pl.LightningModule, removal: Removal) -> None:
        mask, old = UnitMask(pl_module, removal), self._mask
        if old is not None:  # the new mask is to bring back what the old one took
            mask.put_back()
            old.restore()
            mask.take()
        self._mask, self._masked = mask, removal
        if mask.hooks:
            _recompile()

    def _drop_mask(self) -> None:
        if self._mask is not None:
            self._mask.drop()
            self._mask = None

    def _model_changed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let everything that holds on to the old parameters take the new ones."""
        self._trainer_analysis(trainer).forget()
        self._state = None
        for callback in _callbacks(trainer):
            if isinstance(callback, UnitRoleMonitor):
                callback.forget_layers()
        strategy: Any = trainer.strategy
        if isinstance(strategy.model, torch.nn.parallel.DistributedDataParallel):
            # The wrapper sums the gradients of the parameters that it was made with.
            strategy.model = pl_module
            strategy.configure_ddp()
        with self._going_on(trainer, "Compiled code could not be forgotten"):
            _recompile()

    def _trainer_analysis(self, trainer: pl.Trainer) -> TrainerAnalysis:
        """An analysis with the data and settings of the trainer's monitor; without one, with its defaults."""
        if self._analysis is None:
            found = [callback for callback in _callbacks(trainer) if isinstance(callback, UnitRoleMonitor)]
            source = self.monitor or (found[0] if found else UnitRoleMonitor(ablation_points=_ABLATION_POINTS))
            criterion = self.choose_by if self._by_criterion else self.criterion
            options = options_of(
                source,
                layers=self.layers,
                criterion=source.criterion if criterion is None else criterion,
                ablation_points=(source.ablation_points or _ABLATION_POINTS) if self._needs_accuracy else 0,
            )
            self._analysis = TrainerAnalysis(
                options,
                train_data=source.train_data,
                forward_fn=source.forward_fn,
                val_dataloader_idx=source.val_dataloader_idx,
            )
        return self._analysis

    @property
    def _needs_accuracy(self) -> bool:
        return self.choose_by in (EVIDENCE, ROLES) or self.limits.max_drop is not None

    @property
    def _by_criterion(self) -> bool:
        return callable(self.choose_by) or self.choose_by not in (EVIDENCE, ROLES)

    def _network(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> NetworkState:
        if self._state is None:
            analysis = self._trainer_analysis(trainer)
            self._state = NetworkState(analysis.session(trainer, pl_module), analysis.val_probe(trainer, pl_module))
        return self._state

    def _evidence(
        self, network: NetworkState, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> list[LayerEvidence]:
        if self.choose_by == ROLES:
            report = self._trainer_analysis(trainer).report(trainer, pl_module)
            return [LayerEvidence.of(layer) for layer in report.layers.values()]
        several = self.choose_by == EVIDENCE and self.criterion is None
        criteria = _EVIDENCE_CRITERIA if several else [network.session.options.criterion]
        return gather_evidence(network.session, network.sample, criteria)

    def _groups(self, network: NetworkState) -> list[ChannelGroup]:
        """The groups that the settings allow to be pruned."""
        measured = [layer.name for layer in network.session.layers]
        layers = [self.layers] if isinstance(self.layers, str) else self.layers
        return prunable_groups(
            network.graph, measured, by_name=set(measured) & set(layers), skip_layers=self.skip_layers
        )

    def _log(self, trainer: pl.Trainer) -> None:
        report = self.report
        assert report is not None
        with self._going_on(trainer, "What was pruned could not be logged"):
            scalars = pruning_scalars(report, step=trainer.global_step)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
        for logger in trainer.loggers if trainer.is_global_zero else ():
            with self._going_on(trainer, f"What was pruned could not be logged by {type(logger).__name__}"):
                log_pruning(report, [logger], epoch=trainer.current_epoch, step=trainer.global_step)

    @contextmanager
    def _going_on(self, trainer: pl.Trainer, what: str, *, wrong: type[Exception] = Warning) -> Iterator[None]:
        """Turn a fault into a warning, once for each place; warnings and errors of type ``wrong`` pass."""
        try:
            yield
        except (Warning, wrong):
            raise
        except Exception as error:
            _log.debug("%s.", what, exc_info=error)
            # The next attempt looks at the network anew.
            self._trainer_analysis(trainer).forget()
            self._state = None
            kind = f"{what}: {type(error).__name__} in {where(error)}"
            if kind not in self._warned and trainer.is_global_zero:
                self._warned.add(kind)
                warnings.warn(f"{what}, and training goes on. {in_words(error, logger=__name__)}", stacklevel=3)


def _all_agree(trainer: pl.Trainer, done: bool) -> bool:
    """Whether something was done in every process."""
    return bool(trainer.strategy.reduce_boolean_decision(done))


def _callbacks(trainer: Any) -> list[Any]:
    return list(trainer.callbacks)


def _reasons(groups: Sequence[ChannelGroup]) -> dict[str, str]:
    return {group.name: group.reason for group in groups if group.reason is not None}


def _recompile() -> None:
    """Forget compiled code: it was made for parameters that are gone, or for modules without hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
