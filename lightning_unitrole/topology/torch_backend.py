"""Birth points in vectorised torch: any device, any number of maps at once, exact for ties.

How it decides. While the first Betti number is 0, adding one edge ``(u, v)`` to a flag complex can do three things
(Mayer-Vietoris on the complex and the star of the edge): join two components (no cycle), close a cycle between
vertices that have a common neighbour (filled at once, no cycle), or close a cycle without one: a *suspect*. Without
ties the first suspect is the birth. Edges with equal weight enter in one step, so a suspect that has equals still
to come may yet be filled by them; only such maps go to the slower
:func:`~lightning_unitrole.topology.torch_ties.settle`.

Selection is lazy: most births come within the first two dozen edges, so only the maps that stay open get more of
theirs.
"""

import torch
from torch import Tensor

from lightning_unitrole.topology.definition import NON_FINITE, trivial_births
from lightning_unitrole.topology.torch_ties import bit_sets, settle

_CHUNK = 1 << 21
"""Elements of the maps handled at once: bounds the working memory."""
_FIRST = 24
"""Edges selected at first; maps that need more are selected again with four times as many."""


def unavailable(device: torch.device) -> str | None:
    """Why this backend cannot run on ``device``: it always can."""
    return None


def raw_births(maps: Tensor, steps: int) -> Tensor:
    """Births of ``maps [B, U, H, W]`` within ``steps`` filtration steps; int32 ``[B, U]``, ``NON_FINITE`` where so."""
    if steps == 0 or maps.numel() == 0:
        return trivial_births(maps)
    images, units, height, width = maps.shape
    births = torch.empty(images, units, dtype=torch.int32, device=maps.device)
    at_once = max(1, _CHUNK // (height * width))
    image_step, unit_step = (at_once // units, units) if at_once >= units else (1, at_once)
    for image in range(0, images, image_step):
        for unit in range(0, units, unit_step):
            part = maps[image : image + image_step, unit : unit + unit_step]
            found = _births_of_chunk(part.detach().reshape(-1, height, width), steps)
            births[image : image + image_step, unit : unit + unit_step] = found.reshape(part.shape[:2])
    return births


def _births_of_chunk(maps: Tensor, steps: int) -> Tensor:
    """Births ``[N]`` of ``maps [N, H, W]``."""
    finite = torch.isfinite(maps).flatten(1).all(1)
    births = torch.zeros(len(maps), dtype=torch.int32, device=maps.device)
    births[~finite] = NON_FINITE
    where = finite.nonzero().squeeze(1)
    n, square = max(maps.shape[1:]), maps.shape[1] == maps.shape[2]
    ends = torch.triu_indices(n, n, 1, device=maps.device)
    weights = _weights(maps if len(where) == len(maps) else maps[where], ends)
    count = min(_FIRST, weights.shape[1])
    while len(where):
        found, unresolved, tied, value, step = _first_suspects(weights, ends, n, count, steps, square)
        rows = tied.nonzero().squeeze(1)
        if len(rows):
            found[rows] = _settle_in_parts(weights[rows], ends, n, value[rows], step[rows], steps, square)
        births[where] = found
        remaining = unresolved.nonzero().squeeze(1)
        where, weights = where[remaining], weights[remaining]
        count = min(4 * count, weights.shape[1])
    return births


def _settle_in_parts(
    weights: Tensor, ends: Tensor, n: int, value: Tensor, step: Tensor, steps: int, square: bool
) -> Tensor:
    """:func:`settle` over as many maps at a time as :data:`_CHUNK` allows."""
    size = max(1, _CHUNK // (n * n))
    parts = [slice(begin, begin + size) for begin in range(0, len(weights), size)]
    return torch.cat([settle(weights[part], ends, n, value[part], step[part], steps, square) for part in parts])


def _weights(maps: Tensor, ends: Tensor) -> Tensor:
    """Edge weights ``[N, E]`` of ``maps [N, H, W]`` for the vertex pairs ``ends [2, E]``; -inf for no edge."""
    if maps.dtype not in (torch.float32, torch.float64):
        maps = maps.float()  # half precisions fit into float32 exactly
    height, width = maps.shape[1:]
    n = max(height, width)
    if height != width:
        maps = torch.nn.functional.pad(maps, (0, n - width, 0, n - height), value=-torch.inf)
    flat = maps.reshape(-1, n * n)
    u, v = ends
    return torch.maximum(flat.index_select(1, u * n + v), flat.index_select(1, v * n + u))


def _sorted_edges(weights: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` heaviest edges in descending order: weight, step (from 1) and edge index, each ``[count, N]``."""
    if count < weights.shape[1] and weights.device.type != "mps":  # topk on MPS is limited to few values
        value, edge = weights.topk(count, dim=1)
    else:
        value, edge = weights.sort(dim=1, descending=True)
    value, edge = value[:, :count].t().contiguous(), edge[:, :count].t().contiguous()
    step = torch.ones_like(edge)
    step[1:] = (value[1:] != value[:-1]).to(step.dtype)
    return value, step.cumsum(0), edge


def _first_suspects(
    weights: Tensor, ends: Tensor, n: int, count: int, steps: int, square: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Follow the ``count`` heaviest edges of ``weights [N, E]`` up to each map's first suspect.

    Returns:
        births ``[N]`` (int32, meaningful where neither mask is set); a mask of the maps that need more edges; a
        mask of the maps whose first suspect has, or may have, equals after it; weight and step of the first
        suspect.
    """
    value, step, edge = _sorted_edges(weights, count)
    suspect = _suspect_positions(step, edge, ends, n, steps)
    none = suspect == count
    at = suspect.clamp(max=count - 1)[None]
    suspect_value, suspect_step = value.gather(0, at)[0], step.gather(0, at)[0]
    after = value.gather(0, (at + 1).clamp(max=count - 1))[0]
    all_edges = count == weights.shape[1]

    # No birth: the steps are used up, the edge does not exist, or its step completes the graph (which is then a
    # simplex).
    nothing = (suspect_step > steps) | torch.isneginf(suspect_value)
    if square:
        nothing |= suspect_value == weights.amin(1)
    unresolved = torch.zeros_like(none) if all_edges else none & ~nothing
    nothing |= none
    is_last = suspect == count - 1
    tied = ~nothing & torch.where(is_last, not all_edges, after == suspect_value)
    births = torch.where(nothing, 0, suspect_step - 1).to(torch.int32)
    return births, unresolved, tied, suspect_value, suspect_step


def _suspect_positions(step: Tensor, edge: Tensor, ends: Tensor, n: int, steps: int) -> Tensor:
    """Position ``[N]`` of each map's first suspect among its edges ``[count, N]``; ``count`` where there is none."""
    count, total = edge.shape
    device = edge.device
    result = torch.full((total,), count, dtype=torch.int64, device=device)
    where = torch.arange(total, device=device)
    unit = bit_sets(n, device)
    u, v = ends[0][edge], ends[1][edge]
    base = torch.arange(total, device=device) * n
    neighbours = torch.zeros((total * n, *unit.shape[1:]), dtype=torch.int64, device=device)
    component = torch.arange(n, device=device).to(torch.uint8 if n <= 256 else torch.int32).repeat(total, 1)
    found = torch.zeros(total, dtype=torch.bool, device=device)
    for position in range(count):
        a, b = u[position], v[position]
        at_a, at_b = base + a, base + b
        row_a, row_b = neighbours[at_a], neighbours[at_b]
        common = (row_a & row_b) != 0
        if common.dim() > 1:
            common = common.any(1)
        label_a, label_b = component.gather(1, a[:, None]), component.gather(1, b[:, None])
        suspect = (label_a == label_b).squeeze(1) & ~common & ~found
        result[where[suspect]] = position
        found |= suspect
        neighbours[at_a] = row_a | unit[b]
        neighbours[at_b] = row_b | unit[a]
        torch.where(component == label_b, label_a, component, out=component)
        if position % 6 == 5:  # looking costs a synchronisation on a GPU, so not at every edge
            still = (~found & (step[position] <= steps)).nonzero().squeeze(1)
            if len(still) == 0:
                break
            if len(still) < 0.7 * len(found):
                where, component, found = where[still], component[still], found[still]
                neighbours = neighbours.view(-1, n, *unit.shape[1:])[still].flatten(0, 1)
                u, v, step = u[:, still], v[:, still], step[:, still]
                base = base[: len(still)]
    return result
