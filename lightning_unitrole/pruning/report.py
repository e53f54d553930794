"""What pruning did to a network: plain data and its tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import NormalDist
from typing import Any

from lightning_unitrole.errors import DataError
from lightning_unitrole.reports.storage import BROKEN
from lightning_unitrole.reports.tables import text_table


def shown(value: float, score: str) -> str:
    """A score as text: a percentage if it is an accuracy, whatever else it is called a number."""
    if math.isnan(value):
        return "-"
    return f"{100 * value:.1f} %" if "accuracy" in score else f"{value:.4g}"


@dataclass(frozen=True)
class NetworkSize:
    """How large, fast and accurate a network is.

    Attributes:
        parameters: number of parameters.
        macs: multiply-accumulate operations of one image.
        widths: output channels of each convolution and linear layer, and heads of each attention.
        latency: milliseconds of a forward pass of ``batch`` images in evaluation mode.
        batch: images in that forward pass.
        accuracy: share of the monitor's validation images, 0 to 1; for other tasks the mean of their score.
        loss: mean over the same images; NaN where an older version measured the network.
    """

    parameters: int
    macs: int
    widths: Mapping[str, int]
    latency: float
    batch: int
    accuracy: float
    loss: float = math.nan

    @property
    def units(self) -> int:
        """Sum of the widths."""
        return sum(self.widths.values())


@dataclass(frozen=True)
class Prediction:
    """What some images say about a network, as it is or as it will be.

    Attributes:
        loss: mean over the images.
        accuracy: share of the images, 0 to 1.
        images: number of images.
    """

    loss: float
    accuracy: float
    images: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval for the accuracy on images of the same kind, at a confidence of 95 %.

        Source: Wilson, "Probable inference, the law of succession, and statistical inference", JASA 1927.

        Example:
            >>> [round(end, 3) for end in Prediction(1.0, 0.9, 100).interval]
            [0.826, 0.945]
        """
        z = NormalDist().inv_cdf(0.975)
        share, count = self.accuracy, self.images
        middle = (share + z * z / (2 * count)) / (1 + z * z / count)
        half = z * math.sqrt(share * (1 - share) / count + (z / (2 * count)) ** 2) / (1 + z * z / count)
        return max(middle - half, 0.0), min(middle + half, 1.0)


@dataclass(frozen=True)
class PruningStep:
    """One time that units were pruned.

    Attributes:
        epoch: the epoch at whose start it was.
        global_step: optimizer steps taken before it.
        units: for each layer, the units that were pruned, by the indices that they had in the beginning.
        parameters: number of parameters that are left.
        macs: multiply-accumulate operations that are left.
        accuracy_before: on the monitor's validation images, right before it.
        accuracy_after: the same right after it, before any fine-tuning.
        loss_after: mean loss over the same images then.
        predicted_accuracy: what ``accuracy_after`` was said to become, before anything was changed.
        predicted_loss: what ``loss_after`` was said to become.
    """

    epoch: int
    global_step: int
    units: Mapping[str, Sequence[int]]
    parameters: int
    macs: int
    accuracy_before: float
    accuracy_after: float
    loss_after: float = math.nan
    predicted_accuracy: float = math.nan
    predicted_loss: float = math.nan

    @property
    def num_units(self) -> int:
        """Number of units that were pruned."""
        return sum(map(len, self.units.values()))


@dataclass(frozen=True)
class PruningReport:
    """What pruning did in one run.

    Attributes:
        before: the network when training started; its accuracy is the one right before anything was pruned.
        after: the network now. Masked units do not count in it; its latency is that of the network as it runs.
        steps: each time that units were pruned.
        skipped: for each layer that could not be pruned, why.
        score: what stands in all that is called accuracy here; another name where the task has another score.
    """

    before: NetworkSize
    after: NetworkSize
    steps: Sequence[PruningStep] = ()
    skipped: Mapping[str, str] = field(default_factory=dict)
    score: str = "accuracy"

    @property
    def widths(self) -> dict[str, int]:
        """Output channels of each convolution and linear layer: how wide to build the network next time."""
        return dict(self.after.widths)

    def rows(self) -> list[list[str]]:
        """The whole network before and after, head first."""
        rows = [["", "before", "after", "ratio"]]
        for name, before, after in (
            ("parameters", self.before.parameters, self.after.parameters),
            ("MACs an image", self.before.macs, self.after.macs),
            ("units", self.before.units, self.after.units),
        ):
            rows.append([name, f"{before:,}", f"{after:,}", f"{before / max(after, 1):.2f}x smaller"])
        gain = self.before.latency / self.after.latency
        speed = f"{gain:.2f}x faster" if gain >= 1 else f"{1 / gain:.2f}x slower"
        latency = f"latency of {self.before.batch} images, ms"
        rows.append([latency, f"{self.before.latency:.2f}", f"{self.after.latency:.2f}", speed])
        scores = self.before.accuracy, self.after.accuracy
        gain = scores[1] - scores[0]
        change = f"{100 * gain:+.1f} points" if "accuracy" in self.score else f"{gain:+.4g}"
        texts = [shown(score, self.score) for score in scores]
        rows.append([f"validation {self.score}", *texts, "-" if math.isnan(gain) else change])
        return rows

    def layer_rows(self) -> list[list[str]]:
        """Units of each layer that lost some, before and after, head first."""
        narrowed = {name: width for name, width in self.before.widths.items() if self.after.widths[name] < width}
        return [
            ["layer", "units before", "after", "kept"],
            *(
                [name, str(width), str(self.after.widths[name]), f"{100 * self.after.widths[name] / width:.0f} %"]
                for name, width in narrowed.items()
            ),
        ]

    def step_rows(self) -> list[list[str]]:
        """Each time that units were pruned, with what was predicted of the network and what came of it, head first."""
        head = ["epoch", "units pruned", f"{self.score} before", "predicted", "right after", "predicted loss"]
        head.append("right after")
        return [
            head,
            *(
                [
                    str(step.epoch),
                    str(step.num_units),
                    *(
                        shown(share, self.score)
                        for share in (step.accuracy_before, step.predicted_accuracy, step.accuracy_after)
                    ),
                    *("-" if math.isnan(loss) else f"{loss:.4f}" for loss in (step.predicted_loss, step.loss_after)),
                ]
                for step in self.steps
            ),
        ]

    def table(self) -> str:
        """All tables as plain text."""
        return "\n\n".join(text_table(rows) for rows in (self.rows(), self.step_rows(), self.layer_rows()))

    def state_dict(self) -> dict[str, Any]:
        """The report as numbers, strings, lists and dicts alone."""
        return {
            "before": asdict(self.before),
            "after": asdict(self.after),
            "steps": [asdict(step) for step in self.steps],
            "skipped": dict(self.skipped),
            "score": self.score,
        }

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> PruningReport:
        """Inverse of :meth:`state_dict`.

        Raises:
            DataError: if it is damaged.
        """
        try:
            return cls(
                before=NetworkSize(**state["before"]),
                after=NetworkSize(**state["after"]),
                steps=tuple(PruningStep(**step) for step in state["steps"]),
                skipped=dict(state["skipped"]),
                score=str(state.get("score", "accuracy")),
            )
        except BROKEN as error:
            raise DataError(f"This is not the state of a pruning report: {type(error).__name__}: {error}.") from error
