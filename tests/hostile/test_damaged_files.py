"""Damaged reports and checkpoints are refused with one sentence, whatever is wrong with them, in little memory."""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import make_trainer
from torch import Tensor
from unchanged import QUIETLY, Run, Tiny, monitor, train_images, val_images

from lightning_unitrole import analyze
from lightning_unitrole.callbacks import UnitPruning
from lightning_unitrole.errors import DataError
from lightning_unitrole.pruning.history import load_pruned
from lightning_unitrole.pruning.removal import Removal
from lightning_unitrole.reports.report import UnitReport

pytestmark = [
    *QUIETLY,
    # What torch says of a mutated file is not ours.
    pytest.mark.filterwarnings("ignore:Casting complex values"),
]
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    """A report, its state, and checkpoints of a pruned network."""
    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        few: Any = {"images_per_class": 4, "ablation_points": 2, "contribution_steps": 1, "layers": ["first", "second"]}
        report = analyze(Tiny(), train_images(), val_images(), **few)
        run = Run()
        callback = UnitPruning(amount=0.3, choose_by="mean_activation", monitor=monitor())
        trainer = make_trainer(callback, max_epochs=2)
        trainer.fit(run.module, run.train, run.val)
    report.save(folder / "report.npz")
    torch.save(report.state_dict(), folder / "state.pt")
    trainer.save_checkpoint(folder / "whole.ckpt")
    torch.save(run.module.state_dict(), folder / "weights.pt")
    assert run.module.first.out_channels < 4 or run.module.second.out_channels < 4
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def other_bytes(content: bytes, chance: random.Random) -> bytes:
    """Some bytes of a file changed, lost, doubled or cut off."""
    changed = bytearray(content)
    for _ in range(chance.choice([1, 1, 3, 20])):
        place = chance.randrange(max(len(changed), 1))
        kind = chance.randrange(5)
        if kind == 0 and changed:
            changed[place] = chance.randrange(256)
        elif kind == 1:
            del changed[place : place + chance.choice([1, 8, 512])]
        elif kind == 2:
            changed[place:place] = changed[place : place + chance.choice([1, 8, 64])]
        elif kind == 3:
            del changed[place:]
        elif changed:
            changed[place] ^= 1 << chance.randrange(8)
    return bytes(changed)


def odd_value(value: Any, chance: random.Random) -> Any:
    """Something else in the place of a value."""
    strange = [
        None,
        "",
        "ß" * 30,
        -1,
        2**62,
        2.5,
        float("nan"),
        True,
        [],
        {},
        [value],
        {"version": 1},
        torch.tensor(3),
        torch.zeros(1).expand(10**13),
        torch.zeros(1, dtype=torch.int64).expand(10**13),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(2, 3, 1),
        torch.tensor([1e300]),
    ]
    if isinstance(value, Tensor):
        strange += [
            value.double() if not value.is_complex() else value,
            value.unsqueeze(0),
            value.flatten()[:1],
            -value.long() - 7,
            value.bool(),
            value[:0] if value.dim() else value,
            torch.full_like(value, 100),
            value.flip(0) if value.dim() else value,
        ]
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        strange += [value + 1, -value, value * 10**9]
    return chance.choice(strange)


def other_structure(value: Any, chance: random.Random) -> Any:
    """The same nested structure with something changed at one place."""
    if isinstance(value, (dict, list)) and value and chance.random() < 0.93:
        changed = copy.copy(value)
        key = chance.choice(list(value)) if isinstance(value, dict) else chance.randrange(len(value))
        kind = chance.randrange(12)
        if kind == 0:
            del changed[key]
        elif kind == 1 and isinstance(changed, dict):
            changed[chance.choice([f"{key}x", "", 7])] = changed.pop(key)
        else:
            changed[key] = other_structure(value[key], chance)
        return changed
    return odd_value(value, chance)


def load_report(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    use(UnitReport.load(path))


def load_state(content: bytes, path: Path) -> None:
    del path
    use(UnitReport.from_state_dict(torch.load(io.BytesIO(content), weights_only=True)))


def use(report: UnitReport) -> None:
    """What is read must be usable."""
    assert report.table()
    assert repr(report)
    assert UnitReport.from_state_dict(report.state_dict()).table() == report.table()


def load_network(content: bytes, path: Path) -> None:
    path.write_bytes(content)
    loaded = load_pruned(Tiny, path)
    with torch.no_grad():
        assert loaded(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def saved(structure: Any) -> bytes:
    file = io.BytesIO()
    torch.save(structure, file)
    return file.getvalue()


def mutated_state(content: bytes, chance: random.Random) -> bytes:
    state = torch.load(io.BytesIO(content), weights_only=True)
    if chance.random() < 0.5:
        return saved({**state, "meta": json.dumps(other_structure(json.loads(state["meta"]), chance), default=str)})
    return saved(other_structure(state, chance))


def mutated_checkpoint(content: bytes, chance: random.Random) -> bytes:
    state = torch.load(io.BytesIO(content), weights_only=True)
    weights = state.get("state_dict", state)
    history = "unit_pruning_history._extra_state"
    if chance.random() < 0.8:
        weights[history] = other_structure(weights[history], chance)
        return saved(state)
    return saved(other_structure(state, chance))


WAYS: list[tuple[str, Callable[[bytes, random.Random], bytes], Callable[[bytes, Path], None]]] = [
    ("report.npz", other_bytes, load_report),
    ("state.pt", mutated_state, load_state),
    ("whole.ckpt", other_bytes, load_network),
    ("whole.ckpt", mutated_checkpoint, load_network),
    ("weights.pt", mutated_checkpoint, load_network),
]


@pytest.mark.parametrize("count", [100, pytest.param(2000, marks=pytest.mark.slow)])
def test_whatever_is_wrong_with_a_file_is_said_in_one_sentence(count: int, files: Files, tmp_path: Path) -> None:
    chance, refused, unclear = random.Random(0), 0, []
    for index in range(count):
        name, mutate, load = WAYS[index % len(WAYS)]
        content = mutate(files[name], chance)
        path = tmp_path / name
        try:
            load(content, path)
        except DataError as error:
            refused += 1
            if load is not load_state and path.name not in str(error):
                unclear.append((index, name, error))
        except Exception as error:
            unclear.append((index, name, error))
    print(f"{count} damaged files: {refused} refused, {count - refused - len(unclear)} read, {len(unclear)} unclear.")
    assert [f"{index} {name}: {type(error).__name__}: {error}"[:300] for index, name, error in unclear] == []
    assert refused > count // 4


@pytest.mark.parametrize("name", ["report.npz", "state.pt", "whole.ckpt", "weights.pt"])
def test_files_that_are_whole_are_read(name: str, files: Files, tmp_path: Path) -> None:
    load = next(load for file, _, load in WAYS if file == name)
    load(files[name], tmp_path / name)


def removal() -> dict[str, Any]:
    return {
        "version": 1,
        "shapes": {"first.weight": [4, 1, 3, 3]},
        "kept": {"first.weight": {0: torch.tensor([0, 2, 3])}},
        "channels": {"first": torch.tensor([0, 2, 3])},
        "widths": {"first": 4},
    }


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("shapes", "first.weight"), [0, 1], "0 is no size"),
        (("shapes", "first.weight"), [2**40, 1, 3, 3], f"{2**40} is no size, from 1 to"),
        (("shapes", "first.weight"), "four", "'f' is no size"),
        (
            ("kept", "first.weight"),
            {0: torch.tensor([3, 2])},
            "what stays of 'first.weight' is not ascending, from 0 to 3",
        ),
        (("kept", "first.weight"), {0: torch.tensor([0, 4])}, "is not ascending, from 0 to 3"),
        (("kept", "first.weight"), {0: torch.tensor([0.0])}, "is no tensor of up to 4 int64 indices"),
        (("kept", "first.weight"), {0: torch.zeros(1, dtype=torch.int64).expand(3)}, "is no tensor of up to 4"),
        (("kept", "first.weight"), {5: torch.tensor([0])}, "The record of a removal is damaged: IndexError"),
        (("kept", "other"), {0: torch.tensor([0])}, "The record of a removal is damaged: KeyError"),
        (("channels", "first"), [0, 1], "is no tensor"),
        (("widths",), None, "The record of a removal is damaged: AttributeError"),
        (("version",), "x", "The record of a removal is damaged: TypeError"),
    ],
)
def test_a_damaged_record_of_a_removal(place: tuple[str, ...], value: Any, said: str) -> None:
    assert Removal.from_state_dict(removal()).widths == {"first": 4}
    state = removal()
    inner = state if len(place) == 1 else state[place[0]]
    inner[place[-1]] = value
    with pytest.raises(DataError, match=said):
        Removal.from_state_dict(state)


HUGE = """
import resource, sys, torch
from lightning_unitrole.errors import DataError
from lightning_unitrole.pruning.history import load_pruned
from lightning_unitrole.reports.report import UnitReport
sys.path.insert(0, sys.argv[2])
from unchanged import Tiny
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    UnitReport.load(sys.argv[1]) if sys.argv[1].endswith("npz") else load_pruned(Tiny, sys.argv[1])
except DataError as error:
    print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["whole.ckpt", "report.npz"])
def test_a_file_that_claims_to_be_huge_takes_little_memory(name: str, files: Files, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "whole.ckpt":
        state = torch.load(io.BytesIO(files[name]), weights_only=True)
        for record in state["state_dict"]["unit_pruning_history._extra_state"]["removals"]:
            record["kept"] = {key: {0: torch.zeros(1, dtype=torch.int64).expand(2**36)} for key in record["kept"]}
            record["shapes"] = {key: [2**24, *shape[1:]] for key, shape in record["shapes"].items()}
        torch.save(state, path)
    else:
        with path.open("wb") as file:
            np.savez_compressed(file, meta=np.array("{}"), zeros=np.zeros(2**31, dtype=np.uint8))
    folder = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", HUGE, path, folder], capture_output=True, text=True, check=True, timeout=300
    )
    said, grown = done.stdout.splitlines()[-2:]
    assert path.name in said
    assert int(grown) < 300 * 1024  # KiB
