"""Maps and truths shared by the topology tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from lightning_unitrole.topology import birth_points

DATA = Path(__file__).parent.parent / "data"
T = TypeVar("T")


class Subject(NamedTuple):
    """A backend under test."""

    backend: str
    device: torch.device
    few: bool
    """Whether it gets a selection of the cases only."""

    def of(self, everything: list[T], *few: T) -> list[T]:
        """The cases, or the ``few`` of them that a selection consists of."""
        assert set(few) <= set(everything)
        return list(few) if self.few else everything

    def births(self, maps: Tensor, **settings: float) -> Tensor:
        found = birth_points(maps.to(self.device), backend=self.backend, **settings)
        assert found.device.type == self.device.type
        assert found.dtype == torch.int64
        return found.cpu()

    def must_find(self, expected: Tensor, maps: Tensor, what: str, **settings: float) -> None:
        """Fail, with the first map that is wrong, unless the births of ``maps`` are those expected."""
        found = self.births(maps, **settings)
        assert found.shape == expected.shape, f"{self.backend}, {what}: shape {found.shape}, not {expected.shape}"
        wrong = (found != expected).nonzero().tolist()
        if wrong:
            first = tuple(wrong[0])
            raise AssertionError(
                f"{self.backend}, {what}: {len(wrong)} of {found.numel()} births differ. The first: map {first} has "
                f"{expected[first]}, found {found[first]}:\n{maps[first]}"
            )

    def must_equal_ripser(self, maps: Tensor, what: str, **settings: float) -> None:
        self.must_find(birth_points(maps, backend="ripser", **settings), maps, what, **settings)


def recorded(file: str) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Every recorded set of maps with the births that the authors' program found: name, maps, births."""
    with np.load(DATA / f"{file}.npz") as archive:
        for name in archive:
            if name.startswith("maps_"):
                births = torch.from_numpy(archive[f"birth_{name[5:]}"]).long()
                yield f"{file} {name[5:]}", torch.from_numpy(archive[name]), births
        if "class_maps" in archive:
            births = torch.from_numpy(archive["class_births"]).long()
            yield f"{file} class", torch.from_numpy(archive["class_maps"]), births


def quantised(levels: int, *shape: int, seed: int = 0, relu: bool = False) -> Tensor:
    """Integer-valued maps with many ties."""
    maps = torch.randint(0, levels, shape, generator=torch.Generator().manual_seed(seed)).float()
    return (maps - levels // 2).relu() if relu else maps


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
