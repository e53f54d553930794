"""The colours of the roles can be told apart, whatever the eyes."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pytest

from lightning_unitrole.tensorboard_plugin.plugin import STATIC

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


def colours(theme: str) -> dict[str, str]:
    text = (STATIC / "palette.js").read_text(encoding="utf-8")
    (found,) = re.findall(rf"^  {theme}: {{ (.*) }},$", text, re.MULTILINE)
    return dict(re.findall(r"(\w+): '(#\w{6})'", found))


@pytest.mark.parametrize("sight", SIGHT)
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_roles_can_be_told_apart(theme: str, sight: str) -> None:
    shown = {name: perceived(colours(theme)[name], sight) for name in ("3", "2", "1", "0", "background")}
    for one, other in itertools.combinations(shown, 2):
        assert np.linalg.norm(shown[one] - shown[other]) > 0.14, (one, other)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_removed_units_vanish_into_the_background(theme: str) -> None:
    assert colours(theme)["254"] == colours(theme)["background"]
