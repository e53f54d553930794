"""Cumulative ablation: curves over the number of units that are switched off."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_unitrole.ablation.engine import AblationEngine, AblationRequest, Batches
from lightning_unitrole.ablation.points import coarse_points, refined_points
from lightning_unitrole.ablation.scores import ScoreFn
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import batch_size, map_tensors, take_rows
from lightning_unitrole.network.units import UnitLayer, find_unit_layers, select_layers
from lightning_unitrole.reports.curves import AblationCurve


def cumulative_ablation(
    model: nn.Module,
    layer: str | UnitLayer,
    order: Tensor | Sequence[int],
    data: Iterable[Any],
    *,
    points: int | None = None,
    forward: Callable[[Any], Any] | None = None,
    score_fn: ScoreFn | None = None,
    max_memory: int | None = None,
    progress: Callable[[], None] | None = None,
) -> AblationCurve:
    """Switch the units of a layer off one after another, and measure the model after each.

    A unit is off when its map, after normalisation and activation, is zero. The model runs in evaluation mode and
    without gradients; modes, buffers and random states are left as they were. The result is that of a full forward pass
    for each point, at about the cost of one full pass plus, for each point, one through what lies behind the layer.

    Args:
        model: maps the inputs of a batch to logits ``[images, classes]``, or to a structure with them, as for
            :func:`~lightning_unitrole.analyze`.
        layer: name of a convolution, or a layer from :func:`~lightning_unitrole.network.units.find_unit_layers`.
        order: ``[U]`` units in the order in which they are switched off, every unit once.
        data: batches ``(inputs, targets)``, a list or a ``DataLoader`` that gives the same ones each time; tensors are
            moved to the model's device.
        points: ``None`` measures every number of units from none to all; an integer measures about so many: a coarse
            grid, then what locates the turning point exactly on curves with one valley, see
            :func:`~lightning_unitrole.ablation.points.refined_points`.
        forward: called with the inputs instead of ``model``.
        score_fn: from the model's outputs and the targets to the loss ``[N]`` and the score ``[N]`` of each image; by
            default cross-entropy in nats, top-1 accuracy, and top-5 accuracy where there are more than 5 classes.
        max_memory: bytes that the repeated part may need, about; see
            :class:`~lightning_unitrole.ablation.engine.AblationEngine`.
        progress: called after each batch.

    Raises:
        SettingError: if the layer is unknown, the order is not a permutation of its units, or a number is out of range.
        DataError: if there are no images, or labels and outputs do not fit; the message says what was found.

    Source: arXiv:2103.09716v1, section 4 (cumulative unit ablation).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> conv = nn.Conv2d(1, 4, 3, padding=1)
        >>> model = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        >>> data = [(torch.rand(2, 1, 8, 8), torch.tensor([0, 2]))]
        >>> cumulative_ablation(model, "0", [2, 0, 1, 3], data).ablated.tolist()
        [0, 1, 2, 3, 4]
    """
    runner = Runner(model, forward=forward)

    def batches() -> Iterator[tuple[Any, Any]]:
        for entry in data:
            if not isinstance(entry, (tuple, list)) or len(entry) != 2:
                raise DataError(f"A batch of data is a {type(entry).__name__}; expected a pair (inputs, targets).")
            inputs, targets = runner.transfer(tuple(entry))
            if batch_size(inputs) != 0:  # what a filter left of a batch may be nothing
                yield inputs, targets

    if points is not None and iter(data) is data:
        raise SettingError(
            f"data is a {type(data).__name__}, which gives its batches only once; points={points} needs them several "
            "times. Pass a list or a DataLoader."
        )
    batches_now: Batches = batches
    if not isinstance(layer, UnitLayer):
        if iter(data) is data:
            held = list(batches())
            batches_now = partial(iter, held)
        layer = _find_layer(runner, layer, batches_now)
    if score_fn is None and (batches_now is not batches or iter(data) is not data):
        _pick_logits(runner, batches_now)
    engine = AblationEngine(runner, layer, batches_now, score_fn=score_fn, max_memory=max_memory)
    curves = measure_curves(engine, [AblationRequest(torch.as_tensor(order))], points=points, progress=progress)
    if curves[0] is None:
        raise DataError(f"Layer {layer.name!r}: data has no images; expected at least one batch (inputs, targets).")
    return curves[0]


def measure_curves(
    engine: AblationEngine,
    requests: Sequence[AblationRequest],
    *,
    points: int | None = None,
    progress: Callable[[], None] | None = None,
) -> list[AblationCurve | None]:
    """Several curves of one layer at once, with their turning points located; see :func:`cumulative_ablation`.

    Args:
        engine: measures the layer. With several processes turning points are located on the sums of all of them, so
            that each measures the same points.
        requests: orders, and the images that count for each.
        points: about how many points each curve has; ``None`` for every number of units.
        progress: called after each batch, in each round of measuring.

    Returns:
        A curve for each request; ``None`` where no image counts.
    """
    first = coarse_points(engine.layer.num_units, points)
    wanted = None if points is None else partial(refined_points, points=points)
    return follow_curves(engine, requests, first, wanted, progress=progress)[0]


def follow_curves(
    engine: AblationEngine,
    requests: Sequence[AblationRequest],
    first: Tensor,
    wanted: Callable[[AblationCurve], Tensor] | None,
    *,
    more: Sequence[tuple[AblationRequest, Tensor]] = (),
    progress: Callable[[], None] | None = None,
) -> tuple[list[AblationCurve | None], tuple[Tensor, ...]]:
    """Several curves of one layer at once, round by round, each round at the points that the last one asks for.

    Args:
        engine: measures the layer; what is wanted next is decided on the sums of all processes.
        requests: orders, and the images that count for each.
        first: ``[P]`` int64, numbers of ablated units to begin with.
        wanted: from a curve so far to the numbers to measure next, none when it is complete; None for a single round.
        more: further orders, and for each the numbers of ablated units to measure it at, in the first round.
        progress: called after each batch, in each round.

    Returns:
        A curve for each request, ``None`` where no image counts; and for each of ``more`` its sums ``[K, 4]``, see
        :meth:`AblationEngine.measure`.
    """
    with torch.inference_mode(False):  # so that the curves can be used everywhere
        numbers = [first] * len(requests)
        asked, at = [*requests, *(request for request, _ in more)], [*numbers, *(those for _, those in more)]
        known, extra = [_Points() for _ in requests], None
        while any(len(of_request) for of_request in at):
            parts = measure_sums(engine, asked, at, progress or (lambda: None))
            for of_request, those, part in zip(known, numbers, parts, strict=False):
                of_request.add(those, part)
            extra = parts[len(requests) :] if extra is None else extra
            numbers = [of_request.wanted(wanted) for of_request in known]
            asked, at = list(requests), numbers
        return [of_request.curve() for of_request in known], extra or ()


def measure_sums(
    engine: AblationEngine,
    requests: Sequence[AblationRequest],
    numbers: Sequence[Tensor],
    progress: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """What :meth:`AblationEngine.measure` gives, summed over processes."""
    sums = engine.runner.total(torch.cat(engine.measure(requests, numbers, progress))).cpu()
    return torch.split(sums, [len(of_request) for of_request in numbers])


class _Points:
    """The points of one curve that were measured so far."""

    def __init__(self) -> None:
        self.ablated = torch.empty(0, dtype=torch.int64)
        self.sums = torch.empty(0, 4, dtype=torch.float64)

    def add(self, ablated: Tensor, sums: Tensor) -> None:
        merged = torch.cat([self.ablated, ablated])
        order = merged.argsort()
        self.ablated, self.sums = merged[order], torch.cat([self.sums, sums])[order]

    def curve(self) -> AblationCurve | None:
        """The curve so far; ``None`` where no image counts."""
        if not bool(self.sums[:, 3].any()):
            return None
        loss, accuracy, top5 = (self.sums[:, :3] / self.sums[:, 3:]).unbind(1)
        return AblationCurve(self.ablated, loss, accuracy, top5)

    def wanted(self, of_curve: Callable[[AblationCurve], Tensor] | None) -> Tensor:
        """Numbers of ablated units to measure next."""
        curve = None if of_curve is None else self.curve()
        return torch.empty(0, dtype=torch.int64) if curve is None or of_curve is None else of_curve(curve)


def _find_layer(runner: Runner, name: str, batches: Batches) -> UnitLayer:
    inputs = _few(batches)
    if inputs is None:
        raise DataError(f"Layer {name!r}: data has no images; expected at least one batch (inputs, targets).")
    found = find_unit_layers(runner.forward, runner.model, inputs)
    chosen = select_layers(found, [name])
    if len(chosen) > 1:
        raise SettingError(
            f"layer={name!r} matches {len(chosen)} layers: {', '.join(one.name for one in chosen)}. Name one."
        )
    return chosen[0]


def _pick_logits(runner: Runner, batches: Batches) -> None:
    """Make the runner return the logits alone."""
    inputs = _few(batches)
    if inputs is not None:
        with runner.undisturbed():
            runner.pick_logits(inputs, runner.forward(map_tensors(inputs, torch.clone)))


def _few(batches: Batches) -> Any:
    """The inputs of two images; None where there are none."""
    first = next(iter(batches()), None)
    size = None if first is None else batch_size(first[0])
    if first is None or size is None:
        return None if first is None else first[0]
    return take_rows(first[0], torch.arange(min(size, 2)), size)
