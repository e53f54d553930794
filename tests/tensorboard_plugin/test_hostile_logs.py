"""A log may come from anybody: whatever is in it, the tab's server answers, says why, and stays small."""

from __future__ import annotations

import json
import random
import struct
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from google.protobuf.message import DecodeError
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard_plugin import hostile
from tensorboard_plugin.hostile import NASTY, ROUTES, Log, mutated, visit
from tensorboard_plugin.synthetic import Spec, Training, log_run
from werkzeug.test import Client

from lightning_unitrole.tensorboard_plugin.plugin import UnitRolesPlugin

MEGABYTES = 200
SEED = 20_270_000


def test_a_sound_log_is_shown_in_full() -> None:
    assert visit(Log()) == len(ROUTES)


def test_the_check_can_fail() -> None:
    log = Log()
    log.list_tensors = lambda *_, **__: {}  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="must not take others with it"):
        visit(log)


@pytest.mark.sampled(1)
@pytest.mark.parametrize("block", range(10))
def test_a_thousand_mutated_logs_raise_nothing(block: int) -> None:
    """Most of them still show what is sound in them."""
    shown = sum(visit(mutated(SEED + seed)) for seed in range(100 * block, 100 * (block + 1)))
    assert shown > 0.5 * 100 * len(ROUTES)


@pytest.mark.slow
@pytest.mark.parametrize("block", range(20))
def test_many_more_mutated_logs_raise_nothing(block: int) -> None:
    for seed in range(1000):
        visit(mutated(SEED + 10_000 + 1000 * block + seed))


def grown(*names: str) -> dict[str, float]:
    """By how many megabytes the peak of a new process grows with each case."""
    command = [sys.executable, hostile.__file__, *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_no_crafted_log_takes_much_memory() -> None:
    """All in one process, whose peak no case may raise: quicker than a process for each."""
    growth = grown(*NASTY)
    assert set(growth) == set(NASTY)
    assert sum(growth.values()) < MEGABYTES


@pytest.mark.slow
@pytest.mark.parametrize("name", NASTY)
def test_no_crafted_log_takes_much_memory_by_itself(name: str) -> None:
    assert grown(name)[name] < MEGABYTES


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The bytes of a small sound log."""
    root = tmp_path_factory.mktemp("sound")
    log_run(root, Training((Spec("conv1", 6, (8, 8)),), ("a", "b"), points=4), 3)
    (file,) = root.glob("events*")
    return file.read_bytes()


def asked(directory: Path) -> list[int]:
    """Status of every route for a log on the disk, read by TensorBoard itself."""
    multiplexer = EventMultiplexer(tensor_size_guidance={"unit_roles": 0})
    multiplexer.AddRunsFromDirectory(str(directory))
    multiplexer.Reload()
    provider = MultiplexerDataProvider(multiplexer, str(directory))
    apps = UnitRolesPlugin(SimpleNamespace(data_provider=provider)).get_plugin_apps()
    queries = [("runs", {}), *((path, {"run": ".", **query}) for path, query in ROUTES)]
    return [Client(apps[f"/{path}"]).get("/", query_string=query).status_code for path, query in queries]


def test_a_sound_file_is_shown(tmp_path: Path, events: bytes) -> None:
    (tmp_path / "events.out.tfevents.1").write_bytes(events)
    assert asked(tmp_path) == [200] * (1 + len(ROUTES))


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_raises_nothing(tmp_path: Path, events: bytes, seed: int) -> None:
    """Damaged in its protocol buffers, with checksums that are right again."""
    (tmp_path / "events.out.tfevents.1").write_bytes(damaged(events, seed))
    assert set(asked(tmp_path)) <= {200, 404}


def damaged(events: bytes, seed: int) -> bytes:
    """The records of a log, each with a few bytes changed, but so that TensorBoard itself can still parse them."""
    chance = random.Random(seed)
    records, at = [], 0
    while at < len(events):
        (length,) = struct.unpack_from("<Q", events, at)
        records.append(events[at + 12 : at + 12 + length])
        at += 16 + length
    parts = []
    for place, record in enumerate(records):
        changed = record if place == 0 else _parsable(record, chance)
        head = struct.pack("<Q", len(changed))
        parts += [head, struct.pack("<I", masked_crc32c(head)), changed, struct.pack("<I", masked_crc32c(changed))]
    return b"".join(parts)


def _parsable(record: bytes, chance: random.Random) -> bytes:
    while True:
        changed = bytearray(record)
        for _ in range(chance.randint(0, 3)):
            place = chance.randrange(min(len(changed), chance.choice([60, 400, 100_000])))
            changed[place] = chance.randrange(256)
        with suppress(DecodeError):
            Event.FromString(bytes(changed))
            return bytes(changed)
