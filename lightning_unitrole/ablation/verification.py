"""Whether a recording may be trusted, and how far it may be taken apart."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor

from lightning_unitrole.ablation.tape import Tape
from lightning_unitrole.network.structures import batch_size, map_tensors, take_rows, tensors_in


class Replay(IntEnum):
    """How far a recorded forward pass may be taken apart, the best first."""

    ANY_ROWS = 0
    BATCH_SIZED = 1  # the number of rows is written into the recording
    WHOLE_BATCH = 2  # images of a batch influence one another
    NONE = 3  # only running the whole model is right


def verify(tape: Tape, inputs: Any, run: Callable[[Any, Tensor], Any], fill: Tensor | None = None) -> Replay:
    """Compare a recording with the whole model: on two images, if they can be taken out of the batch.

    The replay gets four rows, or six where four is the size of the batch, which shows a batch size that is written into
    the recording. Every second row is another ablation, which shows whether rows influence one another.

    Args:
        tape: the recording.
        inputs: what it was recorded with.
        fill: ``[U, H, W]`` maps of units that are off; zero when left out.
        run: runs the whole model on inputs, with units off, ``[B, U]`` or ``[1, U]`` bool.
    """
    size, units = tape.num_rows, tape.maps.shape[1]
    count = 3 if size == 4 else 2
    off = torch.rand(2 * count, units, generator=torch.Generator().manual_seed(0)) < 0.5
    off = off.to(tape.maps.device)
    if batch_size(inputs) == size:
        rows = torch.tensor([size - 1, 0, size // 2])[:count].to(tape.maps.device)
        expected = run(take_rows(inputs, rows, size), off[::2])
        twice = rows.repeat_interleave(2)
        if _agree(lambda: _every_second(tape.replay(off, twice, fill=fill), 2 * count), expected):
            return Replay.ANY_ROWS
        if _agree(lambda: _every_second(replay_in_batches(tape, off, twice, fill), 2 * count), expected):
            return Replay.BATCH_SIZED
    if _agree(lambda: tape.replay(off[:1], fill=fill), run(inputs, off[:1])):
        return Replay.WHOLE_BATCH
    return Replay.NONE


def replay_in_batches(tape: Tape, off: Tensor, rows: Tensor, fill: Tensor | None = None) -> Any:
    """Replay any number of rows in pieces of exactly the size of the recorded batch, the last one filled up."""
    size = tape.num_rows
    filled = torch.arange(-(-len(rows) // size) * size, device=rows.device).clamp(max=len(rows) - 1)
    pieces = [tape.replay(off[part], rows[part], fill=fill) for part in torch.split(filled, size)]
    parts = zip(*(tensors_in(piece) for piece in pieces), strict=True)
    joined = iter([torch.cat(part)[: len(rows)] if part[0].dim() else part[0] for part in parts])
    return map_tensors(pieces[0], lambda _: next(joined))


def _every_second(outputs: Any, num_rows: int) -> Any:
    return map_tensors(outputs, lambda tensor: tensor[::2] if tensor.dim() and len(tensor) == num_rows else tensor)


def _agree(replay: Callable[[], Any], expected: Any) -> bool:
    """Whether replayed outputs are those of the whole model, up to rounding."""
    try:
        pairs = list(zip(tensors_in(replay()), tensors_in(expected), strict=True))
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError):  # a shape written into the recording does not fit
        return False
    for got, wanted in pairs:
        if got.shape != wanted.shape:
            return False
        if wanted.is_floating_point() and not torch.allclose(got, wanted, 0.0, _tolerance(wanted), equal_nan=True):
            return False
    return True


def _tolerance(wanted: Tensor) -> float:
    """How far equal outputs may be apart: convolutions round differently for other batch sizes.

    Where images, or ablations, hardly differ from one another, the difference must still be told from rounding.
    """
    if not wanted.numel():
        return 0.0
    least, most = 5e-2, 5e-2
    if wanted.dtype is torch.float64:
        least, most = 1e-11, 1e-9
    elif wanted.dtype is torch.float32:
        least, most = 1e-3 if wanted.is_cuda else 1e-5, 1e-3  # TF32 is the default of CUDA convolutions
    finite = wanted.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    scale = float(finite.abs().max())
    spread = float((finite.amax(0) - finite.amin(0)).max()) if finite.dim() else 0.0
    return min(max(0.05 * spread, least * scale), most * scale)
