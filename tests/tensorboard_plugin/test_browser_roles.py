"""What the tab shows of roles by contribution: which layers to look at, and whether to believe it."""

from __future__ import annotations

from typing import Any

import pytest
from tensorboard_plugin.conftest import get
from tensorboard_plugin.page import Page
from tensorboard_plugin.synthetic import CONTRIBUTING

from lightning_unitrole.reports.verdicts import NO_ORDER, reliability_verdict
from lightning_unitrole.reports.vocabulary import GLOSSARY, ROLE_OF
from lightning_unitrole.tensorboard_plugin.packing import unpack

SOUND, NOISY, APART, TIED = (spec.name for spec in CONTRIBUTING)
CELLS = """const cells = row => [...row.querySelectorAll('[data-column]')].map(cell =>
      [cell.dataset.column, cell.innerText]);
    return Object.fromEntries([...document.querySelectorAll('.layers-table tbody tr')].map(row =>
      [row.dataset.layer, Object.fromEntries(cells(row))]))"""


@pytest.fixture
def overview(fast: str) -> dict[str, dict[str, float]]:
    """The last row of each layer, as it was logged."""
    info, arrays = unpack(get(f"{fast}/data/plugin/unit_roles/overview?run=contribution"))
    rows = arrays["table"][-1].tolist()
    return {name: dict(zip(info["columns"], row, strict=True)) for name, row in zip(info["layers"], rows, strict=True)}


def layers(page: Page) -> list[str]:
    rows = "return [...document.querySelectorAll('.layers-table tbody tr')].map(row => row.dataset.layer)"
    return list(page.js(rows))


@pytest.mark.slow
def test_the_table_shows_what_was_logged(driver: Any, fast: str, overview: dict[str, dict[str, float]]) -> None:
    page = Page(driver, fast, run="contribution")
    cells = page.js(CELLS)
    assert layers(page) == list(overview)
    for name, row in overview.items():
        for column in ("units_help", "units_no_effect", "units_hurt", "units_removable"):
            assert cells[name][column] == str(int(row[column]))
        shown = float(cells[name]["differing_share"].removesuffix(" %"))
        assert shown == pytest.approx(100 * row["differing_share"], abs=0.051)
        macs = cells[name]["macs"]
        assert float(macs[:-1]) * {"k": 1e3, "M": 1e6}[macs[-1]] == pytest.approx(row["macs"], rel=5e-3)
        assert float(cells[name]["agreement"]) == pytest.approx(row["agreement"], abs=0.0051)
    check = page.js(f"return document.querySelector('[data-layer=\"{SOUND}\"] [data-column=units_removable]').title")
    assert f"{100 * overview[SOUND]['check_removed_accuracy']:.1f} % without the units that have no effect" in check
    assert page.errors() == []


@pytest.mark.slow
def test_what_an_order_is_worth_is_told_calmly_where_roles_do_not_follow_from_it(driver: Any, fast: str) -> None:
    ink = "return [...document.querySelectorAll('.layers-table .words span')].map(s => s.className)"
    page = Page(driver, fast, run="contribution")
    assert "order by feature entropy" in page.text(".layers-table thead")
    said = page.text(f"tr[data-layer='{SOUND}'] .words span")
    assert said in ("better than random", "no better than random", "worse than random", "upside down")
    title = page.js(f"return document.querySelector('tr[data-layer=\"{SOUND}\"] .words span').title")
    assert title.startswith("The order by feature entropy is ")
    assert "Ranking gap " in title
    assert set(page.js(ink)) == {""}
    tied = page.js("return [...document.querySelectorAll('[data-doubt=doubt_order]')].map(p => p.className)")
    assert tied == ["doubt mild"]
    assert page.text(f"tr[data-layer='{TIED}'] .words").strip() == NO_ORDER
    for form in ("table", "charts"):
        assert "hardly" not in Page(driver, fast, run="contribution", form=form).text(".view-overview")


@pytest.mark.slow
def test_a_line_on_top_says_what_stands_out(driver: Any, fast: str) -> None:
    said = Page(driver, fast, run="contribution").text(".findings")
    assert f"In {APART}, " in said
    assert "contribute differently on training and validation images." in said
    assert f"not enough images to tell the roles of {NOISY}" in said
    assert Page(driver, fast, run="baseline").text(".findings") == ""


@pytest.mark.slow
def test_a_table_of_the_published_roles_counts_them(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="baseline")
    info, arrays = unpack(get(f"{fast}/data/plugin/unit_roles/overview?run=baseline"))
    both = arrays["table"][-1, :, info["columns"].index("units_both")]
    assert [row["units_both"] for row in page.js(CELLS).values()] == [str(int(count)) for count in both]
    assert "differing" not in page.text(".layers-table thead")
    assert "MACs" not in page.text(".layers-table thead")  # not logged by earlier versions


@pytest.mark.slow
def test_the_table_can_be_sorted_and_searched(driver: Any, fast: str, overview: dict[str, dict[str, float]]) -> None:
    page = Page(driver, fast, run="contribution")
    page.find("[data-sort=differing_share]")[0].click()
    page.drawn()
    assert layers(page)[0] == max(overview, key=lambda name: overview[name]["differing_share"]) == APART
    assert page.js("return document.querySelector('[aria-sort]').ariaSort") == "descending"
    page.find("[data-sort=differing_share]")[0].click()
    page.drawn()
    assert layers(page)[-1] == APART
    page.find("input[type=search]")[0].send_keys("es.6")
    page.drawn()
    assert layers(page) == [APART]
    assert page.js("return document.activeElement.type") == "search"


@pytest.mark.slow
def test_the_charts_are_behind_the_table(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution")
    page.js("document.querySelector('input[value=charts]').click()")
    page.drawn()
    assert len(page.find(".layer-row .chart")) == len(CONTRIBUTING)
    assert not page.find(".layers-table")


@pytest.mark.slow
def test_roles_that_cannot_be_relied_on_say_so_in_place(
    driver: Any, fast: str, overview: dict[str, dict[str, float]]
) -> None:
    expected = reliability_verdict(overview[NOISY]["agreement"], 100)
    page = Page(driver, fast, run="contribution")
    assert expected in page.text(f"tr[data-layer='{NOISY}']")
    assert "halves of" not in page.text(f"tr[data-layer='{SOUND}']")
    faded = "return getComputedStyle(document.querySelector(arguments[0])).opacity"
    assert page.js(faded, f"tr[data-layer='{NOISY}'] [data-role]") == "0.4"
    assert page.js(faded, f"tr[data-layer='{SOUND}'] [data-role]") == "1"
    page.show(form="charts")
    assert expected in page.text(".layer-row.doubtful")
    for view, mark in (("units", ".raster canvas"), ("transitions", ".raster canvas"), ("unit", ".strips [data-role]")):
        page.show(view=view, layer=NOISY)
        assert expected in page.text(".doubts")
        assert page.js(faded, f".view-{view} {mark}") == "0.4"
        page.show(layer=SOUND)
        assert page.text(".doubts") == ""
        assert page.js(faded, f".view-{view} {mark}") == "1"


@pytest.mark.slow
def test_an_order_without_information_is_not_sorted_by(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer=TIED, view="units", sort="entropy")
    assert NO_ORDER in page.text(".doubts")
    sorts = "return [...document.querySelectorAll('select[aria-label=\"Sort by\"] option')].map(o => o.value)"
    assert "entropy" not in page.js(sorts)
    assert page.js("return document.querySelector('select[aria-label=\"Sort by\"]').value") == "unit"
    page.show(view="unit")
    assert "none" in page.text(".unit-head")
    page.show(view="ablation")
    assert NO_ORDER in page.text(".doubts")
    assert page.js("return getComputedStyle(document.querySelector('.doubts .doubt')).color") == page.js(
        "return getComputedStyle(document.querySelector('.view-ablation .explain p')).color"
    )
    page.show(view="units", layer=SOUND)
    assert "entropy" in page.js(sorts)


@pytest.mark.slow
def test_units_are_sorted_by_role_and_then_by_contribution(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer=SOUND, view="units")
    page.js("document.querySelector('.view-units .raster').focus()")
    seen = []
    for _ in range(16):
        page.press("\ue015")  # arrow down
        seen.append(int(page.js("return window.unitRoles.state.get('unit')")))
    fields = "roles,contribution_val"
    _, layer = unpack(get(f"{fast}/data/plugin/unit_roles/layer?run=contribution&layer=0&fields={fields}"))
    roles, contribution = layer["roles"][-1], layer["contribution_val"][-1].astype(float)
    place = list(ROLE_OF)
    assert seen == sorted(range(16), key=lambda unit: (place.index(roles[unit]), -contribution[unit]))


@pytest.mark.slow
def test_a_unit_shows_its_contribution_to_each_class(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer=SOUND, view="unit", unit="3")
    query = "run=contribution&layer=0&unit=3&step=299"
    _, logged = unpack(get(f"{fast}/data/plugin/unit_roles/contributions?{query}"))
    words = page.js("return document.querySelector('.by-class').ariaLabel")
    mean, error = logged["contribution_val"][0, 0], logged["error_val"][0, 0]
    sign = "+" if mean > 0 else "\u2212"
    assert f"validation {sign}{abs(mean):.3f} ± {error:.3f}" in words.split(";")[0]
    lengths = page.js(
        """return [...document.querySelectorAll('.by-class g[data-side=val] line')]
            .map(({ x1, x2 }) => x2.baseVal.value - x1.baseVal.value)"""
    )
    ratio = logged["error_val"][0, 1] / logged["error_val"][0, 0]
    assert len(lengths) == 10
    assert lengths[1] / lengths[0] == pytest.approx(ratio, rel=0.02)
    _, state = unpack(get(f"{fast}/data/plugin/unit_roles/layer?run=contribution&layer=0&fields=effect_val"))
    effect = ("hurts", "no effect measurable", "helps")[state["effect_val"][-1, 3]]
    assert f"effect\n{effect}" in page.text(".unit-head")
    assert "rank by feature entropy\n" in page.text(".unit-head")


@pytest.mark.slow
def test_curves_of_contributions_and_random_orders(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer=SOUND, view="ablation")
    text = page.text(".view-ablation")
    assert "contributing least first" in text
    assert "random orders" in text
    assert "accuracy, all classes" in page.js("return document.querySelector('.view-ablation').textContent")
    assert "turning point" not in text
    assert not page.find(".turning")
    bands = page.js("return [...document.querySelectorAll('.view-ablation .band')].map(band => band.getAttribute('d'))")
    assert sum(bool(band) for band in bands) == 3  # the gap and the random orders of the accuracy, those of the loss
    page = Page(driver, fast, run="baseline", view="ablation")
    assert "turning point" in page.text(".view-ablation")
    assert page.find(".turning")


@pytest.mark.slow
def test_the_question_mark_explains_the_words(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution")
    page.find(".help")[0].click()
    shown = page.text("dialog")
    for term in GLOSSARY:
        assert term.name in shown
        assert term.meaning in shown


@pytest.mark.slow
def test_a_legend_says_what_the_roles_mean(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", view="units")
    assert ROLE_OF[3].meaning not in page.text(".view-units .legend")
    page.find(".view-units .legend summary")[0].click()
    assert ROLE_OF[3].meaning in page.text(".view-units .legend")
    page.press("\ue011")  # Home: the view is drawn anew
    assert ROLE_OF[3].meaning in page.text(".view-units .legend")


@pytest.mark.slow
def test_a_unit_shows_the_images_it_looks_at(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="contribution", layer="features.3", view="unit", unit="2")
    figures = "[...document.querySelectorAll('.looks-at figure')].filter(f => f.dataset.kind === '{}')"
    for kind, first in (("contribution", "+0.50 nats"), ("activation", "peak 5.00")):
        captions = page.js(f"return {figures.format(kind)}.map(f => f.dataset.split + ' ' + f.innerText)")
        assert len(captions) == 6
        assert captions[0].split() == ["val", "bird", *first.split()]
        assert captions[3].split() == ["train", "bird", *first.split()]
    middle = (
        "return [...document.querySelectorAll('.looks-at canvas')].map(c => [...c.getContext('2d')"
        ".getImageData(c.width - 9, c.height - 9, 1, 1).data])"
    )
    # picture 2 of the side first, then 3 and 4; the map is there at the near corner alone, and the far one is darkened
    shades = [85, 125, 165, 80, 120, 160]
    corner = middle.replace("c.width - 9, c.height - 9", "5, 5")
    assert [shade[0] for shade in page.js(corner)[:6]] == pytest.approx(shades, abs=2)
    dimmed = [shade[0] for shade in page.js(middle)[:6]]
    assert dimmed == pytest.approx([0.18 * shade for shade in shades], abs=2)
    page.js("document.querySelector('.looks-at input').click()")
    page.drawn()
    assert [shade[0] for shade in page.js(middle)[:6]] == shades
    assert page.js(corner)[0] == [85, 85, 85, 255]
    assert "unit 3 (correlation 0.75)" in page.text(".twins")
    page.js("document.querySelector('[data-twin]').click()")
    page.drawn()
    assert page.js("return document.querySelector('.unit-picker input').value") == "3"
    assert page.errors() == []


@pytest.mark.slow
def test_a_run_without_images_says_nothing_of_them(driver: Any, fast: str) -> None:
    page = Page(driver, fast, run="baseline", layer="features.3", view="unit")
    assert page.find(".looks-at") == []
    assert "of 48 in features.3" in page.text(".unit-head")
    assert page.errors() == []
