"""What ``UnitPruning`` measures about a network, and by whose settings and images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
import torch

from lightning_unitrole.analysis.options import AnalysisOptions, options_of
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.callbacks.trainer import TrainerAnalysis
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.errors import DataError, TraceError
from lightning_unitrole.pruning.evidence import LayerEvidence, gather_evidence
from lightning_unitrole.pruning.groups import ChannelGroup
from lightning_unitrole.pruning.importance import (
    GROUP_NORM,
    IMPORTANCES,
    group_norm,
    group_taylor,
    importance_candidates,
    joint,
)
from lightning_unitrole.pruning.network import NetworkState
from lightning_unitrole.pruning.rehearsal import blocked_groups
from lightning_unitrole.pruning.removal import Removal
from lightning_unitrole.pruning.selection import EVIDENCE, ROLES, Candidate, Limits, find_candidates, prunable_groups
from lightning_unitrole.ranking.criteria import CRITERIA, Criterion
from lightning_unitrole.reports.report import UnitReport

_ABLATION_POINTS = 16
_EVIDENCE_CRITERIA = [name for name in CRITERIA if name not in ("random", "contribution")]


@contextmanager
def monitors_arguments() -> Iterator[None]:
    """Say of errors that ask for functions, such as ``forward_fn=``, whose arguments these are."""
    try:
        yield
    except (DataError, TraceError) as error:
        if "_fn=" not in str(error):
            raise
        raise type(error)(
            f"{error} These are arguments of UnitRoleMonitor: UnitPruning(monitor=UnitRoleMonitor(...))."
        ) from error


class Measuring(pl.Callback):
    """Looks at a network and says of each unit that may go how much it matters; changes nothing."""

    choose_by: str | Criterion
    criterion: str | Criterion | None
    limits: Limits
    latency_batch: int | None
    mode: str
    remove_at_end: bool
    layers: str | Sequence[str]
    skip_layers: list[str]
    monitor: UnitRoleMonitor | None

    def __init__(self) -> None:
        super().__init__()
        self._masked: Removal | None = None
        self._analysis: TrainerAnalysis | None = None
        self._state: NetworkState | None = None
        self._blocked: dict[str, str] = {}

    def _trainer_analysis(self, trainer: pl.Trainer) -> TrainerAnalysis:
        """An analysis with the data and settings of the trainer's monitor; without one, with its defaults."""
        if self._analysis is None:
            source = self._source(callbacks_of(trainer))
            self._analysis = TrainerAnalysis(
                self._options(source),
                train_data=source.train_data,
                forward_fn=source.forward_fn,
                val_dataloader_idx=source.val_dataloader_idx,
            )
        return self._analysis

    def _source(self, callbacks: Sequence[Any]) -> UnitRoleMonitor:
        """The monitor whose data and settings to use."""
        found = [callback for callback in callbacks if isinstance(callback, UnitRoleMonitor)]
        return self.monitor or (found[0] if found else UnitRoleMonitor(ablation_points=_ABLATION_POINTS))

    def _options(self, source: UnitRoleMonitor) -> AnalysisOptions:
        criterion = self.choose_by if self._by_criterion else self.criterion
        return options_of(
            source,
            layers=self.layers,
            criterion=source.criterion if criterion is None else criterion,
            ablation_points=(source.ablation_points or _ABLATION_POINTS) if self._needs_accuracy else 0,
        )

    @property
    def _needs_accuracy(self) -> bool:
        return self.choose_by in (EVIDENCE, ROLES) or self.limits.max_drop is not None

    @property
    def _by_criterion(self) -> bool:
        return callable(self.choose_by) or self.choose_by not in (EVIDENCE, ROLES, *IMPORTANCES)

    @property
    def _by_importance(self) -> bool:
        return self.choose_by in IMPORTANCES

    def _network(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> NetworkState:
        if self._state is None:
            analysis = self._trainer_analysis(trainer)
            with monitors_arguments():
                session, probe = analysis.session(trainer, pl_module), analysis.val_probe(trainer, pl_module)
            self._state = self._network_state(session, probe)
        return self._state

    def _network_state(self, session: AnalysisSession, probe: Probe) -> NetworkState:
        state = NetworkState(session, probe, loose=not self._changes_shapes, timed_images=self.latency_batch)
        state.graph = state.graph.without(self._blocked)
        return state

    @property
    def _changes_shapes(self) -> bool:
        return self.mode == "remove" or self.remove_at_end

    def _find_blocked(self, network: NetworkState) -> dict[str, str]:
        """Groups that the network cannot do without a unit of, each with the reason; found by trying."""
        runner = network.session.runner
        inputs = network.session.example_inputs
        return blocked_groups(runner.forward, runner.model, network.graph, self._groups(network), inputs)

    def _block(self, network: NetworkState, blocked: dict[str, str]) -> None:
        """Leave these groups as they are."""
        self._blocked = blocked
        network.graph = network.graph.without(blocked)

    def _candidates(self, network: NetworkState, analyse: Callable[[], UnitReport]) -> list[Candidate]:
        """Groups with what was measured about their items; ``analyse`` gives roles where units are chosen by them."""
        groups, gone = self._groups(network), network.gone(self._masked)
        measured: list[Candidate] = []
        if not self._by_importance or self.limits.max_drop is not None:
            evidence = self._evidence(network, analyse)
            choose_by = self.choose_by if isinstance(self.choose_by, str) else "criterion"
            measured = find_candidates(groups, evidence, choose_by=choose_by, gone=gone)
        if not self._by_importance:
            return measured
        macs: int | None = None
        with torch.inference_mode(False):
            if self.choose_by == GROUP_NORM:
                scores = group_norm(groups, network.session.runner.model)
            else:
                session, macs = network.session, network.amounts["macs"]
                alone = group_taylor(groups, session.runner, network.sample, session.options.score_fn)
                scores = {name: joint(effects, gone.get(name, ())) for name, effects in alone.items()}
        drops = {one.group.name: one.drops for one in measured}
        if self.limits.max_drop is not None:  # what has no curve has no drop that could be limited
            groups = [group for group in groups if group.name in drops]
        return importance_candidates(groups, scores, network.graph, macs=macs, gone=gone, drops=drops)

    def _evidence(self, network: NetworkState, analyse: Callable[[], UnitReport]) -> list[LayerEvidence]:
        if self.choose_by == ROLES:
            return [LayerEvidence.of(layer) for layer in analyse().layers.values()]
        several = (self.choose_by == EVIDENCE or self._by_importance) and self.criterion is None
        criteria = _EVIDENCE_CRITERIA if several else [network.session.options.criterion]
        return gather_evidence(network.session, network.sample, criteria)

    def _groups(self, network: NetworkState) -> list[ChannelGroup]:
        """The groups that the settings allow to be pruned."""
        measured = [layer.name for layer in network.session.layers]
        layers = [self.layers] if isinstance(self.layers, str) else self.layers
        by_name = set(measured) & set(layers)
        if self._by_importance and self.layers == "all" and self.limits.max_drop is None:
            # Nothing has to be seen of their maps, so hidden linear layers are among them.
            measured = [name for group in network.graph.groups for name in group.channels]
        return prunable_groups(network.graph, measured, by_name=by_name, skip_layers=self.skip_layers)


def callbacks_of(trainer: Any) -> list[Any]:
    """The callbacks of a trainer."""
    return list(trainer.callbacks)
