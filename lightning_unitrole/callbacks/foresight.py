"""What ``UnitPruning`` says beforehand: what pruning would cost, and how wide to build the network next time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import pytorch_lightning as pl
import torch
from torch import nn

from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.callbacks.measuring import monitors_arguments
from lightning_unitrole.callbacks.pruner import Pruner
from lightning_unitrole.data.loaders import DataSource, as_batches, first_batch
from lightning_unitrole.errors import SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.pruning.network import NetworkState
from lightning_unitrole.pruning.preview import PruningPreview, preview_amounts
from lightning_unitrole.pruning.selection import LATENCY
from lightning_unitrole.pruning.suggestion import WidthSuggestion
from lightning_unitrole.reports.report import UnitReport

AMOUNTS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)


class Foresight(Pruner):
    """Answers that change nothing."""

    _limited_by_default: bool

    def preview(
        self,
        subject: pl.Trainer | nn.Module,
        amounts: Sequence[float] = AMOUNTS,
        *,
        data: DataSource | None = None,
    ) -> PruningPreview:
        """What each of several amounts would leave of a network: its size, loss and accuracy before fine-tuning.

        Units are chosen as the settings say, and the losses are those of one pass with the units at zero, which
        computes what the smaller network does. Nothing is changed.

        Args:
            subject: a trainer, in a callback or after ``fit``, or a module.
            amounts: shares to remove, each between 0 and 1, both excluded.
            data: validation images for a module: a ``DataLoader``, a ``Dataset`` or a list of batches.

        Raises:
            SettingError: if an amount is out of range, there are no data, or the settings do not fit the network.

        Example:
            >>> preview = UnitPruning().preview(model, [0.3, 0.5], data=val_loader)  # doctest: +SKIP
            >>> print(preview.table())  # doctest: +SKIP
        """
        for amount in amounts:
            if not 0 < amount < 1:
                raise SettingError(f"amounts holds {amount!r}; expected numbers between 0 and 1, both excluded.")
        if self.of == LATENCY:
            raise SettingError("A preview counts in of='macs', 'parameters' or 'units'; each row has its operations.")
        with self._looking():
            network = self._trained(subject, data) if isinstance(subject, pl.Trainer) else self._plain(subject, data)
            if self._changes_shapes and self._mask is None:
                self._block(network, self._find_blocked(network))

            def analyse() -> UnitReport:
                if not isinstance(subject, pl.Trainer):
                    raise SettingError("choose_by='roles' needs training images: preview a trainer, not a module.")
                return self._trainer_analysis(subject).report(subject, subject.lightning_module)

            return preview_amounts(
                network,
                self._candidates(network, analyse),
                amounts,
                of=self.of,
                limits=self.limits,
                original=self._originals(network),
                masked=self._masked,
            )

    def suggest(self) -> WidthSuggestion:
        """How wide to build the network next time: what pruning left of each layer, ready for its constructor.

        Raises:
            SettingError: if nothing was pruned yet.
        """
        if self.report is None or not self.report.steps:
            raise SettingError("Nothing was pruned yet; suggest() works once units were pruned.")
        return WidthSuggestion(self.report.before.widths, self.report.after.widths, dict(self._layers))

    @contextmanager
    def _looking(self) -> Iterator[None]:
        """Leave no trace in the callback; a limit that stands in for an amount does not count."""
        kept = self._analysis, self._state, self._blocked, self.limits
        self._analysis = self._state = None
        if self._limited_by_default:
            self.limits = replace(self.limits, max_drop=None)
        try:
            with torch.inference_mode(False):
                yield
        finally:
            self._analysis, self._state, self._blocked, self.limits = kept

    def _trained(self, trainer: pl.Trainer, data: DataSource | None) -> NetworkState:
        if data is not None:
            raise SettingError("data= goes with a module; a trainer has validation data of its own.")
        if getattr(trainer, "lightning_module", None) is None:
            raise SettingError("This trainer has no module yet. Preview it after fit, or pass the module and data=.")
        return self._network(trainer, trainer.lightning_module)

    def _plain(self, model: nn.Module, data: DataSource | None) -> NetworkState:
        if data is None:
            raise SettingError("A module is previewed on validation images; pass data=, for example a DataLoader.")
        source = self._source([])
        forward = None if source.forward_fn is None else partial(source.forward_fn, model)
        runner = Runner(model, forward=forward)
        runner.forward_argument = "forward_fn="
        batch = runner.transfer(first_batch(as_batches(data, name="validation"), name="validation"))
        with monitors_arguments():
            session = AnalysisSession(runner, self._options(source), batch)
        return self._network_state(session, session.probe(data, name="validation", held_out=True))
