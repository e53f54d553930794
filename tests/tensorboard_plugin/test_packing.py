from __future__ import annotations

import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest

from lightning_unitrole.tensorboard_plugin.packing import ALIGNMENT, DTYPES, deflate, inflate, pack, unpack, unpack_some


def test_arrays_come_back_as_they_were() -> None:
    arrays = {kind: np.arange(7).astype(f"<{kind}").reshape(7, 1) for kind in DTYPES}
    arrays["empty"] = np.empty((0, 3), np.uint8)
    info, back = unpack(pack({"layer": "é<b>"}, arrays))
    assert info == {"layer": "é<b>"}
    assert list(back) == list(arrays)
    for name, array in arrays.items():
        assert back[name].dtype == array.dtype
        np.testing.assert_array_equal(back[name], array)


def test_a_strided_array_is_packed_as_it_reads() -> None:
    array = np.arange(12, dtype=np.uint16).reshape(3, 4).T[::2]
    np.testing.assert_array_equal(unpack(pack({}, {"a": array}))[1]["a"], array)


@pytest.mark.parametrize("name", ["a", "ab", "a longer name"])
def test_every_array_lies_where_a_browser_can_view_it(name: str) -> None:
    data = pack({}, {name: np.zeros(3, np.uint8), "next": np.ones(2, np.float64)})
    assert data.index(np.ones(2).tobytes()) % ALIGNMENT == 0


def test_another_dtype_is_refused() -> None:
    with pytest.raises(TypeError, match="Array 'roles' has dtype int64; expected one of u1, u2"):
        pack({}, {"roles": np.arange(3)})


def test_nan_has_no_place_in_the_header() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack({"gap": float("nan")}, {})


@pytest.mark.parametrize("data", [b"", b"URB1", b"something else"])
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a container"):
        unpack(data)


def test_a_deflated_container_comes_back() -> None:
    data = pack({}, {"a": np.zeros(10_000, np.uint8)})
    assert inflate(deflate(data)) == data
    assert len(deflate(data)) < len(data) / 10


def test_damaged_and_huge_data_are_refused() -> None:
    whole = deflate(bytes(5000))
    with pytest.raises(ValueError, match="damaged"):
        inflate(b"not deflated")
    with pytest.raises(ValueError, match="cut off"):
        inflate(whole[:-5])
    with pytest.raises(ValueError, match="more than 4000 bytes"):
        inflate(zlib.compress(bytes(5000)), 4000)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, count).astype(np.uint8)


@pytest.mark.parametrize("names", [(), ("first",), ("second", "first"), ("last",), ("nowhere", "second")])
@pytest.mark.parametrize("size", [3, 20_000], ids=["small", "large"])
def test_some_arrays_are_those_of_the_whole(names: tuple[str, ...], size: int) -> None:
    arrays = {"first": noise(size), "second": noise(size + 1), "last": noise(size + 2)}
    whole = pack({"epoch": 3}, arrays)
    info, found, header, length = unpack_some(deflate(whole), names)
    assert info == {"epoch": 3}
    assert list(found) == [name for name in arrays if name in names]
    for name, array in found.items():
        np.testing.assert_array_equal(array, arrays[name])
    assert header == struct.unpack_from("<I", whole, 4)[0]
    assert 0 <= len(whole) - length < ALIGNMENT


def test_what_lies_behind_the_wanted_arrays_is_not_inflated() -> None:
    deflated = deflate(pack({}, {"first": noise(10_000), "last": noise(100_000)}))
    broken = deflated[:60_000] + bytes(len(deflated) - 60_000)
    np.testing.assert_array_equal(unpack_some(broken, ["first"])[1]["first"], noise(10_000))
    with pytest.raises(ValueError, match=r"damaged|fewer bytes"):
        unpack_some(broken, ["last"])
    assert list(unpack_some(deflated, ["first"], limit=20_000)[1]) == ["first"]
    with pytest.raises(ValueError, match="fewer bytes"):
        unpack_some(deflated, ["last"], limit=20_000)


def test_a_bomb_is_inflated_no_further_than_its_header() -> None:
    bomb = zlib.compress(described(["a", "u1", [16], 0]) + bytes(1 << 26))
    tracemalloc.start()
    assert unpack_some(bomb, ["a"])[1]["a"].tolist() == [0] * 16
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def described(*arrays: object, info: object = None) -> bytes:
    """A container with 16 bytes of data and whatever header."""
    header = json.dumps({"info": info or {}, "arrays": arrays}).encode()
    return b"URB1" + struct.pack("<I", len(header)) + header + bytes(16)


@pytest.mark.parametrize(
    ("container", "words"),
    [
        (described(["a", "u1", [17], 0]), "fewer bytes than the header says"),
        (described(["a", "f8", [2], 8]), "fewer bytes than the header says"),
        (described(["a", "u1", [2**40], 0]), "impossible size"),
        (described(["a", "u1", [2**20, 2**20, 2**20], 0]), "fewer bytes than the header says"),
        (described(["a", "u1", [-1], 0]), "impossible size"),
        (described(["a", "u1", [True], 0]), "impossible size"),
        (described(["a", "u1", [1.0], 0]), "impossible size"),
        (described(["a", "u1", [1], -4]), "impossible size"),
        (described(["a", "u1", 16, 0]), "impossible size"),
        (described(["a", "u1", [1] * 9, 0]), "impossible size"),
        (described(["a", "O", [1], 0]), "unknown type"),
        (described(["a", ["u1"], [1], 0]), "unknown type"),
        (described([["a"], "u1", [1], 0]), "unknown type"),
        (described("a"), "header is damaged"),
        (described(*[["a", "u1", [1], 0]] * 65), "header is damaged"),
        (described(info=[1]), "header is damaged"),
        (b"URB1" + struct.pack("<I", 4) + b"[]  ", "header is damaged"),
        (b"URB1" + struct.pack("<I", 100_000) + b"[" * 100_000, "header is damaged"),
        (b"URB1" + struct.pack("<I", 2**32 - 1) + b"{}", "header is longer"),
    ],
)
def test_a_header_is_not_believed(container: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        unpack(container)
    with pytest.raises(ValueError, match=words):
        unpack_some(deflate(container), ["a"])
