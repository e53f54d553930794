from __future__ import annotations

import argparse
import logging
import subprocess
import sys
from importlib.metadata import entry_points
from types import SimpleNamespace

import pytest

from lightning_unitrole.tensorboard_plugin.loader import UnitRolesLoader

MODULES = "import sys; {0}; print(*sorted(name.partition('.')[0] for name in sys.modules))"


def loaded_by(statement: str) -> set[str]:
    command = [sys.executable, "-c", MODULES.format(statement)]
    return set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())


def test_tensorboard_finds_the_loader() -> None:
    (found,) = [point for point in entry_points(group="tensorboard_plugins") if point.name == "unit_roles"]
    assert found.load() is UnitRolesLoader


def test_the_loader_loads_nothing_heavy() -> None:
    loaded = loaded_by("import lightning_unitrole.tensorboard_plugin.loader")
    assert "tensorboard" in loaded
    assert not {"torch", "numpy", "pytorch_lightning", "lightning", "torchmetrics", "matplotlib"} & loaded


def test_the_plugin_needs_no_torch() -> None:
    assert "torch" not in loaded_by("import lightning_unitrole.tensorboard_plugin.plugin")


@pytest.mark.slow
def test_this_check_can_fail() -> None:
    assert "torch" in loaded_by("import lightning_unitrole.reports.report")


def test_the_package_does_not_load_tensorboard() -> None:
    assert "tensorboard" not in loaded_by("import lightning_unitrole")


def test_all_steps_are_asked_for_unless_the_user_says_otherwise() -> None:
    flags = argparse.Namespace(samples_per_plugin={"scalars": 5})
    UnitRolesLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"scalars": 5, "unit_roles": 0}
    flags = argparse.Namespace(samples_per_plugin={"unit_roles": 7})
    UnitRolesLoader().fix_flags(flags)
    assert flags.samples_per_plugin == {"unit_roles": 7}


@pytest.mark.parametrize("flags", [argparse.Namespace(), argparse.Namespace(samples_per_plugin="")])
def test_unknown_flags_do_no_harm(flags: argparse.Namespace) -> None:
    UnitRolesLoader().fix_flags(flags)


def test_the_plugin_is_made(caplog: pytest.LogCaptureFixture) -> None:
    plugin = UnitRolesLoader().load(SimpleNamespace(data_provider=None))
    assert plugin is not None
    assert plugin.plugin_name == "unit_roles"


def test_a_plugin_that_cannot_be_loaded_is_a_line_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "lightning_unitrole.tensorboard_plugin.plugin", None)
    with caplog.at_level(logging.WARNING):
        assert UnitRolesLoader().load(SimpleNamespace(data_provider=None)) is None
    assert "The tab 'Unit roles' is not available" in caplog.text
