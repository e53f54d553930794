"""Measuring a network with units of one layer switched off, at the cost of what lies behind the layer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.ablation.recorder import record
from lightning_unitrole.ablation.scores import ScoreFn, check_classification, score_images
from lightning_unitrole.ablation.tape import Tape, UnreplayableError, switched_off
from lightning_unitrole.ablation.verification import Replay, replay_in_batches, verify
from lightning_unitrole.errors import DataError, SettingError
from lightning_unitrole.network.runner import Runner
from lightning_unitrole.network.structures import batch_size, map_tensors, num_bytes, take_rows
from lightning_unitrole.network.tap import UnitTap
from lightning_unitrole.network.units import UnitLayer

Batches = Callable[[], Iterable[Sequence[Any]]]
"""Gives the batches anew each time it is called: ``(inputs, targets)``, or with ``groups [B]`` as a third entry."""

CPU_PIECE = 32 * 2**20
CPU_KEPT = 256 * 2**20


@dataclass(frozen=True, eq=False)
class AblationRequest:
    """One curve to measure.

    Attributes:
        order: ``[U]`` units in the order in which they are switched off, a permutation.
        group: images that count: those of this group; ``None`` for all.
    """

    order: Tensor
    group: int | None = None


@dataclass
class _Batch:
    """One batch, ready to be measured: its tape, or the inputs where the model cannot be replayed."""

    inputs: Any
    targets: Any
    groups: Tensor | None
    tape: Tape | None
    replay: Replay
    num_rows: int
    outputs: Any

    @property
    def num_bytes(self) -> int:
        held = self.tape.num_bytes if self.tape is not None else 0
        return held + num_bytes((self.inputs, self.targets))


class AblationEngine:
    """Measures one layer of one model on one set of batches.

    Everything before the layer runs once for each batch, and so does what does not depend on the layer. The rest is
    replayed for many (image, ablation) pairs at once. Before a recording is trusted it is compared with running the
    whole model on a few images; a model that cannot be replayed runs as a whole for every number of ablated units, with
    one warning.

    Args:
        runner: runs the model.
        layer: the layer whose units are switched off.
        batches: gives the same batches each time it is called. Between calls of :meth:`measure` the recordings of as
            many as memory allows are kept, so the weights must not change in between.
        score_fn: from outputs and targets to the loss ``[N]`` and the score ``[N]`` of each image; by default
            cross-entropy, top-1 and top-5 accuracy.
        fill: ``[U, H, W]`` maps of units that are off; zero when left out.
        max_memory: bytes, about, that replaying may need: half for what is replayed at once, half for kept recordings.
            By default half of what is free on a CUDA device; elsewhere pieces of 32 MiB, which stay in the processor's
            caches, and 256 MiB of recordings.
    """

    def __init__(
        self,
        runner: Runner,
        layer: UnitLayer,
        batches: Batches,
        *,
        score_fn: ScoreFn | None = None,
        fill: Tensor | None = None,
        max_memory: int | None = None,
    ) -> None:
        if max_memory is not None and max_memory <= 0:
            raise SettingError(f"max_memory={max_memory}; expected a positive number of bytes, or None.")
        self.runner, self.layer = runner, layer
        self.replay: Replay | None = None
        self._batches = batches
        self._score_fn = score_fn
        self._fill = fill
        self._device = runner.device
        self._memory = Memory.of(self._device, max_memory)
        self._levels: dict[int, Replay] = {}
        self._copies: set[tuple[int, int]] = set()
        self._kept: list[list[_Batch]] = []
        self._kept_bytes = 0
        self._complete = False
        self._warned = False

    def measure(
        self,
        requests: Sequence[AblationRequest],
        numbers: Sequence[Tensor],
        on_batch: Callable[[], None] = lambda: None,
    ) -> list[Tensor]:
        """Sums over all images, not means, so that they can be added over processes.

        Args:
            requests: the curves.
            numbers: ``[K]`` int64 for each request, numbers of units that are off.
            on_batch: called after each batch.

        Returns:
            ``[K, 4]`` float64 on the CPU for each request: sums of loss, score and top-5 score, and number of images.

        Raises:
            SettingError: if an order is not a permutation of the layer's units.
            DataError: if batches, labels or scores do not fit.
            TraceError: if the forward pass does not reach the layer.
        """
        for request in requests:
            check_order(request.order, self.layer)
        with self.runner.undisturbed():
            curves = [_Curve(request, of_request) for request, of_request in zip(requests, numbers, strict=True)]
            ranks = torch.stack([request.order.argsort() for request in requests]).to(self._device)
            for batch in self._prepared(on_batch):
                self._add(batch, curves, ranks)
        return [curve.sums for curve in curves]

    def _prepared(self, on_batch: Callable[[], None]) -> Iterator[_Batch]:
        for parts in self._kept:
            yield from parts
            on_batch()
        if self._complete:
            return
        skip, keeping = len(self._kept), True
        for entry in islice(self._batches(), skip, None):
            parts = list(self._parts(*_unpack(entry)))
            size = sum(part.num_bytes for part in parts)
            keeping = keeping and all(part.tape is not None for part in parts)
            if keeping := keeping and self._kept_bytes + size <= self._memory.kept:
                self._kept.append(parts)
                self._kept_bytes += size
            yield from parts
            on_batch()
        self._complete = keeping

    def _parts(self, inputs: Any, targets: Any, groups: Tensor | None) -> Iterator[_Batch]:
        """The batch, or parts of it where a replay has to be as large as the batch and that is too much."""
        batch = self._prepare(inputs, targets, groups)
        limit = batch.num_rows if batch.tape is None else self._piece_size(batch.tape)
        if batch.replay is not Replay.BATCH_SIZED or limit >= batch.num_rows:
            yield batch
            return
        for rows in torch.split(torch.arange(batch.num_rows), limit):
            yield self._prepare(*(take_rows(part, rows, batch.num_rows) for part in (inputs, targets, groups)))

    def _prepare(self, inputs: Any, targets: Any, groups: Tensor | None) -> _Batch:
        tape, replay, reason = None, Replay.NONE, "a replay gives other outputs than the whole model"
        try:
            tape = record(self.runner, self.layer, inputs, self._copies)
            replay = self._verified(tape, inputs)
        except UnreplayableError as error:
            reason = str(error)
        if replay is Replay.NONE:
            tape = None
            self._warn(reason)
        outputs = self._run(inputs, None) if tape is None else tape.outputs
        num_rows = (batch_size(inputs) or 0) if tape is None else tape.num_rows
        if self._score_fn is None:
            check_classification(outputs, targets, num_rows)
        if groups is not None and groups.shape != (num_rows,):
            raise DataError(f"A batch has {num_rows} images and groups {list(groups.shape)}; expected [{num_rows}].")
        self.replay = replay if self.replay is None else max(replay, self.replay)
        groups = None if groups is None else groups.cpu()
        return _Batch(inputs if tape is None else None, targets, groups, tape, replay, num_rows, outputs)

    def _run(self, inputs: Any, off: Tensor | None) -> Any:
        """Run the whole model, with units switched off: ``[B, U]`` or ``[1, U]`` bool."""
        return run_switched_off(self.runner, self.layer, inputs, off, self._fill)

    def _verified(self, tape: Tape, inputs: Any) -> Replay:
        size = tape.num_rows
        if size not in self._levels:
            self._levels[size] = verify(tape, inputs, self._run, self._fill)
        return self._levels[size]

    def _warn(self, reason: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(
                f"Layer {self.layer.name!r}: what lies behind it cannot be replayed, because {reason}. The whole model "
                "runs for every number of ablated units instead: slower, with the same result.",
                stacklevel=2,
            )

    def _add(self, batch: _Batch, curves: Sequence[_Curve], ranks: Tensor) -> None:
        """Add the scores of one batch to the sums of all curves."""
        everything, units = torch.arange(batch.num_rows), ranks.shape[1]
        jobs: list[_Job] = []
        shared = (
            {0: self._score(batch, batch.outputs, None).cpu()} if any(0 in curve.places for curve in curves) else {}
        )
        if any(units in curve.places for curve in curves):
            jobs.append(_Job(None, 0, units, everything))
        rows_of = {curve.group: everything if curve.group is None else curve.rows(batch) for curve in curves}
        for request, curve in enumerate(curves):
            rows = rows_of[curve.group]
            jobs += [_Job(curve, request, number, rows) for number in curve.places if 0 < number < units and len(rows)]
        if jobs:
            scores = torch.split(self._score_jobs(batch, jobs, ranks), [len(job.rows) for job in jobs])
            for job, values in zip(jobs, scores, strict=True):
                if job.curve is None:
                    shared[units] = values
                else:
                    job.curve.add(job.number, values)
        for number, values in shared.items():
            for curve in curves:
                curve.add(number, values[rows_of[curve.group]])

    def _score_jobs(self, batch: _Batch, jobs: Sequence[_Job], ranks: Tensor) -> Tensor:
        """``[pairs, 3]`` scores of the (image, ablation) pairs of all jobs, one job after another."""
        if batch.tape is None or batch.replay is Replay.WHOLE_BATCH:
            results = []
            for job in jobs:
                off = ranks[job.request, None] < job.number
                outputs = (
                    self._run(batch.inputs, off) if batch.tape is None else batch.tape.replay(off, fill=self._fill)
                )
                results.append(self._score(batch, outputs, None).cpu()[job.rows])
            return torch.cat(results)
        device = batch.tape.maps.device
        which = torch.repeat_interleave(torch.arange(len(jobs)), torch.tensor([len(job.rows) for job in jobs]))
        requests = torch.tensor([job.request for job in jobs])[which].to(device)
        numbers = torch.tensor([job.number for job in jobs])[which, None].to(device)
        rows = torch.cat([job.rows for job in jobs]).to(device)
        results, start = [], 0
        while start < len(rows):
            size = batch.num_rows if batch.replay is Replay.BATCH_SIZED else self._piece_size(batch.tape)
            part = which[start : start + size]
            # One ablation on all images in order needs no copy of anything.
            whole = len(part) == batch.num_rows == len(jobs[int(part[0])].rows) and bool(part[0] == part[-1])
            piece = slice(start, start + (1 if whole else size))
            off = ranks[requests[piece]] < numbers[piece]
            try:
                if whole:
                    outputs = batch.tape.replay(off, fill=self._fill)
                elif batch.replay is Replay.BATCH_SIZED:
                    outputs = replay_in_batches(batch.tape, off, rows[piece], self._fill)
                else:
                    outputs = batch.tape.replay(off, rows[piece], fill=self._fill)
            except torch.cuda.OutOfMemoryError:
                if size == 1 or batch.replay is Replay.BATCH_SIZED:
                    raise
                self._memory = replace(self._memory, piece=batch.tape.bytes_per_row * size // 2)
                torch.cuda.empty_cache()
                continue
            results.append(self._score(batch, outputs, None if whole else rows[piece]))
            start += size
        return torch.cat(results).cpu()

    def _piece_size(self, tape: Tape) -> int:
        """Rows that a replay may have: whole multiples of the batch, unless even one is too much."""
        limit = max(self._memory.piece // tape.bytes_per_row, 1)
        return limit if limit < tape.num_rows else limit // tape.num_rows * tape.num_rows

    def _score(self, batch: _Batch, outputs: Any, rows: Tensor | None) -> Tensor:
        targets = batch.targets if rows is None else take_rows(batch.targets, rows, batch.num_rows)
        return score_images(outputs, targets, self._score_fn, batch.num_rows if rows is None else len(rows))


class _Curve:
    """Sums of one request: loss, score, top-5 score and images, for each number of ablated units."""

    def __init__(self, request: AblationRequest, numbers: Tensor) -> None:
        self.group = request.group
        self.places = {number: place for place, number in enumerate(numbers.tolist())}
        self.sums = torch.zeros(len(numbers), 4, dtype=torch.float64)

    def rows(self, batch: _Batch) -> Tensor:
        if batch.groups is None or self.group is None:
            raise DataError(
                f"Group {self.group} is asked for, but the batches have no groups: expected (inputs, targets, groups)."
            )
        return torch.eq(batch.groups, self.group).nonzero().flatten()

    def add(self, number: int, values: Tensor) -> None:
        """Add ``[N, 3]`` scores of N images."""
        if number in self.places:
            self.sums[self.places[number], :3] += values.double().sum(0)
            self.sums[self.places[number], 3] += len(values)


@dataclass(frozen=True, eq=False)
class _Job:
    """One ablation on some images of a batch; the one with all units off belongs to no curve, as all share it."""

    curve: _Curve | None
    request: int
    number: int
    rows: Tensor


def _unpack(entry: Sequence[Any]) -> tuple[Any, Any, Tensor | None]:
    if not isinstance(entry, (tuple, list)) or len(entry) < 2:
        raise DataError(f"A batch is a {type(entry).__name__}; expected a pair (inputs, targets).")
    return entry[0], entry[1], entry[2] if len(entry) > 2 else None


def check_order(order: Tensor, layer: UnitLayer) -> None:
    """Refuse an order that is not a permutation of the units of a layer.

    Raises:
        SettingError: if it is not.
    """
    if order.shape != (layer.num_units,) or order.is_floating_point():
        raise SettingError(
            f"Layer {layer.name!r}: order is {str(order.dtype).removeprefix('torch.')} {list(order.shape)}; expected "
            f"[{layer.num_units}] integers, every unit once."
        )
    if not torch.equal(order.cpu().sort().values, torch.arange(layer.num_units)):
        missing = [unit for unit in range(layer.num_units) if unit not in {*order.tolist()}][:5]
        raise SettingError(
            f"Layer {layer.name!r}: order is not a permutation of its {layer.num_units} units; missing are {missing}."
        )


def run_switched_off(
    runner: Runner, layer: UnitLayer, inputs: Any, off: Tensor | None, fill: Tensor | None = None
) -> Any:
    """Run a whole model, with units of a layer switched off: ``[B, U]`` or ``[1, U]`` bool, or None for no unit."""
    inputs = map_tensors(inputs, torch.clone)
    if off is None:
        return runner.forward(inputs)
    with UnitTap(runner.model, [layer], lambda layer, maps: switched_off(maps, off, fill)):
        return runner.forward(inputs)


@dataclass(frozen=True)
class Memory:
    """How many bytes, about, an engine may use.

    Attributes:
        piece: for what is replayed at once.
        kept: for recordings that are kept.
    """

    piece: int
    kept: int

    @classmethod
    def of(cls, device: torch.device, limit: int | None = None) -> Memory:
        """Half and half of a limit; without one, what suits the device."""
        if limit is not None:
            return cls(limit // 2, limit // 2)
        if device.type != "cuda":
            return cls(CPU_PIECE, CPU_KEPT)
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return cls((free + unused) // 4, (free + unused) // 4)
