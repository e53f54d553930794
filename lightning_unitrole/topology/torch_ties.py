"""Steps of equal weights, settled exactly in vectorised torch.

Before the step the first Betti number is 0. The step's edges may enter in any order, so those go first that cannot
change it: edges that join two components, and edges whose ends have a common neighbour. If that uses up the step,
the number is still 0.

Otherwise the edges left over, ``L``, each close a cycle. With the complex so far having no cycles, the homology
that they open has one generator for each of them, and a triangle is a relation: the sum of those of its edges that
are in ``L`` is 0. (It holds two or three of them: with one, that edge would have had a common neighbour.) If no
triangle has all three, the cochain that is 1 on all of ``L`` satisfies every relation, and the number is above 0.
Only what remains needs linear algebra: :func:`_classes_survive`.
"""

import torch
from torch import Tensor

_LABEL_WORDS = 1 << 22
"""Label words held at once by :func:`_classes_survive`."""


def settle(weights: Tensor, ends: Tensor, n: int, value: Tensor, step: Tensor, steps: int, square: bool) -> Tensor:
    """Births ``[N]`` (int32) of maps known to have no cycle before a step.

    Args:
        weights: edge weights ``[N, E]``, -inf where there is no edge.
        ends: vertex pairs ``[2, E]``.
        n: number of vertices.
        value: weight ``[N]`` of the edges of the step to begin with.
        step: number ``[N]`` of that step, from 1.
        steps: number of steps that exist.
        square: whether the lowest step completes the graph.
    """
    u, v = ends
    dense = weights.new_full((len(weights), n, n), -torch.inf)
    dense[:, u, v] = weights
    dense[:, v, u] = weights
    lowest = weights.amin(1)
    births = torch.zeros(len(weights), dtype=torch.int32, device=weights.device)
    where = torch.arange(len(weights), device=weights.device)
    adjacent = dense > value[:, None, None]
    component = _components(adjacent)
    while True:
        over = (step > steps) | torch.isneginf(value)
        if square:
            over |= value == lowest
        kept = (~over).nonzero().squeeze(1)
        if len(kept) == 0:
            return births
        if len(kept) < len(over):
            where, dense, lowest, adjacent = where[kept], dense[kept], lowest[kept], adjacent[kept]
            component, value, step = component[kept], value[kept], step[kept]
        pending = dense == value[:, None, None]
        after = adjacent | pending
        adjacent, left, component = _enter(adjacent, pending, component)
        born = left.flatten(1).any(1)
        count = left.float()
        hard = (torch.bmm(count, count) * count).flatten(1).any(1).nonzero().squeeze(1)
        if len(hard):
            born[hard] = _survives(adjacent[hard], left[hard])
        births[where] = torch.where(born, step - 1, 0).to(torch.int32)
        adjacent = after
        below = torch.where(dense < value[:, None, None], dense, -torch.inf).flatten(1).amax(1)
        value, step = torch.where(born, -torch.inf, below), step + 1


def _components(adjacent: Tensor) -> Tensor:
    """The least vertex of each vertex's component: ``[N, n]``."""
    total, n = adjacent.shape[:2]
    label = torch.arange(n, device=adjacent.device).repeat(total, 1)
    while True:
        least = torch.where(adjacent, label[:, None, :], n).amin(2)
        following = torch.minimum(label, least)
        if torch.equal(following, label):
            return label
        label = following


def _enter(adjacent: Tensor, pending: Tensor, component: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Let those ``pending`` edges in that close no cycle or a filled one.

    Returns:
        the graph, the edges left, and the components.
    """
    row = torch.arange(len(adjacent), device=adjacent.device)
    n = adjacent.shape[1]
    adjacent, pending = adjacent.clone(), pending.clone()
    while True:
        joining = (pending & (component[:, :, None] != component[:, None, :])).flatten(1)
        any_, first = joining.max(1)
        if not bool(any_.any()):
            break
        u, v = first // n, first % n
        adjacent[row, u, v] |= any_
        adjacent[row, v, u] |= any_
        new, old = component[row, u][:, None], component[row, v][:, None]
        component = torch.where((component == old) & any_[:, None], new, component)
    pending &= ~adjacent
    while True:
        number = adjacent.float()
        filled = pending & (torch.bmm(number, number) > 0)
        if not bool(filled.any()):
            return adjacent, pending, component
        adjacent |= filled
        pending &= ~filled


def _survives(adjacent: Tensor, left: Tensor) -> Tensor:
    """Whether a cycle is left ``[N]`` once the edges ``left`` have entered, with as many classes as it takes."""
    n = adjacent.shape[1]
    result = torch.zeros(len(adjacent), dtype=torch.bool, device=adjacent.device)
    where = torch.arange(len(adjacent), device=adjacent.device)
    words = 1
    while len(where):
        undecided = []
        for begin in range(0, len(where), max(1, _LABEL_WORDS // (n * n * words))):
            part = where[begin : begin + max(1, _LABEL_WORDS // (n * n * words))]
            result[part], overflow = _classes_survive(adjacent[part], left[part], words)
            undecided.append(part[overflow])
        where = torch.cat(undecided)
        words *= 8  # a flag complex on n vertices has a first Betti number below n * n / 4, so this ends
    return result


def _classes_survive(adjacent: Tensor, left: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Follow cohomology classes over GF(2) through the edges ``left`` ``[N, n, n]``, one edge of each map at a time.

    An edge without a common neighbour opens a class: the cochain that is 1 on this edge alone. A later edge extends
    every class in one way at most: the triangles with all common neighbours must agree on its label. Where they
    disagree, one class dies (it is added to the others that disagree). The labels of an edge are the bits of
    ``words`` 64-bit words, one bit a class.

    Returns:
        whether a class lives at the end, and whether the answer is unknown because the bits ran out; both ``[N]``.
    """
    total, n = adjacent.shape[:2]
    device = adjacent.device
    row = torch.arange(total, device=device)
    bits = bit_sets(64 * words, device).view(64 * words, words)
    upper = left.triu(1).flatten(1)
    entering, edge = upper.to(torch.int8).sort(dim=1, descending=True)
    adjacent = adjacent.clone()
    labels = torch.zeros(total, n, n, words, dtype=torch.int64, device=device)
    live = torch.zeros(total, words, dtype=torch.int64, device=device)
    dropped = torch.zeros(total, dtype=torch.bool, device=device)
    for position in range(int(upper.sum(1).max())):
        present = entering[:, position] > 0
        u, v = edge[:, position] // n, edge[:, position] % n
        common = adjacent[row, u] & adjacent[row, v] & present[:, None]
        shared, first = common.max(1)
        while True:
            through = (labels[row, u] ^ labels[row, v]) * common[:, :, None]
            label = through[row, first] * shared[:, None]
            clash = (through ^ label[:, None]) * common[:, :, None]
            clashing, at = (clash != 0).any(2).max(1)
            if not bool(clashing.any()):
                break
            clash = clash[row, at]
            word = (clash != 0).to(torch.uint8).argmax(1, keepdim=True)
            lowest = clash.gather(1, word)
            pivot = torch.zeros_like(clash).scatter_(1, word, lowest & -lowest)
            has_pivot = ((labels & pivot[:, None, None]) != 0).any(3, keepdim=True)
            labels ^= clash[:, None, None] * has_pivot
            live &= ~pivot
        suspect = present & ~shared
        free, slot = ((live[:, None] & bits) == 0).all(2).max(1)
        opened = bits[slot] * (suspect & free)[:, None]
        dropped |= suspect & ~free
        live |= opened
        label = (label | opened) * present[:, None] + labels[row, u, v] * ~present[:, None]
        adjacent[row, u, v] |= present
        adjacent[row, v, u] |= present
        labels[row, u, v] = label
        labels[row, v, u] = label
    survives = (live != 0).any(1)
    return survives, dropped & ~survives


def bit_sets(n: int, device: torch.device) -> Tensor:
    """For each of ``n`` elements the bit set that holds only it: int64 ``[n]``, or ``[n, words]`` beyond 64."""
    words = (n + 63) // 64
    rows = torch.zeros(n, words, dtype=torch.int64)
    for element in range(n):
        bit = element % 64
        rows[element, element // 64] = -(1 << 63) if bit == 63 else 1 << bit
    return (rows.squeeze(1) if words == 1 else rows).to(device)
