"""The colours of the roles can be told apart, whatever the eyes."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lightning_unitrole.reports.vocabulary import BACKGROUND, REMOVED, ROLE_OF, ROLES, UNDECIDED

# Machado, Oliveira & Fernandes, "A Physiologically-based Model for Simulation of Color Vision Deficiency" (2009),
# severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


def perceived(colour: str, sight: str) -> np.ndarray:
    """The colour in OKLab, as somebody with that sight sees it."""
    srgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(SIGHT[sight]) @ linear, 0, 1)
    return np.array(OKLAB) @ np.cbrt(np.array(LMS) @ seen)


def luminance(colour: str) -> float:
    srgb = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, other: str) -> float:
    """Contrast ratio as WCAG 2 defines it, 1 to 21."""
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def colours(theme: str, *fills: str) -> dict[str, str]:
    return {role.name: getattr(role, theme) for role in ROLES if role.fill in fills}


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_roles_can_be_told_apart(theme: str, sight: str) -> None:
    shown = {name: perceived(colour, sight) for name, colour in colours(theme, "solid").items()}
    shown["background"] = perceived(BACKGROUND[theme], sight)
    for one, other in itertools.combinations(shown, 2):
        assert np.linalg.norm(shown[one] - shown[other]) > 0.14, (one, other)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_mark_stands_out_from_the_background(theme: str) -> None:
    marks = colours(theme, "solid", "hatched")
    assert len(marks) == 5
    for name, colour in marks.items():
        assert contrast(colour, BACKGROUND[theme]) >= 3, name


def test_figures_use_the_colours_of_the_light_theme_on_white() -> None:
    assert BACKGROUND["light"] == "#ffffff"
    assert all(role.matplotlib == role.light for role in ROLES)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_undecided_is_hatched_and_has_no_colour_of_a_role(theme: str) -> None:
    assert ROLE_OF[UNDECIDED].fill == "hatched"
    assert getattr(ROLE_OF[UNDECIDED], theme) not in colours(theme, "solid").values()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_removed_units_vanish_into_the_background(theme: str) -> None:
    assert getattr(ROLE_OF[REMOVED], theme) == BACKGROUND[theme]
