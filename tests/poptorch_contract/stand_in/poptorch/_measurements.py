"""Times and cycles that an executor tells. There is no hardware to measure: all but the compilation time are 0."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

from datetime import timedelta
from typing import Callable, Tuple

_Latency = Tuple[float, float, float]


class Measurements:
    _compilation_seconds = 0.0
    _check_compiled: Callable[..., None]  # the executor's

    def compilationTime(self) -> timedelta:
        self._check_compiled()
        return timedelta(seconds=self._compilation_seconds)

    def cycleCount(self) -> int:
        self._check_compiled()
        return 0

    def getLatency(self) -> _Latency:
        return self._nothing_measured()

    def getHostIpuLatency(self) -> _Latency:
        return self._nothing_measured()

    def getComputeLatency(self) -> _Latency:
        return self._nothing_measured()

    def getIpuHostLatency(self) -> _Latency:
        return self._nothing_measured()

    def _nothing_measured(self) -> _Latency:
        self._check_compiled()
        return (0.0, 0.0, 0.0)
