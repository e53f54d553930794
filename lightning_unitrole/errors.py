"""Exceptions of the package, every one of them a :class:`UnitRoleError`, and the warning of what is to go."""

import warnings


class UnitRoleError(Exception):
    """Base of every error that this package raises on purpose."""


class SettingError(UnitRoleError, ValueError):
    """A setting is out of range or names something that does not exist."""


class DataError(UnitRoleError, ValueError):
    """The data that were handed in do not fit: labels, shapes, or too few images."""


class BackendError(UnitRoleError, ImportError):
    """A backend was asked for by name and cannot run here."""


class TraceError(UnitRoleError, RuntimeError):
    """The forward pass of a model could not be followed."""


def refuse_newer(what: str, version: int, known: int) -> None:
    """Refuse data that a newer version of the package wrote.

    Args:
        what: what was found, with its version, as the beginning of a sentence.
        version: the version of its format.
        known: the latest version that this package reads.

    Raises:
        DataError: if ``version`` is above ``known``.
    """
    if version > known:
        raise DataError(
            f"{what} {version}; this version of lightning-unitrole reads up to {known}. Upgrade lightning-unitrole."
        )


def deprecated(what: str, instead: str, *, until: str) -> None:
    """Warn of something that is going to be removed, for one minor version at least before it is.

    A ``FutureWarning``, which Python shows to people who run a program, unlike a ``DeprecationWarning``.

    Args:
        what: what is used, as the beginning of a sentence.
        instead: what to write in its place.
        until: the version without it.
    """
    warnings.warn(
        f"{what} is deprecated and goes with lightning-unitrole {until}; write {instead} instead.",
        FutureWarning,
        stacklevel=3,
    )
