"""From the events of a log to one analysis after the other, with a bound on all that a request may cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

import numpy as np

from lightning_unitrole.tensorboard_plugin.contents import Content, Part
from lightning_unitrole.tensorboard_plugin.index import UnreadableError, check_format, counted
from lightning_unitrole.tensorboard_plugin.packing import Array, header_bytes, inflate, unpack, unpack_some

MAX_ANSWER_BYTES = 1 << 25
"""What one answer may hold. A layer of 4,096 units has room for 600 analyses of all its measures."""
MAX_INFLATED_BYTES = 1 << 28
"""What may be inflated, one container after the other, for one answer: about a second of work."""
MAX_SHELF_BYTES = 1 << 26
"""What is kept of the tables that were read last."""
_LEAST = 4096  # bytes that an event counts for at least, as even an empty one takes its time
_MOST_DEFLATED = 1032  # how many bytes a deflated one can stand for
_JSON = 32  # as many bytes of arrays take the time of one of a header
_CURVE = 200  # bytes of the answer that the description of a curve takes


@dataclass(frozen=True)
class Row:
    """One analysis."""

    step: int
    epoch: float
    content: Content


@dataclass(frozen=True)
class Series:
    """All analyses that can be shown, in order, and one sentence for each reason why others cannot."""

    rows: list[Row]
    skipped: list[str]

    def stack(self, name: str, empty: Array) -> Array:
        """One array of all analyses, ``[steps, ...]``; ``empty`` where there is none."""
        arrays = [row.content.arrays[name] for row in self.rows]
        return np.stack(arrays) if arrays else empty


def read_series(data: Iterable[Any], part: Part) -> Series:
    """Read the events of one tag.

    Args:
        data: TensorBoard's tensor events; of two at one step the later one counts.
        part: what to read from each, and how large it may be.
    """
    latest = {int(event.step): event.numpy for event in data}
    steps = sorted(latest, reverse=True)  # whatever has to be left out, the newest is shown
    rows: list[Row] = []
    reasons: Counter[str] = Counter()
    remarks: Counter[str] = Counter()
    every, held, budget = 1, 0, MAX_INFLATED_BYTES
    for place, step in enumerate(steps):
        if place % every:
            continue
        if budget <= 0:
            reasons["there is too much data for one view"] += len(steps) - place
            break
        cost = 0
        try:
            deflated = _bytes(latest[step])
            cost = min(part.limit, _MOST_DEFLATED * len(deflated))  # the worst, as long as nobody knows better
            if part.names:
                info, arrays, header, size = unpack_some(deflated, part.names, part.limit, part.max_header)
            else:
                container = inflate(deflated, part.limit)
                header, size = header_bytes(container), len(container)
                cost = size + _JSON * min(part.max_header, header)
                info, arrays = unpack(container, part.max_header)
            cost = min(part.limit, size) + _JSON * min(part.max_header, header)
            row = _row(step, info, arrays, part)
        except (ValueError, UnreadableError) as error:
            reasons[str(error)] += 1
            continue
        finally:
            budget -= max(_LEAST, cost)
        remarks.update(row.content.remarks)
        rows.append(row)
        held += part.weight or _size(row)
        while held > MAX_ANSWER_BYTES and len(rows) > 1:
            every *= 2
            rows = [kept for at, kept in enumerate(rows) if at % 2 == 0]
            held = sum(part.weight or _size(kept) for kept in rows)
    skipped = [f"{_analyses(count, len(steps))} cannot be shown: {why}." for why, count in reasons.most_common()]
    skipped += [f"{_analyses(count, len(steps))} came {what}." for what, count in remarks.most_common()]
    if every > 1:
        skipped.append(f"Only one analysis in {every} is shown: all of them are too many for one view.")
    return Series(rows[::-1], counted(skipped))


def _row(step: int, info: Mapping[str, Any], arrays: Mapping[str, Array], part: Part) -> Row:
    check_format(info)
    content = part.read(info, arrays)
    return Row(step, _epoch(info), content)


def _epoch(info: Mapping[str, Any]) -> float:
    epoch: Any = info.get("epoch")
    if type(epoch) not in (int, float) or not -1e15 < epoch < 1e15:
        raise ValueError("the epoch is missing")
    return float(epoch)


def _bytes(tensor: Any) -> bytes:
    if not isinstance(tensor, np.ndarray) or tensor.dtype != np.uint8 or tensor.ndim > 1:
        raise ValueError("the tensor is of another type")
    return tensor.tobytes()


def _size(row: Row) -> int:
    curves = len(row.content.info.get("curves", ()))
    return sum(array.nbytes for array in row.content.arrays.values()) + _CURVE * curves


def _analyses(count: int, total: int) -> str:
    return f"{count} of {total} analys{'is' if total == 1 else 'es'}"


@dataclass(frozen=True)
class Table:
    """The arrays of a series, stacked.

    Attributes:
        times: steps and epochs of the analyses, for a browser, which has no whole numbers of 64 bits.
        arrays: by name ``[steps, ...]``.
        skipped: as those of the series.
    """

    times: Mapping[str, Array]
    arrays: Mapping[str, Array]
    skipped: list[str]

    @property
    def num_bytes(self) -> int:
        """Memory that the arrays take."""
        return sum(array.nbytes for array in self.arrays.values())

    def only(self, names: Iterable[str], *, unit: int | None = None, until: float | None = None) -> Table:
        """Some of its arrays, each ``[steps, units]``.

        Args:
            names: which.
            unit: of one unit alone, ``[steps, 1]``.
            until: of the last analysis that is not after this step alone, ``[1, units]``; of the first where all are.
        """
        times, arrays = self.times, {name: self.arrays[name] for name in names}
        if unit is not None:
            arrays = {name: array[:, unit : unit + 1] for name, array in arrays.items()}
        if until is not None and len(times["steps"]):
            at = max(int(np.searchsorted(times["steps"], until, side="right")) - 1, 0)
            times, arrays = ({name: array[at : at + 1] for name, array in of.items()} for of in (times, arrays))
        return Table(times, arrays, self.skipped)


class Shelf:
    """The tables that were read last, as many as fit into some memory: several views ask for the same."""

    def __init__(self, num_bytes: int = MAX_SHELF_BYTES) -> None:
        self._room = num_bytes
        self._tables: dict[Hashable, Table] = {}
        self._lock = Lock()

    def find(self, key: Hashable) -> Table | None:
        """The table of a key, if it is here."""
        with self._lock:
            found = self._tables.pop(key, None)
            if found is not None:
                self._tables[key] = found
            return found

    def table(self, key: Hashable, read: Callable[[], Table]) -> Table:
        """The table of a key, read if it is not here. Whoever asks meanwhile waits, and does not read it again."""
        with self._lock:
            found = self._tables.pop(key, None) or read()
            self._tables[key] = found
            while len(self._tables) > 1 and sum(table.num_bytes for table in self._tables.values()) > self._room:
                del self._tables[next(iter(self._tables))]
            return found


def answer_time(series: Series) -> dict[str, Array]:
    """Steps and epochs of the analyses, for a browser, which has no whole numbers of 64 bits."""
    return {
        "steps": np.array([row.step for row in series.rows], np.float64),
        "epochs": np.array([row.epoch for row in series.rows], np.float64),
    }
