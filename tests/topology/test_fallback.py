"""Backends that are missing, that fail, and that give wrong births."""

import errno
import importlib.util
import sys
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import pytest
import torch
from topology_maps import gaussian
from torch import Tensor

from lightning_unitrole.errors import BackendError
from lightning_unitrole.topology import birth_points, count_births, fallback, numba_backend, triton_backend


@pytest.fixture(autouse=True)
def nothing_has_failed_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fallback, "_faulty", set())
    monkeypatch.setattr(fallback, "_tried", set())
    monkeypatch.setattr(fallback, "_said", False)


def counted(maps: Tensor, backend: str = "auto") -> Tensor:
    """Histograms of maps of which the second image is skipped and the others are of two classes."""
    groups = torch.arange(len(maps)) % 2
    groups[1] = -1
    counts = torch.zeros(2, maps.shape[1], 51, dtype=torch.int32)
    count_births(maps, groups, counts, torch.zeros(2, maps.shape[1], dtype=torch.int32), backend=backend)
    return counts


@pytest.mark.parametrize(
    ("module", "backend", "text"),
    [
        ("numba", "numba", r'pip install "lightning-unitrole\[cpu\]"'),
        ("ripser", "ripser", "pip install ripser"),
        ("triton", "triton", "pip install triton"),
    ],
)
def test_a_backend_that_is_missing(module: str, backend: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BackendError, match=f"'{backend}' cannot run here: .*{text}"):
        birth_points(torch.zeros(4, 4), backend=backend)


def test_triton_wants_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", minversion="3.0", reason="no Triton here, or one whose interpreter lacks much")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(BackendError, match="works on CUDA tensors, got a tensor on cpu; use backend='auto'"):
        birth_points(torch.zeros(4, 4), backend="triton")


def test_triton_has_a_largest_map(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton", minversion="3.0", reason="no Triton here, or one whose interpreter lacks much")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(BackendError, match="up to 256x256, got side 257; use backend='torch'"):
        birth_points(torch.zeros(257, 4), backend="triton")


def test_auto_takes_numba_on_a_cpu() -> None:
    assert fallback._choose(torch.zeros(1, 1, 8, 8), 50) == "numba"


def test_auto_without_numba_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "numba" else find(name))
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    maps = gaussian(5, 6, 6)
    with pytest.warns(UserWarning, match=r'To install it: pip install "lightning-unitrole\[cpu\]"'):
        first = birth_points(maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(birth_points(maps), first)
    assert torch.equal(birth_points(maps, backend="ripser"), first)


def test_only_the_first_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fallback._say_once()
    assert fallback._said is False


def no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        def find_spec(self, name: str, path: object = None, target: object = None) -> None:
            if name == "numba":
                raise AttributeError("_ARRAY_API not found")

    for name in [name for name in sys.modules if name.partition(".")[0] == "numba"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "lightning_unitrole.topology.numba_kernels", raising=False)
    spec = importlib.util.find_spec("numba")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])


def no_kernels(error: Exception) -> Callable[[pytest.MonkeyPatch], None]:
    def fail(*arguments: object) -> None:
        raise error

    return lambda monkeypatch: monkeypatch.setattr(numba_backend, "_kernels", fail)


NUMBA_FAULTS = [
    pytest.param(no_import, "AttributeError|_ARRAY_API not found", id="import"),
    pytest.param(no_kernels(ImportError("Numba needs NumPy 2.3 or less")), "ImportError: Numba needs", id="kernels"),
    pytest.param(no_kernels(RuntimeError("LLVM ERROR")), "RuntimeError: LLVM ERROR", id="compile"),
]


@pytest.mark.parametrize(("breaks", "text"), NUMBA_FAULTS)
@pytest.mark.parametrize("job", [birth_points, counted], ids=["births", "counts"])
def test_auto_lives_without_numba(
    breaks: Callable[[pytest.MonkeyPatch], None],
    text: str,
    job: Callable[..., Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    maps = gaussian(4, 5, 9, 9)
    expected = job(maps, backend="torch")
    breaks(monkeypatch)
    with pytest.warns(UserWarning, match=f"computed with torch from now on.*({text}).*NUMBA_CACHE_DIR") as said:
        assert torch.equal(job(maps), expected)
    assert len(said) == 1
    assert torch.equal(job(maps), expected)  # a second warning would be an error


@pytest.mark.parametrize(("breaks", "text"), NUMBA_FAULTS)
def test_numba_by_name_says_what_to_do(
    breaks: Callable[[pytest.MonkeyPatch], None], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch)
    with pytest.raises(BackendError, match=rf"'numba' .*({text}).*(NUMBA_CACHE_DIR|pip install)"):
        birth_points(gaussian(3, 9, 9), backend="numba")


def compile_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_unitrole.topology import numba_kernels

    monkeypatch.setattr("numba.core.caching.Cache.load_overload", lambda *arguments: None)
    monkeypatch.setattr(numba_kernels, "_make_scan", cache(numba_kernels._make_scan.__wrapped__))


@pytest.mark.slow
def test_auto_lives_with_a_full_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    compile_again(monkeypatch)
    monkeypatch.setattr("numba.core.caching.Cache.save_overload", save)
    maps = gaussian(3, 9, 9)
    with pytest.warns(UserWarning, match="OSError: .*No space left on device.*NUMBA_CACHE_DIR"):
        found = birth_points(maps)
    assert torch.equal(found, birth_points(maps, backend="torch"))


@pytest.mark.slow
def test_numba_compiles_in_memory_where_no_folder_is_writable(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locator(*arguments: object) -> None:
        raise RuntimeError("cannot cache function: no locator available")

    compile_again(monkeypatch)
    monkeypatch.setattr("numba.core.caching.CacheImpl.__init__", no_locator)
    maps = gaussian(3, 9, 9)
    assert torch.equal(birth_points(maps), birth_points(maps, backend="torch"))


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """As if the maps were on a GPU: auto takes triton, under its interpreter. Returns the list of launches."""
    pytest.importorskip("triton", minversion="3.0", reason="no Triton here, or one whose interpreter lacks much")
    launches: list[str] = []

    def choose(maps: Tensor, max_birth: int) -> str:
        return "torch" if fallback._place(maps) in fallback._faulty else "triton"

    def births(maps: Tensor, steps: int) -> Tensor:
        launches.append("births")
        return raw_births(maps, steps)

    def counts(*arguments: object) -> bool:
        launches.append("counts")
        return count(*arguments)

    raw_births, count = triton_backend.raw_births, triton_backend.count
    monkeypatch.setattr(fallback, "_choose", choose)
    monkeypatch.setattr(triton_backend, "raw_births", births)
    monkeypatch.setattr(triton_backend, "count", counts)
    return launches


@pytest.mark.slow
def test_auto_tries_triton_once_for_each_kind_of_launch(on_a_gpu: list[str]) -> None:
    maps = gaussian(4, 3, 6, 6)
    expected = birth_points(maps, backend="torch")
    for launched in (2, 3):
        assert torch.equal(birth_points(maps), expected)
        assert on_a_gpu.count("births") == launched
    for launched in (2, 3):
        assert torch.equal(counted(maps), counted(maps, "torch"))
        assert on_a_gpu.count("counts") == launched
    assert torch.equal(birth_points(maps.bfloat16()), birth_points(maps.bfloat16(), backend="torch"))
    assert on_a_gpu.count("births") == 6


def wrong_births(triton: ModuleType) -> None:
    right = triton.raw_births
    triton.raw_births = lambda maps, steps: right(maps, steps) + 1


def wrong_counts(triton: ModuleType) -> None:
    triton.count = lambda maps, groups, counts, non_finite, steps: bool(counts[1].add_(1).any())


def no_compiler(triton: ModuleType) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("PassManager::run failed")

    triton._launch = fail


@pytest.mark.parametrize(
    ("breaks", "text"),
    [
        pytest.param(wrong_births, "12 of 12 births differ from those that torch finds", id="births"),
        pytest.param(wrong_counts, "the births that it counts are not those", id="counts"),
        pytest.param(no_compiler, "RuntimeError: PassManager::run failed", id="compiler"),
    ],
)
def test_auto_lives_without_triton(
    breaks: Callable[[ModuleType], None], text: str, on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("raw_births", "count", "_launch"):  # so that they are restored
        monkeypatch.setattr(triton_backend, name, getattr(triton_backend, name))
    breaks(triton_backend)
    maps = gaussian(4, 3, 6, 6)
    expected = counted(maps, "torch")
    with pytest.warns(UserWarning, match=f"for 6x6 maps on cpu are computed with torch from now on.*{text}") as said:
        assert torch.equal(counted(maps), expected)
    assert len(said) == 1
    assert torch.equal(counted(maps), expected)
    assert torch.equal(birth_points(maps), birth_points(maps, backend="torch"))
    with pytest.warns(UserWarning, match="for 7x7 maps on cpu"):
        counted(gaussian(4, 3, 7, 7))


def test_triton_by_name_says_what_to_do(on_a_gpu: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_backend, "_launch", None)
    with pytest.raises(BackendError, match=r"'triton' failed \(TypeError: .*or use backend='torch'"):
        birth_points(gaussian(4, 3, 6, 6), backend="triton")
