"""PoplarExecutor: a wrapped model, compiled at its first call and run on a device that is emulated on the CPU.

Stricter than PopTorch: the host's parameters stay as they are until copyWeightsToHost, copyWeightsToHostIfNeeded, or
an access to state_dict, parameters, buffers and the like through the executor. One executor at a time is attached.
"""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

import hashlib
import json
import os
import time
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from poptorch import _instances, _registry, optim
from poptorch._api import CLASSES, enforced
from poptorch._arithmetic import each_tensor
from poptorch._capture import Program, capture, filled, run
from poptorch._errors import Error
from poptorch._layout import Inputs, Layout, Position, is_offline, tensors_of
from poptorch._limits import check_limits
from poptorch._measurements import Measurements
from poptorch._optimizer_values import convert
from poptorch._outputs import slots_in, without_backward
from poptorch._training import Training
from poptorch._unsupported import refuse_model
from poptorch._weights import DeviceWeights
from poptorch.enums import ConnectionType  # type: ignore[attr-defined]
from poptorch.options import Options

_NOT_COMPILED = "Model has not been compiled or has been destroyed."
_OFFLINE = "Trying to run a model on an offline device (ConnectionType.Never): run the model on an online device."
_SYNCED = ("state_dict", "parameters", "named_parameters", "buffers", "named_buffers")


@enforced("poptorch.PoplarExecutor")
class PoplarExecutor(Measurements):
    """See the module. Names that it does not have are the user's model's."""

    def __init__(
        self,
        model: torch.nn.Module,
        options: Optional[Options],
        training: bool,
        poptorch_version: str,
        optimizer: Any = None,
        user_model: Optional[torch.nn.Module] = None,
    ) -> None:
        if options is not None and not isinstance(options, Options):
            raise Error(f"options must be a poptorch.Options, not {type(options)}")
        options = options or Options()
        options._freeze()
        self._options = options.clone()
        self._options._freeze()
        if not training and self._options.Training.gradient_accumulation != 1:
            raise Error("You must set Options.Training.gradientAccumulation to 1 or leave it when using inferenceModel")
        refuse_model(model)
        self._model, self._training = model, training
        if training:
            self._optimizer = optimizer or optim.SGD(model.parameters(), lr=0.01)
            convert(self._optimizer)
        self._program: Optional[Program] = None
        self._is_destroyed = False
        self._rng = torch.Generator().get_state()
        self.stand_in_calls = 0
        _registry.add(self)

    def __getattr__(self, attr: str) -> Any:
        if attr.startswith(("_", "stand_in")):
            raise AttributeError(attr)
        if attr in _SYNCED:
            self.copyWeightsToHostIfNeeded()
        return getattr(self._model, attr)

    def __repr__(self) -> str:
        return f"PoplarExecutor({self._model!r})"

    @property
    def model(self) -> torch.nn.Module:
        return self._model

    @property
    def options(self) -> Options:
        return self._options

    # Compiling

    def compile(self, *args: Any, **kwargs: Any) -> None:
        if self._is_destroyed:
            raise Error(_NOT_COMPILED)
        if self._program is not None:
            warnings.warn("the model has already been compiled", stacklevel=3)
            return
        if not hasattr(self._options._execution_strategy, "place"):
            raise NotImplementedError("the stand-in does not emulate phased execution")
        attaches_now = self._options.connection_type == ConnectionType.Always.value
        if attaches_now:
            _registry.check_free(self)
        start = time.monotonic()
        layout = Layout(self._options, self._training)
        inputs = Inputs(args, kwargs, layout)
        first = inputs.micro_batch(args, kwargs, (0, 0, 0))
        program = capture(self._model, self._options._execution_strategy, *first, self._training)
        self._output_slots = slots_in(program.output)
        self._num_ipus = check_limits(program, self._options, self._training)
        self._weights = DeviceWeights(self._model, layout.replicas)
        if self._training:
            self._trainer = Training(program, self._options, self._weights, self._model, self._optimizer)
        self._program, self._layout, self._inputs = program, layout, inputs
        self._anchored: Dict[str, torch.Tensor] = {}
        self._rng = self._first_rng()
        self._write_to_cache()
        self._compilation_seconds = time.monotonic() - start
        if attaches_now:
            _registry.attach(self)

    def _first_rng(self) -> torch.Tensor:
        known = self._options.exists("random_seed")
        seed = self._options.random_seed if known else int.from_bytes(os.urandom(4), "little")
        return torch.Generator().manual_seed(seed + 7919 * _instances.index(self._options)).get_state()

    def _write_to_cache(self) -> None:
        popart = self._options._Popart.options
        if popart.get("enableEngineCaching"):
            folder = Path(popart["cachePath"])
            folder.mkdir(parents=True, exist_ok=True)
            what = [[op.name for op in self._program.ops], self._inputs._form, sorted(map(str, popart.items()))]
            name = hashlib.sha256(repr(what).encode()).hexdigest()[:16]
            (folder / f"{name}.popef").write_text("an executable of the PopTorch stand-in\n")

    def compileAndExport(self, filename: str, *args: Any, export_model: bool = True, **kwargs: Any) -> None:
        self.compile(*args, **kwargs)
        self.save(filename, export_model)

    def save(self, filename: str, export_model: bool = True, save_rng_state: bool = True) -> None:
        self._check_compiled()
        Path(filename).write_text(json.dumps({"poptorch": "stand-in", "export_model": export_model}))

    def isCompiled(self) -> bool:
        return self._program is not None

    # Running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        assert not is_offline(self._options), _OFFLINE
        if self._program is None:
            self.compile(*args, **kwargs)
        else:
            self._inputs.check(args, kwargs)
        if not self.isAttachedToDevice():
            self._attach_for_call()
        outputs: Dict[int, Dict[Position, torch.Tensor]] = {}

        def keep(position: Position, values: List[Any]) -> None:
            for slot in self._output_slots:
                outputs.setdefault(slot, {})[position] = values[slot].detach().clone()

        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(self._rng)
            self._run(lambda position: tensors_of(self._inputs.micro_batch(args, kwargs, position)), keep)
            self._rng = torch.get_rng_state()
        self.stand_in_calls += 1
        self._keep_anchors()
        result = filled(self._program.output, {slot: self._layout.joined(parts) for slot, parts in outputs.items()})
        return each_tensor(without_backward, result) if self._training else result

    def _attach_for_call(self) -> None:
        on_demand = self._options.connection_type == ConnectionType.OnDemand.value
        if not on_demand or self.stand_in_calls:
            raise Error("Device is not attached: call attachToDevice() before the model")
        _registry.attach(self)

    def _run(self, inputs_of: Any, keep: Any) -> None:
        if self._training:
            self._trainer.call(self._layout, inputs_of, keep)
            return
        with torch.no_grad():
            for position in self._layout.positions:
                keep(position, run(self._program, self._weights.of_replica(position[2]), inputs_of(position)))

    def _keep_anchors(self) -> None:
        for short_name, (long_name, _, _) in self._options.anchored_tensors.items():
            if long_name != "finalLossScale" or not self._training:
                raise Error(f"no tensor {long_name!r} to anchor: the stand-in has finalLossScale alone, in training")
            self._anchored[short_name] = torch.tensor(self._trainer.loss_scales[-1])

    def getAnchoredTensor(self, short_name: str) -> torch.Tensor:
        self._check_compiled()
        if short_name not in self._anchored:
            raise Error(f"no anchored tensor {short_name!r}, or the model has not run")
        return self._anchored[short_name]

    def getTensorNames(self) -> List[str]:
        self._check_compiled()
        return [*self._program.model_slots, *(["finalLossScale"] if self._training else [])]

    @property
    def rng_state(self) -> List[int]:
        self._check_compiled()
        return self._rng.tolist() + [0] * self._num_ipus  # each IPU has a part in it

    @rng_state.setter
    def rng_state(self, state: List[int]) -> None:
        self._check_compiled()
        if len(state) != len(self.rng_state):
            raise Error(f"received rngState of size {len(state)}; was expecting size {len(self.rng_state)}")
        self._rng = torch.tensor(state[: len(self._rng)], dtype=torch.uint8)

    # Weights and optimiser

    def copyWeightsToHost(self) -> None:
        self._check_attached()
        _instances.meet(self._options, "copyWeightsToHost")
        self._weights.download(self._model)

    def copyWeightsToHostIfNeeded(self) -> bool:
        if self._program is None or not self._training or not self._weights.are_newer:
            return False
        self.copyWeightsToHost()
        return True

    def copyWeightsToDevice(self) -> None:
        self._check_attached()
        self._weights.upload(self._model)

    def copyNamedBuffersToDevice(self) -> None:
        self._check_attached()
        self._weights.upload_buffers(self._model, self._options._Popart.options.get("updatableNamedBuffers", []))

    def load_state_dict(self, state_dict: Dict[str, torch.Tensor], strict: bool = True) -> Any:
        result = self._model.load_state_dict(state_dict, strict=strict)
        if self._program is not None:
            # Detached, the next attachToDevice uploads them.
            self._weights.are_newer = False
            if self.isAttachedToDevice():
                self._weights.upload(self._model)
        return result

    def setOptimizer(self, optimizer: Any) -> None:
        if not self._training:
            raise Error("an inference model has no optimizer")
        if self._program is not None:
            self._trainer.optimizer.change(optimizer)
        else:
            convert(optimizer)
        self._optimizer = optimizer

    # The device

    def isAttachedToDevice(self) -> bool:
        return _registry.attached() is self

    def attachToDevice(self) -> None:
        self._check_compiled()
        assert not is_offline(self._options), _OFFLINE
        if self.isAttachedToDevice():
            raise Error("Device is already attached")
        _registry.attach(self)
        if not self._weights.are_newer:
            self._weights.upload(self._model)

    def detachFromDevice(self) -> None:
        self._check_attached()
        _registry.detach(self)

    def destroy(self) -> None:
        if self.isAttachedToDevice():
            _registry.detach(self)
        self._program = None
        self._is_destroyed = True

    def _check_compiled(self) -> None:
        if self._program is None:
            raise Error(_NOT_COMPILED)

    def _check_attached(self) -> None:
        self._check_compiled()
        if not self.isAttachedToDevice():
            raise Error("Device is not attached")


CLASSES["PoplarExecutor"] = PoplarExecutor
