"""What pruning would cost, before anything is changed: size, loss and accuracy for a grid of amounts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.network import NetworkState
from lightning_unitrole.pruning.removal import Removal, plan_removal
from lightning_unitrole.pruning.report import Prediction, shown
from lightning_unitrole.pruning.selection import Candidate, Limits, choose
from lightning_unitrole.reports.tables import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class PreviewRow:
    """The network that an amount would leave, before any fine-tuning.

    Attributes:
        amount: share that would be removed; 0 for the network as it is.
        parameters: number of parameters.
        macs: multiply-accumulate operations of one image.
        widths: output channels of each convolution and linear layer.
        prediction: loss and accuracy on validation images, from one pass with the units at zero.
    """

    amount: float
    parameters: int
    macs: int
    widths: Mapping[str, int]
    prediction: Prediction


@dataclass(frozen=True)
class PruningPreview:
    """What each of several amounts would leave of a network.

    Attributes:
        rows: one for each amount that can be reached, the network as it is first.
        unreachable: for each other amount, why not.
        of: what the amounts count.
        score: what the predicted accuracy is; another name where the task has another score.
    """

    rows: Sequence[PreviewRow]
    unreachable: Mapping[float, str] = field(default_factory=dict)
    of: str = "macs"
    score: str = "accuracy"

    def table(self) -> str:
        """The rows as plain text."""
        head = [f"amount of {self.of}", "MACs an image", "parameters", "units", "loss", self.score]
        lines = [[*head, "95 % interval"] if self._counts else head, *map(self._line, self.rows)]
        notes = [f"{amount:.2f}: {reason}" for amount, reason in self.unreachable.items()]
        return "\n".join([text_table(lines), *notes])

    def _line(self, row: PreviewRow) -> list[str]:
        ends = [shown(end, self.score) for end in row.prediction.interval] if self._counts else []
        return [
            f"{row.amount:.2f}",
            f"{row.macs:,}",
            f"{row.parameters:,}",
            f"{sum(row.widths.values()):,}",
            f"{row.prediction.loss:.4f}",
            shown(row.prediction.accuracy, self.score),
            *([" to ".join(ends)] if ends else []),
        ]

    @property
    def _counts(self) -> bool:
        """Whether the score is a share of the images, which has an interval."""
        return self.score == "accuracy"

    def figure(self) -> Figure:
        """Accuracy against multiply-accumulate operations, with its intervals."""
        # A Figure made without pyplot needs no display and leaves the user's own backend and open figures alone.
        from matplotlib.figure import Figure
        from matplotlib.ticker import PercentFormatter

        rows = sorted(self.rows, key=lambda row: row.macs)
        macs = [row.macs for row in rows]
        figure = Figure(figsize=(4.8, 3.4), dpi=110, layout="constrained")
        axis = figure.subplots()
        if self._counts:
            low, high = ([row.prediction.interval[end] for row in rows] for end in (0, 1))
            axis.fill_between(macs, low, high, color="#0072B2", alpha=0.2, linewidth=0)
        if "accuracy" in self.score:
            axis.yaxis.set_major_formatter(PercentFormatter(1))
        axis.plot(macs, [row.prediction.accuracy for row in rows], "o-", color="#0072B2", markersize=4)
        axis.set_xlabel("multiply-accumulate operations of one image")
        axis.set_ylabel(f"{self.score} before fine-tuning")
        axis.set_xlim(left=0)
        return figure


def preview_amounts(
    network: NetworkState,
    candidates: Sequence[Candidate],
    amounts: Sequence[float],
    *,
    of: str,
    limits: Limits,
    original: Mapping[str, int],
    masked: Removal | None = None,
) -> PruningPreview:
    """Choose units for each amount, and see by one masked pass for each what would be left.

    Args:
        network: the network; left as it is.
        candidates: groups whose items may go, with their scores.
        amounts: shares to remove, see :func:`~lightning_unitrole.pruning.selection.choose`.
        of: what the amounts count.
        limits: what to respect.
        original: the network in the beginning.
        masked: what is held at zero already.
    """

    def row(amount: float, removal: Removal | None) -> PreviewRow:
        parameters, macs, widths = network.counts(removal)
        return PreviewRow(amount, parameters, macs, widths, network.predict(removal))

    rows, unreachable = [row(0.0, masked)], {}
    for amount in sorted(amounts):
        try:
            choice = choose(
                candidates, network.graph, amount=amount, of=of, limits=limits, original=original, now=network.amounts
            )
        except SettingError as error:
            unreachable[amount] = str(error)
            continue
        rows.append(row(amount, plan_removal(network.graph, choice)))
    network.release()
    return PruningPreview(rows, unreachable, of, network.session.score_name)
