"""hypothesis hunts for differences from ripser, and holds the invariances of the definition."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from topology_maps import gaussian, quantised
from torch import Tensor

from lightning_unitrole.topology import birth_points, numba_backend, ripser_backend
from lightning_unitrole.topology.torch_ties import _classes_survive

# One example is a batch: the fast backends see thousands of maps.
MAPS_PER_EXAMPLE = 40


@st.composite
def tied_maps(draw: st.DrawFn) -> Tensor:
    """A batch of small integer-valued maps, square or not, some rectified."""
    height = draw(st.integers(4, 10))
    width = height if draw(st.booleans()) else draw(st.integers(1, 10))
    levels = draw(st.integers(2, 45))
    seed = draw(st.integers(0, 2**32 - 1))
    return quantised(levels, MAPS_PER_EXAMPLE, height, width, seed=seed, relu=draw(st.booleans()))


@pytest.mark.slow
@settings(max_examples=250, deadline=None)
@given(tied_maps(), st.sampled_from([0.3, 0.8, 1.0]), st.sampled_from([1, 7, 50, 200]))
def test_ties_as_ripser_has_them(maps: Tensor, max_density: float, max_birth: int) -> None:
    expected = birth_points(maps, backend="ripser", max_density=max_density, max_birth=max_birth)
    for backend in ("torch", "numba"):
        found = birth_points(maps, backend=backend, max_density=max_density, max_birth=max_birth)
        assert torch.equal(found, expected), backend


@pytest.mark.slow
@settings(max_examples=6, deadline=None)
@given(tied_maps())
def test_ties_in_triton(maps: Tensor) -> None:
    pytest.importorskip("triton", reason="Triton has no package for this platform")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    maps = maps[:8]
    assert torch.equal(birth_points(maps.to(device), backend="triton").cpu(), birth_points(maps, backend="ripser"))


@settings(max_examples=60, deadline=None)
@given(tied_maps(), st.integers(0, 20), st.integers(-1000, 1000))
def test_invariances(maps: Tensor, exponent: int, shift: int) -> None:
    births = birth_points(maps, backend="numba")
    # Integers times a power of two plus an integer: no rounding, so the order is exactly the same.
    assert torch.equal(birth_points(maps * 2.0**exponent + shift, backend="torch"), births)
    assert torch.equal(birth_points(maps.transpose(1, 2), backend="numba"), births)
    if maps.shape[1] == maps.shape[2]:
        order = torch.randperm(maps.shape[1], generator=torch.Generator().manual_seed(shift + 1000))
        assert torch.equal(birth_points(maps[:, order][:, :, order], backend="torch"), births)


def test_a_batch_is_its_maps() -> None:
    maps = torch.cat([gaussian(50, 9, 9), quantised(6, 50, 9, 9)])
    for backend in ("torch", "numba"):
        one_by_one = torch.stack([birth_points(map_, backend=backend) for map_ in maps])
        assert torch.equal(birth_points(maps, backend=backend), one_by_one)


@pytest.mark.parametrize("words", [1, 2, 8])
@pytest.mark.parametrize("closing", [True, False], ids=["filled", "open"])
def test_more_classes_than_bits(words: int, closing: bool) -> None:
    """A complete bipartite graph opens (a - 1)(b - 1) classes; a vertex joined to everything fills them all."""
    a, b = 12, 11  # 110 classes
    n = a + b + 1
    bipartite = [(u, a + v) for u in range(a) for v in range(b)]
    cone = [(u, n - 1) for u in range(n - 1)] if closing else []
    u, v = torch.tensor(bipartite + cone).T
    left = torch.zeros(1, n, n, dtype=torch.bool)
    left[0, u, v] = left[0, v, u] = True
    # A spanning tree stands: this part of the code takes over once components are joined.
    tree = torch.zeros_like(left)
    for p, q in [(0, a + i) for i in range(b)] + [(i, a) for i in range(1, a)] + ([(0, n - 1)] if closing else []):
        tree[0, p, q] = tree[0, q, p] = True
    survives, unknown = _classes_survive(tree, left & ~tree, words)
    assert survives.item() is (not closing)
    if 64 * words >= (a - 1) * (b - 1):
        assert not unknown.item()


# Three paths of two edges from vertex 0, whose far ends 4, 5 and 6 are three edges apart.
SPIDER = [(0, 1), (0, 2), (0, 3), (1, 4), (2, 5), (3, 6)]


@pytest.mark.parametrize(
    ("step", "birth", "asked"),
    [
        pytest.param([(4, 5), (5, 6), (6, 4), (0, 4), (0, 5), (0, 6)], 0, 0, id="every-suspect-is-filled"),
        pytest.param([(4, 5), (1, 5), (0, 5)], 0, 0, id="a-suspect-fills-the-next"),
        pytest.param([(4, 5), (1, 5)], 1, 0, id="no-triangle-of-suspects"),
        pytest.param([(4, 5), (5, 6), (6, 4), (7, 4), (7, 0)], 1, 0, id="a-suspect-in-no-triangle"),
        pytest.param([(4, 5), (5, 6), (6, 4)], 1, 1, id="a-triangle-of-suspects"),
    ],
)
def test_how_numba_closes_a_step(
    step: list[tuple[int, int]], birth: int, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps_left = []

    def last_word(map_: np.ndarray, steps: int) -> int:
        maps_left.append(map_)
        return ripser_backend.birth(map_, steps)

    monkeypatch.setattr(numba_backend, "birth", last_word)
    map_ = torch.zeros(8, 8)
    for edges, value in ((SPIDER, 2.0), (step, 1.0)):
        u, v = torch.tensor(edges).T
        map_[u, v] = value
    for order in torch.stack([torch.randperm(8, generator=torch.Generator().manual_seed(seed)) for seed in range(30)]):
        permuted = map_[order][:, order]
        assert birth_points(permuted, backend="numba") == birth_points(permuted, backend="ripser") == birth
    assert len(maps_left) == 30 * asked


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_step_that_opens_and_fills_many_classes(backend: str) -> None:
    a, b = 12, 11
    n = a + b + 1
    for filled in (0, 1):
        map_ = torch.zeros(n, n)
        map_[:a, a : a + b] = 1.0
        map_[:, n - 1] = float(filled)
        map_[0, 1] = 2.0  # so that the step is not the first, whose birth point would be 0
        assert birth_points(map_, backend=backend) == birth_points(map_, backend="ripser") == 1 - filled
