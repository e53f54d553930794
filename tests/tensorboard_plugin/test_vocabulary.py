"""Names, codes and verdicts that the console, the scalars, the figures and the tab share."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from lightning_unitrole.reports.roles import UnitRole
from lightning_unitrole.reports.vocabulary import (
    NO_ROLE,
    RANKING_MARGIN,
    RELIABLE_AGREEMENT,
    REMOVED,
    ROLE_OF,
    ROLES,
    UNDECIDED,
    ranking_is_informative,
    ranking_verdict,
    reliability_verdict,
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
        (0.30, 0.10, "is better than a random order"),
        (0.10 + RANKING_MARGIN, 0.10, "is hardly better"),
        (0.12, 0.10, "is hardly better"),
        (0.06, 0.10, "is hardly better"),
        (0.02, 0.10, "is worse than a random order"),
        (-0.48, -0.2, "is upside down"),
        (NAN, 0.1, "was not put to the test"),
        (0.3, NAN, "was not compared with a random order"),
        (-0.3, NAN, "is upside down"),
    ],
)
def test_the_verdict_on_a_ranking(gap: float, random_gap: float, words: str) -> None:
    assert words in ranking_verdict(gap, random_gap)
    assert (ranking_is_informative(gap, random_gap) is True) == (words == "is better than a random order")


def test_a_ranking_that_was_not_measured_is_neither_good_nor_bad() -> None:
    assert ranking_is_informative(NAN, 0.1) is None
    assert ranking_is_informative(0.3, NAN) is None


@pytest.mark.parametrize(
    ("agreement", "images", "words"),
    [
        (RELIABLE_AGREEMENT, 100, "are reliable: two halves of 100 images a class agree to 0.60"),
        (0.59, 20, "are not reliable: two halves of 20 images a class agree only to 0.59, less than 0.6"),
        (-0.1, 2, "are not reliable"),
        (NAN, 1, "was not measured: there are no two halves of 1 image a class"),
    ],
)
def test_the_verdict_on_reliability(agreement: float, images: int, words: str) -> None:
    assert words in reliability_verdict(agreement, images)
