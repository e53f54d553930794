"""Names, codes and verdicts that the console, the scalars, the figures and the tab share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.verdicts import (
    RANKING_MARGIN,
    RELIABLE_AGREEMENT,
    order_is_informative,
    ranking_is_informative,
    ranking_verdict,
    ranking_word,
    reliability_verdict,
)
from lightning_unitrole.reports.vocabulary import (
    GLOSSARY,
    NO_ROLE,
    REMOVED,
    ROLE_OF,
    ROLES,
    UNDECIDED,
    LayerFacts,
    findings,
    vocabulary,
)

NAN = float("nan")


def test_codes_are_those_of_the_reports() -> None:
    codes = {role.name: role.code for role in ROLES}
    assert codes == {**{role.name: int(role) for role in UnitRole}, "UNDECIDED": 253, "REMOVED": 254, "NO_ROLE": 255}
    assert (UNDECIDED, REMOVED, NO_ROLE) == (253, 254, 255)


def test_it_can_be_sent_as_json() -> None:
    sent = json.loads(json.dumps(vocabulary(), allow_nan=False))
    assert [role["code"] for role in sent["roles"]] == list(ROLE_OF)


def test_meanings_are_one_sentence_each() -> None:
    for role in ROLES:
        assert role.meaning.endswith(".")
        assert ". " not in role.meaning


def test_it_loads_nothing_but_the_standard_library() -> None:
    code = "import sys; import lightning_unitrole.reports.vocabulary; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    foreign = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names)
    assert not {"torch", "numpy", "tensorboard", "matplotlib"} & foreign


@pytest.mark.parametrize(
    ("gap", "random_gap", "words"),
    [
        (0.30, 0.10, "is better than a random one"),
        (0.10 + RANKING_MARGIN, 0.10, "is no better than a random one"),
        (0.12, 0.10, "is no better than a random one"),
        (0.06, 0.10, "is no better than a random one"),
        (0.02, 0.10, "is worse than a random one"),
        (-0.48, -0.2, "is upside down"),
        (-0.1, -0.3, "is upside down"),
        (NAN, 0.1, "was not put to the test"),
        (0.3, NAN, "was not compared with a random one"),
        (-0.3, NAN, "is upside down"),
    ],
)
def test_the_verdict_on_a_ranking(gap: float, random_gap: float, words: str) -> None:
    assert ranking_verdict(gap, random_gap, "mean_activation").startswith(f"The order by mean activation {words}")
    assert (ranking_is_informative(gap, random_gap) is True) == (words == "is better than a random one")


def test_a_word_for_each_verdict() -> None:
    gaps = [(0.3, 0.1), (0.12, 0.1), (0.02, 0.1), (-0.48, -0.2), (0.3, NAN), (NAN, NAN)]
    words = [ranking_word(*pair) for pair in gaps]
    assert words == [
        "better than random",
        "no better than random",
        "worse than random",
        "upside down",
        "not compared",
        "not tested",
    ]
    assert len({ranking_verdict(*pair) for pair in gaps}) == len(words)


def test_a_ranking_that_was_not_measured_is_neither_good_nor_bad() -> None:
    assert ranking_is_informative(NAN, 0.1) is None
    assert ranking_is_informative(0.3, NAN) is None


@pytest.mark.parametrize(
    ("agreement", "images", "words"),
    [
        (RELIABLE_AGREEMENT, 100, "are reliable: two halves of 100 images a class agree to 0.60"),
        (0.59, 20, "not enough images to tell the roles: two halves of 20 images a class agree only to 0.59, less"),
        (-0.1, 2, "use more images"),
        (NAN, 1, "was not measured: there are no two halves of 1 image a class"),
    ],
)
def test_the_verdict_on_reliability(agreement: float, images: int, words: str) -> None:
    assert words in reliability_verdict(agreement, images)


def facts(name: str, units: int, **known: float) -> LayerFacts:
    unknown = dict.fromkeys(("help_no_class", "removable", "differing_share", "agreement"), NAN)
    return LayerFacts(name, units, **{**unknown, **known})


def test_the_findings_name_the_layers_that_stand_out() -> None:
    layers = [
        facts("conv1", 64, help_no_class=3, removable=0, differing_share=0.02, agreement=0.9),
        facts("conv2", 512, help_no_class=210, removable=38, differing_share=0.34, agreement=0.8),
        facts("conv3", 8, help_no_class=8, removable=2, differing_share=0.1, agreement=0.3),
    ]
    assert findings(layers) == [
        "In conv2, 210 of 512 units help no class measurably.",
        "Without 38 of the 512 units of conv2 the network was as good on other images.",
        "In conv2, 34 % of the (class, unit) pairs contribute differently on training and validation images.",
        "There are not enough images to tell the roles of conv3.",
    ]


def test_the_findings_say_when_nothing_was_memorised() -> None:
    assert findings([facts("conv1", 8, help_no_class=0, differing_share=0.0, agreement=1.0)]) == [
        "In no layer is there a sign that the network has memorised its training images.",
        "The roles are reliable: two halves of the images agree completely.",
    ]


@pytest.mark.parametrize(
    ("agreements", "words"),
    [
        ((0.969, 0.96, 1.0), "reliable in every layer: two halves of the images agree to 0.96 or better."),
        ((0.999, 1.0), "reliable in every layer: two halves of the images agree to 0.99 or better."),
        ((0.9, NAN), "reliable: two halves of the images agree to 0.90."),
        ((RELIABLE_AGREEMENT,), "reliable: two halves of the images agree to 0.60."),
        ((0.9, RELIABLE_AGREEMENT - 0.01), "not enough images to tell the roles of conv1."),
    ],
)
def test_the_findings_say_whether_roles_are_reliable(agreements: tuple[float, ...], words: str) -> None:
    layers = [facts(f"conv{place}", 8, agreement=agreement) for place, agreement in enumerate(agreements)]
    assert findings(layers)[-1].endswith(words)
    assert sum("halves" in sentence or "not enough images" in sentence for sentence in findings(layers)) == 1


def test_without_contributions_there_are_no_findings() -> None:
    assert findings([facts("conv1", 8)]) == []
    assert findings([]) == []


def test_a_few_units_that_help_nobody_do_not_stand_out() -> None:
    assert findings([facts("conv1", 128, help_no_class=6), facts("conv2", 512, help_no_class=25)]) == []
    assert findings([facts("conv1", 20, help_no_class=1)]) == ["In conv1, 1 of 20 units helps no class measurably."]
    assert findings([facts("conv1", 8, help_no_class=0)]) == []


def test_many_layers_without_enough_images_are_counted() -> None:
    (sentence,) = findings([facts(f"conv{place}", 8, agreement=0.1) for place in range(6)])
    assert sentence == "There are not enough images to tell the roles of conv0, conv1, conv2 and 3 more."


def test_an_order_needs_scores_that_tell_units_apart() -> None:
    assert [order_is_informative(share, NAN) for share in (0.0, 0.5, NAN)] == [False, True, False]
    assert order_is_informative(NAN, 1.0)


def test_the_glossary_explains_each_word_once() -> None:
    names = [term.name for term in GLOSSARY]
    assert len(set(names)) == len(names)
    for term in GLOSSARY:
        assert term.meaning.endswith(".")
