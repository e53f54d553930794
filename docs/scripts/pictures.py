"""Draw the pictures of `concepts.md`, in a light and a dark form, with the package's own functions.

Run it as ``python docs/scripts/pictures.py``.
"""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import torch

matplotlib.use("agg")
import matplotlib.pyplot as plt

from lightning_unitrole import birth_points, feature_entropy
from lightning_unitrole.reports.vocabulary import BACKGROUND, ROLES

FOLDER = Path(__file__).parents[1] / "images" / "concepts"
INK = {"light": "#1f2933", "dark": "#e6e9ed"}
BLUE = {"light": "#2f6db3", "dark": "#7db3ea"}
ORANGE = {"light": "#c2601a", "dark": "#f0a060"}
FAINT = {"light": "#c9d0d8", "dark": "#4a525c"}


def example_map() -> torch.Tensor:
    """A map ``[6, 6]`` in which the strongest pixels join six points in a ring."""
    values = torch.rand(6, 6, generator=torch.Generator().manual_seed(3)) * 0.5
    for order, (row, column) in enumerate([(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (0, 5)]):
        values[row, column] = 1 - 0.05 * order
    return values


def birth(theme: str) -> plt.Figure:
    """A map, and its lines when the cycle is born."""
    values = example_map()
    figure, axes = plt.subplots(1, 4, figsize=(9, 2.6))
    axes[0].imshow(values, cmap="Blues" if theme == "light" else "Blues_r")
    axes[0].set(title="a map", xticks=[], yticks=[])
    weights = torch.maximum(values, values.T)
    lines = sorted(((float(weights[i, j]), i, j) for i in range(6) for j in range(i)), reverse=True)
    angle = torch.arange(6) * torch.pi / 3
    x, y = angle.cos(), angle.sin()
    born = int(birth_points(values, backend="torch"))
    for axis, steps in zip(axes[1:], (2, born, born + 1), strict=True):
        for _, i, j in lines[:steps]:
            colour = ORANGE[theme] if steps == born + 1 else BLUE[theme]
            axis.plot([x[i], x[j]], [y[i], y[j]], color=colour, linewidth=2)
        axis.scatter(x, y, color=INK[theme], zorder=2, s=25)
        axis.set(title=f"{steps} lines" + (": a cycle" if steps == born + 1 else ""), aspect="equal")
        axis.set(xlim=(-1.3, 1.3), ylim=(-1.3, 1.3))
        axis.axis("off")
    figure.suptitle(f"birth point {born}", y=0.06, fontsize=10)
    return figure


def entropy(theme: str) -> plt.Figure:
    """Birth points of a unit that sees the same in all images, and of one that does not."""
    noise = torch.Generator().manual_seed(0)
    base = torch.rand(14, 14, generator=noise)
    figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), sharey=True)
    for axis, share, name in ((axes[0], 0.02, "much alike from image to image"), (axes[1], 1.0, "different each time")):
        maps = base + share * torch.rand(200, 14, 14, generator=noise)
        counts = torch.bincount(birth_points(maps, backend="torch").long(), minlength=51)
        value = float(feature_entropy(counts)[0])
        axis.bar(torch.arange(1, 51), counts[1:], color=BLUE[theme], width=0.9)
        axis.set(title=f"{name}: {value:.2f} nats", xlabel="birth point", xlim=(0, 40))
    axes[0].set_ylabel("images")
    return figure


def roles(theme: str) -> plt.Figure:
    """Contributions on both sides, drawn by hand, as the roles are defined."""
    values = [(1.1, 0.95, "BOTH"), (1.0, 0.12, "TRAIN_ONLY"), (0.1, 0.9, "VAL_ONLY"), (0.05, 0.02, "NEITHER")]
    values += [(-0.5, -0.55, "NEITHER")]
    known = {role.name: role for role in ROLES}
    figure, axis = plt.subplots(figsize=(9, 3))
    axis.axhline(0, color=FAINT[theme])
    for place, (train, val, _) in enumerate(values):
        for shift, value, colour, name in (
            (-0.1, train, BLUE[theme], "training images"),
            (0.1, val, ORANGE[theme], "validation images"),
        ):
            label = name if place == 0 else None
            axis.errorbar(place + shift, value, 0.15, fmt="o", color=colour, capsize=3, label=label)
    names = [known[role].label + ("\n(hurts)" if train < -0.2 else "") for train, _, role in values]
    axis.set_xticks(range(len(values)), names)
    axis.set(ylabel="contribution, nats")
    axis.legend(frameon=False)
    return figure


def ablation(theme: str) -> plt.Figure:
    """A good ranking's two curves and the band of random orders, as they look when the ranking knows something."""
    share = torch.linspace(0, 1, 50)
    figure, axis = plt.subplots(figsize=(9, 3))
    axis.fill_between(share, 0.8 * (1 - share**1.6) + 0.1, 0.8 * (1 - share**0.9) + 0.1, color=FAINT[theme])
    axis.plot(share, 0.8 * (1 - share**5) + 0.1, color=BLUE[theme], label="least effective first")
    axis.plot(share, 0.8 * (1 - share**0.35) + 0.1, color=ORANGE[theme], label="most effective first")
    axis.plot([], [], color=FAINT[theme], linewidth=8, label="random orders")
    axis.set(xlabel="share of the units that are off", ylabel="accuracy", ylim=(0, 1))
    axis.legend(frameon=False)
    return figure


def main() -> None:
    """Draw each picture twice."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pictures: tuple[Callable[[str], plt.Figure], ...] = (birth, entropy, roles, ablation)
    for theme in ("light", "dark"):
        ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK[theme])
        ground = dict.fromkeys(("figure.facecolor", "axes.facecolor"), BACKGROUND[theme])
        spines = {"axes.edgecolor": FAINT[theme], "axes.spines.top": False, "axes.spines.right": False}
        with plt.rc_context({**ink, **ground, **spines, "font.size": 10, "axes.titlesize": 10}):
            for picture in pictures:
                figure = picture(theme)
                path = FOLDER / f"{picture.__name__}_{theme}.png"
                figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": None})
                plt.close(figure)


if __name__ == "__main__":
    main()
