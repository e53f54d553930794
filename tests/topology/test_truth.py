"""The backends against the recorded answers, against ripser, and against cases worked by hand."""

import pytest
import torch
from topology_maps import gaussian, quantised, recorded
from torch import Tensor

from lightning_unitrole.topology import birth_points


def sample(maps: Tensor, births: Tensor, backend: str) -> tuple[Tensor, Tensor]:
    """All maps, or few enough of them for an interpreter that works element by element."""
    if backend != "triton" or torch.cuda.is_available():
        return maps, births
    step = max(1, births.numel() // (32 if maps.shape[-1] <= 12 else 4))
    return maps.flatten(0, -3)[::step], births.flatten()[::step]


@pytest.mark.parametrize(("maps", "births"), recorded())
def test_ripser_gives_the_recorded_births(maps: Tensor, births: Tensor) -> None:
    assert torch.equal(birth_points(maps, backend="ripser"), births)


@pytest.mark.parametrize(("maps", "births"), recorded())
def test_fast_backends_give_the_recorded_births(
    maps: Tensor, births: Tensor, backend: str, device: torch.device
) -> None:
    maps, births = sample(maps, births, backend)
    found = birth_points(maps.to(device), backend=backend)
    assert found.device.type == device.type
    assert torch.equal(found.cpu(), births)


def edges(n: int, *steps: list[tuple[int, int]]) -> Tensor:
    """A map whose edges enter as listed; all others enter together at the end."""
    result = torch.zeros(n, n)
    for index, step in enumerate(steps):
        for u, v in step:
            result[u, v] = len(steps) - index
    return result


SQUARE = [(0, 1), (1, 2), (2, 3), (3, 0)]
HEXAGON = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0)]


@pytest.mark.parametrize(
    ("map_", "birth"),
    [
        pytest.param(edges(4, *([edge] for edge in SQUARE)), 3, id="square-edge-by-edge"),
        pytest.param(edges(4, SQUARE[:2], SQUARE[2:]), 1, id="square-in-two-steps"),
        pytest.param(edges(4, SQUARE), 0, id="square-at-once-is-birth-0"),
        pytest.param(edges(4, SQUARE[:3], [SQUARE[3], (0, 2)]), 0, id="square-born-and-filled-in-one-step"),
        pytest.param(edges(4, SQUARE[:3], [SQUARE[3], (1, 3)]), 0, id="square-filled-other-diagonal"),
        pytest.param(edges(3 + 2, [(0, 1)], [(1, 2)], [(2, 0)]), 0, id="triangle-is-filled"),
        pytest.param(edges(6, *([edge] for edge in HEXAGON)), 5, id="hexagon"),
        pytest.param(edges(6, HEXAGON[:5], [HEXAGON[5], (0, 2), (2, 4), (4, 0)]), 0, id="hexagon-filled-by-a-triangle"),
        pytest.param(edges(6, HEXAGON[:5], [HEXAGON[5], (0, 2), (2, 4)]), 1, id="hexagon-filled-but-for-a-square"),
        pytest.param(torch.ones(6, 6), 0, id="constant"),
        pytest.param(torch.zeros(14, 14), 0, id="dead-unit"),
        pytest.param(edges(3, [(0, 1)], [(1, 2)], [(2, 0)]), 0, id="three-vertices"),
        # The octahedron: its 12 edges leave no 1-cycle, though each of its three squares is one until filled.
        pytest.param(
            edges(6, [(a, b) for a in range(6) for b in range(a) if a - b != 3]), 0, id="octahedron-has-no-1-cycle"
        ),
    ],
)
def test_hand_worked(map_: Tensor, birth: int, backend: str, device: torch.device) -> None:
    assert birth_points(map_, backend="ripser").item() == birth
    assert birth_points(map_.to(device), backend=backend).item() == birth


def assert_equals_ripser(maps: Tensor, backend: str, device: torch.device, **settings: float) -> None:
    expected = birth_points(maps, backend="ripser", **settings)
    assert torch.equal(birth_points(maps.to(device), backend=backend, **settings).cpu(), expected)


@pytest.mark.parametrize("n", [3, 4, 5, 6, 9, 13, 16, 17, 31, 33, 40, 64, 65, 100, 129, 256])
def test_every_size(n: int, backend: str, device: torch.device) -> None:
    count = max(1, min(20, 600 // n**2 if backend == "triton" else 4000 // n))
    assert_equals_ripser(gaussian(count, n, n, seed=n), backend, device)


@pytest.mark.parametrize("n", [5, 8, 14, 20, 33, 70])
@pytest.mark.parametrize("levels", [2, 3, 6, 20])
@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
def test_ties(n: int, levels: int, relu: bool, backend: str, device: torch.device) -> None:
    if backend == "triton" and n > (20 if levels > 3 else 14) and device.type == "cpu":
        pytest.skip("thousands of tied edges take minutes under the interpreter")
    count = max(2, (64 if backend == "triton" else 2000) // n)
    assert_equals_ripser(quantised(levels, count, n, n, seed=n * levels, relu=relu), backend, device)


@pytest.mark.parametrize("shape", [(4, 5), (5, 4), (2, 9), (9, 1), (1, 1), (7, 12), (12, 7), (3, 3), (14, 20)])
def test_not_square(shape: tuple[int, int], backend: str, device: torch.device) -> None:
    count = 4 if backend == "triton" else 20
    for maps in (gaussian(count, *shape), quantised(5, count, *shape)):
        assert_equals_ripser(maps, backend, device)


FLOAT8 = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu")
DTYPES = [
    torch.bfloat16,
    torch.float16,
    torch.float64,
    *(getattr(torch, name) for name in FLOAT8 if hasattr(torch, name)),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [7, 14, 28])
def test_dtypes(dtype: torch.dtype, n: int, backend: str, device: torch.device) -> None:
    count = 12 if backend == "triton" else 100
    maps = gaussian(count, n, n).abs().to(dtype)
    expected = birth_points(maps.double(), backend="ripser")
    assert torch.equal(birth_points(maps.to(device), backend=backend).cpu(), expected)


def test_float64_values_that_float32_cannot_tell_apart(backend: str, device: torch.device) -> None:
    maps = edges(4, *([edge] for edge in SQUARE)).double() * 2.0**-40 + 1.0
    assert birth_points(maps.float(), backend="ripser") == 0
    assert birth_points(maps.to(device), backend=backend) == 3


def test_float32_values_that_differ_in_the_last_bits(backend: str, device: torch.device) -> None:
    count = 6 if backend == "triton" else 40
    maps = 1.0 + quantised(40, count, 14, 14) * 2.0**-23
    assert_equals_ripser(maps, backend, device)
    assert_equals_ripser(-maps, backend, device)
    assert_equals_ripser(quantised(300, count, 14, 14) * 2.0**-149, backend, device)


def test_minus_zero_is_zero(backend: str, device: torch.device) -> None:
    maps = quantised(4, 30, 8, 8, relu=True)
    signs = torch.where(gaussian(30, 8, 8) > 0, 1.0, -1.0)
    flipped = torch.where(maps == 0, maps * signs, maps)
    assert torch.signbit(flipped).any()
    expected = birth_points(maps, backend="ripser")
    assert torch.equal(birth_points(flipped.to(device), backend=backend).cpu(), expected)


@pytest.mark.parametrize("max_birth", [1, 5, 50, 255, 1000])
@pytest.mark.parametrize("max_density", [0.05, 0.5, 0.8, 1.0])
def test_settings(max_birth: int, max_density: float, backend: str, device: torch.device) -> None:
    count, n = (4, 8) if backend == "triton" else (60, 12)
    for maps in (gaussian(count, n, n).relu(), quantised(30, count, n, n)):
        assert_equals_ripser(maps, backend, device, max_birth=max_birth, max_density=max_density)


def strided() -> list[pytest.param]:
    base = gaussian(2, 5, 14, 14)
    padded = torch.full((2, 5, 16, 31), torch.nan)
    padded[:, :, 1:15, 2:30:2] = base
    return [
        pytest.param(base.contiguous(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(base.transpose(2, 3), id="transposed"),
        pytest.param(base.permute(1, 0, 2, 3), id="permuted"),
        pytest.param(padded[:, :, 1:15, 2:30:2], id="window-of-nan"),
        pytest.param(base[:, ::2], id="every-other-unit"),
        pytest.param(base[0, 0].expand(2, 3, 14, 14), id="expanded"),
        pytest.param(base[..., :9], id="narrowed"),
        pytest.param(base[:, :, 3:10], id="not-square"),
        pytest.param(base.requires_grad_(), id="with-gradient"),
        pytest.param(base[0, 0], id="two-dimensions"),
        pytest.param(base[0], id="three-dimensions"),
        pytest.param(base[None, :, None], id="six-dimensions"),
    ]


@pytest.mark.parametrize("maps", strided())
@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
def test_strides_and_leading_dimensions(maps: Tensor, half: bool, backend: str, device: torch.device) -> None:
    if half or device.type == "cuda":
        memory = maps.detach().as_strided((maps.untyped_storage().nbytes() // maps.element_size(),), (1,), 0)
        memory = memory.to(device, torch.bfloat16 if half else torch.float32)
        maps = memory.as_strided(maps.shape, maps.stride(), maps.storage_offset())
    expected = birth_points(maps.detach().cpu().contiguous(), backend="ripser")
    found = birth_points(maps, backend=backend)
    assert found.shape == maps.shape[:-2]
    assert found.dtype == torch.int64
    assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("shape", [(0, 3, 14, 14), (3, 0, 14, 14), (2, 3, 0, 14), (2, 3, 14, 0), (0, 8, 8)])
def test_empty(shape: tuple[int, ...], backend: str, device: torch.device) -> None:
    found = birth_points(torch.empty(shape, device=device), backend=backend)
    assert torch.equal(found.cpu(), torch.zeros(shape[:-2], dtype=torch.int64))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, -torch.nan])
@pytest.mark.parametrize("place", [(0, 1), (5, 5), (7, 0)], ids=["above", "diagonal", "below"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_non_finite_maps_have_no_birth(
    value: float, place: tuple[int, int], dtype: torch.dtype, backend: str, device: torch.device
) -> None:
    maps = gaussian(3, 8, 8, seed=4).to(dtype)
    expected = birth_points(maps.double(), backend="ripser")
    assert (expected > 0).all()
    maps[1, place[0], place[1]] = value
    expected[1] = 0
    assert torch.equal(birth_points(maps.to(device), backend=backend).cpu(), expected)


def test_inference_mode(backend: str, device: torch.device) -> None:
    with torch.inference_mode():
        maps = gaussian(2, 4, 10, 10)
        assert_equals_ripser(maps, backend, device)
