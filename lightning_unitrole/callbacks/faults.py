"""Faults of an analysis in words, for warnings that training outlives."""

from __future__ import annotations

from lightning_unitrole.errors import UnitRoleError


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
