# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""The compiled functions behind the numba backend. Importing this module loads numba."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np

from lightning_unitrole.topology.definition import NON_FINITE, UNSETTLED
from lightning_unitrole.topology.numba_vectors import best_entry, enter, largest, least_below, relabel

_SLOTS_BYTES = 24 << 10
_BLOCK = 16
"""Neighbouring units staged together when the columns of a map do not lie side by side (channels_last)."""
_FILLED, _OPEN, _UNKNOWN = 0, 1, 2


def _jit(function: Callable[..., Any]) -> Any:
    """Compile, and keep the result on disk, or only in memory where no folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def scan(height: int, width: int, itemsize: int) -> Any:
    """The scan compiled for maps of about this size, stored in ``itemsize`` bytes a value."""
    side = max(8, 1 << (max(height, width) - 1).bit_length())
    return _make_scan(side, itemsize == 2)


@cache
def _make_scan(side: int, half: bool) -> Any:
    """Compile the scan for maps up to ``side x side``, read as 16-bit (``half``) or 32-bit integers.

    Several maps are in work at once, in *slots*, one edge each in turn: taking an edge is a chain of dependent
    instructions, and only another map's chain can fill its waiting times.
    """
    words = max(1, side // 64)
    slots = max(2, min(16, _SLOTS_BYTES // (side * side * (2 if half else 4))))
    key_type = np.int16 if half else np.int32
    packed_type = np.int32 if half and side <= 256 else np.int64
    index_bits = 8 if side <= 256 else side.bit_length() - 1
    index_mask = (1 << index_bits) - 1
    shift = 2 * index_bits
    absent = int(np.iinfo(key_type).min)
    nothing = int(np.iinfo(packed_type).min)
    before_first = 1 << 40  # no key is as large

    lanes = min(side, 32)

    def kernel(
        flat,
        images,
        image_step,
        unit_step,
        row_step,
        column_step,
        units,
        height,
        width,
        limit,
        infinity,
        begin,
        end,
        out,
    ):
        """Births of the maps ``begin`` to ``end`` into ``out``; returns how many are unsettled."""
        zero, one = np.uint64(0), np.uint64(1)
        line = np.zeros(side, key_type)
        extreme = np.zeros(lanes, key_type)
        block = np.zeros(_BLOCK * height * side if column_step != 1 else 1, key_type)
        block_begin, block_end = begin, begin
        # Slot after slot in flat arrays: a slice would cost reference counting at every use.
        keys = np.empty(slots * side * side, key_type)
        row_best = np.empty(slots * side, packed_type)
        neighbours = np.zeros(slots * side * words, np.uint64)
        waiting = np.zeros(slots * side * words, np.uint64)
        component = np.empty(slots * side, np.uint16)
        step = np.zeros(slots, np.int64)
        last = np.zeros(slots, np.int64)
        lowest = np.zeros(slots, np.int64)
        suspected = np.zeros(slots, np.bool_)
        tied = np.zeros(slots, np.bool_)
        number = np.zeros(slots, np.int64)
        order = np.arange(slots)
        busy, following, unsettled = 0, begin, 0
        while True:
            while busy < slots and following < end:
                image, unit = images[following // units] * image_step, following % units
                slot = order[busy]
                if column_step != 1 and following >= block_end:
                    # Neighbouring units lie side by side: read them together.
                    block_begin, block_end = following, min(end, following + min(_BLOCK, units - unit))
                    wide = block_end - block_begin
                    for row in range(height):
                        for column in range(width):
                            source = image + unit * unit_step + row * row_step + column * column_step
                            target = row * side + column
                            if unit_step == 1 and wide == _BLOCK:
                                for member in range(_BLOCK):
                                    block[target + member * height * side] = flat[source + member]
                            else:
                                for member in range(wide):
                                    block[target + member * height * side] = flat[source + member * unit_step]
                first_row = slot * side
                for lane in range(lanes):
                    extreme[lane] = 0
                for row in range(height):
                    source, target = image + unit * unit_step + row * row_step, (first_row + row) * side
                    best = nothing
                    if column_step != 1:
                        source = ((following - block_begin) * height + row) * side
                        for column in range(0, side, lanes):
                            found = enter(
                                block, source + column, keys, target + column, extreme, column, width, row, shift, lanes
                            )
                            best = max(best, found)
                    elif source + side <= flat.size:
                        for column in range(0, side, lanes):
                            found = enter(
                                flat, source + column, keys, target + column, extreme, column, width, row, shift, lanes
                            )
                            best = max(best, found)
                    else:  # reading `side` values would leave the array
                        for column in range(width):
                            line[column] = flat[source + column]
                        for column in range(0, side, lanes):
                            found = enter(
                                line, column, keys, target + column, extreme, column, width, row, shift, lanes
                            )
                            best = max(best, found)
                    row_best[first_row + row] = best | (row << index_bits)
                for row in range(height, side):
                    row_best[first_row + row] = nothing
                for element in range((first_row + height) * side, (first_row + side) * side):
                    keys[element] = absent
                greatest = extreme[0]
                for lane in range(1, lanes):
                    greatest = max(greatest, extreme[lane])
                if greatest >= infinity:
                    out[following] = NON_FINITE
                    following += 1
                    continue
                for vertex in range(slot * side * words, (slot + 1) * side * words):
                    neighbours[vertex] = zero
                for vertex in range(side):
                    component[slot * side + vertex] = vertex
                number[slot] = following
                step[slot] = 0
                last[slot] = before_first
                lowest[slot] = before_first if height == width else absent
                suspected[slot] = False
                following += 1
                busy += 1
            if busy == 0:
                break
            place = 0
            while place < busy:
                slot = order[place]
                first_row = slot * side
                top = nothing
                for row in range(0, side, lanes):
                    top = max(top, largest(row_best, first_row + row, lanes))
                key = top >> shift
                birth = -1
                if key != last[slot]:
                    # A step has ended, and the first Betti number is known.
                    if suspected[slot]:
                        if not tied[slot]:
                            birth = step[slot] - 1
                        else:
                            found = close(neighbours, waiting, first_row * words, side, words)
                            suspected[slot] = found != _FILLED
                            if found == _OPEN:
                                birth = step[slot] - 1
                            elif found == _UNKNOWN:
                                birth = UNSETTLED
                                unsettled += 1
                    if birth == -1 and (step[slot] == limit or key <= absent):
                        birth = 0
                    step[slot] += 1
                    last[slot] = key
                    tied[slot] = False
                else:
                    # Equals are often the many zeros after a ReLU. The lowest step completes the graph: no cycle is
                    # left.
                    tied[slot] = True
                    if lowest[slot] == before_first:
                        least = before_first
                        for element in range(first_row * side, (first_row + side) * side, lanes):
                            least = min(least, least_below(keys, element, lanes))
                        lowest[slot] = least + 1
                    if lowest[slot] == key:
                        birth = 0
                if birth != -1:
                    if suspected[slot]:
                        for vertex in range(first_row * words, (first_row + side) * words):
                            waiting[vertex] = zero
                    out[number[slot]] = birth
                    busy -= 1
                    order[place] = order[busy]
                    order[busy] = slot
                    continue
                u, v = (top >> index_bits) & index_mask, top & index_mask
                row_u, row_v = first_row + u, first_row + v
                keys[row_u * side + v] = absent
                keys[row_v * side + u] = absent
                best = nothing
                for column in range(0, side, lanes):
                    best = max(best, best_entry(keys, row_u * side + column, column, shift, lanes))
                row_best[row_u] = best | (u << index_bits)
                if row_best[row_v] & index_mask == u:
                    best = nothing
                    for column in range(0, side, lanes):
                        best = max(best, best_entry(keys, row_v * side + column, column, shift, lanes))
                    row_best[row_v] = best | (v << index_bits)
                common = zero
                for word in range(words):
                    common |= neighbours[row_u * words + word] & neighbours[row_v * words + word]
                kept, gone = component[row_u], component[row_v]
                if common == zero and kept == gone:
                    suspected[slot] = True
                    waiting[row_u * words + (v >> 6)] |= one << np.uint64(v & 63)
                    waiting[row_v * words + (u >> 6)] |= one << np.uint64(u & 63)
                else:
                    for vertex in range(0, side, lanes):
                        relabel(component, first_row + vertex, kept, gone, lanes)
                    neighbours[row_u * words + (v >> 6)] |= one << np.uint64(v & 63)
                    neighbours[row_v * words + (u >> 6)] |= one << np.uint64(u & 63)
                place += 1
        return unsettled

    return _jit(kernel)


@_jit
def close(neighbours, waiting, begin, side, words):
    """What becomes of the suspects of a step, all others of whose edges have entered.

    The edges of a step may enter in any order, so the suspects that have a common neighbour by now enter too, again
    and again, for each may be the neighbour that another lacks. Of those that are left each opens a class, and the
    triangles among them and the graph are the relations: an edge in none is open for good, and if no triangle consists
    of suspects alone, the cochain that is 1 on all of them meets every relation (see ``torch_ties``).

    Args:
        neighbours: the graph, as rows of ``words`` 64-bit words, from ``begin`` on.
        waiting: the suspects, likewise.
        begin: where the rows of this map begin in both arrays.
        side: number of rows.
        words: words of a row.

    Returns:
        ``_FILLED``, ``_OPEN``, or ``_UNKNOWN`` where only linear algebra can tell.
    """
    zero, one = np.uint64(0), np.uint64(1)
    while True:
        entered, left, alone, triangle = False, False, False, False
        for u in range(side):
            row_u = begin + u * words
            for v in range(u):
                if (waiting[row_u + (v >> 6)] >> np.uint64(v & 63)) & one == zero:
                    continue
                row_v = begin + v * words
                common, either, suspects = zero, zero, zero
                for word in range(words):
                    near_u, near_v = neighbours[row_u + word], neighbours[row_v + word]
                    wait_u, wait_v = waiting[row_u + word], waiting[row_v + word]
                    common |= near_u & near_v
                    either |= (near_u | wait_u) & (near_v | wait_v)
                    suspects |= wait_u & wait_v
                if common != zero:
                    entered = True
                    neighbours[row_u + (v >> 6)] |= one << np.uint64(v & 63)
                    neighbours[row_v + (u >> 6)] |= one << np.uint64(u & 63)
                    waiting[row_u + (v >> 6)] ^= one << np.uint64(v & 63)
                    waiting[row_v + (u >> 6)] ^= one << np.uint64(u & 63)
                else:
                    left = True
                    alone |= either == zero
                    triangle |= suspects != zero
        if not entered:
            return _FILLED if not left else _OPEN if alone or not triangle else _UNKNOWN


@_jit
def add(births, groups, counts, non_finite):
    """Add ``births [images, units]`` to the histograms of the images' ``groups``."""
    for image in range(births.shape[0]):
        group = groups[image]
        for unit in range(births.shape[1]):
            birth = births[image, unit]
            if birth >= 0:
                counts[group, unit, birth] += 1
            else:
                non_finite[group, unit] += 1
