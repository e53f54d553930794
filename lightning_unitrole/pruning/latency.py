"""Choosing units until the network is so much faster on the device at hand, as measured on smaller networks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lightning_unitrole.errors import SettingError
from lightning_unitrole.pruning.groups import Choice
from lightning_unitrole.pruning.network import NetworkState
from lightning_unitrole.pruning.removal import plan_removal, remove
from lightning_unitrole.pruning.selection import Candidate, Limits, choose

_HALVINGS = 7
"""How often the share of the operations is bracketed: to less than a hundredth."""


@dataclass(frozen=True)
class LatencySearch:
    """Which units have to go so that a forward pass takes no longer than it may.

    Attributes:
        network: the network; left as it is.
        target: milliseconds; a wish where the limits have a largest drop.
        limits: what to respect.
        original: the network in the beginning, see :func:`~lightning_unitrole.pruning.selection.choose`.
        now: milliseconds of a forward pass of the network as it is, when the target was set.
        measure: milliseconds that it takes at this moment.
    """

    network: NetworkState
    target: float
    limits: Limits
    original: Mapping[str, int]
    now: float
    measure: Callable[[], float]

    def check(self, candidates: Sequence[Candidate]) -> dict[str, list[int]]:
        """All items that may go, by group, if the network is fast enough without them.

        Raises:
            SettingError: if it is not; the message says how fast it can be.
        """
        most = self._chosen(candidates, None)
        fastest = self._latency_without(most)
        if fastest > self.target and self.limits.max_drop is None:
            raise SettingError(
                f"A forward pass of {self.target:.3g} ms cannot be reached: with all units gone that may go by "
                f"min_units={self.limits.min_units} and round_to={self.limits.round_to} it takes {fastest:.3g} ms. Ask "
                "for less."
            )
        return most

    def choose(self, candidates: Sequence[Candidate]) -> dict[str, list[int]]:
        """The fewest items that suffice, by group.

        Units go in the order in which they would go to save multiply-accumulate operations. How many is found by
        halving: the smaller networks are made, measured on the network's device, and undone.

        Raises:
            SettingError: if no network that the limits allow is so fast.
        """
        best, low, high = self.check(candidates), 0.0, 1.0
        for _ in range(_HALVINGS):
            share = (low + high) / 2
            try:
                choice = self._chosen(candidates, share)
            except SettingError:  # more than may go
                high = share
                continue
            if self._latency_without(choice) <= self.target:
                best, high = choice, share
            else:
                low = share
        return best

    def _chosen(self, candidates: Sequence[Candidate], share: float | None) -> dict[str, list[int]]:
        network = self.network
        return choose(
            candidates,
            network.graph,
            amount=share,
            of="macs",
            limits=self.limits,
            original=self.original,
            now=network.amounts,
        )

    def _latency_without(self, choice: Choice) -> float:
        """Milliseconds without these items, if the machine were as busy with other work as when the target was set."""
        whole = self.measure()
        change = remove(self.network.session.runner.model, plan_removal(self.network.graph, choice))
        try:
            return self.now * self.measure() / whole
        finally:
            change.undo()
