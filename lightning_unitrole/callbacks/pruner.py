"""What ``UnitPruning`` does when it is due: measure, choose, remove or mask, and tell of it."""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import pytorch_lightning as pl
import torch

from lightning_unitrole.callbacks.faults import Faults, PeerFaultError, ask_peers
from lightning_unitrole.callbacks.measuring import Measuring, callbacks_of
from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.pruning.equivalence import remove_checked
from lightning_unitrole.pruning.groups import ChannelGroup
from lightning_unitrole.pruning.history import original_amounts, record_removals, removals_of
from lightning_unitrole.pruning.latency import LatencySearch
from lightning_unitrole.pruning.logs import log_pruning, pruning_scalars
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.network import NetworkState, units_left
from lightning_unitrole.pruning.optimizers import carry_over, check_optimizers
from lightning_unitrole.pruning.rehearsal import rehearse_amount, rehearse_optimizers
from lightning_unitrole.pruning.removal import Change, Removal, plan_removal
from lightning_unitrole.pruning.report import NetworkSize, Prediction, PruningReport, PruningStep
from lightning_unitrole.pruning.schedules import Schedule
from lightning_unitrole.pruning.selection import LATENCY, Candidate, choose
from lightning_unitrole.pruning.suggestion import layer_calls

_log = logging.getLogger(__name__)


class _Plan(NamedTuple):
    """What is to be removed, before it is."""

    choice: dict[str, list[int]]
    accuracy: float
    predicted: Prediction


class Pruner(Measuring):
    """The work of the callback, without its settings and hooks; one network at a time."""

    amount: float | None
    of: str
    schedule: Schedule
    report: PruningReport | None

    def __init__(self) -> None:
        super().__init__()
        self.report = None
        self._original: dict[str, int] = {}
        self._mask: UnitMask | None = None
        self._faults = Faults(_log, self._look_anew)
        self._layers: dict[str, str] = {}
        # Items by group that go at the end of a regularised schedule, and what the network is without them.
        self._chosen: dict[str, list[int]] | None = None
        self._shrinking: Removal | None = None

    def _begin(self, network: NetworkState, trainer: pl.Trainer) -> None:
        """Note how the network was in the beginning; once a run."""
        self._original = self._originals(network)
        if self.report is None:
            size = network.size(self._masked)
            reasons = _reasons(network.graph.groups)
            self.report = PruningReport(size, size, skipped=reasons, score=network.session.score_name)
            self._log(trainer)

    def _originals(self, network: NetworkState) -> dict[str, int]:
        """How much of everything the network had in the beginning, before runs with other settings too."""
        found = network.amounts | {f"width/{group.name}": len(group) for group in network.graph.groups}
        return found | self._original | original_amounts(network.session.runner.model)

    def _rehearse(self, network: NetworkState, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Refuse what cannot work, before anything is trained."""
        if self._changes_shapes:
            self._drop_mask()
            try:
                blocked = self._find_blocked(network)
                ask_peers(trainer)
                self._block(network, trainer.strategy.broadcast(blocked))
                groups = self._groups(network)
                self._faults.warn(_left_alone(self._blocked), trainer)
                rehearse_optimizers(trainer.optimizers, pl_module, network.graph, groups)
            finally:
                if self._masked is not None:
                    self._mask = UnitMask(pl_module, self._masked)
        groups, timed = self._groups(network), self.of == LATENCY
        if timed and self.amount is not None:
            unmeasured = [Candidate(group, torch.zeros(len(group))) for group in groups]
            with torch.inference_mode(False):
                self._latency_search(network, self.amount).check(unmeasured)
        rehearse_amount(
            groups,
            network.graph,
            amount=None if timed else self.amount,
            of="macs" if timed else self.of,
            limits=self.limits,
            original=self._originals(network),
            now=network.amounts,
            gone=network.gone(self._masked),
        )

    def _prune(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> bool:
        """Measure, choose, and remove or mask; False where nothing was done."""
        plan: _Plan | None = None
        with self._going_on(trainer, "Units to prune could not be chosen"):
            found = self._plan(trainer, pl_module, epoch)
            ask_peers(trainer)
            plan = found
        if plan is None:
            return False
        # Every process measures the same; this makes sure that all prune the same.
        choice: dict[str, list[int]] = trainer.strategy.broadcast(plan.choice)
        before: dict[str, torch.Tensor] = {}
        widths: dict[str, int] = {}
        now, done = None, False
        with self._going_on(trainer, "No unit was pruned"):
            network = self._network(trainer, pl_module)
            widths = network.widths
            before = units_left(pl_module, self._masked, widths)
            removal = plan_removal(network.graph, choice)
            now = network.counts(removal)
            if removal.kept and self.mode == "remove":
                self._remove(trainer, pl_module, removal)
            elif removal.kept:
                self._put_mask(trainer, pl_module, removal)
            ask_peers(trainer)
            done = True
        if not done or now is None:
            return False
        self._chosen = self._shrinking = None
        size = self._size(trainer, pl_module, now)
        with self._going_on(trainer, "What was pruned could not be noted"):
            left = units_left(pl_module, self._masked, widths)
            units = {layer: (whole, left[layer]) for layer, whole in before.items()}
            self._note_step(trainer, pl_module, units, plan, size)
        self._log(trainer)
        return True

    def _let_shrink(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> None:
        """Choose the units that go at the end of a regularised schedule, if that is not done; they shrink from now."""
        with self._going_on(trainer, "Units to prune could not be chosen"):
            if self._chosen is None:
                plan = self._plan(trainer, pl_module, epoch)
                ask_peers(trainer)
                self._chosen = trainer.strategy.broadcast(None if plan is None else plan.choice)
            if self._chosen is not None:
                self._shrinking = plan_removal(self._network(trainer, pl_module).graph, self._chosen)

    def _plan(self, trainer: pl.Trainer, pl_module: pl.LightningModule, epoch: int) -> _Plan | None:
        """What to remove; None, with a warning, where there is nothing to choose by."""
        network = self._network(trainer, pl_module)
        self._begin(network, trainer)
        accuracy = network.accuracy()
        if self._chosen is None and self._needs_accuracy and not network.knows_something(accuracy):
            if trainer.is_global_zero:
                warnings.warn(
                    f"Nothing was pruned at the start of epoch {trainer.current_epoch}: the network gets "
                    f"{100 * accuracy:.1f} % of the validation images right, which may be chance, so its "
                    "ablation curves say nothing yet. UnitPruning tries again at the next epoch; start later with "
                    "start_epoch=, or choose units by a criterion.",
                    stacklevel=2,
                )
            return None
        choice = self._chosen
        if choice is None:
            candidates = self._candidates(network, lambda: self._trainer_analysis(trainer).report(trainer, pl_module))
            amount = None if self.amount is None else self.amount * self.schedule.share(epoch)
            choice = self._choose(network, candidates, amount)
        predicted = network.predict(plan_removal(network.graph, choice))
        network.release()
        return _Plan(choice, accuracy, predicted)

    def _choose(
        self, network: NetworkState, candidates: Sequence[Candidate], amount: float | None
    ) -> dict[str, list[int]]:
        if self.of == LATENCY and amount is not None:
            with torch.inference_mode(False):
                return self._latency_search(network, amount).choose(candidates)
        return choose(
            candidates,
            network.graph,
            amount=amount,
            of=self.of,
            limits=self.limits,
            original=self._originals(network),
            now=network.amounts,
        )

    def _latency_search(self, network: NetworkState, amount: float) -> LatencySearch:
        if self.report is None:
            before = now = network.latency()
            measure = network.latency
        else:
            before, now = self.report.before.latency, self.report.after.latency
            measure = partial(network.latency, self.report.before.batch)
        return LatencySearch(network, (1 - amount) * before, self.limits, self._originals(network), now, measure)

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
        units: Mapping[str, tuple[torch.Tensor, torch.Tensor]],
        plan: _Plan,
        size: NetworkSize,
    ) -> None:
        """Put into the report what was pruned; ``units`` are those of each layer before and after."""
        assert self.report is not None
        self._layers = layer_calls(pl_module, self._masked)
        step = PruningStep(
            epoch=trainer.current_epoch,
            global_step=trainer.global_step,
            units={
                layer: sorted(set(before.tolist()) - set(left.tolist()))
                for layer, (before, left) in units.items()
                if len(left) < len(before)
            },
            parameters=size.parameters,
            macs=size.macs,
            accuracy_before=plan.accuracy,
            accuracy_after=size.accuracy,
            loss_after=size.loss,
            predicted_accuracy=plan.predicted.accuracy,
            predicted_loss=plan.predicted.loss,
        )
        start = self.report.before if self.report.steps else replace(self.report.before, accuracy=plan.accuracy)
        self.report = replace(self.report, before=start, after=size, steps=(*self.report.steps, step))

    def _remove(self, trainer: pl.Trainer, pl_module: pl.LightningModule, removal: Removal) -> None:
        """Take units out of the network and out of the memory of the optimizers; all of it or nothing."""
        change: Change | None = None
        earlier = removals_of(pl_module)
        try:
            names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
            check_optimizers(trainer.optimizers, names, removal)
            session = self._trainer_analysis(trainer).session(trainer, pl_module)
            with torch.inference_mode(False):
                change = remove_checked(session.runner.forward, pl_module, removal, session.example_inputs)
            put_in_optimizers = carry_over(trainer.optimizers, change)
            record_removals(pl_module, [*earlier, removal], self._original)
            ask_peers(trainer)
        except BaseException:
            if change is not None:
                change.undo()
                record_removals(pl_module, earlier, self._original)
            raise
        put_in_optimizers()
        with self._going_on(trainer, "After a removal not everything could be told of it"):
            self._model_changed(trainer, pl_module)

    def _put_mask(self, trainer: pl.Trainer, pl_module: pl.LightningModule, removal: Removal) -> None:
        mask, old = UnitMask(pl_module, removal), self._mask
        if old is not None:  # the new mask is to bring back what the old one took
            mask.put_back()
            old.restore()
            mask.take()
        try:
            ask_peers(trainer)
        except PeerFaultError:
            mask.restore()
            self._mask = None if self._masked is None else UnitMask(pl_module, self._masked)
            raise
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
        for callback in callbacks_of(trainer):
            if isinstance(callback, UnitRoleMonitor):
                callback.forget_layers()
        strategy: Any = trainer.strategy
        if isinstance(strategy.model, torch.nn.parallel.DistributedDataParallel):
            # The wrapper sums the gradients of the parameters that it was made with.
            strategy.model = pl_module
            strategy.configure_ddp()
        with self._going_on(trainer, "Compiled code could not be forgotten"):
            _recompile()

    def _log(self, trainer: pl.Trainer) -> None:
        report = self.report
        assert report is not None
        with self._going_on(trainer, "What was pruned could not be logged"):
            scalars = pruning_scalars(report, step=trainer.global_step)
            trainer.callback_metrics.update({key: torch.tensor(value) for key, value in scalars.items()})
        for logger in trainer.loggers if trainer.is_global_zero else ():
            what = f"What was pruned could not be logged by {type(logger).__name__}"
            with self._going_on(trainer, what, alone=True):
                log_pruning(report, [logger], epoch=trainer.current_epoch, step=trainer.global_step)

    def _going_on(
        self, trainer: pl.Trainer, what: str, *, wrong: tuple[type[Exception], ...] = (), alone: bool = False
    ) -> AbstractContextManager[None]:
        """Turn a fault into a warning; errors of the types ``wrong`` stay errors."""
        return self._faults.outlived(trainer, what, passed=wrong, alone=alone)

    def _look_anew(self) -> None:
        if self._analysis is not None:
            self._analysis.forget()
        self._state = None


def _reasons(groups: Sequence[ChannelGroup]) -> dict[str, str]:
    return {group.name: group.reason for group in groups if group.reason is not None}


def _left_alone(blocked: Mapping[str, str]) -> str | None:
    """What to tell the user of layers that cannot shrink."""
    if not blocked:
        return None
    told = "; ".join(f"{name!r}: {reason}" for name, reason in blocked.items())
    layers = "one layer as it is" if len(blocked) == 1 else f"{len(blocked)} layers as they are"
    return f"UnitPruning leaves {layers}. {told}."


def _recompile() -> None:
    """Forget compiled code: it was made for parameters that are gone, or for modules without hooks."""
    if "torch._dynamo" in sys.modules:
        torch.compiler.reset()
