"""What the tab says when there is much, little or nothing to show."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tensorboard_plugin.conftest import tensorboard, wait_for
from tensorboard_plugin.page import Page
from tensorboard_plugin.synthetic import Spec, Training, log_run

WIDE = Spec("wide", 3000)
MANY = tuple(f"kind {index}" for index in range(60))


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A layer of 3,000 units, and a run of 60 classes."""
    root = tmp_path_factory.mktemp("large")
    log_run(root / "wide", Training((WIDE,), class_curves=False), 4)
    log_run(root / "many", Training((Spec("conv", 12),), MANY, contributions=True, images_each=5), 2)
    with tensorboard(root, runs=2) as address:
        yield address


@pytest.mark.slow
def test_all_units_of_a_wide_layer_fit_with_the_right_shares(driver: Any, large: str) -> None:
    from lightning_unitrole.reports.vocabulary import ROLE_OF, ROLES

    page = Page(driver, large, run="wide", view="units", sort="unit")
    holder = "const r = [...document.querySelectorAll('.raster')].find(r => r.offsetParent); "
    assert page.js(holder + "return r.scrollHeight <= r.clientHeight + 1")
    seen = page.raster()
    drawn = {role.code: seen.get(ROLE_OF[role.code].light, 0) for role in ROLES if role.fill == "solid"}
    counts = page.js(
        "const a = window.unitRoles; return a.api.layer('wide', 0).then(d => {"
        "const n = {}; for (const code of d.roles) n[code] = (n[code] || 0) + 1; return n; })"
    )
    for code, pixels in drawn.items():
        share = counts.get(str(code), 0) / sum(counts.values())
        assert pixels / sum(drawn.values()) == pytest.approx(share, abs=0.03)
    wide = page.js(holder + "return [r.querySelector('canvas').clientWidth, r.clientWidth]")
    assert wide[0] == wide[1]
    page.js("document.querySelector('.view-units [aria-label=\"Higher rows\"]').click()")
    page.drawn()
    assert page.js(holder + "return r.scrollHeight > r.clientHeight")
    assert page.errors() == []


@pytest.mark.slow
def test_many_classes_are_searched_and_paged(driver: Any, large: str) -> None:
    page = Page(driver, large, run="many", view="unit", unit="3")
    assert "page 1 of 3, 60 classes" in page.text(".pager")
    rows = "return [...document.querySelectorAll('.strips title')].map(t => t.textContent)"
    assert page.js(rows) == ["all classes", *MANY[:20]]
    page.js("document.querySelector('[aria-label=\"Classes after\"]').click()")
    page.drawn()
    assert page.js(rows) == ["all classes", *MANY[20:40]]
    page.show(classes="kind 5", page="")
    assert page.js(rows) == ["all classes", "kind 5", *MANY[50:60]]
    named = page.js("return [...document.querySelectorAll('.by-class [data-side=val]')].map(g => g.dataset['class'])")
    assert len(named) == 20
    assert set(named) <= set(MANY)
    assert "The 20 of 60 classes to which it contributes most" in page.text(".view-unit")
    page.show(view="units")
    field = page.find("input[aria-label=Class]")[0]
    field.send_keys("\ue009a\ue000kind 41", "\ue007")  # control and a, then Enter
    page.drawn()
    assert page.js("return window.unitRoles.klass") == 41
    assert page.errors() == []


@pytest.mark.slow
def test_a_server_that_is_gone_is_told_in_words(driver: Any, tmp_path: Path) -> None:
    log_run(tmp_path / "run", Training((Spec("conv", 4),)), 1)
    with tensorboard(tmp_path, runs=1) as address:
        page = Page(driver, address)
    page.show(view="entropy")
    assert "TensorBoard does not answer" in page.text(".message")
    page.driver.get_log("browser")


@contextmanager
def late(driver: Any, milliseconds: int) -> Iterator[None]:
    """A server whose every answer comes late."""

    def set_latency(latency: int) -> None:
        limits = {"offline": False, "latency": latency, "downloadThroughput": -1, "uploadThroughput": -1}
        driver.execute_cdp_cmd("Network.emulateNetworkConditions", limits)

    driver.execute_cdp_cmd("Network.enable", {})
    set_latency(milliseconds)
    try:
        yield
    finally:
        set_latency(0)


@pytest.mark.slow
def test_a_view_says_that_it_is_being_read(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="baseline")
    assert page.text(".progress") == ""
    for state in ({"view": "entropy"}, {"layer": "features.0"}):
        with late(driver, 1500):
            page.js("window.unitRoles.set(arguments[0])", state)
            wait_for("the word", lambda: page.text(".progress") == "Reading …")
            page.drawn()
        assert page.text(".progress") == ""
    assert page.errors() == []


@pytest.mark.slow
def test_the_tab_says_that_it_reads_before_anything_has_come(driver: Any, fast: str) -> None:
    driver.switch_to.default_content()
    driver.get("about:blank")
    with late(driver, 400):
        driver.get(f"{fast}/?darkMode=true#unit_roles")
        (frame,) = wait_for("the frame of the tab", lambda: driver.find_elements("css selector", "iframe"))
        driver.switch_to.frame(frame)
        said = "return [document.body?.innerText.trim(), document.documentElement.dataset.theme, !window.unitRoles]"
        wait_for("the first words", lambda: driver.execute_script(said) == ["Reading the logs …", "dark", True])
    wait_for("the tab", lambda: driver.execute_script("return window.unitRoles?.idle"))
    assert driver.execute_script("return document.querySelectorAll('body > .message').length") == 0


@pytest.mark.slow
def test_a_tab_that_cannot_start_says_so(driver: Any, fast: str) -> None:
    driver.switch_to.default_content()
    driver.get("about:blank")
    driver.execute_cdp_cmd("Network.enable", {})
    driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": ["*/unit_roles/start.js"]})
    try:
        driver.get(f"{fast}/#unit_roles")
        (frame,) = wait_for("the frame of the tab", lambda: driver.find_elements("css selector", "iframe"))
        driver.switch_to.frame(frame)
        said = "return document.querySelector('.message h2')?.innerText"
        wait_for("the message", lambda: driver.execute_script(said) == "The tab could not start")
    finally:
        driver.execute_cdp_cmd("Network.setBlockedURLs", {"urls": []})
        driver.get_log("browser")


@pytest.mark.slow
def test_epochs_on_an_axis_are_evenly_spaced(driver: Any, fast: str) -> None:
    page = Page(driver, fast)
    ticks = """const [labels, wanted] = arguments;
        return import('./charts.js').then((m) => m.analysisTicks(labels, wanted).map(({ label }) => label))"""
    for count in (40, 25, 13, 300):
        labels = page.js(ticks, list(range(count)), 16)
        assert 5 < len(labels) <= 17
        assert len({after - before for before, after in pairwise(labels)}) == 1
        assert all(label == int(label) for label in labels)
    assert page.js(ticks, [0.5 * half for half in range(30)], 6) == [0, 2.5, 5, 7.5, 10, 12.5]


@pytest.mark.slow
def test_a_raster_is_drawn_from_contributions_at_the_cursor_and_completed(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer="features.0", view="units", step="99")
    asked = "return performance.getEntriesByType('resource').map((r) => r.name).filter((n) => n.includes('/layer?'))"
    first, rest = page.js(asked)
    assert "fields=roles&beside=contribution" in first
    assert first.endswith("&at=99")
    assert "rank" in rest
    for state in ({"step": "199"}, {"step": ""}, {"sort": "changes"}, {"unit": "3"}):
        page.show(**state)
    later = page.js(asked)[2:]  # the roles by themselves, as what belongs to them is here
    assert len(later) == 1
    assert later[0].endswith("fields=roles")
    assert "so far" in page.text(".view-units .caption")
    assert page.errors() == []


@pytest.mark.slow
def test_without_roles_there_is_no_legend_of_them(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="without_ablation", layer="features.3")
    for view, form in (("overview", "table"), ("overview", "charts"), ("units", ""), ("entropy", "")):
        page.show(view=view, form=form)
        assert "Training only" not in page.text(f".view-{view} .legend")
    assert "changed since" not in page.text(".view-units")
    page.show(view="overview", form="table")
    assert "analysed without ablation, so its units have no roles" in page.text(".findings")
    assert "by role over time" not in page.text(".layers-table thead")
    page.show(view="unit")
    assert "present role since" not in page.text(".view-unit")


@pytest.mark.slow
def test_changes_are_those_beyond_the_error_bars(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer="features.0", view="units")
    counted = page.js(
        """const a = window.unitRoles; return a.api.layer('contribution', 0).then(d => {
        const units = 16, last = d.steps.length - 1; let count = 0;
        for (let u = 0; u < units; u++) {
          const [i, j] = [(last - 1) * units + u, last * units + u];
          const far = side => Math.abs(d['contribution_' + side][j] - d['contribution_' + side][i]) >
            2 * Math.hypot(d['error_' + side][i], d['error_' + side][j]);
          count += d.roles[i] !== d.roles[j] && d.roles[i] < 4 && d.roles[j] < 4 && (far('val') || far('train'));
        }
        return count; })"""
    )
    said = page.text(".changed-note")
    assert said.startswith(str(counted or "none"))
    assert said.endswith("changed since the analysis before, beyond the error bars")
    page.show(view="transitions", **{"from": "before"})
    assert "2 · to the cursor" not in page.text(".view-transitions")
    assert f"{counted} unit" in page.text(".view-transitions .note")
    assert page.js("return document.querySelector('.view-transitions select').value") == "before"
    assert page.errors() == []


@pytest.mark.slow
def test_nothing_is_wider_than_a_narrow_window(driver: Any, fast: str) -> None:
    size = driver.get_window_size()
    driver.set_window_size(390, 800)
    try:
        page = Page(driver, fast, run="contribution", layer="features.6")
        for view in page.js("return [...document.querySelectorAll('[role=tab]')].map(tab => tab.id.slice(4))"):
            page.show(view=view)
            wide = """const beyond = ({ scrollWidth, clientWidth }) => scrollWidth - clientWidth;
                return [beyond(document.documentElement), beyond(document.querySelector('main'))]"""
            assert page.js(wide) == [0, 0], view
    finally:
        driver.set_window_size(size["width"], size["height"])
