"""Faults of an analysis in words, for warnings that training outlives."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_unitrole.errors import UnitRoleError


class PeerFaultError(UnitRoleError):
    """Another of the processes that train together failed; the message is that of its fault."""


@contextmanager
def together(trainer: Any) -> Iterator[None]:
    """What all processes do at once, so that a fault in one of them is a fault in all and none waits for it.

    Every process asks the others before it adds numbers up with them, see :func:`ask_peers`, and at the end of this
    context; one that failed answers the next question.

    Raises:
        PeerFaultError: if another process failed.
    """
    try:
        yield
    except PeerFaultError:
        raise
    except Exception as error:
        ask_peers(trainer, fault=f"{type(error).__name__}: {error}")
        raise
    ask_peers(trainer)


def ask_peers(trainer: Any, fault: str | None = None) -> None:
    """Ask whether all is well in the processes that train together, and say whether it is in this one.

    Args:
        trainer: the trainer.
        fault: what went wrong in this process.

    Raises:
        PeerFaultError: if another process failed and this one did not.
    """
    if trainer.strategy.reduce_boolean_decision(fault is None):
        return
    if trainer.world_size > 1:
        faults: list[str | None] = [None] * trainer.world_size
        torch.distributed.all_gather_object(faults, fault)
        if fault is None:
            number, text = next((number, text) for number, text in enumerate(faults) if text is not None)
            raise PeerFaultError(f"In process {number}: {text}")


def in_words(error: Exception, *, logger: str) -> str:
    """What went wrong, as a sentence.

    Args:
        error: the fault.
        logger: name of the logger that tells more.
    """
    if isinstance(error, UnitRoleError):
        return str(error)
    return f"{type(error).__name__}: {error}. The logger {logger!r} tells more at level DEBUG."


def where(error: BaseException) -> str:
    """The line that raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "nowhere" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
