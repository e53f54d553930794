"""TensorBoard servers, a headless browser, and logs to look at."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tensorboard_plugin.synthetic import CLASSES, CONTRIBUTING, Spec, Training, log_run
from torch.utils.tensorboard import SummaryWriter

from lightning_unitrole.pruning.report import NetworkSize, PruningReport, PruningStep
from lightning_unitrole.tensorboard_plugin.cuts import write_pruning

LAYERS = (Spec("features.0", 16, (28, 28)), Spec("features.3", 48))
MARKUP = '<img src=x onerror="parent.harmed=1">'
EPOCHS = 12
RUNS = 6
PRUNED = PruningReport(
    before=NetworkSize(5000, 80_000, {"conv1": 8, "conv2": 12, "head": 10}, 2.0, 32, 0.95),
    after=NetworkSize(3000, 40_000, {"conv1": 6, "conv2": 9, "head": 10}, 1.5, 32, 0.93),
    steps=(
        PruningStep(1, 100, {"conv1": [2], "conv2": [0, 5]}, 4000, 60_000, 0.95, 0.80),
        PruningStep(3, 300, {"conv1": [7], "conv2": [6]}, 3000, 40_000, 0.94, 0.90),
    ),
    skipped={"head": "its units are the classes"},
)
"""A network of two convolutions that were cut twice."""
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1440,1100",
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: takes more than a few seconds")


def wait_for(what: str, check: Callable[[], Any], seconds: float = 30) -> Any:
    """The first true answer of ``check``."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    pytest.fail(f"waited {seconds} s in vain: {what}")


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        return bytes(response.read())


@contextmanager
def tensorboard(logdir: Path, *arguments: str, runs: int) -> Iterator[str]:
    """Address of a TensorBoard that has read all events of so many runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--host", "127.0.0.1"]
    server = subprocess.Popen(
        [*command, "--port", str(port), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address = f"http://127.0.0.1:{port}"
    try:
        seen: list[str] = []

        def ready() -> bool:
            try:
                found = get(f"{address}/data/plugin/unit_roles/runs").decode()
            except (urllib.error.URLError, ConnectionError):
                return False
            seen.append(found)
            # A loader reads a log piece by piece: it is through when nothing new turns up.
            return len(json.loads(found)["runs"]) == runs and seen[-3:] == [found] * 3

        wait_for("TensorBoard to read its logs", ready, 60)
        yield address
    finally:
        server.terminate()
        server.wait()


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: plain, pruned, without ablation, by contribution, without a monitor, and full of markup."""
    root = tmp_path_factory.mktemp("logs")
    log_run(root / "baseline", Training(LAYERS, seed=1), EPOCHS)
    log_run(root / "pruned", Training(LAYERS, seed=2), EPOCHS, prune_at=7)
    log_run(root / "without_ablation", Training(LAYERS, seed=3, ablation=False), 4)
    log_run(root / "contribution", Training(CONTRIBUTING, contributions=True, images=True, seed=5), 3)
    with SummaryWriter(root / "only_pruning") as writer:
        state = PRUNED.state_dict()
        state["steps"][1]["predicted_accuracy"] = 0.91
        write_pruning(writer, state, epoch=3, step=300)
    harmful = Training((replace(LAYERS[0], name=f"layer {MARKUP}"),), (MARKUP, *CLASSES[1:]), seed=4)
    log_run(root / f"zz {MARKUP}".replace("/", ""), harmful, 3)
    return root


@pytest.fixture(scope="session")
def fast(logs: Path) -> Iterator[str]:
    with tensorboard(logs, "--load_fast", "true", runs=RUNS) as address:
        yield address


@pytest.fixture(scope="session")
def slow(logs: Path) -> Iterator[str]:
    with tensorboard(logs, "--load_fast", "false", runs=RUNS) as address:
        yield address


@pytest.fixture(params=["fast", "slow"], ids=["fast loader", "slow loader"])
def server(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    chromedriver = shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs chromium and chromedriver on the PATH")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    try:
        yield browser
    finally:
        browser.quit()
