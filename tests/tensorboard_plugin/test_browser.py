"""The tab in a headless Chromium, served by a real TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tensorboard_plugin.conftest import EPOCHS, MARKUP, get, tensorboard, wait_for
from tensorboard_plugin.page import Page
from tensorboard_plugin.synthetic import LAYERS, Training, log_epochs, log_run, with_undecided
from torch.utils.tensorboard import SummaryWriter

from lightning_unitrole.reports.vocabulary import ROLE_OF, ROLES, UNDECIDED
from lightning_unitrole.tensorboard_plugin.packing import unpack
from lightning_unitrole.tensorboard_plugin.schema import OVERVIEW_TAG
from lightning_unitrole.tensorboard_plugin.summary import write_contents, write_report

VIEWS = ("overview", "units", "transitions", "entropy", "ablation", "unit", "runs")
LIGHT = {role.name.lower(): role.light for role in ROLES}
DARK = {role.name.lower(): role.dark for role in ROLES}


@pytest.mark.sampled(1)
def test_the_tab_appears_by_itself(driver: Any, server: str) -> None:
    driver.switch_to.default_content()
    driver.get("about:blank")
    driver.get(server)
    names = wait_for("TensorBoard's tabs", lambda: driver.find_elements("css selector", "div[role=tab]"))
    assert any("unit roles" in tab.text.lower() for tab in names)


@pytest.mark.sampled(1)
def test_every_view_draws(driver: Any, server: str) -> None:
    page = Page(driver, server, run="baseline")
    for view in VIEWS:
        page.show(view=view)
        assert page.view == view
        assert page.text(f".view-{view} h2")
        marks = page.js(f"return document.querySelectorAll('.view-{view} :is(path, rect, canvas, td)').length")
        assert marks > (0 if view == "units" else 5)
    assert page.errors() == []


@pytest.mark.slow
def test_both_themes_colour_the_raster(driver: Any, fast: str) -> None:
    for dark, colours in ((False, LIGHT), (True, DARK)):
        seen = Page(driver, fast, dark=dark, run="baseline", view="units").raster()
        assert all(seen.get(colours[name], 0) > 100 for name in ("both", "train_only", "neither"))


@pytest.mark.slow
def test_the_raster_has_as_many_cells_of_each_role_as_the_log(driver: Any, fast: str) -> None:
    _, layer = unpack(get(f"{fast}/data/plugin/unit_roles/layer?run=baseline&layer=1&fields=roles"))
    page = Page(driver, fast, run="baseline", layer="features.3", view="units", sort="changes", rows="4")
    drawn = page.raster()
    logged = {name: int((layer["roles"] == code).sum()) for name, code in (("both", 3), ("train_only", 1))}
    assert drawn[LIGHT["both"]] / drawn[LIGHT["train_only"]] == pytest.approx(
        logged["both"] / logged["train_only"], rel=0.1
    )


@pytest.mark.slow
def test_the_cursor_moves_by_keyboard_and_stays_in_the_address(driver: Any, fast: str) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(driver, fast, run="baseline")
    assert f"epoch {EPOCHS - 1}" in page.text(".readout")
    assert "the latest" in page.text(".readout")
    page.press(Keys.ARROW_LEFT)
    page.press(Keys.ARROW_LEFT)
    assert f"analysis {EPOCHS - 2} of {EPOCHS}" in page.text(".readout")
    page.press("5")
    assert page.view == "ablation"
    assert f"at epoch {EPOCHS - 3}" in page.text(".view-ablation")
    wait_for("the address", lambda: f"p.unit_roles.step={100 * (EPOCHS - 2) - 1}" in page.address())
    driver.refresh()
    page.driver.switch_to.default_content()
    page.enter()
    assert page.view == "ablation"
    assert f"analysis {EPOCHS - 2} of {EPOCHS}" in page.text(".readout")
    page.press(Keys.HOME)
    assert "epoch 0" in page.text(".readout")


@pytest.mark.slow
def test_a_redraw_leaves_the_focus_where_it_is(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="baseline", view="entropy")
    page.js("document.querySelector('.view-entropy input[value=selective]').focus()")
    page.press(" ")
    assert "selective rate" in page.text(".view-entropy .split")
    assert page.js("return document.activeElement.value") == "selective"
    page.js("document.querySelector('select[aria-label=Layer]').focus()")
    page.press("\ue013")  # arrow up
    assert page.js("return [window.unitRoles.layer.name, document.activeElement.ariaLabel]") == ["features.0", "Layer"]


@pytest.mark.slow
def test_the_address_survives_a_visit_to_another_tab(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="pruned", view="entropy")
    page.show(view="unit", unit="3")
    wait_for("the address", lambda: "p.unit_roles.unit=3" in page.address())
    page.js("parent.tensorboard.tf_storage.setString('__tab__', 'scalars', {})")
    assert "p.unit_roles.unit=3" in page.address()


@pytest.mark.slow
def test_a_click_on_a_cell_of_the_matrix_filters_the_raster(driver: Any, server: str) -> None:
    page = Page(driver, server, run="baseline", layer="features.3", view="transitions")
    cell = next(cell for cell in page.find("[data-cell='0-3']") if cell.is_displayed())
    count = int(cell.find_element("css selector", "b").text)
    _, layer = unpack(get(f"{server}/data/plugin/unit_roles/layer?run=baseline&layer=1&fields=roles"))
    assert count == int(((layer["roles"][0] == 0) & (layer["roles"][-1] == 3)).sum()) > 0
    cell.click()
    page.drawn()
    assert f"{count} of 48 units" in page.text(".view-transitions .caption")
    page.press("2")
    assert f"{count} of 48 units" in page.text(".view-units .caption")
    page.press("\ue00c")  # Escape
    assert "48 units" in page.text(".view-units .caption")
    assert "of 48 units" not in page.text(".view-units .caption")


@pytest.mark.slow
def test_a_click_on_the_raster_chooses_a_unit_and_enter_inspects_it(driver: Any, fast: str) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    page = Page(driver, fast, run="baseline", layer="features.0", view="units")
    raster = page.find(".view-units .raster")[0]
    ActionChains(driver).move_to_element(raster).click().perform()
    page.drawn()
    assert "entropy" in page.text(".tooltip")
    assert "inspect" in page.text(".view-units .caption")
    unit = int(page.js("return window.unitRoles.state.get('unit')"))
    page.press("\ue015")  # arrow down
    page.press("\ue007")  # Enter
    assert page.view == "unit"
    assert page.js("return document.querySelector('.unit-picker input').value") == str(unit + 1)


@pytest.mark.slow
def test_removed_units_are_shown_as_removed(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="pruned", layer="features.3", view="transitions")
    assert "Removed" in page.text(".view-transitions thead")
    assert "36 of 48" in Page(driver, fast, run="pruned").text(".view-overview")
    assert "36 of 48" in Page(driver, fast, run="pruned", form="charts").text(".view-overview")


@pytest.mark.slow
def test_undecided_units_are_hatched(driver: Any, tmp_path: Path) -> None:
    known = None
    with SummaryWriter(tmp_path / "run") as writer:
        for step in range(3):
            report = with_undecided(Training(LAYERS[:1]).report(step, 3), range(4, 20))
            known = write_report(writer, report, step=step, known=known)
    with tensorboard(tmp_path, runs=1) as address:
        page = Page(driver, address)
        assert "Undecided" in page.text(".view-overview .legend")
        fills = page.js("return [...document.querySelectorAll('[data-role=\"253\"]')].map(e => e.getAttribute('fill'))")
        assert fills == ["url(#hatched)"]
        page.show(view="transitions")
        assert "Undecided" in page.text(".view-transitions thead")
        page.show(view="units")
        seen = page.raster()
        assert seen[ROLE_OF[UNDECIDED].light] > 100
        assert seen["#ffffff"] > seen[ROLE_OF[UNDECIDED].light]
        for view in VIEWS:
            page.show(view=view)
        assert page.errors() == []


@pytest.mark.slow
def test_without_ablation_there_is_still_entropy(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="without_ablation", form="charts")
    assert "median and quartiles of the feature entropy" in page.text(".view-overview .layers") or page.js(
        "return document.querySelector('.view-overview .axis-label').textContent"
    ).startswith("epoch · no ablation")
    for view in VIEWS:
        page.show(view=view)
        assert page.js("return window.unitRoles.message.hidden")
    page.show(view="units")
    assert len(page.raster()) > 20  # the colours of a scale, not of roles
    page.show(view="ablation")
    assert "without ablation" in page.text(".view-ablation")
    assert page.errors() == []


@pytest.mark.slow
def test_markup_in_names_stays_text(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run=f"zz {MARKUP}", klass="0")
    for view in VIEWS:
        page.show(view=view)
        assert page.js("return document.querySelectorAll('img').length") == 0
    assert MARKUP in page.js("return document.querySelector('.view-unit').textContent")
    assert page.js("return window.harmed === undefined && parent.harmed === undefined")


@pytest.mark.slow
def test_an_odd_address_does_no_harm(driver: Any, fast: str) -> None:
    page = Page(driver, fast, view="nowhere", run="none", layer="none", klass="99", step="x", unit="-4", rows="many")
    for view in VIEWS:
        page.show(view=view, unit="100000", filter="9-9", compared="{")
        assert page.js("return window.unitRoles.message.hidden")
    assert page.errors() == []


@pytest.fixture(scope="module")
def shown() -> dict[str, str]:
    """What the tab showed first, to compare with what it shows under the other loader."""
    return {}


@pytest.mark.slow
def test_both_loaders_show_the_same(driver: Any, server: str, shown: dict[str, str]) -> None:
    page = Page(driver, server, run="pruned", layer="features.3")
    for view in VIEWS:
        page.show(view=view)
        picture = page.js(
            "const c = [...document.querySelectorAll('.raster canvas')].find(c => c.offsetParent);"
            "const s = [...document.querySelectorAll('svg.chart')].filter(s => s.getClientRects().length);"
            "return (c ? c.toDataURL() : '') + s.map(each => each.innerHTML).join()"
        )
        assert shown.setdefault(view, page.text() + picture) == page.text() + picture


@pytest.mark.slow
@pytest.mark.parametrize("load_fast", ["true", "false"])
def test_a_reload_shows_what_a_live_run_has_logged_since(driver: Any, tmp_path: Path, load_fast: str) -> None:
    epochs = log_epochs(tmp_path / "live", Training(LAYERS[:1]), 6)
    next(epochs), next(epochs)
    with tensorboard(tmp_path, "--load_fast", load_fast, "--reload_interval", "1", runs=1) as address:
        page = Page(driver, address, view="units")
        assert "analysis 2 of 2, the latest" in page.text(".readout")
        next(epochs)

        def reloaded() -> bool:
            page.js("parent.document.querySelector('[title*=eload], .reload-button, app-header-reload button').click()")
            page.drawn()
            return "analysis 3 of 3, the latest" in page.text(".readout")

        wait_for("the third analysis", reloaded)
        page.show(step="199")
        next(epochs)
        wait_for("the fourth analysis", lambda: reloaded() or "analysis 2 of 4" in page.text(".readout"))
        assert page.errors() == []
    epochs.close()


@pytest.mark.slow
def test_what_cannot_be_shown_is_told_in_words(driver: Any, tmp_path: Path) -> None:
    log_run(tmp_path / "good", Training(LAYERS[:1]), 3)
    with SummaryWriter(tmp_path / "newer") as writer:
        write_contents(writer, {OVERVIEW_TAG: b"whatever it may be"}, b'{"format": 99}', 1)
    with SummaryWriter(tmp_path / "partly") as writer:
        training, known = Training(LAYERS[:2], seed=1), None
        for step in range(3):
            known = write_report(writer, training.report(step, 3), step=step, known=known)
        write_contents(writer, {f"unit_roles/{LAYERS[1].name}/{part}": b"?" for part in ("state", "curves")}, b"", 1000)
    with tensorboard(tmp_path, runs=2) as address:
        page = Page(driver, address, run="partly", layer=LAYERS[1].name)
        assert "newer: The run cannot be shown: a newer version" in page.text(".notice")
        assert "damaged" not in page.text(".notice")
        for view in VIEWS:
            page.show(view=view)
            assert page.js("return window.unitRoles.message.hidden")
        assert f"partly · {LAYERS[1].name}: 1 of 4 analyses cannot be shown: the bytes are" in page.text(".notice")
        assert "analysis 3 of 3" in page.text(".readout")
        assert page.errors() == []


@pytest.mark.slow
def test_where_no_run_can_be_shown_the_reasons_are(driver: Any, tmp_path: Path) -> None:
    with SummaryWriter(tmp_path / "newer") as writer:
        write_contents(writer, {OVERVIEW_TAG: b"whatever it may be"}, b'{"format": 99}', 1)
    with tensorboard(tmp_path, runs=0) as address:
        get(f"{address}/data/plugin/unit_roles/runs")
        page = Page(driver, address)
        assert "No run in these logs can be shown" in page.text(".message")
        assert "update the package" in page.text(".message")
        assert page.errors() == []


@pytest.mark.slow
def test_an_empty_log_says_what_to_do(driver: Any, tmp_path: Path) -> None:
    with tensorboard(tmp_path, runs=0) as address:
        page = Page(driver, address)
        assert "UnitRoleMonitor()" in page.text(".message")
