"""The backends against the recorded answers, against ripser, and against cases worked by hand.

A test is a backend on many cases; what fails names the case and the map.
"""

import pytest
import torch
from topology_maps import Subject, gaussian, quantised, recorded
from torch import Tensor

from lightning_unitrole.topology import birth_points


@pytest.mark.parametrize("file", ["synthetic", "resnet20"])
def test_ripser_gives_the_recorded_births(file: str) -> None:
    for what, maps, births in recorded(file):
        assert torch.equal(birth_points(maps, backend="ripser"), births), what


@pytest.mark.parametrize("file", ["synthetic", "resnet20"])
def test_fast_backends_give_the_recorded_births(file: str, subject: Subject) -> None:
    for what, maps, births in recorded(file):
        if subject.backend == "triton" and subject.device.type == "cpu":
            side = maps.shape[-1]
            if subject.few and side not in (5, 8, 14):
                continue
            step = max(1, births.numel() // (4 if side > 12 or subject.few else 32))
            maps, births = maps.flatten(0, -3)[::step], births.flatten()[::step]
        subject.must_find(births, maps, what)


def edges(n: int, *steps: list[tuple[int, int]]) -> Tensor:
    """A map whose edges enter as listed; all others enter together at the end."""
    result = torch.zeros(n, n)
    for index, step in enumerate(steps):
        for u, v in step:
            result[u, v] = len(steps) - index
    return result


SQUARE = [(0, 1), (1, 2), (2, 3), (3, 0)]
HEXAGON = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]


BY_HAND = {
    "square-edge-by-edge": (edges(4, *([edge] for edge in SQUARE)), 3),
    "square-in-two-steps": (edges(4, SQUARE[:2], SQUARE[2:]), 1),
    "square-at-once-is-birth-0": (edges(4, SQUARE), 0),
    "square-born-and-filled-in-one-step": (edges(4, SQUARE[:3], [SQUARE[3], (0, 2)]), 0),
    "square-filled-other-diagonal": (edges(4, SQUARE[:3], [SQUARE[3], (1, 3)]), 0),
    "triangle-is-filled": (edges(3 + 2, [(0, 1)], [(1, 2)], [(2, 0)]), 0),
    "hexagon": (edges(6, *([edge] for edge in HEXAGON)), 5),
    "hexagon-filled-by-a-triangle": (edges(6, HEXAGON[:5], [HEXAGON[5], (0, 2), (2, 4), (4, 0)]), 0),
    "hexagon-filled-but-for-a-square": (edges(6, HEXAGON[:5], [HEXAGON[5], (0, 2), (2, 4)]), 1),
    "constant": (torch.ones(6, 6), 0),
    "dead-unit": (torch.zeros(14, 14), 0),
    "three-vertices": (edges(3, [(0, 1)], [(1, 2)], [(2, 0)]), 0),
    # The octahedron: its 12 edges leave no 1-cycle, though each of its three squares is one until filled.
    "octahedron-has-no-1-cycle": (edges(6, [(a, b) for a in range(6) for b in range(a) if a - b != 3]), 0),
}


def test_hand_worked(subject: Subject) -> None:
    for n in sorted({len(map_) for map_, _ in BY_HAND.values()}):
        names = [name for name, (map_, _) in BY_HAND.items() if len(map_) == n]
        maps = torch.stack([BY_HAND[name][0] for name in names])
        births = torch.tensor([BY_HAND[name][1] for name in names])
        assert torch.equal(birth_points(maps, backend="ripser"), births), names
        subject.must_find(births, maps, ", ".join(names))


@pytest.mark.slow
def test_every_size(subject: Subject) -> None:
    for n in subject.of([3, 4, 5, 6, 9, 13, 16, 17, 31, 33, 40, 64, 65, 100, 129, 256], 3, 4, 6, 13, 17, 33, 65):
        count = max(1, min(20, 600 // n**2 if subject.backend == "triton" else 4000 // n))
        subject.must_equal_ripser(gaussian(count, n, n, seed=n), f"{n}x{n}")


@pytest.mark.sampled(2)
@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
def test_ties(relu: bool, subject: Subject) -> None:
    interpreted = subject.backend == "triton" and subject.device.type == "cpu"
    for n in subject.of([5, 8, 14, 20, 33, 70], 5, 8):
        for levels in subject.of([2, 3, 6, 20], 3, 20):
            if interpreted and n > (20 if levels > 3 else 14):
                continue  # thousands of tied edges take minutes
            count = 3 if subject.few else max(2, (64 if interpreted else 2000) // n)
            maps = quantised(levels, count, n, n, seed=n * levels, relu=relu)
            subject.must_equal_ripser(maps, f"{levels} levels, {n}x{n}")


@pytest.mark.sampled(2)
def test_not_square(subject: Subject) -> None:
    shapes = [(4, 5), (5, 4), (2, 9), (9, 1), (1, 1), (7, 12), (12, 7), (3, 3), (14, 20)]
    for height, width in subject.of(shapes, (4, 5), (12, 7)):
        count = 4 if subject.backend == "triton" else 20
        subject.must_equal_ripser(gaussian(count, height, width), f"{height}x{width}")
        subject.must_equal_ripser(quantised(5, count, height, width), f"5 levels, {height}x{width}")


FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")


@pytest.mark.sampled(2)
def test_dtypes(subject: Subject) -> None:
    here = [getattr(torch, name) for name in FLOAT8 if hasattr(torch, name)]
    dtypes = [torch.bfloat16, torch.float16, torch.float64, *here]
    for dtype in subject.of(dtypes, torch.bfloat16, torch.float16, torch.float64, torch.float8_e4m3fn):
        for n in subject.of([7, 14, 28], 7):
            count = (4 if subject.few else 12) if subject.backend == "triton" else 100
            maps = gaussian(count, n, n)
            maps = (maps.abs() if "e8m0" in str(dtype) else maps).to(dtype)  # a type without a sign
            subject.must_find(birth_points(maps.double(), backend="ripser"), maps, f"{dtype}, {n}x{n}")


def test_float64_values_that_float32_cannot_tell_apart(subject: Subject) -> None:
    maps = edges(4, *([edge] for edge in SQUARE)).double() * 2.0**-40 + 1.0
    assert birth_points(maps.float(), backend="ripser") == 0
    subject.must_find(torch.tensor(3), maps, "square")


@pytest.mark.sampled(2)
def test_float32_values_that_differ_in_the_last_bits(subject: Subject) -> None:
    count = (1 if subject.few else 6) if subject.backend == "triton" else 40
    maps = 1.0 + quantised(40, count, 14, 14) * 2.0**-23
    subject.must_equal_ripser(maps, "above 1")
    subject.must_equal_ripser(-maps, "below -1")
    subject.must_equal_ripser(quantised(300, count, 14, 14) * 2.0**-149, "subnormal")


@pytest.mark.sampled(2)
def test_minus_zero_is_zero(subject: Subject) -> None:
    count = 3 if subject.few else 30
    maps = quantised(4, count, 8, 8, relu=True)
    signs = torch.where(gaussian(count, 8, 8) > 0, 1.0, -1.0)
    flipped = torch.where(maps == 0, maps * signs, maps)
    assert torch.signbit(flipped).any()
    subject.must_find(birth_points(maps, backend="ripser"), flipped, "zeros of either sign")


@pytest.mark.sampled(1)
def test_settings(subject: Subject) -> None:
    count, n = (4, 8) if subject.backend == "triton" else (60, 12)
    settings = [(birth, density) for birth in (1, 5, 50, 255, 1000) for density in (0.05, 0.5, 0.8, 1.0)]
    for max_birth, max_density in subject.of(settings, (1, 0.05), (255, 0.5), (1000, 1.0)):
        for what, maps in (("gaussian", gaussian(count, n, n).relu()), ("quantised", quantised(30, count, n, n))):
            what = f"{what}, max_birth={max_birth}, max_density={max_density}"
            subject.must_equal_ripser(maps, what, max_birth=max_birth, max_density=max_density)


def strided() -> dict[str, Tensor]:
    base = gaussian(2, 5, 14, 14)
    padded = torch.full((2, 5, 16, 31), torch.nan)
    padded[:, :, 1:15, 2:30:2] = base
    return {
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "transposed": base.transpose(2, 3),
        "permuted": base.permute(1, 0, 2, 3),
        "window-of-nan": padded[:, :, 1:15, 2:30:2],
        "every-other-unit": base[:, ::2],
        "expanded": base[0, 0].expand(2, 3, 14, 14),
        "narrowed": base[..., :9],
        "not-square": base[:, :, 3:10],
        "with-gradient": base.clone().requires_grad_(),
        "two-dimensions": base[0, 0],
        "three-dimensions": base[0],
        "six-dimensions": base[None, :, None],
    }


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_strides_and_leading_dimensions(dtype: torch.dtype, subject: Subject) -> None:
    kept = subject.of(list(strided()), "channels_last", "window-of-nan", "not-square", "six-dimensions")
    for what, maps in strided().items():
        if what not in kept:
            continue
        if dtype != maps.dtype or subject.device.type == "cuda":
            memory = maps.detach().as_strided((maps.untyped_storage().nbytes() // maps.element_size(),), (1,), 0)
            memory = memory.to(subject.device, dtype)
            maps = memory.as_strided(maps.shape, maps.stride(), maps.storage_offset())
        expected = birth_points(maps.detach().cpu().contiguous(), backend="ripser")
        assert expected.shape == maps.shape[:-2]
        subject.must_find(expected, maps, what)


def test_empty(subject: Subject) -> None:
    for shape in [(0, 3, 14, 14), (3, 0, 14, 14), (2, 3, 0, 14), (2, 3, 14, 0), (0, 8, 8)]:
        subject.must_find(torch.zeros(shape[:-2], dtype=torch.int64), torch.empty(shape), str(shape))


def test_non_finite_maps_have_no_birth(subject: Subject) -> None:
    values = (torch.nan, torch.inf, -torch.inf, -torch.nan)
    places = subject.of([(0, 1), (5, 5), (7, 0)], (5, 5))  # above, on and below the diagonal
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        maps = gaussian(2, len(values), len(places), 8, 8, seed=4).to(dtype)
        expected = birth_points(maps.double(), backend="ripser")
        assert (expected > 0).all()
        for i, value in enumerate(values):
            for j, (row, column) in enumerate(places):
                maps[1, i, j, row, column] = value
        expected[1] = 0
        subject.must_find(expected, maps, str(dtype))


def test_inference_mode(subject: Subject) -> None:
    with torch.inference_mode():
        subject.must_equal_ripser(gaussian(2, 4, 10, 10), "under inference_mode")
