"""Faults of an analysis in words, for warnings that training outlives."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
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


class Faults:
    """Turns the faults of a callback into warnings that training outlives, each given once.

    Args:
        logger: tells more of each fault, at level DEBUG.
        after: called after a fault, to make a new attempt possible.
    """

    def __init__(self, logger: logging.Logger, after: Callable[[], None]) -> None:
        self._logger, self._after = logger, after
        self._given: set[str] = set()

    def __bool__(self) -> bool:
        """Whether there was anything to warn of."""
        return bool(self._given)

    def warn(self, message: str | None, trainer: Any, *, kind: str | None = None) -> None:
        """Warn on the first process, once for each message, or kind of message where its text may vary."""
        kind = message if kind is None else kind
        if message is not None and kind not in self._given:
            self._given.add(str(kind))
            if trainer.is_global_zero:
                warnings.warn(message, stacklevel=3)

    def not_logged(self, trainer: Any, what: str, error: Exception) -> None:
        """Warn of what could not be logged, once for each place."""
        what = f"{what} could not be logged"
        self._logger.debug("%s.", what, exc_info=error)
        self.warn(f"{what}, and training goes on. {in_words(error, logger=self._logger.name)}", trainer, kind=what)

    @contextmanager
    def outlived(
        self, trainer: Any, what: str, *, passed: tuple[type[Exception], ...] = (), alone: bool = False
    ) -> Iterator[None]:
        """Turn a fault, in any process, into a warning, once for each place.

        Args:
            trainer: the trainer.
            what: what went wrong then.
            passed: types of errors that stay errors, as warnings do.
            alone: whether only some of the processes do this.
        """
        try:
            with nullcontext() if alone else together(trainer):
                yield
        except Warning:
            raise
        except passed:
            raise
        except Exception as error:
            self._logger.debug("%s.", what, exc_info=error)
            self._after()
            # Numbers in a message may vary from epoch to epoch; it is given once all the same.
            kind = f"{what}: {type(error).__name__} in {where(error)}"
            self.warn(f"{what}, and training goes on. {in_words(error, logger=self._logger.name)}", trainer, kind=kind)


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
