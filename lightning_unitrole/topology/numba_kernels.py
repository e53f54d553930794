"""The compiled functions behind the numba backend. Importing this module loads numba."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_unitrole.topology.definition import NON_FINITE
from lightning_unitrole.topology.numba_backend import UNSETTLED
from lightning_unitrole.topology.ripser_backend import step_numbers

_SLOTS_BYTES = 24 << 10
_BLOCK = 16
"""Neighbouring units staged together when the columns of a map do not lie side by side (channels_last)."""


def _jit(function: Callable[..., Any]) -> Any:
    """Compile without the interpreter lock and keep the result on disk, or only in memory where no folder is writable."""
    try:
        return numba.njit(nogil=True, cache=True)(function)
    except RuntimeError:
        return numba.njit(nogil=True)(function)


def scan(height: int, width: int, itemsize: int) -> Any:
    """The scan compiled for maps of about this size, stored in ``itemsize`` bytes a value."""
    side = max(8, 1 << (max(height, width) - 1).bit_length())
    return _make_scan(side, itemsize == 2)


@lru_cache(maxsize=None)
def _make_scan(side: int, half: bool) -> Any:
    """Compile the scan for maps up to ``side x side``, read as 16-bit (``half``) or 32-bit integers.

    Several maps are in work at once, in *slots*, one edge each in turn: taking an edge is a chain of dependent instructions, and
    only another map's chain can fill its waiting times.
    """
    words = max(1, side // 64)
    slots = max(2, min(16, _SLOTS_BYTES // (side * side * (2 if half else 4))))
    key_type = np.int16 if half else np.int32
    packed_type = np.int32 if half and side <= 256 else np.int64
    index_bits = 8 if side <= 256 else side.bit_length() - 1
    index_mask = (1 << index_bits) - 1
    key_shift = packed_type(2 * index_bits)
    absent = key_type(np.iinfo(key_type).min)
    nothing = packed_type(np.iinfo(packed_type).min)
    magnitude_mask = np.iinfo(key_type).max
    zero, one = np.uint64(0), np.uint64(1)
    before_first = packed_type((1 << 15) if half else (1 << 31))  # no key is as large
    component_type = np.uint8 if side <= 256 else np.uint16

    def load(values, base, stride, height, width, line, keys, row_best):  # type: ignore[no-untyped-def]
        """Put one map into a slot: its keys and the best entry of each row. Returns the largest magnitude and the least key."""
        greatest, least = key_type(0), key_type(magnitude_mask)
        for row in range(height):
            source = base + row * stride
            if source + side <= values.size:
                view = values[source : source + side]
            else:  # reading `side` values would leave the array
                for column in range(width):
                    line[column] = values[source + column]
                view = line[0:side]
            target = keys[row * side : row * side + side]
            best = nothing
            for column in range(side):
                inside = column < width
                raw = view[column] if inside else key_type(0)
                magnitude = key_type(raw & magnitude_mask)
                key = key_type(magnitude if raw >= 0 else -magnitude)
                greatest = max(greatest, magnitude)
                least = min(least, key if inside else key_type(magnitude_mask))
                key = key if inside & (column != row) else absent
                target[column] = key
                best = max(best, packed_type((packed_type(key) << key_shift) | packed_type(column)))
            row_best[row] = best | packed_type(row << index_bits)
        for row in range(height, side):
            row_best[row] = nothing
        for row in range(height, width):
            for column in range(side):
                keys[row * side + column] = absent
        return greatest, least

    def best_of_row(keys, row):  # type: ignore[no-untyped-def]
        """The largest entry of a row, packed with where it is."""
        view = keys[row * side : row * side + side]
        best = nothing
        for column in range(side):
            best = max(best, packed_type((packed_type(view[column]) << key_shift) | packed_type(column)))
        return best | packed_type(row << index_bits)

    load, best_of_row = _inline(load), _inline(best_of_row)

    def kernel(  # type: ignore[no-untyped-def]
        flat, images, image_step, unit_step, row_step, column_step, units, height, width, limit, infinity, begin, end, out
    ):
        """Births of the maps ``begin`` to ``end`` (image by image, unit by unit) into ``out``; returns how many are open."""
        line = np.zeros(side, key_type)
        block = np.empty(_BLOCK * height * width if column_step != 1 else 1, key_type)
        block_begin, block_end = begin, begin
        keys = np.empty((slots, side * side), key_type)
        row_best = np.empty((slots, side), packed_type)
        neighbours = np.zeros((slots, side * words), np.uint64)
        label = np.zeros((slots, side * words), np.uint64)
        component = np.empty((slots, side), component_type)
        step = np.zeros(slots, np.int64)
        last = np.zeros(slots, packed_type)
        lowest = np.zeros(slots, packed_type)
        live = np.zeros(slots, np.bool_)
        dropped = np.zeros(slots, np.bool_)
        number = np.zeros(slots, np.int64)
        order = np.arange(slots)
        busy, following, unsettled = 0, begin, 0
        while True:
            while busy < slots and following < end:
                image, unit = images[following // units] * image_step, following % units
                slot = order[busy]
                if column_step == 1:
                    greatest, least = load(
                        flat, image + unit * unit_step, row_step, height, width, line, keys[slot], row_best[slot]
                    )
                else:
                    if following >= block_end:
                        block_begin, block_end = following, min(end, following + min(_BLOCK, units - unit))
                        for pixel in range(height * width):
                            source = image + unit * unit_step + pixel // width * row_step + pixel % width * column_step
                            for member in range(block_end - block_begin):
                                block[member * height * width + pixel] = flat[source + member * unit_step]
                    base = (following - block_begin) * height * width
                    greatest, least = load(block, base, width, height, width, line, keys[slot], row_best[slot])
                if greatest >= infinity:
                    out[following] = NON_FINITE
                    following += 1
                    continue
                neighbours[slot, :] = zero
                for vertex in range(side):
                    component[slot, vertex] = vertex
                number[slot] = following
                step[slot] = 0
                last[slot] = before_first
                lowest[slot] = packed_type(least) if height == width else packed_type(absent)
                live[slot] = False
                dropped[slot] = False
                following += 1
                busy += 1
            if busy == 0:
                break
            place = 0
            while place < busy:
                slot = order[place]
                best = row_best[slot]
                top = nothing
                for row in range(side):
                    top = max(top, best[row])
                key = top >> key_shift
                if key != last[slot]:
                    # A step has ended, and the first Betti number is known.
                    birth = -1
                    if live[slot]:
                        birth = step[slot] - 1
                        label[slot, :] = zero
                    elif dropped[slot]:
                        birth = UNSETTLED
                        unsettled += 1
                    elif step[slot] == limit or key <= absent or key == lowest[slot]:
                        birth = 0  # (the lowest step completes the graph, which leaves no cycle)
                    if birth != -1:
                        out[number[slot]] = birth
                        busy -= 1
                        order[place] = order[busy]
                        order[busy] = slot
                        continue
                    step[slot] += 1
                    last[slot] = key
                u, v = (np.int64(top) >> index_bits) & index_mask, np.int64(top) & index_mask
                own = keys[slot]
                own[u * side + v] = absent
                own[v * side + u] = absent
                best[u] = best_of_row(own, u)
                if np.int64(best[v]) & index_mask == u:
                    best[v] = best_of_row(own, v)
                common = zero
                for word in range(words):
                    common |= neighbours[slot, u * words + word] & neighbours[slot, v * words + word]
                kept, gone = component[slot, u], component[slot, v]
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
                        shared = neighbours[slot, u * words + word] & neighbours[slot, v * words + word]
                        through = (label[slot, u * words + word] ^ label[slot, v * words + word]) & shared
                        ones |= through != zero
                        zeros |= through != shared
                    if ones and zeros:
                        live[slot] = False
                        label[slot, :] = zero
                    else:
                        marked = ones
                for vertex in range(side):
                    here = component[slot, vertex]
                    component[slot, vertex] = kept if here == gone else here
                neighbours[slot, u * words + (v >> 6)] |= one << np.uint64(v & 63)
                neighbours[slot, v * words + (u >> 6)] |= one << np.uint64(u & 63)
                if marked:
                    label[slot, u * words + (v >> 6)] |= one << np.uint64(v & 63)
                    label[slot, v * words + (u >> 6)] |= one << np.uint64(u & 63)
                place += 1
        return unsettled

    return _jit(kernel)


def _inline(function: Callable[..., Any]) -> Any:
    return numba.njit(nogil=True, forceinline=True)(function)


@_jit
def add(births, groups, counts, non_finite):  # type: ignore[no-untyped-def]
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
def _settle(n, u, v, step, words):  # type: ignore[no-untyped-def]
    """First Betti number step by step, from cohomology over GF(2) followed edge by edge.

    Every suspect opens a class: the cochain that is 1 on this edge alone. A later edge with common neighbours extends every class in
    one way at most: the triangles with all common neighbours must agree on its label. Where they disagree, one class dies (it is
    added to the others that disagree). A class that lives at the end of a step is a cycle that the step left open.

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
