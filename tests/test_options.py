"""The settings of an analysis: one place for all who take them."""

from __future__ import annotations

import inspect
from dataclasses import fields
from typing import Any

import pytest
from torch import nn

from lightning_unitrole import UnitRoleMonitor, analyze, compare_criteria
from lightning_unitrole.analysis.options import AnalysisOptions, make_options, options_of
from lightning_unitrole.errors import SettingError

OPTIONS = {field.name: field.default for field in fields(AnalysisOptions)}


@pytest.mark.parametrize("function", [analyze, compare_criteria, UnitRoleMonitor])
def test_everything_that_takes_options_shows_all_of_them_with_their_defaults(function: Any) -> None:
    shown = inspect.signature(function).parameters
    for name, default in OPTIONS.items():
        assert shown[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert shown[name].default == default, name
    assert not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in shown.values())


def test_the_monitor_hands_its_options_on() -> None:
    watched = UnitRoleMonitor(images_per_class=7, off="mean", every_n_epochs=3, class_names=["a", "b"])
    assert type(watched.settings) is AnalysisOptions
    changed = {"images_per_class": 7, "off": "mean", "class_names": ["a", "b"]}
    assert vars(watched.settings) == {**OPTIONS, **changed}
    assert vars(options_of(watched, off="zero", backend="torch")) == {
        **OPTIONS,
        **changed,
        "off": "zero",
        "backend": "torch",
    }


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image_per_class": 5}, r"analyze has no option 'image_per_class'\. Did you mean 'images_per_class'\?"),
        ({"zzz": 5}, r"analyze has no option 'zzz'\. There are: layers, images_per_class, criterion"),
    ],
    ids=["a slip", "anything"],
)
def test_an_unknown_option_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        analyze(nn.Linear(1, 1), [], [], **given)
    with pytest.raises(SettingError, match=message):
        make_options(given, caller="analyze")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roles": "entropy"}, r"roles='entropy'; expected one of contribution, turning_point"),
        ({"effects": "shapley"}, r"effects='shapley'; expected one of contribution, removal"),
        ({"off": "noise"}, r"off='noise'; expected one of zero, mean"),
        ({"off": "mean", "roles": "turning_point"}, r"the published roles are defined with units at zero"),
        ({"contribution_steps": 0}, r"contribution_steps=0; expected an integer of at least 1"),
        ({"curve_images": -1}, r"curve_images=-1; expected an integer of at least 0"),
        ({"images_per_class": "all"}, r"images_per_class='all'; expected an integer of at least 1"),
        ({"images_per_class": True}, r"images_per_class=True; expected an integer of at least 1"),
        ({"ablation_points": 1}, r"ablation_points=1; expected at least 2 to make a curve, or 0"),
        ({"max_density": 0}, r"max_density=0; expected a number above 0 and at most 1"),
        ({"class_names": "abc"}, r"class_names='abc' is one string; expected a list"),
        ({"score_fn": 3}, r"score_fn=3 is a int; expected a function, or None"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_is_out_of_range_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        AnalysisOptions(**settings)


@pytest.mark.parametrize(
    ("classes", "images"), [(1, 100), (10, 100), (50, 100), (51, 98), (100, 50), (500, 10), (1000, 10)], ids=str
)
def test_a_split_has_about_five_thousand_images(classes: int, images: int) -> None:
    assert AnalysisOptions().images_of_each(classes) == images
    assert AnalysisOptions(images_per_class=33).images_of_each(classes) == 33


@pytest.mark.parametrize(("classes", "images"), [(2, 20), (50, 20), (100, 10), (1000, 1), (5000, 1)])
def test_curves_keep_to_a_number_of_images(classes: int, images: int) -> None:
    assert AnalysisOptions().curve_images_of_each(classes) == images
    assert AnalysisOptions(curve_images=7).curve_images_of_each(classes) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_epochs": "often"}, r"every_n_epochs='often'; expected an integer of at least 1, or 'auto'"),
        ({"every_n_epochs": 1.5}, r"every_n_epochs=1.5; expected"),
        ({"budget": 0}, r"budget=0; expected a number above 0"),
        ({"val_dataloader_idx": -1}, r"val_dataloader_idx=-1; expected an integer of at least 0"),
        ({"forward_fn": "model"}, r"forward_fn='model' is a str; expected a function"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_the_monitor_alone(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        UnitRoleMonitor(**settings)
