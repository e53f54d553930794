"""What the pages say is what the package does: tutorials run, public names are in the reference, links have targets."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import lightning_unitrole
from lightning_unitrole.reports.verdicts import RELIABLE_AGREEMENT

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.rglob("*.md"), *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md"))])


def _tutorials() -> Any:
    path = DOCS / "scripts" / "tutorials.py"
    spec = importlib.util.spec_from_file_location("tutorials", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TUTORIALS = _tutorials()


def watched(names: dict[str, Any]) -> None:
    assert len(names["monitor"].report.layers) == 2
    assert names["layer"].agreement > RELIABLE_AGREEMENT
    assert names["layer"].differing_share < 0.05


def overfitted(names: dict[str, Any]) -> None:
    healthy, memorising = (
        [layer.differing_share for layer in names["reports"][name].layers.values()]
        for name in ("healthy", "memorising")
    )
    assert max(healthy) < 0.05
    assert min(memorising) > 2 * max(healthy)


def pruned(names: dict[str, Any]) -> None:
    before, after = names["pruning"].report.before, names["pruning"].report.after
    assert after.macs <= 0.5 * before.macs
    assert names["right"] > 0.5


def published(names: dict[str, Any]) -> None:
    assert names["same"].layers["layer2.1.conv2"].roles.shape == (2, 128)


def judged(names: dict[str, Any]) -> None:
    assert names["report"].criterion == "standing_out"
    assert set(names["comparison"].layers["4"]) == {"standing_out", "filter_norm", "feature_entropy", "random"}


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "watch": watched,
    "overfitting": overfitted,
    "prune": pruned,
    "published": published,
    "criterion": judged,
}


def test_every_tutorial_is_checked() -> None:
    assert set(CHECKS) == set(TUTORIALS.PAGES)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("page", CHECKS)
def test_a_tutorial_runs_as_printed(page: str) -> None:
    names, printed = TUTORIALS.run(page)
    assert any(printed)
    CHECKS[page](names)


def test_a_tutorial_without_a_place_for_what_it_prints_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TUTORIALS, "FOLDER", tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 2\n```\n\n```python\nprint(x)\n```\n")
    with pytest.raises(ValueError, match=r"page\.md: this block .* do not agree:\nprint\(x\)"):
        TUTORIALS.run("page")
    page.write_text("```python\nx = 2\n```\n\n```python\nprint(x)\n```\n\n```text\n```\n")
    names, printed = TUTORIALS.run("page")
    assert (names["x"], printed) == (2, [None, "2\n"])
    TUTORIALS.write("page", printed)
    assert page.read_text().endswith("print(x)\n```\n\n```text\n2\n```\n")


def test_every_public_name_is_in_the_reference() -> None:
    reference = "\n".join(path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md"))
    described = {name.rpartition(".")[2] for name in re.findall(r"^::: (\S+)", reference, re.MULTILINE)}
    assert set(lightning_unitrole.__all__) - described == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_to_files_have_targets(page: Path) -> None:
    """Between the files of the repository; the site's build follows anchors too."""
    becomes = {"reproduction.md", "benchmarks.md", "changelog.md", "contributing.md"}
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", page.read_text(encoding="utf-8")):
        path = (page.parent / target).resolve()
        assert path.exists() or (path.parent == DOCS and path.name in becomes), target


def test_the_citation_has_the_version() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {lightning_unitrole.__version__}\n" in citation


def test_the_readme_can_be_read_in_one_go() -> None:
    words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert 400 < words < 750
