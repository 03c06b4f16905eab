"""Exceptions of PopTorch."""

from __future__ import annotations


class Error(Exception):
    """What PopTorch raises where its compiler or runtime refuses."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.type = "poptorch_error"
        self.location = "stand-in"


class RecoverableError(Error):
    """A hardware error that a reset cures. The stand-in never raises it."""

    recovery_action = ""


class UnrecoverableError(Error):
    """A hardware error that no reset cures. The stand-in never raises it."""


class ConfigFileError(Exception):
    """A file of options that cannot be read."""


def createPoptorchError(msg: str) -> Error:  # noqa: N802
    return Error(msg)
