# mypy: ignore-errors
# ruff: noqa: N803, N806
"""The Triton kernels behind the triton backend. Importing this module loads Triton.

Layout. A tile is ``[edges, maps]``. With Triton's default layout the 32 lanes of a warp lie along the last axis, so
for small maps a lane owns a map: maxima over edges and look-ups of vertices stay within a thread, without shuffles
or shared memory. Larger maps are spread over more lanes, and the largest over several warps, by the same code.
"""

import triton
import triton.language as tl

UNSETTLED = tl.constexpr(-2)
NON_FINITE = tl.constexpr(-1)


@triton.jit
def _key(bits, MAGNITUDE: tl.constexpr):
    """Sign and magnitude to an integer that sorts as the float does."""
    magnitude = (bits & MAGNITUDE).to(tl.int32)
    return tl.where(bits < 0, -magnitude, magnitude), magnitude


@triton.jit
def _count(counts, non_finite, group, unit, units, bins, birth, mask, COUNT_BITS: tl.constexpr, ODD_BITS: tl.constexpr):
    """Add births to the histogram of their class. 16-bit bins are added to in pairs, as 32-bit words."""
    row = group * units + unit
    index = row * bins + tl.maximum(birth, 0)
    counted = mask & (birth >= 0)
    if COUNT_BITS == 16:
        one = tl.where((index & 1) == 1, 1 << 16, 1)
        tl.atomic_add(counts + (index >> 1), one, mask=counted)
    else:
        tl.atomic_add(counts + index, 1, mask=counted)
    lost = mask & (birth == NON_FINITE)
    if ODD_BITS == 16:
        one = tl.where((row & 1) == 1, 1 << 16, 1)
        tl.atomic_add(non_finite + (row >> 1), one, mask=lost)
    else:
        tl.atomic_add(non_finite + row, 1, mask=lost)


@triton.jit
def scan(
    maps, ends, groups, births, counts, non_finite, work, work_size,
    total, units, height, width, image_step, unit_step, row_step, column_step, steps, bins, infinity,
    EDGES: tl.constexpr, MAPS: tl.constexpr, SIDE: tl.constexpr, WORDS: tl.constexpr, WIDE: tl.constexpr,
    VERTEX_BITS: tl.constexpr, TRUNCATED: tl.constexpr, MAGNITUDE: tl.constexpr,
    COUNTING: tl.constexpr, COUNT_BITS: tl.constexpr, ODD_BITS: tl.constexpr,
):  # fmt: skip
    """Births of ``MAPS`` maps, as numbers or straight into histograms; maps with hard ties go to the list ``work``.

    TRUNCATED: float32 keys lose their last bits to make room for the edge in 32 bits. Where two keys that fall
        together could matter the map goes to ``work`` too, and is decided there from the full keys.
    """
    number = tl.program_id(0).to(tl.int64) * MAPS + tl.arange(0, MAPS)
    active = number < total
    image, unit = number // units, number % units
    group = tl.zeros([MAPS], tl.int64)
    if COUNTING:
        group = tl.load(groups + image, mask=active, other=-1)
        active = active & (group >= 0)
    wanted = active
    origin = image * image_step + unit * unit_step

    end = tl.load(ends + tl.arange(0, EDGES))
    exists = end >= 0
    u, v = end >> 8, end & 255
    forward = exists & (u < height) & (v < width)
    backward = exists & (v < height) & (u < width)
    place = u.to(tl.int64) * row_step + v.to(tl.int64) * column_step
    bits = tl.load(maps + place[:, None] + origin[None, :], mask=forward[:, None] & active[None, :], other=0)
    key, magnitude = _key(bits, MAGNITUDE)
    key = tl.where(forward[:, None], key, -(1 << 31) + 1)
    greatest = tl.max(magnitude, axis=0)
    place = v.to(tl.int64) * row_step + u.to(tl.int64) * column_step
    bits = tl.load(maps + place[:, None] + origin[None, :], mask=backward[:, None] & active[None, :], other=0)
    other, magnitude = _key(bits, MAGNITUDE)
    greatest = tl.maximum(greatest, tl.max(magnitude, axis=0))
    key = tl.maximum(key, tl.where(backward[:, None], other, -(1 << 31) + 1))
    vertex = tl.arange(0, SIDE)
    corner = vertex.to(tl.int64) * (row_step + column_step)
    bits = tl.load(
        maps + corner[:, None] + origin[None, :],
        mask=((vertex < height) & (vertex < width))[:, None] & active[None, :],
        other=0,
    )
    _, magnitude = _key(bits, MAGNITUDE)
    greatest = tl.maximum(greatest, tl.max(magnitude, axis=0))

    SHIFT: tl.constexpr = 2 * VERTEX_BITS
    code = (u << VERTEX_BITS) | v
    if WIDE:
        packed = (key.to(tl.int64) << SHIFT) | code[:, None].to(tl.int64)
        nothing = tl.full([EDGES, MAPS], -(1 << 62), tl.int64)
        last = tl.full([MAPS], 1 << 40, tl.int64)
    else:
        if TRUNCATED:
            # Zero keeps a key of its own: it is the one value that is common.
            short = key >> 8
            short = tl.where((key > 0) & (short == 0), 1, short)
        else:
            short = tl.maximum(key, -(1 << 15))
        packed = (short << SHIFT) | code[:, None]
        nothing = tl.full([EDGES, MAPS], -(1 << 31), tl.int32)
        last = tl.full([MAPS], (1 << 31) - 1, tl.int32)
    # The lowest step completes the graph (no cycle is left) or consists of edges that do not exist.
    lowest = tl.min(tl.where(exists[:, None], packed, tl.max(packed, axis=0)[None, :]), axis=0) >> SHIFT
    packed = tl.where(exists[:, None], packed, nothing)

    birth = tl.where(greatest >= infinity, NON_FINITE, tl.zeros([MAPS], tl.int32))
    active = active & (birth == 0)
    step = tl.zeros([MAPS], tl.int32)
    live = tl.zeros([MAPS], tl.int1)
    dropped = tl.zeros([MAPS], tl.int1)
    component = tl.broadcast_to(vertex[:, None], [SIDE, MAPS])
    if SIDE > 32:  # noqa: SIM108 (a compile-time choice between two types)
        neighbours = tl.zeros([WORDS, SIDE, MAPS], tl.int64)
    else:
        neighbours = tl.zeros([WORDS, SIDE, MAPS], tl.int32)
    label = neighbours
    BITS: tl.constexpr = 64 if SIDE > 32 else 32
    word = tl.arange(0, WORDS)[:, None, None]

    while tl.max(active.to(tl.int32), axis=0) > 0:
        top = tl.max(packed, axis=0)
        key_now = top >> SHIFT
        new = active & (key_now != last)
        # A step has ended, and the first Betti number is known.
        born = new & live
        open_tie = new & dropped & (live == 0)
        if TRUNCATED:
            open_tie = open_tie | (active & (key_now == last) & (key_now != 0))
            open_tie = open_tie | (new & (live == 0) & (step < steps) & (key_now == lowest) & (key_now != 0))
        over = new & (live == 0) & (open_tie == 0) & ((step == steps) | (key_now == lowest))
        birth = tl.where(born, step - 1, tl.where(open_tie, UNSETTLED, birth))
        active = active & (born == 0) & (open_tie == 0) & (over == 0)
        step += new.to(tl.int32)
        last = tl.where(active, key_now, last)
        packed = tl.where(packed == top[None, :], nothing, packed)

        at = (top & ((1 << SHIFT) - 1)).to(tl.int32)
        a, b = at >> VERTEX_BITS, at & ((1 << VERTEX_BITS) - 1)
        is_a, is_b = vertex[:, None] == a[None, :], vertex[:, None] == b[None, :]
        label_a = tl.sum(tl.where(is_a, component, 0), axis=0)
        label_b = tl.sum(tl.where(is_b, component, 0), axis=0)
        common = tl.sum(tl.where(is_a[None, :, :], neighbours, 0), axis=1) & tl.sum(
            tl.where(is_b[None, :, :], neighbours, 0), axis=1
        )
        shared = tl.max((common != 0).to(tl.int32), axis=0) > 0
        suspect = active & (shared == 0) & (label_a == label_b)
        one = tl.full([WORDS, 1, MAPS], 1, neighbours.dtype)
        bit_a = tl.where(word == (a // BITS)[None, None, :], one << (a % BITS)[None, None, :].to(neighbours.dtype), 0)
        bit_b = tl.where(word == (b // BITS)[None, None, :], one << (b % BITS)[None, None, :].to(neighbours.dtype), 0)
        both = tl.where(is_a[None, :, :], bit_b, 0) | tl.where(is_b[None, :, :], bit_a, 0)

        following = active & live  # equals of a suspect: one class is followed through the rest of the step
        marked = suspect & (live == 0)
        if tl.max(following.to(tl.int32), axis=0) > 0:
            through = common & (
                tl.sum(tl.where(is_a[None, :, :], label, 0), axis=1)
                ^ tl.sum(tl.where(is_b[None, :, :], label, 0), axis=1)
            )
            ones = tl.max((through != 0).to(tl.int32), axis=0) > 0
            zeros = tl.max((through != common).to(tl.int32), axis=0) > 0
            ends_here = following & ones & zeros
            dropped = dropped | (suspect & live)
            marked = marked | (following & ones & (zeros == 0))
            live = live & (ends_here == 0)
            label = tl.where(ends_here[None, None, :], 0, label)
        live = live | (suspect & marked)
        label = tl.where(marked[None, None, :], label | both, label)
        neighbours = neighbours | both
        component = tl.where(component == label_b[None, :], label_a[None, :], component)

    hard = wanted & (birth == UNSETTLED)
    slot = tl.atomic_add(work_size + tl.zeros([MAPS], tl.int32), 1, mask=hard)
    tl.store(work + slot, number, mask=hard)
    if COUNTING:
        _count(counts, non_finite, group, unit, units, bins, birth, wanted & (hard == 0), COUNT_BITS, ODD_BITS)
    else:
        tl.store(births + number, birth, mask=wanted)


@triton.jit
def settle(
    maps, ends, groups, births, counts, non_finite, work, work_size, left, left_size, adjacency, labels, vectors,
    units, height, width, image_step, unit_step, row_step, column_step, steps, bins, infinity, words, programs,
    EDGES: tl.constexpr, SIDE: tl.constexpr, MAGNITUDE: tl.constexpr,
    COUNTING: tl.constexpr, COUNT_BITS: tl.constexpr, ODD_BITS: tl.constexpr,
):  # fmt: skip
    """Births of the maps in the list ``work``, one at a time, following up to ``64 * words`` cohomology classes.

    The rule is that of the torch backend's ``_settle``. Maps for which the bits do not suffice go to the list ``left``.
    ``adjacency``, ``labels`` and ``vectors`` are working memory of each program.
    """
    program = tl.program_id(0).to(tl.int64)
    adjacency += program * SIDE * SIDE
    labels += program * SIDE * SIDE * words
    vectors += program * 3 * words
    live, fresh, clash = vectors, vectors + words, vectors + 2 * words
    vertex = tl.arange(0, SIDE)
    end = tl.load(ends + tl.arange(0, EDGES))
    exists = end >= 0
    eu, ev = end >> 8, end & 255
    forward = exists & (eu < height) & (ev < width)
    backward = exists & (ev < height) & (eu < width)
    absent = tl.full([EDGES], -(1 << 47), tl.int64)

    size = tl.load(work_size)
    item = program
    while item < size:
        number = tl.load(work + item)
        image, unit = number // units, number % units
        origin = maps + image * image_step + unit * unit_step
        key, _ = _key(
            tl.load(origin + eu.to(tl.int64) * row_step + ev.to(tl.int64) * column_step, mask=forward, other=0),
            MAGNITUDE,
        )
        other, _ = _key(
            tl.load(origin + ev.to(tl.int64) * row_step + eu.to(tl.int64) * column_step, mask=backward, other=0),
            MAGNITUDE,
        )
        key = tl.maximum(tl.where(forward, key, -(1 << 31) + 1), tl.where(backward, other, -(1 << 31) + 1))
        present = forward | backward
        packed = tl.where(present, (key.to(tl.int64) << 16) | end.to(tl.int64), absent)
        for row in range(SIDE):
            tl.store(adjacency + row * SIDE + vertex, tl.zeros([SIDE], tl.int8))
            for word in range(words):
                tl.store(labels + (row * words + word) * SIDE + vertex, tl.zeros([SIDE], tl.int64))
        for word in range(words):
            tl.store(live + word, tl.zeros([], tl.int64))
        component = vertex
        birth = 0
        step = 0
        alive = 0
        dropped = 0
        last = tl.full([], 1 << 40, tl.int64)
        going = 1
        tl.debug_barrier()
        while going == 1:
            top = tl.max(packed, axis=0)
            key_now = top >> 16
            if key_now != last:
                if alive > 0:
                    birth = step - 1
                    going = 0
                elif dropped == 1:
                    birth = UNSETTLED
                    going = 0
                elif (step == steps) | (top == -(1 << 47)):
                    going = 0
                step += 1
                last = key_now
            if going == 1:
                packed = tl.where(packed == top, absent, packed)
                code = (top & 65535).to(tl.int32)
                a, b = code >> 8, code & 255
                common = (tl.load(adjacency + a * SIDE + vertex) & tl.load(adjacency + b * SIDE + vertex)) != 0
                shared = tl.max(common.to(tl.int32), axis=0)
                first = tl.min(tl.where(common, vertex, SIDE), axis=0)
                clashing = 1
                while clashing == 1:
                    bad = tl.zeros([SIDE], tl.int32)
                    for word in range(words):
                        through = tl.load(labels + (a * words + word) * SIDE + vertex)
                        through = through ^ tl.load(labels + (b * words + word) * SIDE + vertex)
                        agreed = tl.sum(tl.where(vertex == first, through, 0), axis=0)
                        bad = bad | (common & (through != agreed)).to(tl.int32)
                        tl.store(fresh + word, agreed)
                    clashing = tl.max(bad, axis=0)
                    if clashing == 1:
                        tl.debug_barrier()
                        row = tl.min(tl.where(bad == 1, vertex, SIDE), axis=0)
                        pivot_word = -1
                        pivot = tl.zeros([], tl.int64)
                        for word in range(words):
                            through = tl.load(labels + (a * words + word) * SIDE + row)
                            through = through ^ tl.load(labels + (b * words + word) * SIDE + row)
                            difference = through ^ tl.load(fresh + word)
                            tl.store(clash + word, difference)
                            if (difference != 0) & (pivot_word < 0):
                                pivot_word = word
                                pivot = difference & -difference
                        tl.store(live + pivot_word, tl.load(live + pivot_word) & ~pivot)
                        alive -= 1
                        tl.debug_barrier()
                        for line in range(SIDE):
                            marked = tl.load(labels + (line * words + pivot_word) * SIDE + vertex) & pivot
                            tl.debug_barrier()
                            for word in range(words):
                                at = labels + (line * words + word) * SIDE + vertex
                                tl.store(at, tl.load(at) ^ tl.where(marked != 0, tl.load(clash + word), 0))
                        tl.debug_barrier()
                label_a = tl.sum(tl.where(vertex == a, component, 0), axis=0)
                label_b = tl.sum(tl.where(vertex == b, component, 0), axis=0)
                slot_word = -1
                slot = tl.zeros([], tl.int64)
                if (shared == 0) & (label_a == label_b):
                    for word in range(words):
                        used = tl.load(live + word)
                        if (used != -1) & (slot_word < 0):
                            slot_word = word
                            slot = ~used & (used + 1)
                    tl.debug_barrier()
                    if slot_word < 0:
                        dropped = 1
                    else:
                        alive += 1
                        tl.store(live + slot_word, tl.load(live + slot_word) | slot)
                component = tl.where(component == label_b, label_a, component)
                tl.debug_barrier()
                for word in range(words):
                    value = tl.where(shared == 1, tl.load(fresh + word), tl.where(word == slot_word, slot, 0))
                    tl.store(labels + (a * words + word) * SIDE + b, value)
                    tl.store(labels + (b * words + word) * SIDE + a, value)
                tl.store(adjacency + a * SIDE + b, tl.full([], 1, tl.int8))
                tl.store(adjacency + b * SIDE + a, tl.full([], 1, tl.int8))
                tl.debug_barrier()
        if birth == UNSETTLED:
            tl.store(left + tl.atomic_add(left_size, 1), number)
        elif COUNTING:
            group = tl.load(groups + image)
            _count(counts, non_finite, group, unit, units, bins, birth, group >= 0, COUNT_BITS, ODD_BITS)
        else:
            tl.store(births + number, birth)
        item += programs
