"""Errors that name what went wrong and what to do about it.

Every error that a user can cause is a :class:`HybridMIMError`: one sentence that names the file or the setting
and the cause, and one that names the cure. Command line and panels print it as one line; anything else that is
raised is a defect of ours and keeps its traceback.
"""

from __future__ import annotations


class HybridMIMError(Exception):
    """An error with a cure.

    Args:
        message: what went wrong, naming the file or the setting.
        cure: what the user can do about it, as an imperative sentence.
    """

    def __init__(self, message: str, *, cure: str) -> None:
        super().__init__(message)
        self.message = _one_line(message)
        self.cure = _one_line(cure)

    def __str__(self) -> str:
        return f"{self.message.rstrip('.')}. {self.cure}"


class SettingsError(HybridMIMError):
    """A setting has a value that cannot work."""


class DataError(HybridMIMError):
    """A folder or a set of scans cannot be used."""


class ScanError(DataError):
    """One scan cannot be used; others may be fine."""


class LabelError(DataError):
    """A label map does not fit its scan or its classes."""


class DiskError(HybridMIMError):
    """A file could not be written."""


class ModelError(HybridMIMError):
    """A model package or a set of weights cannot be used."""


class RunError(HybridMIMError):
    """A run folder cannot be used or continued."""


def _one_line(text: str) -> str:
    return " ".join(text.split())
