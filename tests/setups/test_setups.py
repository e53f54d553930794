"""Set-ups that are not ``forward(x)`` and ``(x, y)``: the report is right without an argument.

What is right is measured apart, by running the module's own network plainly on the same images.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import people
import pytest
import pytorch_lightning as pl
import torch
from networks import mostly_slow
from people import CLASSES, loaders
from support import make_trainer
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import default_collate

from lightning_unitrole import UnitPruning, UnitReport, UnitRoleMonitor
from lightning_unitrole.callbacks.step import StepUntilLoss

pytestmark = [
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

IMAGES, CURVE_IMAGES = 6, 4

Truth = Callable[[Any, Any], tuple[Tensor, Tensor]]
"""From the module and a validation batch to the loss and the score of each image."""


def monitor(**settings: Any) -> UnitRoleMonitor:
    """In every epoch, with few images and points."""
    quick: dict[str, Any] = {"images_per_class": IMAGES, "curve_images": CURVE_IMAGES, "ablation_points": 8}
    return UnitRoleMonitor(**{**quick, "every_n_epochs": 1, "backend": "torch", **settings})


def fit(module: pl.LightningModule, data: Any, watch: UnitRoleMonitor, *callbacks: Any, **settings: Any) -> UnitReport:
    """Train for an epoch; a warning about the analysis is an error."""
    trainer = make_trainer(*callbacks, watch, max_epochs=1, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Unit roles could not be analysed")
        warnings.filterwarnings("error", message=".*cannot be replayed")
        warnings.filterwarnings("error", message=".*contributions are estimated")
        trainer.fit(module, **data) if isinstance(data, dict) else trainer.fit(module, *data)
    assert watch.report is not None
    return watch.report


class Setup(NamedTuple):
    """A module, an item of its data, and what is true of it."""

    module: type[pl.LightningModule]
    item: Callable[[int, Tensor, int], Any]
    truth: Truth
    groups: int = CLASSES


def labelled(outputs: Callable[[Any, Any], Tensor], label: Any = 1) -> Truth:
    """Cross-entropy and accuracy of some outputs."""

    def truth(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits, labels = outputs(module, batch), batch[label]
        return F.cross_entropy(logits, labels, reduction="none"), (logits.argmax(1) == labels).float()

    return truth


def binary(outputs: Callable[[Any, Any], Tensor]) -> Truth:
    """Binary cross-entropy and the share of right labels."""

    def truth(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        logits = outputs(module, batch)
        labels = batch[1].view_as(logits).float()
        loss = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return loss.mean(1), ((logits > 0) == (labels > 0.5)).float().mean(1)

    return truth


def cosine(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    (one, other), same = batch
    loss = F.cosine_embedding_loss(module.net(one), module.net(other), 2 * same - 1, reduction="none")
    return loss, -loss


def explained(outputs: Callable[[Any, Any], Tensor], target: int) -> Truth:
    """Squared error; the score's unit is the spread of the training targets, which is looked at elsewhere."""

    def truth(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
        predicted = outputs(module, batch)
        loss = (predicted - batch[target].view_as(predicted)).square().flatten(1).mean(1)
        return loss, torch.full_like(loss, torch.nan)

    return truth


def pixels(module: Any, batch: Any) -> tuple[Tensor, Tensor]:
    logits, labels = module(batch[0]), batch[1]
    loss = F.cross_entropy(logits, labels, reduction="none").flatten(1).mean(1)
    return loss, (logits.argmax(1) == labels).float().flatten(1).mean(1)


def of_net(module: Any, batch: Any) -> Tensor:
    return module.net(batch[0])


def quarters(label: int) -> Tensor:
    return torch.tensor([label > 1, label % 2, label == 0]).float()


SETUPS: dict[str, Setup] = {
    "plain": Setup(people.Plain, people.pair, labelled(of_net)),
    "dict batch": Setup(
        people.DictBatch,
        lambda index, image, label: {"kind": label, "photo": image, "file": f"{index}.png"},
        labelled(lambda module, batch: module.net(batch["photo"]), "kind"),
    ),
    "id, image, label": Setup(
        people.Triple,
        lambda index, image, label: (index, image, label),
        labelled(lambda module, batch: module.net(batch[1]), 2),
    ),
    "name, image, label": Setup(
        people.Triple,
        lambda index, image, label: (f"{index}.png", image, label),
        labelled(lambda module, batch: module.net(batch[1]), 2),
    ),
    "two inputs": Setup(
        people.TwoInputs,
        lambda index, image, label: (image, image[:2, 0, 0], label),
        labelled(lambda module, batch: module(batch[0], batch[1]), 2),
    ),
    "forward(batch)": Setup(
        people.ForwardBatch,
        lambda index, image, label: {"image": image, "label": label},
        labelled(lambda module, batch: module.net(batch["image"]), "label"),
    ),
    "no forward": Setup(people.NoForward, people.pair, labelled(of_net)),
    "features and logits": Setup(people.FeaturesToo, people.pair, labelled(lambda module, batch: module(batch[0])[1])),
    "dict of outputs": Setup(
        people.DictOutputs, people.pair, labelled(lambda module, batch: module(batch[0])["scores"])
    ),
    "siamese": Setup(
        people.Siamese,
        lambda index, image, label: ((image, image.flip(-1 - index % 2)), index % 2),
        binary(lambda module, batch: module(*batch[0])),
        2,
    ),
    "pairs of embeddings": Setup(
        people.Embedding, lambda index, image, label: ((image, image.flip(-1 - index % 2)), index % 2), cosine, 2
    ),
    "two views": Setup(
        people.TwoViews,
        lambda index, image, label: ((image, image + 0.1), label),
        labelled(lambda module, batch: (module.net(batch[0][0]) + module.net(batch[0][1])) / 2),
    ),
    "binary": Setup(people.Binary, lambda index, image, label: (image, label % 2), binary(of_net), 2),
    "probabilities": Setup(people.Probability, lambda index, image, label: (image, label % 2), binary(of_net), 2),
    "multilabel": Setup(people.Multilabel, lambda index, image, label: (image, quarters(label)), binary(of_net), 4),
    "regression": Setup(
        people.Regression, lambda index, image, label: (image, label + image.mean()), explained(of_net, 1), 1
    ),
    "segmentation": Setup(
        people.Segmentation,
        lambda index, image, label: (image, torch.where(image[0] > 0.3, label, label + 1) % 3),
        pixels,
        3,
    ),
    "autoencoder": Setup(people.Autoencoder, lambda index, image, label: (image,), explained(of_net, 0), 1),
    "one-hot labels": Setup(
        people.SoftLabels,
        lambda index, image, label: (image, F.one_hot(torch.tensor(label), CLASSES).float()),
        lambda module, batch: labelled(of_net)(module, [batch[0], batch[1].argmax(1)]),
    ),
    "log-probabilities": Setup(
        people.LogProbabilities, people.pair, labelled(lambda module, batch: module.net(batch[0] / 2))
    ),
}

QUICK = ["dict batch", "features and logits", "siamese", "multilabel"]


def on_curve_images(report: UnitReport, setup: Setup, module: Any, data: Any) -> tuple[float, float]:
    """Mean loss and score on the images that the curves are measured on, found apart."""
    groups = [[] for _ in range(setup.groups)]
    items = [data[index] for index in range(len(data))]
    with torch.no_grad():
        rows = [setup.truth(module.eval(), default_collate([item])) for item in items]
    for index, group in enumerate(groups_of(setup, items)):
        groups[group].append(index)
    chosen = [index for members in groups for index in members[IMAGES : IMAGES + CURVE_IMAGES]]
    return tuple(float(torch.stack([rows[index][part] for index in chosen]).mean()) for part in (0, 1))  # type: ignore[return-value]


def groups_of(setup: Setup, items: list[Any]) -> list[int]:
    """The group of each item, by its label."""
    if setup.module is people.Multilabel:
        return [int(label.argmax()) if label.any() else 3 for _, label in items]
    if setup.module is people.Segmentation:
        return [int(label.flatten().bincount(minlength=3).argmax()) for _, label in items]
    if setup.groups == 1:
        return [0] * len(items)
    labels = [item.get("kind", item.get("label")) if isinstance(item, dict) else item[-1] for item in items]
    return [int(label.argmax()) if isinstance(label, Tensor) and label.dim() else int(label) for label in labels]


@pytest.mark.parametrize(
    "name", mostly_slow(SETUPS, quick=["dict batch", "features and logits", "siamese", "multilabel"])
)
def test_setups_give_a_right_report(name: str) -> None:
    setup = SETUPS[name]
    pl.seed_everything(0)
    module = setup.module()
    train, val = loaders(setup.item)
    report = fit(module, (train, val), monitor())
    assert len(report.class_names) == setup.groups
    assert report.layers
    loss, score = on_curve_images(report, setup, module, val.dataset)
    for layer in report.layers.values():
        curve = layer.val.curves["least_first"]
        assert float(curve.ablated[0]) == 0
        assert float(curve.loss[0]) == pytest.approx(loss, rel=1e-3, abs=1e-5)
        if score == score:
            assert float(curve.accuracy[0]) == pytest.approx(score, abs=1e-6)
        assert layer.val.contributions is not None
        assert bool(layer.val.contributions.images.sum() > 0)


@pytest.mark.parametrize("name", mostly_slow(["no forward", "siamese", "regression"], quick=["no forward"]))
def test_reading_a_step_leaves_no_trace(name: str) -> None:
    """Weights, metrics and what was logged are the same, bit for bit, with and without the monitor."""
    setup, ends = SETUPS[name], []
    for watches in ([], [monitor()]):
        pl.seed_everything(0)
        module = setup.module()
        trainer = make_trainer(*watches, max_epochs=2)
        trainer.fit(module, *loaders(setup.item))
        logged = {key: value for key, value in trainer.callback_metrics.items() if not key.startswith("unitrole")}
        ends.append((module.state_dict(), logged))
    for one, other in zip(*ends, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


class Unnamed(people.DictBatch):
    def validation_step(self, batch: Any, _: int) -> None:
        self.step(batch)


class AnyArguments(people.DictBatch):
    def validation_step(self, *args: Any) -> None:
        batch, index = args
        assert index >= 0
        self.step(batch)


class BatchAlone(people.DictBatch):
    def validation_step(self, batch: Any) -> None:
        self.step(batch)


class WithDefaults(people.DictBatch):
    def validation_step(self, batch: Any, index: int, loader: int = 0) -> None:
        assert index + loader >= 0
        self.step(batch)


@pytest.mark.parametrize("kind", [Unnamed, AnyArguments, BatchAlone, WithDefaults])
def test_a_step_gets_its_indices_whatever_they_are_called(kind: type[people.Base]) -> None:
    module, (_, val) = kind(), loaders(lambda index, image, label: {"photo": image, "kind": label})
    make_trainer().validate(module, val, verbose=False)
    batch = next(iter(val))
    (call,) = StepUntilLoss(module).watch(batch).calls
    assert call.kind == "cross_entropy"


def contrastive(outputs: Any, same: Tensor) -> tuple[Tensor, Tensor]:
    """A loss of pairs, and minus the same as their score."""
    distance = (outputs[0] - outputs[1]).square().sum(1)
    loss = torch.where(same > 0, distance, (1 - distance).clamp(min=0))
    return loss, -loss


class Contrastive(people.Base):
    """A loss that is written out, on pairs."""

    def step(self, batch: Any) -> Tensor:
        (one, other), same = batch
        return contrastive((self.net(one), self.net(other)), same)[0].mean()


def test_what_cannot_be_seen_is_asked_for() -> None:
    def item(index: int, image: Tensor, label: int) -> Any:
        return (image, image.flip(-1 - index % 2)), index % 2

    said = r"Unit roles could not be analysed.*none of torch's losses.*Pass forward_fn=.*batch_fn=.*pass score_fn= too"
    with pytest.warns(UserWarning, match=said):
        make_trainer(monitor(), max_epochs=1).fit(Contrastive(), *loaders(item))

    def forward(module: Any, inputs: Any) -> Any:
        return module.net(inputs[0]), module.net(inputs[1])

    with pytest.warns(UserWarning, match=r"The model returned several tensors.*Pass num_classes=\."):
        make_trainer(monitor(forward_fn=forward, score_fn=contrastive), max_epochs=1).fit(Contrastive(), *loaders(item))
    setup = Setup(Contrastive, item, lambda module, batch: contrastive(forward(module, batch[0]), batch[1]), 2)
    train, val = loaders(item)
    module = Contrastive()
    report = fit(module, (train, val), monitor(forward_fn=forward, score_fn=contrastive, num_classes=2))
    loss, _ = on_curve_images(report, setup, module, val.dataset)
    for layer in report.layers.values():
        assert float(layer.val.curves["least_first"].loss[0]) == pytest.approx(loss, rel=1e-4)


class WrittenOut(people.Base):
    """Cross-entropy, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def step(self, batch: Any) -> Tensor:
        logits = self(batch[0])
        return (logits.logsumexp(1) - logits.gather(1, batch[1].unsqueeze(1)).squeeze(1)).mean()


def test_what_is_taken_for_granted_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        fit(WrittenOut(), loaders(), monitor())
    assert "taken for the logits of 4 classes. Pass score_fn= if it is not." in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        fit(people.Plain(), loaders(), monitor())
    assert "taken for the logits" not in caplog.text


def test_a_task_that_was_guessed_is_announced_and_can_be_set(caplog: pytest.LogCaptureFixture) -> None:
    setup = SETUPS["binary"]
    with caplog.at_level("INFO"):
        fit(setup.module(), loaders(setup.item), monitor())
    assert "the task is taken to be binary" in caplog.text
    report = fit(setup.module(), loaders(setup.item), monitor(task="regression"))
    assert report.class_names == ("all",)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siamese", "dict batch", "multilabel"])
def test_setups_can_be_pruned(name: str) -> None:
    setup = SETUPS[name]
    pruning = UnitPruning(amount=0.3, start_epoch=1)
    make_trainer(monitor(), pruning, max_epochs=2).fit(setup.module(), *loaders(setup.item))
    assert pruning.report is not None
    assert pruning.report.after.macs <= 0.75 * pruning.report.before.macs
