"""The model's tensors as the device holds them: copies, that meet the host's only when somebody copies."""

from __future__ import annotations

from typing import Dict, List

import torch

from poptorch._errors import Error


class DeviceWeights:
    """Parameters, the same for all replicas, and buffers, of which each replica has its own."""

    def __init__(self, model: torch.nn.Module, num_replicas: int) -> None:
        for name, param in model.named_parameters():
            if param.dtype not in (torch.float32, torch.float16):
                raise Error(f"the parameter {name} has the type {param.dtype}: use torch.float32 or torch.float16")
        self.params = {name: param.detach().clone() for name, param in model.named_parameters()}
        self.trained: List[str] = [name for name, param in model.named_parameters() if param.requires_grad]
        for name in self.trained:
            self.params[name].requires_grad_(True)
        self._buffers = [
            {name: buffer.detach().clone() for name, buffer in model.named_buffers()} for _ in range(num_replicas)
        ]
        self.are_newer = False  # than the host's

    def of_replica(self, replica: int) -> Dict[str, torch.Tensor]:
        return {**self.params, **self._buffers[replica]}

    @torch.no_grad()
    def upload(self, model: torch.nn.Module) -> None:
        for name, param in model.named_parameters():
            self.params[name].copy_(param)
        self.upload_buffers(model, list(self._buffers[0]))
        self.are_newer = False

    @torch.no_grad()
    def upload_buffers(self, model: torch.nn.Module, names: List[str]) -> None:
        for name, buffer in model.named_buffers():
            for buffers in self._buffers:
                if name in names:
                    buffers[name].copy_(buffer)

    @torch.no_grad()
    def download(self, model: torch.nn.Module) -> None:
        for name, param in model.named_parameters():
            param.copy_(self.params[name])
        for name, buffer in model.named_buffers():
            buffer.copy_(self._buffers[0][name])
        self.are_newer = False
