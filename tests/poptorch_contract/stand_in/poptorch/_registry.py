"""All executors of this process, and which of them is attached to the IPUs."""

from __future__ import annotations

from typing import Any, List, Optional

from poptorch._errors import Error

EXECUTORS: List[Any] = []
_attached: List[Any] = []


def add(executor: Any) -> None:
    for other in EXECUTORS:
        is_same = other._model is executor._model and other._training == executor._training
        if is_same and not other._is_destroyed:
            kind = "trainingModel" if executor._training else "inferenceModel"
            raise RuntimeError(
                f"Model has already been wrapped in 'poptorch.{kind}'. Call model.destroy() on the model to unwrap it "
                "before wrapping it again."
            )
    EXECUTORS.append(executor)


def attached() -> Optional[Any]:
    return _attached[0] if _attached else None


def check_free(executor: Any) -> None:
    if _attached and _attached[0] is not executor:
        raise Error(
            "Failed to acquire the IPUs: another executor is attached to them. Call its detachFromDevice() first."
        )


def attach(executor: Any) -> None:
    check_free(executor)
    _attached[:] = [executor]


def detach(executor: Any) -> None:
    _attached.clear()


def reset() -> None:
    EXECUTORS.clear()
    _attached.clear()
