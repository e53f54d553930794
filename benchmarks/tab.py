"""The tab "Unit roles" on long logs: how long each view takes, and how much memory TensorBoard holds.

    python benchmarks/tab.py [--logs wide many] [--repeats 3] [--load_fast true]

Needs chromium, chromedriver and selenium. Two synthetic logs: `wide` has a layer of 4,096 units among 12 small ones and
300 analyses, `many` 13 layers of a VGG and 1,000 classes and 100 analyses; both with contributions, their error bars,
and the images that units look at. For each view, in milliseconds: `first`, from the request for its data to the drawn
view, of a TensorBoard that has just been started and has shown nothing else; `again`, the same in another page;
the part of each that is drawing; and `opened`, from the opening of the tab's frame on, with its scripts. Medians over
`--repeats` TensorBoards for each view. Memory is the resident memory of TensorBoard and its data server, after reading
the log and after all views. If a view shows fewer analyses than were logged, or the browser complains, no figure is
printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import tensorboard as tensorboard_package
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from tensorboard_plugin.conftest import FLAGS, tensorboard
from tensorboard_plugin.page import Page
from tensorboard_plugin.synthetic import Spec, Training

from lightning_unitrole.tensorboard_plugin import summary
from lightning_unitrole.tensorboard_plugin.packing import pack, unpack
from lightning_unitrole.tensorboard_plugin.summary import write_contents

VIEWS = ("overview", "units", "transitions", "entropy", "ablation", "unit", "runs")
VGG = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@dataclass(frozen=True)
class Log:
    """A log to look at; the last layer is the one whose views are timed."""

    layers: tuple[Spec, ...]
    classes: int
    analyses: int

    def write(self, directory: Path) -> float:
        """Write it at little cost, two reports again and again; processor seconds that writing a report takes."""
        classes = [f"class {index}" for index in range(self.classes)]
        training = Training(self.layers, classes, contributions=True, images=True, images_each=3, points=17)
        written: list[dict[str, bytes]] = []

        def keep(writer: SummaryWriter, contents: dict[str, bytes], metadata: bytes, step: int) -> None:
            written.append(contents)
            write_contents(writer, contents, metadata, step)

        known, took = None, 0.0
        with SummaryWriter(directory) as writer, patch.object(summary, "write_contents", keep):
            for epoch in (0, 1):
                report = training.report(1 + 4 * epoch, 6)
                start = time.process_time()
                known = summary.write_report(writer, replace(report, epoch=epoch), step=100 * epoch, known=known)
                took += time.process_time() - start
            for epoch in range(2, self.analyses):
                late = epoch / self.analyses + np.random.default_rng(epoch).uniform(-0.5, 0.5) > 0.5
                contents = {tag: at_epoch(container, epoch) for tag, container in written[int(late)].items()}
                write_contents(writer, contents, b"", 100 * epoch)
        return took / 2


def at_epoch(container: bytes, epoch: int) -> bytes:
    """The same container, of another epoch."""
    info, arrays = unpack(container)
    return pack({**info, "epoch": epoch}, arrays)


LOGS = {
    "wide": Log((*(Spec(f"features.{depth}", 32) for depth in range(12)), Spec("features.12", 4096)), 10, 300),
    "many": Log(tuple(Spec(f"features.{depth}", units) for depth, units in enumerate(VGG)), 1000, 100),
}


def resident() -> dict[str, float]:
    """Megabytes of the TensorBoard that this program has started, and of its data server."""
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that ended while we looked
            parents[int(status.parent.name)] = int(status.read_text().rpartition(")")[2].split()[1])
    found = {"TensorBoard": 0.0, "data server": 0.0}
    for pid in parents:
        name = {os.getpid(): "TensorBoard"}.get(parents[pid])
        if parents.get(parents[pid]) == os.getpid():
            name = "data server"
        with suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text()
            if name and ("tensorboard.main" in command or "data_server" in command):
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                found[name] += pages * os.sysconf("SC_PAGE_SIZE") / 1e6
    return found


@dataclass(frozen=True)
class Look:
    """Milliseconds of one view in a page that has just been opened.

    Attributes:
        opened: from the opening of the tab's frame to the drawn view: scripts, list of runs, data, drawing.
        data: from the request for the data to the drawn view, as when the view is chosen in an open page.
        drawing: the part of it that is drawing.
    """

    opened: float
    data: float
    drawing: float


def look(driver: Any, address: str, view: str, analyses: int) -> Look:
    """One view in a new page, if it shows the log as it is."""
    page = Page(driver, address, view=view)
    opened, data, drawing = page.js(
        "const a = window.unitRoles; return [a.opened, a.loads[arguments[0]], a.timings[arguments[0]]]", view
    )
    if f"of {analyses}" not in page.text(".readout") or page.errors() or page.text(".notice"):
        sys.exit(f"The view {view!r} does not show the log as it is; no figure is printed.")
    return Look(opened, data, drawing)


def browser() -> Any:
    """A headless Chromium."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))


def memory(what: str) -> str:
    return f"{what}: " + ", ".join(f"{name} {megabytes:.0f} MB" for name, megabytes in resident().items() if megabytes)


def show(driver: Any, name: str, log: Log, repeats: int, arguments: Sequence[str]) -> None:
    first: dict[str, list[Look]] = {view: [] for view in VIEWS}
    again: dict[str, list[Look]] = {view: [] for view in VIEWS}
    with tempfile.TemporaryDirectory() as directory:
        wrote = log.write(Path(directory) / name)
        size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
        for _ in range(repeats):
            for view in VIEWS:
                with tensorboard(Path(directory), *arguments, runs=1) as address:
                    first[view].append(look(driver, address, view, log.analyses))
                    again[view].append(look(driver, address, view, log.analyses))
        with tensorboard(Path(directory), *arguments, runs=1) as address:
            before = memory("read")
            for view in VIEWS:
                look(driver, address, view, log.analyses)
            after = memory("after all views")
    units = max(spec.units for spec in log.layers)
    print(f"\n{name}: {len(log.layers)} layers of {units:,} units at most, {log.classes:,} classes, ", end="")
    print(f"{log.analyses} analyses; {size / 1e6:.1f} MB, {1e3 * wrote:.0f} ms of processor time to log a report")
    print(f"{before}; {after}")
    heads = ("first", "drawing", "again", "drawing", "opened", "opened again")
    print(f"{'milliseconds':<14}" + "".join(f"{head:>14}" for head in heads))
    for view in VIEWS:
        median = {
            (when, part): statistics.median(getattr(each, part) for each in looks[view])
            for when, looks in (("first", first), ("again", again))
            for part in ("opened", "data", "drawing")
        }
        shown = [median[when, part] for when in ("first", "again") for part in ("data", "drawing")]
        shown += [median[when, "opened"] for when in ("first", "again")]
        print(f"{view:<14}" + "".join(f"{value:>14.0f}" for value in shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--logs", nargs="+", choices=LOGS, default=list(LOGS))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--load_fast", choices=("true", "false"), default="true", help="TensorBoard's own option")
    options = parser.parse_args()
    driver = browser()
    try:
        versions = f"TensorBoard {tensorboard_package.__version__}, Chromium {driver.capabilities['browserVersion']}"
        machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors"
        print(f"{machine}, Python {platform.python_version()}, {versions}, load_fast {options.load_fast}")
        for name in options.logs:
            show(driver, name, LOGS[name], options.repeats, ["--load_fast", options.load_fast])
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
