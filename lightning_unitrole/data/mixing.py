"""Training data whose batches are mixed (MixUp, CutMix): the images that they are mixed of."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from lightning_unitrole.data.batches import is_soft
from lightning_unitrole.data.loaders import DataSource, first_batch

_log = logging.getLogger(__name__)

Split = Callable[[Any], tuple[Any, Any]]


def unmixed(source: DataSource, batch: Any, split: Split) -> DataSource:
    """A loader that collates plainly, where the ``collate_fn`` of ``source`` makes soft labels out of class indices.

    Which images are mixed depends on the batch, so one cannot be read again by its index; and roles are about images,
    not about mixtures. Any other source is handed back as it is.

    Args:
        source: the data.
        batch: a batch of it.
        split: takes batches apart into inputs and targets.
    """
    if not isinstance(source, DataLoader) or source.collate_fn is default_collate or not is_soft(split(batch)[1]):
        return source
    plain = copy.copy(source)
    vars(plain)["collate_fn"] = default_collate  # past __setattr__, which may refuse it
    try:
        targets = split(first_batch(plain, name="training"))[1]
    except Exception as error:  # items that only their own collate_fn can put together
        _log.debug("Items cannot be collated plainly.", exc_info=error)
        return source
    return plain if isinstance(targets, Tensor) and not targets.is_floating_point() and targets.dim() == 1 else source
