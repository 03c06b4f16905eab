"""popdist.poptorch: options that know of the other instances."""

# Names are PopDist's.
# ruff: noqa: N802
from __future__ import annotations

from typing import Any, Dict, Optional

from poptorch import Error
from poptorch._api import API
from poptorch._sub_options import _DistributedOptions
from poptorch.options import Options as _Options

import popdist


def _refusing(name: str) -> Any:
    def method(self: Any, *args: Any, **kwargs: Any) -> None:
        raise RuntimeError(API["popdist"]["error_text"].replace("<name>", name))

    return method


class _Distributed(_DistributedOptions):
    def __init__(self) -> None:
        super().__init__()
        self._values["num_distributed_processes"] = popdist.getNumInstances()
        self._values["distributed_process_id"] = popdist.getInstanceIndex()


class Options(_Options):
    """poptorch.Options with this instance's replicas and number. What PopDist decides cannot be set."""

    _joins_instances = True

    def __init__(self, ipus_per_replica: Optional[int] = None) -> None:
        super().__init__()
        assert ipus_per_replica is None or type(ipus_per_replica) is int, "ipus_per_replica is an int"
        if ipus_per_replica is not None and not popdist.checkNumIpusPerReplica(ipus_per_replica):
            raise RuntimeError(
                f"ipus_per_replica={ipus_per_replica}, but poprun was told {popdist.getNumIpusPerReplica()}"
            )
        self._values["replication_factor"] = popdist.getNumLocalReplicas()
        self._values["ipu_id"] = popdist.getDeviceId()
        self._distributed = _Distributed()

    def toDict(self) -> Dict[str, Any]:
        return super().toDict()

    def _check_ipus(self, num_ipus: int) -> None:
        """Called when a model is compiled, with the IPUs of one replica."""
        if num_ipus > popdist.getNumIpusPerReplica():
            raise Error(f"the model needs {num_ipus} IPUs, but poprun gave {popdist.getNumIpusPerReplica()} a replica")


for _name in API["popdist"]["blocked"]:
    _owner, _, _method = _name.rpartition(".")
    setattr(_Distributed if _owner else Options, _method, _refusing(_method))
