"""The tab for those who use a keyboard or a screen reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard_plugin.page import Page

VIEWS = ("overview", "units", "transitions", "entropy", "ablation", "unit", "runs")
AXE = Path(__file__).parents[2] / "node_modules" / "axe-core" / "axe.min.js"
RUN = """const done = arguments[arguments.length - 1];
    axe.run(document).then(({ violations }) => done(violations
      .filter(({ impact }) => ['serious', 'critical'].includes(impact))
      .map(({ id, help, nodes }) =>
        `${id}: ${help}: ${nodes.slice(0, 3).map(node => node.html.slice(0, 200)).join(' | ')}`)),
      error => done([String(error)]))"""


def problems(page: Page) -> list[str]:
    return list(page.driver.execute_async_script(RUN))


@pytest.mark.slow
@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm ci")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious_in_any_view(driver: Any, fast: str, dark: bool) -> None:
    page = Page(driver, fast, dark=dark, run="contribution", layer="features.3")
    page.js(AXE.read_text(encoding="utf-8"))
    found = {}
    for view in VIEWS:
        page.show(view=view)
        found[view] = problems(page)
    page.show(view="overview", form="charts")
    found["charts"] = problems(page)
    page.show(run="only_pruning", view="pruning")
    found["pruning"] = problems(page)
    page.js("window.unitRoles.help.showModal()")
    found["help"] = problems(page)
    assert not {view: each for view, each in found.items() if each}
    page.js("window.unitRoles.help.close(); document.querySelector('.help').setAttribute('aria-label', '')")
    page.js("document.querySelector('.help').textContent = ''; document.querySelector('.help').title = ''")
    assert any("button-name" in each for each in problems(page)), "the check can fail"


@pytest.mark.slow
def test_arrow_keys_walk_through_the_tabs(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="baseline")
    step = page.text(".readout")
    page.js("document.querySelector('#tab-overview').focus()")
    page.press("\ue014")  # arrow right
    assert page.view == "units"
    assert page.js("return document.activeElement.id") == "tab-units"
    page.press("\ue012", "\ue012")  # arrow left, beyond the first
    assert page.view == "runs"
    assert page.text(".readout") == step
    assert page.js("return document.querySelectorAll('[role=tab][tabindex=\"0\"]').length") == 1


@pytest.mark.slow
def test_language_headings_and_text_alternatives(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution")
    assert page.js("return document.documentElement.lang") == "en"
    assert page.js("return [...document.querySelectorAll('h1')].map(each => each.textContent)") == ["Unit roles"]
    for view in VIEWS:
        page.show(view=view)
        bare = (
            "return [...document.querySelectorAll('svg.chart')].filter(each => !each.getAttribute('aria-label')).length"
        )
        assert page.js(bare) == 0
    page.show(view="ablation")
    words = page.js("return document.querySelector('.view-ablation svg.chart').getAttribute('aria-label')")
    assert words.startswith("accuracy, all classes over units switched off")
    assert "validation, random orders from " in words
