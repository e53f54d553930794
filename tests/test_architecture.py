"""Imports inside the package go one way, and importing it stays cheap."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

import lightning_unitrole

PACKAGE = Path(lightning_unitrole.__file__).parent
NAME = "lightning_unitrole"

ORDER = [
    "errors",
    "reports",
    "topology",
    "network",
    "ranking",
    "data",
    "ablation",
    "analysis",
    "tensorboard_plugin",
    "loggers",
    "pruning",
    "callbacks",
]
"""Modules and subpackages; each may import only those before it."""

APART = {"loggers", "pruning"}
"""Two that know nothing of each other; only the callbacks bring them together."""


def _sources() -> dict[str, str]:
    """Text of every module of the package, by dotted name; a subpackage stands for its ``__init__``."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path.read_text(encoding="utf-8")
    return found


SOURCES = _sources()
MODULES = set(SOURCES) - {NAME}


def imported(source: str, modules: set[str]) -> Iterator[str]:
    """Modules of the package that a source imports, at any depth of it, also for type checking only."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            names = [
                f"{module}.{alias.name}" if f"{module}.{alias.name}" in modules else module for alias in node.names
            ]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in (NAME, ""))


def component(module: str) -> str:
    """The entry of ORDER that a module belongs to."""
    return module.split(".")[1]


def faults(sources: Mapping[str, str], order: list[str]) -> list[str]:
    """What is wrong with the imports of some sources."""
    modules = set(sources)
    found = []
    for module, source in sources.items():
        for name in imported(source, modules | MODULES):
            said = f"{module} imports {name}"
            if name.startswith("."):
                found.append(f"{said}: write the whole name")
            elif name == NAME:
                found.append(f"{said}: import from the module that defines it")
            elif component(name) != component(module):
                if order.index(component(name)) > order.index(component(module)):
                    found.append(f"{said}, which comes later")
                elif {component(name), component(module)} == APART:
                    found.append(f"{said}, which is to be kept apart")
            elif name == f"{NAME}.{component(module)}" and name in modules:
                found.append(f"{said}, its own package: import from the module that defines it")
    return found


def test_every_module_has_its_place() -> None:
    assert {component(module) for module in MODULES} == set(ORDER)


def test_imports_go_one_way() -> None:
    assert faults({module: SOURCES[module] for module in MODULES}, ORDER) == []


def test_there_is_no_cycle_inside_a_subpackage() -> None:
    graph = {module: set(imported(SOURCES[module], MODULES)) & MODULES for module in MODULES}
    assert sum(map(len, graph.values())) > 50
    list(TopologicalSorter(graph).static_order())
    with pytest.raises(CycleError):
        list(TopologicalSorter(graph | {f"{NAME}.errors": {f"{NAME}.callbacks"}}).static_order())


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        pytest.param("errors", "from lightning_unitrole.data import X", "which comes later", id="later"),
        pytest.param("errors", "import lightning_unitrole.data.probe", "which comes later", id="plain import"),
        pytest.param(
            "errors", "def f():\n    from lightning_unitrole import data", "which comes later", id="module by name"
        ),
        pytest.param(
            "topology.x", "from lightning_unitrole.loggers import X", "which comes later", id="from a subpackage"
        ),
        pytest.param(
            "callbacks", "from lightning_unitrole import analyze", "imports lightning_unitrole:", id="package"
        ),
        pytest.param("callbacks", "from .errors import X", "write the whole name", id="relative"),
        pytest.param("pruning.x", "from lightning_unitrole.loggers.scalars import X", "kept apart", id="apart"),
        pytest.param("loggers.x", "from lightning_unitrole.pruning.report import X", "comes later", id="the other way"),
    ],
)
def test_a_wrong_import_is_found(module: str, source: str, said: str) -> None:
    (found,) = faults({f"{NAME}.{module}": source}, ORDER)
    assert said in found


def test_a_module_that_imports_from_its_own_subpackage_is_found() -> None:
    sources = {f"{NAME}.data": "", f"{NAME}.data.x": "from lightning_unitrole.data import Probe"}
    (found,) = faults(sources, ORDER)
    assert "its own package" in found
    sources[f"{NAME}.data.x"] = "from lightning_unitrole.data.probe import Probe"
    assert faults(sources, ORDER) == []


NOT_DECLARED = {"triton"}
"""Comes with torch, where torch has a GPU to run it on."""


def third_party(source: str) -> set[str]:
    """Top-level modules that a source imports, at any depth of it, beyond Python's own and the package's."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.append(node.module or "")
    return {name.partition(".")[0] for name in names} - {*sys.stdlib_module_names, NAME}


FOR_DEVELOPERS = {"docs", "test"}
"""Extras that users do not install."""


def requirements() -> list[str]:
    """What users get with the package, or with one of its extras for users."""
    tomllib = pytest.importorskip("tomllib", reason="Python reads TOML since 3.11")
    path = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(path.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    chosen = [extra for extra in extras if extra not in FOR_DEVELOPERS]
    return [*project["dependencies"], *(one for extra in chosen for one in extras[extra])]


def declared() -> set[str]:
    """The distributions among the requirements, as modules are written."""
    return {re.split(r"[^\w.-]", one, maxsplit=1)[0].replace("-", "_").lower() for one in requirements()}


def test_every_library_that_is_imported_is_declared() -> None:
    imports = {name for source in SOURCES.values() for name in third_party(source)}
    assert {"torch", "numba", "werkzeug"} <= imports
    assert imports - NOT_DECLARED - declared() == set()


def test_a_library_that_is_not_declared_is_found() -> None:
    source = "import os, torch.nn\ndef f():\n    from pandas.api import x\n    import lightning_unitrole.data"
    assert third_party(source) == {"torch", "pandas"}
    assert "torch" in declared()
    assert "pytest" not in declared()


def test_every_requirement_says_how_old_it_may_be() -> None:
    assert [one for one in requirements() if ">=" not in one] == []


HEAVY = {
    "numba",
    "ripser",
    "torch_pruning",
    "pandas",
    "tensorboard",
    "triton",
    "matplotlib",
    "scipy",
    "sklearn",
    "torchvision",
}


def loaded(code: str, *, after: str = "") -> set[str]:
    """Top-level modules that a fresh interpreter loads when it runs some code, after some other."""
    script = f"import sys\n{after}\nbefore = {{*sys.modules}}\n{code}\nprint(*sorted({{*sys.modules}} - before))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return {name.partition(".")[0] for name in done.stdout.splitlines()[-1].split()}


def test_importing_the_package_loads_almost_nothing() -> None:
    assert not loaded("import lightning_unitrole") & {"torch", "numpy", "pytorch_lightning", "torchmetrics", *HEAVY}


@pytest.mark.slow
def test_importing_the_callbacks_loads_nothing_heavy() -> None:
    """Nothing beyond what the dependencies load themselves."""
    code = "import lightning_unitrole.callbacks"
    assert loaded(code, after="import torch, torchmetrics, pytorch_lightning, numpy") & HEAVY == set()


@pytest.mark.slow
def test_loading_something_heavy_is_found() -> None:
    assert loaded("import pandas, numba", after="import numpy") >= {"pandas", "numba"}
    assert "pandas" not in loaded("import pandas", after="import pandas.api")


def test_every_public_name_is_where_it_is_said_to_be() -> None:
    for name in lightning_unitrole.__all__:
        value = getattr(lightning_unitrole, name)
        defined_in = importlib.import_module(lightning_unitrole._DEFINED_IN[name])
        assert value is getattr(defined_in, name)
        assert name in dir(lightning_unitrole)


def test_type_checkers_are_told_the_same_names() -> None:
    told = {
        alias.asname: node.module
        for node in ast.walk(ast.parse(SOURCES[NAME]))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(NAME)
        for alias in node.names
        if alias.asname == alias.name
    }
    assert told == lightning_unitrole._DEFINED_IN


def test_an_unknown_name_is_named() -> None:
    with pytest.raises(AttributeError, match="module 'lightning_unitrole' has no attribute 'UnitRoleMonitors'"):
        lightning_unitrole.UnitRoleMonitors  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert version("lightning-unitrole") == lightning_unitrole.__version__
