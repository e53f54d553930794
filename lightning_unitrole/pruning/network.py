"""A network as it is at one moment of training: its channel groups, its size, and how good it is."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.ablation.scores import classification_score
from lightning_unitrole.analysis.session import AnalysisSession
from lightning_unitrole.data.batches import count_images
from lightning_unitrole.data.probe import Probe
from lightning_unitrole.errors import DataError
from lightning_unitrole.network.isolation import undisturbed
from lightning_unitrole.network.structures import take_rows
from lightning_unitrole.pruning.counting import count_macs, count_parameters
from lightning_unitrole.pruning.coupling import channel_graph
from lightning_unitrole.pruning.groups import ChannelGroup, layer_widths
from lightning_unitrole.pruning.history import kept_channels, removals_of
from lightning_unitrole.pruning.masking import UnitMask
from lightning_unitrole.pruning.removal import Removal
from lightning_unitrole.pruning.report import NetworkSize, Prediction
from lightning_unitrole.pruning.selection import saving

_LATENCY_IMAGES = 32
_LATENCY_MACS = 10**9


class NetworkState:
    """What pruning has to know of a network, until its shape changes.

    Args:
        session: the analysis of the network's layers.
        probe: validation images to judge it by.
        loose: see :func:`~lightning_unitrole.pruning.coupling.channel_graph`.
        timed_images: how many images to measure the latency with; None for up to 32, as many as take an instant.

    Raises:
        DataError: if there is no image.
        TraceError: if the forward pass cannot be followed.

    Attributes:
        session: the analysis of the network's layers.
        sample: the images to judge it by.
        batch: number of example inputs.
        graph: the network's channel groups.
    """

    def __init__(
        self, session: AnalysisSession, probe: Probe, *, loose: bool = False, timed_images: int | None = None
    ) -> None:
        self.session, self._asked_images = session, timed_images
        self.sample = session.sample(probe)
        if not bool(self.sample.images.any()):
            raise DataError("The validation data are empty: there is no image to choose units by.")
        self.batch = count_images(session.example_inputs)
        runner = session.runner
        self.graph = channel_graph(runner.forward, runner.model, session.example_inputs, batch=self.batch, loose=loose)

    @cached_property
    def amounts(self) -> dict[str, int]:
        """Parameters, multiply-accumulate operations of one image, and units; masked ones count."""
        runner, inputs = self.session.runner, self.session.example_inputs
        return {
            "parameters": count_parameters(runner.model),
            "macs": count_macs(runner.forward, runner.model, inputs, batch=self.batch),
            "units": sum(self.widths.values()),
        }

    @property
    def widths(self) -> dict[str, int]:
        """Output channels of each convolution and linear layer, and heads of each attention; masked ones count."""
        return layer_widths(self.session.runner.model) | self.graph.heads

    def gone(self, masked: Removal | None) -> dict[str, list[int]]:
        """Items of each channel group that a mask holds at zero, by the group's name."""
        return {} if masked is None else gone_items(self.graph.groups, masked)

    def counts(self, masked: Removal | None) -> tuple[int, int, dict[str, int]]:
        """Parameters, multiply-accumulate operations and widths of the network without what is masked, by counting."""
        gone = self.gone(masked)
        widths = self.widths
        for group in self.graph.groups:
            for layer, channels in group.channels.items():
                widths[layer] -= sum(len(channels[item]) for item in gone.get(group.name, ()))
        return (
            self.amounts["parameters"] - saving(self.graph, gone, "parameters"),
            self.amounts["macs"] - saving(self.graph, gone, "macs"),
            widths,
        )

    def size(self, masked: Removal | None, images: int | None = None) -> NetworkSize:
        """How large, fast and accurate the network is; masked units do not count.

        Args:
            masked: what is held at zero.
            images: how many images to measure the latency with; None for ``timed_images``.
        """
        images = self._timed_images if images is None else images
        parameters, macs, widths = self.counts(masked)
        now = self.predict(None)
        return NetworkSize(
            parameters=parameters,
            macs=macs,
            widths=widths,
            latency=self.latency(images),
            batch=images,
            accuracy=now.accuracy,
            loss=now.loss,
        )

    def latency(self, images: int | None = None) -> float:
        """Milliseconds of a forward pass of so many images, as the network is; see :meth:`size`."""
        runner, images = self.session.runner, self._timed_images if images is None else images
        inputs = take_rows(self.session.example_inputs, torch.arange(images) % self.batch, self.batch)
        return measure_latency(runner.forward, runner.model, inputs, device=runner.device)

    @property
    def _timed_images(self) -> int:
        return self._asked_images or max(
            self.batch, min(_LATENCY_IMAGES, _LATENCY_MACS // max(self.amounts["macs"], 1))
        )

    def accuracy(self) -> float:
        """Share of the validation images that the network gets right, 0 to 1."""
        return self.session.accuracy(self.sample)

    def predict(self, removal: Removal | None) -> Prediction:
        """Loss and accuracy that the network will have right after a removal, from one pass with its units at zero.

        Args:
            removal: what is to be removed, with what is masked already; None for the network as it is.
        """
        runner, score_fn = self.session.runner, self.session.options.score_fn or classification_score
        found = torch.zeros(3, dtype=torch.float64)  # on the CPU: not every device has float64
        with torch.inference_mode(False), runner.undisturbed():
            mask = None if removal is None else UnitMask(runner.model, removal)
            try:
                for images in self.sample:
                    loss, score = score_fn(runner.forward(images.inputs), images.targets)[:2]
                    sums = float(loss.double().sum()), float(score.double().sum()), float(len(score))
                    found += torch.tensor(sums, dtype=torch.float64)
            finally:
                if mask is not None:
                    mask.restore()
        loss_sum, right, images_seen = runner.total(found).tolist()
        return Prediction(loss_sum / images_seen, right / images_seen, int(images_seen))

    def knows_something(self, accuracy: float) -> bool:
        """Whether an accuracy is above that of always naming the most frequent class, by three standard errors.

        With a ``score_fn`` there is no such thing as chance, and every score is taken to say something.
        """
        if self.session.options.score_fn is not None:
            return True
        images = int(self.sample.images.sum())
        chance = int(self.sample.images.max()) / images
        return accuracy > chance + 3 * math.sqrt(chance * (1 - chance) / images)

    def release(self) -> None:
        """Free the images that are kept in memory."""
        self.sample.release()


def gone_items(groups: Sequence[ChannelGroup], masked: Removal) -> dict[str, list[int]]:
    """Items of each channel group that a removal takes, by the group's name."""
    gone = {}
    for group in groups:
        layer = group.name
        if layer in masked.channels:
            stays = set(masked.channels[layer].tolist())
            gone[layer] = [item for item, channels in enumerate(group.channels[layer]) if channels[0] not in stays]
    return {layer: items for layer, items in gone.items() if items}


def units_left(model: nn.Module, masked: Removal | None, widths: Mapping[str, int]) -> dict[str, Tensor]:
    """For each layer, the units that are left, ``[K]`` int64, by the indices that they had in the beginning.

    Args:
        model: the network.
        masked: what is held at zero.
        widths: units of each layer, at least of those that never lost any.
    """
    kept = kept_channels(removals_of(model))
    left = {layer: kept.get(layer, torch.arange(width)) for layer, width in widths.items()}
    if masked is not None:
        left |= {layer: left[layer][stays] for layer, stays in masked.channels.items()}
    return left


def measure_latency(
    forward: Callable[[Any], Any], model: nn.Module, inputs: Any, *, device: torch.device, repeats: int = 9
) -> float:
    """Milliseconds of one forward pass in evaluation mode: the least of some, after three that do not count.

    The least, because other work on the machine only ever adds to it.
    """

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    times = []
    with undisturbed(model):
        for index in range(repeats + 3):
            wait()
            start = time.perf_counter()
            forward(inputs)
            wait()
            if index >= 3:
                times.append(time.perf_counter() - start)
    return 1e3 * min(times)
