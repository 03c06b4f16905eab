"""A stand-in for PopDist: several processes with replicas of one model, as `poprun` starts them.

PopDist has no public source: names and arguments are those of its manual and of callers. Which process this is, the
environment says: POPDIST_STAND_IN_NUM_INSTANCES (without it there is no PopDist run), _INSTANCE, _NUM_REPLICAS (of all
instances together), _IPUS_PER_REPLICA, _RENDEZVOUS (a path, the same for all, of a file that does not exist yet).
"""

# Names are PopDist's.
# ruff: noqa: N802, N803
from __future__ import annotations

from typing import Any, Callable, List, Set

from popdist import _instances

_initialized: List[bool] = []


def isPopdistEnvSet() -> bool:
    return _instances.is_set()


def init() -> None:
    if not isPopdistEnvSet():
        raise RuntimeError("popdist.init: this process was not started by poprun")
    if _initialized:
        raise RuntimeError("popdist.init: already called")
    _initialized.append(True)
    _instances.group()


def isBackendInitialized() -> bool:
    return bool(_initialized)


def initializeBackend() -> None:
    init()


def finalizeBackend() -> None:
    _initialized.clear()


def _setting(name: str, default: int) -> int:
    if not _initialized:
        raise RuntimeError("popdist.init() has to be called first")
    return _instances.setting(name, default)


def getNumInstances() -> int:
    return _setting("NUM_INSTANCES", 1)


def getInstanceIndex() -> int:
    return _setting("INSTANCE", 0)


def getLocalInstanceIndex() -> int:
    return getInstanceIndex()  # all on one host


def getNumTotalReplicas() -> int:
    return _setting("NUM_REPLICAS", getNumInstances())


def getNumLocalReplicas() -> int:
    replicas, instances = getNumTotalReplicas(), getNumInstances()
    if replicas % instances:
        raise RuntimeError(f"{replicas} replicas cannot be shared out evenly among {instances} instances")
    return replicas // instances


def getReplicaIndexOffset() -> int:
    return getInstanceIndex() * getNumLocalReplicas()


def getNumIpusPerReplica() -> int:
    return _setting("IPUS_PER_REPLICA", 1)


def getDeviceId(ipusPerReplica: int = 0) -> int:
    return getInstanceIndex()


def checkNumIpusPerReplica(arg0: int) -> bool:
    return arg0 == getNumIpusPerReplica()


def execute_on_instances(instances: Set[int], func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs) if getInstanceIndex() in instances else None


def synchronize() -> None:
    getNumInstances()
    _instances.group().barrier()
