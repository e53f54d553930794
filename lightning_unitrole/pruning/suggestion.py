"""How wide to build a network next time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lightning_unitrole.pruning.groups import layer_widths
from lightning_unitrole.pruning.removal import Removal, remove
from lightning_unitrole.reports.tables import text_table


@dataclass(frozen=True)
class WidthSuggestion:
    """The widths that pruning left.

    Attributes:
        before: output channels of each convolution and linear layer in the beginning.
        widths: output channels of each of them that are left.
        layers: for each convolution, linear and normalisation layer, the call that makes it as narrow.
    """

    before: Mapping[str, int]
    widths: Mapping[str, int]
    layers: Mapping[str, str]

    def __str__(self) -> str:
        rows = [["layer", "before", "left", "build it as"]]
        for name, width in self.widths.items():
            rows.append([name, str(self.before[name]), str(width), self.layers.get(name, "-")])
        return text_table(rows)


def layer_calls(model: nn.Module, masked: Removal | None = None) -> dict[str, str]:
    """For each layer without layers of its own that holds parameters, the call that makes one like it.

    Args:
        model: the network; left as it is.
        masked: what is held at zero, and counts as removed here.
    """
    change = None if masked is None else remove(model, masked)
    try:
        return {
            name: f"nn.{module!r}" if type(module).__module__.startswith("torch.nn") else repr(module)
            for name, module in model.named_modules()
            if name in layer_widths(model) or isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm))
        }
    finally:
        if change is not None:
            change.undo()
