# mypy: disable-error-code="no-untyped-def, no-untyped-call, call-arg, var-annotated"
"""The compiled functions behind the numba backend. Importing this module loads numba."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numba
import numpy as np
from torch import Tensor

from lightning_unitrole.topology.definition import NON_FINITE, UNSETTLED
from lightning_unitrole.topology.numba_vectors import best_entry, enter, largest, least_below, relabel
from lightning_unitrole.topology.ripser_backend import step_numbers

_SLOTS_BYTES = 24 << 10
_BLOCK = 16
"""Neighbouring units staged together when the columns of a map do not lie side by side (channels_last)."""


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
        label = np.zeros(slots * side * words, np.uint64)
        component = np.empty(slots * side, np.uint16)
        step = np.zeros(slots, np.int64)
        last = np.zeros(slots, np.int64)
        lowest = np.zeros(slots, np.int64)
        live = np.zeros(slots, np.bool_)
        dropped = np.zeros(slots, np.bool_)
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
                live[slot] = False
                dropped[slot] = False
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
                    if live[slot]:
                        birth = step[slot] - 1
                    elif dropped[slot]:
                        birth = UNSETTLED
                        unsettled += 1
                    elif step[slot] == limit or key <= absent:
                        birth = 0
                    step[slot] += 1
                    last[slot] = key
                else:
                    # Equals are often the many zeros after a ReLU. The lowest step completes the graph: no cycle is
                    # left.
                    if lowest[slot] == before_first:
                        least = before_first
                        for element in range(first_row * side, (first_row + side) * side, lanes):
                            least = min(least, least_below(keys, element, lanes))
                        lowest[slot] = least + 1
                    if lowest[slot] == key:
                        birth = 0
                if birth != -1:
                    if live[slot]:
                        for vertex in range(first_row * words, (first_row + side) * words):
                            label[vertex] = zero
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
                marked = False
                if common == zero:
                    if kept == gone:  # a suspect
                        if live[slot]:
                            dropped[slot] = True
                        else:
                            live[slot] = marked = True
                elif live[slot]:
                    # The triangles over this edge must agree on its label, or the class ends.
                    ones, zeros = False, False
                    for word in range(words):
                        shared = neighbours[row_u * words + word] & neighbours[row_v * words + word]
                        through = (label[row_u * words + word] ^ label[row_v * words + word]) & shared
                        ones |= through != zero
                        zeros |= through != shared
                    if ones and zeros:
                        live[slot] = False
                        for vertex in range(first_row * words, (first_row + side) * words):
                            label[vertex] = zero
                    else:
                        marked = ones
                for vertex in range(0, side, lanes):
                    relabel(component, first_row + vertex, kept, gone, lanes)
                neighbours[row_u * words + (v >> 6)] |= one << np.uint64(v & 63)
                neighbours[row_v * words + (u >> 6)] |= one << np.uint64(u & 63)
                if marked:
                    label[row_u * words + (v >> 6)] |= one << np.uint64(v & 63)
                    label[row_v * words + (u >> 6)] |= one << np.uint64(u & 63)
                place += 1
        return unsettled

    return _jit(kernel)


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


def settle(map_: Tensor, steps: int) -> int:
    """Birth of one map ``[H, W]`` whose ties matter, following as many cohomology classes as there are."""
    matrix = step_numbers(map_.double().numpy())
    n = len(matrix)
    u, v = np.triu_indices(n, 1)
    order = np.argsort(matrix[u, v], kind="stable")
    order = order[: np.searchsorted(matrix[u, v][order], steps, side="right")]
    words = 1
    while True:
        birth: int = _settle(n, u[order], v[order], matrix[u, v][order].astype(np.int64), words)
        if birth != UNSETTLED:
            return birth
        words *= 8  # a flag complex on n vertices has a first Betti number below n * n / 4, so this ends


@_jit
def _settle(n, u, v, step, words):
    """First Betti number step by step, from cohomology over GF(2) followed edge by edge.

    Every suspect opens a class: the cochain that is 1 on this edge alone. A later edge with common neighbours
    extends every class in one way at most: the triangles with all common neighbours must agree on its label. Where
    they disagree, one class dies (it is added to the others that disagree). A class that lives at the end of a step
    is a cycle that the step left open.

    Args:
        n: number of vertices.
        u: first ends of the edges, in the order in which they enter.
        v: second ends.
        step: steps at which the edges enter, from 1.
        words: number of 64-bit words of an edge's label, one bit a class.

    Returns:
        the birth point, 0 for none, ``UNSETTLED`` if the bits did not suffice.
    """
    zero, one = np.uint64(0), np.uint64(1)
    adjacent = np.zeros((n, n), np.bool_)
    label = np.zeros((n, n, words), np.uint64)
    component = np.arange(n)
    live = np.zeros(words, np.uint64)
    new, clash = np.zeros(words, np.uint64), np.zeros(words, np.uint64)
    dropped = False
    for edge in range(len(u)):
        a, b = u[edge], v[edge]
        shared = False
        new[:] = zero
        for w in range(n):
            if not (adjacent[a, w] and adjacent[b, w]):
                continue
            if not shared:
                shared = True
                for word in range(words):
                    new[word] = label[a, w, word] ^ label[b, w, word]
                continue
            pivot_word = -1
            for word in range(words):
                clash[word] = label[a, w, word] ^ label[b, w, word] ^ new[word]
                if clash[word] != zero and pivot_word < 0:
                    pivot_word = word
            if pivot_word >= 0:
                pivot = clash[pivot_word] & (~clash[pivot_word] + one)
                live[pivot_word] &= ~pivot
                for i in range(n):
                    for j in range(n):
                        if label[i, j, pivot_word] & pivot != zero:
                            for word in range(words):
                                label[i, j, word] ^= clash[word]
                if new[pivot_word] & pivot != zero:
                    for word in range(words):
                        new[word] ^= clash[word]
        if not shared and component[a] == component[b]:
            slot_word = -1
            for word in range(words):
                if ~live[word] != zero and slot_word < 0:
                    slot_word = word
            if slot_word < 0:
                dropped = True
            else:
                slot = ~live[slot_word] & (live[slot_word] + one)
                live[slot_word] |= slot
                new[slot_word] = slot
        gone = component[b]
        for w in range(n):
            if component[w] == gone:
                component[w] = component[a]
        adjacent[a, b] = adjacent[b, a] = True
        for word in range(words):
            label[a, b, word] = label[b, a, word] = new[word]
        if edge + 1 == len(u) or step[edge + 1] != step[edge]:
            for word in range(words):
                if live[word] != zero:
                    return step[edge] - 1
            if dropped:
                return UNSETTLED
    return 0
