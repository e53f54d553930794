"""Settings for all tests."""

from __future__ import annotations

import os

# Triton reads this when it is first imported, which torch and Lightning may do: so before them.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

if torch.cuda.is_available():
    # Where there is a GPU the compiled kernels are what should be tested.
    os.environ["TRITON_INTERPRET"] = "0"

# Tests run in several processes at once; threads on top of them only get into each other's way.
torch.set_num_threads(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """The quick tests alone, unless more are asked for."""
    parser.addoption("--slow", action="store_true", help="run tests that take more than a few seconds too")
    parser.addoption("--slow-only", action="store_true", help="run what is left out without --slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without ``--slow``, leave out slow tests, and all but some cases of tests that are marked ``sampled(n)``."""
    if config.getoption("--slow"):
        return
    quick = _quick(items)
    chosen = {*items} - quick if config.getoption("--slow-only") else quick
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]


def _quick(items: list[pytest.Item]) -> set[pytest.Item]:
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if not item.get_closest_marker("slow"):
            cases.setdefault(item.nodeid.partition("[")[0], []).append(item)
    quick: set[pytest.Item] = set()
    for found in cases.values():
        sampled = found[0].get_closest_marker("sampled")
        number = len(found) if sampled is None else min(sampled.args[0], len(found))
        quick.update(found[place * len(found) // number] for place in range(number))
    return quick
