"""Logs that somebody has crafted or damaged, and what the plugin makes of them.

Run as a script it takes the names of cases out of :data:`NASTY`, puts them through every route, and prints by how many
megabytes the process grew at its peak.
"""

from __future__ import annotations

import copy
import json
import random
import resource
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
from werkzeug.test import Client

from lightning_unitrole.tensorboard_plugin.index import printable
from lightning_unitrole.tensorboard_plugin.packing import deflate, pack, unpack
from lightning_unitrole.tensorboard_plugin.plugin import UnitRolesPlugin
from lightning_unitrole.tensorboard_plugin.schema import (
    CONTRIBUTIONS,
    CUT_COLUMNS,
    EFFECTS,
    MEASURES,
    NETWORK_COLUMNS,
    OVERVIEW_COLUMNS,
)

UNITS, CLASSES, STEPS = 6, 3, 3
INDEX: dict[str, Any] = {
    "format": 1,
    "layers": [
        {"name": "conv1", "units": UNITS, "map_size": [8, 8]},
        {"name": "conv2", "units": 4, "map_size": [4, 4]},
    ],
    "classes": [0, 1, 2],
    "class_names": ["cat", "dog", "bird"],
    "num_classes": CLASSES,
    "criterion": "feature_entropy",
}
DEEP = "[" * 5000 + "]" * 5000


def contents(step: int) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Header and arrays of one sound report, by part."""
    info = {"format": 1, "epoch": step}
    layer = {**info, "layer": "conv1", "units": UNITS}
    described = [
        {"split": split, "class": klass, "order": order, "points": 4, "turning": 2, "turning_accuracy": 3}
        for split in ("train", "val")
        for klass, order in ((None, "least_first"), (None, "most_first"), (None, "random"), (0, "least_first"))
    ]
    total = 4 * len(described)
    return {
        "overview": (
            {**info, "layers": ["conv1", "conv2"], "columns": list(OVERVIEW_COLUMNS)},
            {"table": np.full((2, len(OVERVIEW_COLUMNS)), 0.5, np.float32)},
        ),
        "conv1/state": (
            layer,
            {
                "roles": np.array([3, 2, 1, 0, 254, 255], np.uint8),
                "rank": np.arange(UNITS, dtype=np.uint16),
                **{name: np.linspace(0, 1, UNITS, dtype=np.float16) for name in (*MEASURES, *CONTRIBUTIONS)},
                **{name: np.array([0, 1, 2, 255, 255, 9], np.uint8) for name in EFFECTS},
            },
        ),
        "conv1/classes": (layer, {"roles": np.arange(CLASSES * UNITS, dtype=np.uint8).reshape(CLASSES, UNITS) % 4}),
        "conv1/contributions": (
            layer,
            {
                name: np.linspace(-1, 1, CLASSES * UNITS, dtype=np.float16).reshape(CLASSES, UNITS)
                for name in CONTRIBUTIONS
            },
        ),
        "conv1/examples": (
            {**layer, "map": [2, 2]},
            {
                "images": np.arange(12 * UNITS).reshape(2, 2, 3, UNITS) % 5 * 1.0,
                "values": np.full((2, 2, 3, UNITS), 0.5, np.float16),
                "classes": np.full((2, 2, 3, UNITS), 1, np.uint16),
                "maps": np.full((2, 2, 3, UNITS, 4), 200, np.uint8),
                "twins": np.array([[1, 0, 3, 2, 9, 65535]], np.uint16),
                "correlation": np.full((1, UNITS), 0.5, np.float16),
            },
        ),
        "thumbnails": (info, {"names": np.arange(1.0, 5), "pixels": np.full((4, 5, 6, 3), 99, np.uint8)}),
        "pruning": (
            {
                **info,
                "layers": ["conv1", "conv2"],
                "columns": {"network": list(NETWORK_COLUMNS), "cuts": list(CUT_COLUMNS)},
                "kept_whole": {"conv3": "it is fixed"},
            },
            {
                "network": np.ones((2, len(NETWORK_COLUMNS))),
                "cuts": np.ones((2, len(CUT_COLUMNS))),
                "widths": np.array([[4, 2], [3, 2]], np.uint32),
                "cut_at": np.array([0, 1, 0, 0, 0, 0], np.uint16),
            },
        ),
        "conv1/curves": (
            {**layer, "curves": described},
            {
                "ablated": np.tile(np.array([0, 2, 3, 6], np.uint32), len(described)),
                "loss": np.ones(total, np.float32),
                "accuracy": np.full(total, 0.5, np.float16),
                "top5": np.full(total, np.nan, np.float16),
            },
        ),
    }


class Log:
    """A data provider with one run whose every byte can be chosen."""

    def __init__(self) -> None:
        self.run: str = "run"
        self.index: Any = json.dumps(INDEX).encode()
        self.events: dict[str, list[Any]] = {}
        for step in range(STEPS):
            for part, (info, arrays) in contents(step).items():
                self.add(part, step, deflate(pack(info, arrays)))

    def add(self, part: str, step: int, data: bytes) -> None:
        tensor = np.frombuffer(data, np.uint8)
        self.events.setdefault(f"unit_roles/{part}", []).append(SimpleNamespace(step=step, wall_time=1.0, numpy=tensor))

    def only(self, part: str, data: bytes, steps: int = 1) -> Log:
        """The same log with other data in one part."""
        self.events[f"unit_roles/{part}"] = []
        for step in range(steps):
            self.add(part, step, data)
        return self

    def list_tensors(self, *_: Any, **__: Any) -> Any:
        tags = {
            tag: SimpleNamespace(
                plugin_content=self.index if tag.endswith("/overview") else b"",
                max_step=max((event.step for event in events), default=0),
                max_wall_time=1.0,
            )
            for tag, events in self.events.items()
        }
        sound = SimpleNamespace(plugin_content=json.dumps(INDEX).encode(), max_step=1, max_wall_time=1.0)
        return {self.run: tags, "sound": {"unit_roles/overview": sound}}

    def read_tensors(self, *_: Any, run_tag_filter: Any, **__: Any) -> Any:
        return {run: {tag: self.events.get(tag, []) for tag in run_tag_filter.tags} for run in run_tag_filter.runs}


ROUTES = (
    ("overview", {}),
    ("layer", {"layer": "0", "fields": ",".join(("roles", "rank", *MEASURES, *CONTRIBUTIONS, *EFFECTS))}),
    ("classes", {"layer": "0", "class": "1"}),
    ("unit", {"layer": "0", "unit": "0"}),
    ("contributions", {"layer": "0", "unit": "0", "step": "1"}),
    ("examples", {"layer": "0", "unit": "0", "step": "1"}),
    ("pruning", {}),
    ("curves", {"layer": "0", "class": "all"}),
    ("curves", {"layer": "0", "class": "0"}),
)


def visit(log: Log) -> int:
    """Ask every route as the tab would; the number of routes that could show something.

    Raises:
        AssertionError: if an answer is an error of the server's, or none that the tab can read.
    """
    apps = UnitRolesPlugin(SimpleNamespace(data_provider=log)).get_plugin_apps()
    response = Client(apps["/runs"]).get("/")
    assert response.status_code == 200
    answer = json.loads(response.data, parse_constant=_refuse)
    names = [run["name"] for run in answer["runs"]]
    assert "sound" in names, "a bad run must not take others with it"
    assert all(run["layers"] or run["pruned"] for run in answer["runs"])
    assert len(names) + len({skipped["run"] for skipped in answer["skipped"]} - set(names)) == 2, "nobody tells why"
    shown = 0
    for path, query in ROUTES:
        response = Client(apps[f"/{path}"]).get("/", query_string={"run": printable(log.run), **query})
        assert response.status_code in (200, 400, 404), (path, response.status_code)
        if response.status_code != 200:
            assert response.json["error"]
            continue
        info, arrays = unpack(response.data)
        steps = len(arrays["steps"])
        assert all(isinstance(reason, str) for reason in info["skipped"])
        alike = path not in ("curves", "examples", "pruning")
        assert all(len(array) == steps for name, array in arrays.items() if alike or name == "epochs")
        shown += steps > 0
    return shown


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


# What stands in the place of a value, a piece of bytes, or an array.
VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 7, 255, 65536, 2**31, 2**40, 2**63, 2**64, 10**400, 0.5, 1e308, -1e308, 1e-320,
    float("nan"), float("inf"), "", "x", "conv1", "\ud800", "\x00", "9" * 3000, "é<b>", [], {}, [[]], [None], {"a": []},
    [0] * 300, ["conv1", "conv1"], {"name": "conv1"}, "feature_entropy", [8, 8], [2**40, 2**40], "val", "least_first",
)  # fmt: skip


def mutate_json(value: Any, chance: random.Random) -> Any:
    """The same JSON with one to three values replaced, removed, repeated or moved."""
    value = copy.deepcopy(value)
    for _ in range(chance.randint(1, 3)):
        places = list(_places(value))
        if not places:
            return chance.choice(VALUES)
        holder, key = chance.choice(places)
        action = chance.randrange(5)
        if action < 2:
            holder[key] = copy.deepcopy(chance.choice(VALUES))
        elif action == 2:
            del holder[key]
        elif action == 3 and isinstance(holder, list):
            holder.insert(key, copy.deepcopy(chance.choice(holder)))
        else:
            other, place = chance.choice(places)
            holder[key] = copy.deepcopy(other[place])
    return value


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def mutate_bytes(data: bytes, chance: random.Random) -> bytes:
    """The same bytes with some of them changed, cut off, doubled or inserted."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        action = chance.randrange(4)
        if action == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif action == 1:
            del changed[at : at + chance.randint(1, 1 + len(changed) // 2)]
        elif action == 2:
            changed[at:at] = changed[at : at + chance.randint(1, 40)]
        else:
            changed[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(changed)


def raw(info: Any, arrays: Any, data: bytes) -> bytes:
    """A container with any header at all."""
    header = json.dumps({"info": info, "arrays": arrays}).encode()
    return b"URB1" + struct.pack("<I", len(header)) + header + data


def mutated(seed: int) -> Log:
    """One log, wrong in one of many ways."""
    chance = random.Random(seed)
    log = Log()
    part = chance.choice(list(contents(0)))
    info, arrays = contents(1)[part]
    whole = pack(info, arrays)
    kind = chance.randrange(10)
    if kind < 3:
        log.index = json.dumps(mutate_json(INDEX, chance)).encode()
    elif kind == 3:
        log.index = mutate_bytes(log.index, chance)
    elif kind == 4:
        log.add(part, 9, mutate_bytes(deflate(whole), chance))
    elif kind == 5:
        log.add(part, 9, deflate(mutate_bytes(whole, chance)))
    elif kind == 6:
        (length,) = struct.unpack_from("<I", whole, 4)
        header = mutate_json(json.loads(whole[8 : 8 + length]), chance)
        header = header if isinstance(header, dict) else {}
        log.add(part, 9, deflate(raw(header.get("info"), header.get("arrays"), whole[8 + length :])))
    elif kind == 7:
        name = chance.choice(list(arrays))
        dtype = chance.choice([np.uint8, np.uint16, np.uint32, np.float16, np.float32, np.float64])
        shape = chance.choice(
            [(), (0,), (1,), (UNITS,), (UNITS, 1), (2, 19), (0, UNITS), (40, UNITS), (64,), (3, 3, 3)]
        )
        with np.errstate(all="ignore"):
            values = np.full(shape, chance.choice([0, 1, 77, 253, np.nan, np.inf, -np.inf, 3e38])).astype(dtype)
        log.add(part, 9, deflate(pack(info, {**arrays, name: values})))
    elif kind == 8:
        (length,) = struct.unpack_from("<I", whole, 4)
        described = json.loads(whole[8 : 8 + length])["arrays"]
        log.add(part, 9, deflate(raw(mutate_json(info, chance), described, whole[8 + length :])))
    else:
        _disturb(log, part, chance)
    return log


def _disturb(log: Log, part: str, chance: random.Random) -> None:
    """What a data provider may hand out that no sound log makes it hand out."""
    event = chance.choice(log.events[f"unit_roles/{part}"])
    action = chance.randrange(6)
    if action == 0:
        event.numpy = chance.choice(
            [
                np.array([b"x", None], object),
                np.array(b"x"),
                np.zeros(3),
                np.zeros((2, 2), np.uint8),
                np.array("x"),
                None,
            ]
        )
    elif action == 1:
        event.step = chance.choice([-1, 0, 2**62, 2**63 - 1, -(2**63)])
    elif action == 2:
        del log.events[f"unit_roles/{part}"]
    elif action == 3:
        log.run = chance.choice(["", "\udcff", "a/b", "sound\x00", "é" * 3000])
    elif action == 4:
        log.index = chance.choice([b"", DEEP.encode(), b"\xff\xfe", b"9" * 5000, b'{"format":' + b"[" * 9999])
    else:
        log.events[f"unit_roles/{part}"] = []


def bomb(size: int) -> bytes:
    """Deflated zeros, without ever holding or even deflating them all."""
    machine = zlib.compressobj()
    first, again = (machine.compress(bytes(1 << 20)) + machine.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * ((size >> 20) - 1)


def _wide(units: int, classes: int = 0) -> Log:
    log = Log()
    names = [f"class {place}" for place in range(classes)]
    index = {**INDEX, "classes": list(range(classes)), "class_names": names, "num_classes": classes}
    index["layers"] = [{"name": "conv1", "units": units, "map_size": [4, 4]}]
    log.index = json.dumps(index).encode()
    return log


def _wide_state(steps: int) -> Log:
    units = 65_535
    arrays = {"roles": np.zeros(units, np.uint8), "rank": np.zeros(units, np.uint16)}
    arrays |= {name: np.zeros(units, np.float16) for name in MEASURES}
    return _wide(units).only("conv1/state", deflate(pack({"format": 1, "epoch": 0, "units": units}, arrays)), steps)


def _many_classes(steps: int) -> Log:
    units, classes = 16_384, 1000
    data = deflate(pack({"format": 1, "epoch": 0, "units": units}, {"roles": np.zeros((classes, units), np.uint8)}))
    return _wide(units, classes).only("conv1/classes", data, steps)


def _many_curves(steps: int) -> Log:
    curves = 200_000
    described = [{"split": "val", "class": None, "order": "random", "points": 1, "turning": 0, "turning_accuracy": 0}]
    arrays = {name: np.zeros(curves, dtype) for name, dtype in (("ablated", "u4"), ("loss", "f4"), ("accuracy", "f2"))}
    data = pack({"format": 1, "epoch": 0, "units": 65_535, "curves": described * curves}, arrays)
    return _wide(65_535, 200).only("conv1/curves", deflate(data), steps)


def _header(text: bytes, units: int = 65_535) -> Log:
    container = b"URB1" + struct.pack("<I", len(text)) + text
    return _wide(units).only("conv1/state", deflate(container), 2000)


def _index(text: bytes) -> Log:
    log = Log()
    log.index = text
    return log


NASTY: dict[str, Callable[[], Log]] = {
    "one bomb of 4 GB": lambda: Log().only("conv1/state", bomb(1 << 32)),
    "1,000 bombs": lambda: Log().only("conv1/state", bomb(1 << 26), 1000),
    "1,000 bombs in a wide layer": lambda: _wide(65_535).only("conv1/state", bomb(1 << 26), 1000),
    "bombs in the overview": lambda: Log().only("overview", bomb(1 << 28), 100),
    "curves that are bombs": lambda: _wide(65_535, 1000).only("conv1/curves", bomb(1 << 28), 100),
    "a shape of 10^18": lambda: Log().only(
        "conv1/state", deflate(raw({"format": 1, "epoch": 0, "units": 6}, [["roles", "u1", [10**9, 10**9], 0]], b""))
    ),
    "1,000 analyses of 65,535 units": lambda: _wide_state(1000),
    "50 analyses of 16 million pairs": lambda: _many_classes(50),
    "200,000 curves": lambda: _many_curves(20),
    "a header of lists": lambda: _header(b'{"info": [' + b"[]," * 300_000 + b"0]}"),
    "a header of 30 MB": lambda: _header(b'{"info": [' + b"[]," * 10_000_000 + b"0]}"),
    "a deep header": lambda: _header(b"[" * 1_000_000),
    "an index of 60 MB": lambda: _index(b'{"format": 1, "layers": [' + b"[]," * 20_000_000 + b"0]}"),
    "an index of lists": lambda: _index(b'{"format": 1, "layers": [' + b"[]," * 300_000 + b"0]}"),
    "an index of layers": lambda: _index(
        json.dumps({**INDEX, "layers": [{"name": str(i), "units": 65_535, "map_size": [1, 1]} for i in range(15_000)]})
        .encode()
    ),
    "50,000 empty events": lambda: Log().only("conv1/state", b"", 50_000),
}  # fmt: skip


if __name__ == "__main__":
    for name in sys.argv[1:]:
        visit(Log())
        crafted = NASTY[name]()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        visit(crafted)
        print(json.dumps([name, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024]), flush=True)
