"""Counting, the choice of a backend, and what is said about wrong input."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from topology_maps import Subject, gaussian, quantised
from torch import Tensor

from lightning_unitrole.errors import BackendError, DataError, SettingError
from lightning_unitrole.topology import betti_curve, birth_points, count_births, count_dtype, selector


def expected_counts(maps: Tensor, groups: Tensor, classes: int, max_birth: int) -> tuple[Tensor, Tensor]:
    """Counted one map at a time, from ripser's births."""
    counts = torch.zeros(classes, maps.shape[1], max_birth + 1, dtype=torch.int64)
    lost = torch.zeros(classes, maps.shape[1], dtype=torch.int64)
    births = birth_points(maps, max_birth=max_birth, backend="ripser")
    for image, group in enumerate(groups.tolist()):
        for unit in range(maps.shape[1]):
            if group >= 0 and torch.isfinite(maps[image, unit]).all():
                counts[group, unit, births[image, unit]] += 1
            elif group >= 0:
                lost[group, unit] += 1
    return counts, lost


def check_counts(
    backend: str,
    device: torch.device,
    units: int,
    max_birth: int,
    dtypes: tuple[torch.dtype, ...] = (torch.int16, torch.int32, torch.int64),
) -> None:
    maps = torch.cat([gaussian(6, units, 8, 8), quantised(4, 3, units, 8, 8)])
    maps[2, 1, 0, 3] = torch.nan
    maps[3, 0, 7, 7] = torch.inf
    groups = torch.tensor([0, 2, 2, -1, 0, 2, 2, -1, 0])
    expected, lost = expected_counts(maps, groups, 3, max_birth)
    assert lost.sum() == 1
    for dtype in dtypes:
        counts = torch.ones(3, units, max_birth + 1, dtype=dtype, device=device)
        non_finite = torch.ones(3, units, dtype=dtype, device=device)
        with torch.inference_mode():
            count_births(maps.to(device), groups.to(device), counts, non_finite, max_birth=max_birth, backend=backend)
        assert counts.dtype == dtype
        assert torch.equal(counts.cpu().long() - 1, expected), dtype
        assert torch.equal(non_finite.cpu().long() - 1, lost), dtype


@pytest.mark.sampled(2)
# An odd number of 16-bit bins takes another path on a GPU than an even one.
@pytest.mark.parametrize(("units", "max_birth"), [(5, 50), (4, 50), (3, 8)])
def test_counts(units: int, max_birth: int, subject: Subject) -> None:
    if subject.few and units == 5:
        pytest.skip("the interpreter is slow, and 3 x 9 bins are odd as well")
    every = (torch.int16, torch.int32, torch.int64)
    few = (torch.int16, torch.int64 if units == 4 else torch.int32)
    check_counts(subject.backend, subject.device, units, max_birth, few if subject.few else every)


@pytest.mark.parametrize(("units", "max_birth"), [(5, 50), (3, 8)])
def test_counts_of_ripser(units: int, max_birth: int) -> None:
    check_counts("ripser", torch.device("cpu"), units, max_birth)


def test_counts_in_part_of_a_tensor(backend: str, device: torch.device) -> None:
    maps, groups = gaussian(4, 3, 7, 7), torch.tensor([0, 1, 1, -1])
    expected, lost = expected_counts(maps, groups, 2, 50)
    home = torch.zeros(2, 9, 60, dtype=torch.int16, device=device)
    non_finite = torch.zeros(2, 7, dtype=torch.int32, device=device)
    count_births(maps.to(device), groups.to(device), home[:, 2:5, 4:55], non_finite[:, 1:4], backend=backend)
    assert torch.equal(home[:, 2:5, 4:55].cpu().long(), expected)
    assert home.sum() == expected.sum()
    assert torch.equal(non_finite[:, 1:4].cpu().long(), lost)


def test_counts_of_tiny_and_no_maps(backend: str, device: torch.device) -> None:
    counts = torch.zeros(1, 2, 51, dtype=torch.int32, device=device)
    non_finite = torch.zeros(1, 2, dtype=torch.int32, device=device)
    maps = torch.zeros(3, 2, 3, 3, device=device)
    maps[0, 1, 0, 0] = torch.nan
    count_births(maps, torch.tensor([0, 0, -1], device=device), counts, non_finite, backend=backend)
    none = torch.zeros(0, dtype=torch.int64, device=device)
    count_births(torch.zeros(0, 2, 8, 8, device=device), none, counts, non_finite, backend=backend)
    assert counts[0, :, 0].tolist() == [2, 1]
    assert counts.sum() == 3
    assert non_finite.tolist() == [[0, 1]]


def test_count_dtype_holds_the_largest_job() -> None:
    assert count_dtype(32767) == torch.int16
    assert count_dtype(32768) == torch.int32
    assert count_dtype(2**31) == torch.int64
    assert 1000 * 4224 * 51 * torch.iinfo(count_dtype(1300)).bits // 8 < 500e6
    with pytest.raises(SettingError, match="must not be negative, got -1"):
        count_dtype(-1)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"max_birth": 0}, "max_birth must be an integer of at least 1 .* got 0"),
        ({"max_birth": 2.5}, "max_birth must be an integer of at least 1 .* got 2.5"),
        ({"max_birth": True}, "max_birth must be an integer"),
        ({"max_density": 0.0}, r"max_density must be a number above 0 and at most 1 .* got 0\.0"),
        ({"max_density": 1.5}, r"max_density must be .* got 1\.5"),
        ({"max_density": float("nan")}, "max_density must be .* got nan"),
        ({"backend": "cuda"}, "backend must be one of auto, ripser, torch, numba, triton; got 'cuda'"),
    ],
)
def test_wrong_settings(settings: dict[str, float], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        birth_points(torch.zeros(4, 4), **settings)


@pytest.mark.parametrize(
    ("maps", "text"),
    [
        ([[1.0]], r"must be a torch\.Tensor, got list"),
        (torch.zeros(4), r"must have the shape \[\.\.\., H, W\], got \[4\]"),
        (torch.zeros(4, 4, dtype=torch.int64), r"must be floating point, got torch\.int64; convert with maps\.float"),
    ],
)
def test_wrong_maps(maps: Tensor, text: str) -> None:
    with pytest.raises(DataError, match=text):
        birth_points(maps)


@pytest.mark.skipif(not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch has no float4")
def test_maps_that_torch_cannot_convert() -> None:
    packed = torch.zeros(4, 4, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    with pytest.raises(DataError, match=r"cannot convert maps of type torch\.float4_e2m1fn_x2 to float32"):
        birth_points(packed)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"maps": torch.zeros(2, 8, 8)}, r"\[images, units, H, W\], got \[2, 8, 8\]"),
        ({"groups": torch.zeros(3, dtype=torch.int64)}, r"one class index per image \(2\), got torch\.int64 \[3\]"),
        ({"groups": torch.zeros(2)}, r"got torch\.float32 \[2\]"),
        ({"counts": torch.zeros(2, 3, 50, dtype=torch.int64)}, r"\[classes, 3 units, 51 bins\] .* got \[2, 3, 50\]"),
        ({"counts": torch.zeros(2, 3, 51)}, r"counts must be int16, int32 or int64, got torch\.float32"),
        ({"non_finite": torch.zeros(3, 3, dtype=torch.int64)}, r"non_finite must be \[2, 3\] as counts is"),
        ({"groups": torch.zeros(2, dtype=torch.int64, device="meta")}, "must be on one device, got cpu, meta"),
    ],
)
def test_wrong_counting(change: dict[str, Tensor], text: str) -> None:
    arguments = {
        "maps": torch.zeros(2, 3, 8, 8),
        "groups": torch.zeros(2, dtype=torch.int64),
        "counts": torch.zeros(2, 3, 51, dtype=torch.int64),
        "non_finite": torch.zeros(2, 3, dtype=torch.int64),
    }
    with pytest.raises(DataError, match=text):
        count_births(**(arguments | change))


def test_betti_curve_without_ripser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ripser", None)
    with pytest.raises(BackendError, match="pip install ripser"):
        betti_curve(torch.rand(5, 5))


@pytest.mark.slow
@pytest.mark.parametrize("extra", ["", "import numba"], ids=["as-is", "the-check-can-fail"])
def test_import_is_cheap(extra: str) -> None:
    program = (
        f"import torch, sys; before = set(sys.modules); import lightning_unitrole.topology; {extra}\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(sorted(new & {'triton', 'numba', 'llvmlite', 'ripser', 'scipy', 'matplotlib', 'pandas'}))"
    )
    # The package itself may load more for its other parts; this is about the topology alone.
    folder = str(Path(selector.__file__).parent.parent)
    bare = (
        "import sys, types; package = types.ModuleType('lightning_unitrole')\n"
        f"package.__path__ = [{folder!r}]; sys.modules['lightning_unitrole'] = package\n"
    )
    program = bare + program
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert (result.stdout.strip() == "[]") is (extra == "")


def test_numba_threads_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_unitrole.topology import numba_backend

    maps = gaussian(13, 37, 12, 12)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    one = birth_points(maps, backend="numba")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    monkeypatch.setattr(numba_backend, "_MIN_WORK", 1)
    assert torch.equal(birth_points(maps, backend="numba"), one)
    assert torch.equal(birth_points(maps[:1, :1], backend="numba"), one[:1, :1])


def test_betti_curve_starts_at_the_birth() -> None:
    for map_ in torch.cat([gaussian(20, 9, 9), quantised(12, 20, 9, 9)]):
        curve = betti_curve(map_)
        birth = birth_points(map_, backend="numba").item()
        alive = curve.nonzero().flatten().tolist()
        assert (alive[0] if alive and alive[0] <= 50 else 0) == birth


def test_betti_curve_limits() -> None:
    map_ = gaussian(9, 9)
    assert len(betti_curve(map_)) == 29  # ceil(0.8 * 36)
    assert len(betti_curve(map_, max_density=1.0)) == 36
    assert torch.equal(betti_curve(map_, max_steps=10), betti_curve(map_)[:10])
    assert betti_curve(map_, max_density=1.0)[-1] == 0
    assert len(betti_curve(torch.ones(5, 5))) == 1
    assert len(betti_curve(torch.ones(1, 1))) == 0


@pytest.mark.parametrize(
    ("map_", "settings", "error", "text"),
    [
        (torch.zeros(2, 4, 4), {}, DataError, r"shape \[H, W\], got \[2, 4, 4\]"),
        (torch.full((4, 4), torch.nan), {}, DataError, "NaN or infinite values is not defined"),
        (
            torch.zeros(4, 4),
            {"max_steps": 0},
            SettingError,
            "max_steps must be an integer of at least 1 or None, got 0",
        ),
        (torch.zeros(4, 4), {"max_density": 2.0}, SettingError, "max_density must be .* got 2.0"),
    ],
)
def test_betti_curve_refuses(map_: Tensor, settings: dict[str, float], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        betti_curve(map_, **settings)
