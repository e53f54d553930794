"""A network as it is at one moment of training: its channel groups, its size, and what its units are worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_unitrole.analysis import UnitAnalysis
from lightning_unitrole.callbacks.monitor import UnitRoleMonitor
from lightning_unitrole.criteria import Criterion
from lightning_unitrole.data.batches import count_images
from lightning_unitrole.errors import DataError
from lightning_unitrole.forwards import take_rows
from lightning_unitrole.pruning.coupling import ChannelGroup, channel_graph, layer_widths
from lightning_unitrole.pruning.history import kept_channels, removals_of
from lightning_unitrole.pruning.measures import count_macs, count_parameters, measure_latency
from lightning_unitrole.pruning.removal import Removal
from lightning_unitrole.pruning.report import NetworkSize
from lightning_unitrole.pruning.selection import LayerEvidence, saving

_LATENCY_IMAGES = 32
_LATENCY_MACS = 10**9


class NetworkState:
    """What pruning has to know of a network; see :class:`~lightning_unitrole.callbacks.unit_pruning.UnitPruning`.

    Args:
        monitor: gives the data, and how to run the model.
        trainer: the trainer.
        pl_module: the network.
        masked: what is held at zero in it.

    Raises:
        SettingError: if a setting does not fit the model, or there are no validation data.
        DataError: if the validation data are empty.
        TraceError: if the forward pass cannot be followed.

    Attributes:
        analysis: the analysis of the network's layers.
        graph: the network's channel groups.
    """

    def __init__(
        self, monitor: UnitRoleMonitor, trainer: pl.Trainer, pl_module: pl.LightningModule, masked: Removal | None
    ) -> None:
        monitor.forget_layers()
        self.analysis: UnitAnalysis
        self.analysis, _, self._probe = monitor.prepare(trainer, pl_module)
        self._quota = self._probe.available()
        if not bool(self._quota.any()):
            raise DataError("The validation data are empty: there is no image to choose units by.")
        self.batch = count_images(self.analysis.example_inputs)
        self.graph = channel_graph(
            self.analysis.runtime.forward, pl_module, self.analysis.example_inputs, batch=self.batch
        )
        self.gone = {} if masked is None else gone_items(self.graph.groups, masked)

    @cached_property
    def amounts(self) -> dict[str, int]:
        """Parameters, multiply-accumulate operations of one image, and units; masked ones count."""
        model, inputs = self.analysis.model, self.analysis.example_inputs
        return {
            "parameters": count_parameters(model),
            "macs": count_macs(self.analysis.runtime.forward, model, inputs, batch=self.batch),
            "units": sum(layer_widths(model).values()),
        }

    def size(self, images: int | None = None) -> NetworkSize:
        """How large, fast and accurate the network is; masked units do not count.

        Args:
            images: how many images to measure the latency with; None for as many as take about a second on a CPU core.
        """
        if images is None:
            images = max(self.batch, min(_LATENCY_IMAGES, _LATENCY_MACS // max(self.amounts["macs"], 1)))
        widths = layer_widths(self.analysis.model)
        for group in self.graph.groups:
            for layer, channels in group.channels.items():
                widths[layer] -= sum(len(channels[item]) for item in self.gone.get(group.name, ()))
        return NetworkSize(
            parameters=self.amounts["parameters"] - saving(self.graph, self.gone, "parameters"),
            macs=self.amounts["macs"] - saving(self.graph, self.gone, "macs"),
            widths=widths,
            latency=measure_latency(
                self.analysis.runtime.forward,
                self.analysis.model,
                take_rows(self.analysis.example_inputs, torch.arange(images) % self.batch),
                device=self.analysis.runtime.device,
            ),
            batch=images,
            accuracy=self.accuracy(),
        )

    def accuracy(self) -> float:
        """Share of the validation images that the network gets right, 0 to 1."""
        return self.analysis.accuracy(self._probe, self._quota)

    def knows_something(self, accuracy: float) -> bool:
        """Whether an accuracy is above that of always naming the most frequent class, by three standard errors.

        With a ``score_fn`` there is no such thing as chance, and every score is taken to say something.
        """
        if self.analysis.settings.score_fn is not None:
            return True
        images = int(self._quota.sum())
        chance = int(self._quota.max()) / images
        return accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / images)

    def evidence(self, criteria: Sequence[str | Criterion]) -> list[LayerEvidence]:
        """Rankings and ablation curves of the layers, on validation images."""
        with torch.inference_mode(False):
            return self.analysis.evidence(self._probe, self._quota, criteria=criteria)

    def release(self) -> None:
        """Free the images that are kept in memory."""
        self._probe.release()


def gone_items(groups: Sequence[ChannelGroup], masked: Removal) -> dict[str, list[int]]:
    """Items of each channel group that a removal takes, by the group's name."""
    gone = {}
    for group in groups:
        layer = group.name
        if layer in masked.channels:
            stays = set(masked.channels[layer].tolist())
            gone[layer] = [item for item, channels in enumerate(group.channels[layer]) if channels[0] not in stays]
    return {layer: items for layer, items in gone.items() if items}


def units_left(model: nn.Module, masked: Removal | None) -> dict[str, Tensor]:
    """For each layer, the units that are left, ``[K]`` int64, by the indices that they had in the beginning."""
    kept = kept_channels(removals_of(model))
    left = {layer: kept.get(layer, torch.arange(width)) for layer, width in layer_widths(model).items()}
    if masked is not None:
        left |= {layer: left[layer][stays] for layer, stays in masked.channels.items()}
    return left
