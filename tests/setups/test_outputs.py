"""Networks that return more than logits, without a Trainer: the logits are found, or asked for by one argument."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import people
import pytest
import torch
from people import CLASSES, loaders, pair
from test_setups import CURVE_IMAGES, IMAGES
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_unitrole import UnitReport, analyze, cumulative_ablation
from lightning_unitrole.errors import DataError

Named = namedtuple("Named", "embedding scores")


@dataclass
class Output:
    """As Hugging Face's, with other names."""

    pooled: Tensor
    scores: Tensor


class Returns(nn.Module):
    """Features of ``width`` numbers, and logits of them; ``make`` says what is returned of both."""

    def __init__(self, make: Callable[[Tensor, Tensor], Any], width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = people.backbone(width)
        self.head = nn.Linear(width, CLASSES)
        self.make = make

    def forward(self, x: Tensor) -> Any:
        features = self.net(x)
        return self.make(features, self.head(features.relu()))


RETURNS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "features, logits": lambda features, logits: (features, logits),
    "logits, features": lambda features, logits: (logits, features),
    "dict": lambda features, logits: {"first": features, "second": logits},
    "named tuple": Named,
    "dataclass": Output,
    "probabilities, logits": lambda features, logits: (logits.softmax(1), logits),
    "prediction, logits": lambda features, logits: (logits.argmax(1), logits),
    "loss, logits": lambda features, logits: (features.square().mean(), logits),
    "two heads": lambda features, logits: (logits, logits + features.sum(1, keepdim=True)),
    "logits by name": lambda features, logits: {"aux": features, "logits": logits},
}


def analysed(model: nn.Module, **settings: Any) -> UnitReport:
    quick: dict[str, Any] = {"images_per_class": IMAGES, "curve_images": CURVE_IMAGES, "ablation_points": 4}
    return analyze(model, *loaders(), **{**quick, "backend": "torch", "layers": "net.6", **settings})


def assert_logits_were_scored(report: UnitReport, model: Returns) -> None:
    data = people.Items(people.VAL, 1, pair)
    rows = [row for row in range(len(data)) if IMAGES <= row // CLASSES < IMAGES + CURVE_IMAGES]
    with torch.no_grad():
        logits = model.head(model.net(data.images[rows]).relu())
    assert len(report.class_names) == CLASSES
    curve = report.layers["net.6"].val.curves["least_first"]
    assert float(curve.loss[0]) == pytest.approx(float(F.cross_entropy(logits, data.labels[rows])), rel=1e-4)


@pytest.mark.parametrize("name", RETURNS)
def test_logits_are_told_from_what_else_is_returned(name: str) -> None:
    model = Returns(RETURNS[name]).eval()
    assert_logits_were_scored(analysed(model), model)


def test_features_as_wide_as_the_logits() -> None:
    model = Returns(RETURNS["features, logits"], CLASSES).eval().requires_grad_(requires_grad=False)
    assert_logits_were_scored(analysed(model), model)


def test_what_cannot_be_told_is_asked_for_by_one_argument() -> None:
    model = Returns(lambda features, logits: {"one": features[:, None], "other": logits}).eval()
    with pytest.raises(DataError, match=r"outputs\['one'\] \[2, 1, 16\], outputs\['other'\] \[2, 4\]; which of them"):
        analysed(model)
    with pytest.raises(DataError, match=r"Pass forward=.* such as lambda inputs: model\(inputs\)\['other'\]\."):
        analysed(model)
    report = analysed(model, forward=lambda inputs: model(inputs)["other"])
    assert_logits_were_scored(report, model)
    assert_logits_were_scored(analysed(model, num_classes=CLASSES), model)


def test_features_alone_are_no_logits() -> None:
    def make(features: Tensor, logits: Tensor) -> Any:
        return {"pooler_output": features, "hidden_states": (features + 1, logits)}

    model = Returns(make).eval()
    with pytest.raises(DataError, match="which of them are the logits cannot be told"):
        analysed(model)


def test_a_score_function_gets_all_outputs() -> None:
    def score(outputs: Any, targets: Tensor) -> tuple[Tensor, Tensor]:
        features, logits = outputs
        assert features.shape[1] == 16
        return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(1) == targets).float()

    model = Returns(RETURNS["features, logits"]).eval()
    assert_logits_were_scored(analysed(model, score_fn=score, num_classes=CLASSES), model)


def test_curves_without_an_analysis() -> None:
    model = Returns(RETURNS["features, logits"]).eval()
    batches = [(torch.rand(6, 3, 12, 12), torch.arange(6) % CLASSES)]
    for data in (batches, iter(batches)):
        curve = cumulative_ablation(model, "net.6", range(8), data)
        with torch.no_grad():
            expected = F.cross_entropy(model(batches[0][0])[1], batches[0][1])
        assert float(curve.loss[0]) == pytest.approx(float(expected), rel=1e-5)
