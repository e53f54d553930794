"""Exceptions of the package. Every one of them is a :class:`UnitRoleError`."""


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
