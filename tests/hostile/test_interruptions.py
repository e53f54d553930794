"""Killed processes, full disks and read-only ones leave what was there before."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unchanged import QUIETLY, Tiny, train_images, val_images

from lightning_unitrole import UnitReport, analyze

pytestmark = QUIETLY
SCRIPT = Path(__file__).parents[1] / "interrupted_training.py"


@pytest.fixture(scope="module")
def report() -> UnitReport:
    few = {"images_per_class": 2, "ablation_points": 2, "contribution_steps": 1}
    return analyze(Tiny(), train_images(), val_images(), **few)


def command(folder: Path) -> list[str]:
    folder.mkdir(exist_ok=True)
    return [sys.executable, str(SCRIPT), str(folder)]


def surroundings() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(SCRIPT.parent), *filter(None, sys.path)])}


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_with_the_weights_of_the_uninterrupted_one(seed: int, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(whole), check=True, env=surroundings(), timeout=300, stdout=subprocess.DEVNULL)
    chance, kills = random.Random(seed), 0
    while kills < 3:
        with subprocess.Popen(command(killed), env=surroundings(), stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            child.stdout.readline()  # the first epoch begins
            time.sleep(chance.uniform(0, 1.5))
            ended = child.poll() is not None
            child.kill()
        if ended:
            break
        kills += 1
    (killed / "end.pt").unlink(missing_ok=True)
    subprocess.run(command(killed), check=True, env=surroundings(), timeout=300, stdout=subprocess.DEVNULL)
    expected, found = (torch.load(folder / "end.pt", weights_only=True) for folder in (whole, killed))
    assert kills
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if isinstance(values, Tensor):
            assert torch.equal(values, found[name]), name


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here, which takes root: {error}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_the_report_of_before(small_disk: Path, report: UnitReport) -> None:
    path = small_disk / "report.npz"
    report.save(path)
    before = path.read_bytes()
    (small_disk / "filler").write_bytes(b"x" * (64 * 1024 - 4096 * (2 + len(before) // 4096)))
    with pytest.raises(OSError, match="No space left on device"):
        report.save(path)
    assert path.read_bytes() == before
    assert {one.name for one in small_disk.iterdir()} == {"report.npz", "filler"}
    assert UnitReport.load(path).table() == report.table()


def test_a_read_only_disk_leaves_the_report_of_before(small_disk: Path, report: UnitReport) -> None:
    path = small_disk / "report.npz"
    report.save(path)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="Read-only file system"):
        report.save(path)
    assert UnitReport.load(path).table() == report.table()
    assert [one.name for one in small_disk.iterdir()] == ["report.npz"]


LIMITED = """
import resource, signal, sys
from lightning_unitrole import UnitReport
path = sys.argv[1]
report = UnitReport.load(path)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, 2048))
try:
    report.save(path)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_a_file_that_may_not_grow_leaves_the_report_of_before(report: UnitReport, tmp_path: Path) -> None:
    """Like a full disk, for those who are not root."""
    path = tmp_path / "report.npz"
    report.save(path)
    before = path.read_bytes()
    arguments = [sys.executable, "-c", LIMITED, str(path)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    assert "File too large" in done.stdout
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["report.npz"]


def test_a_folder_that_does_not_exist_is_named(report: UnitReport, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        report.save(tmp_path / "nowhere" / "report.npz")
