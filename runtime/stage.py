"""A stage as the schedules of `torch.distributed.pipelining` call it: one micro-batch at a time, forward and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from models.architecture import Architecture
from models.vit import VisionTransformer
from runtime.handover import Handover
from runtime.precision import Precision, precision_of
from runtime.tracing import Tracer

if TYPE_CHECKING:
    from config import Config


class StageModule(nn.Module):
    """A stage's model: one micro-batch at a time, in order, within one weight update."""

    def __init__(
        self,
        model: VisionTransformer,
        config: Config,
        device: torch.device,
        wire: torch.device,
        micro_batch_numbers: list[int],
    ):
        """What comes in and goes out lies on `wire`."""
        super().__init__()
        self.model = model
        self._config, self._device, self._wire, self._precision = config, device, wire, precision_of(config)
        self.numbers = micro_batch_numbers
        self.next_micro_batch = 0
        self.weight_update = 0

    def start_update(self, weight_update: int) -> None:
        self.weight_update, self.next_micro_batch = weight_update, 0

    def forward(self, x: Tensor, mix: Tensor | None = None) -> Tensor:
        if self.training:
            number = self.numbers[self.next_micro_batch]
            self.model.dropout_key = (self._config.random_seed, self.weight_update, number)
            self.next_micro_batch += 1
        x, mix = x.to(self._device), None if mix is None else mix.to(self._device)
        with self._precision.forward(self._device):
            return self.model(x, mix).to(self._wire)


class TrainingStage(PipelineStage):
    """torch's stage, which measures its passes, and exchanges tokens and gradients through a `Handover` where there is one.

    `before` and `after` lead to the neighbours; None: there is none, or it is on another host or device, and torch sends
    messages. What is handed over is sent as soon as it is computed, and waited for when it is needed.
    """

    def __init__(
        self,
        module: StageModule,
        *arguments: Any,
        before: Handover | None,
        after: Handover | None,
        tracer: Tracer,
        **keywords: Any,
    ) -> None:
        super().__init__(module, *arguments, **keywords)
        self._before, self._after, self._tracer, self._numbers = before, after, tracer, module.numbers

    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> list[Any]:
        return super().get_fwd_recv_ops(fwd_chunk_id) if self._before is None else []

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> list[Any]:
        if self._after is None:
            return super().get_fwd_send_ops(fwd_chunk_id)
        (tokens,), _ = self.fwd_cache[fwd_chunk_id]
        self._after.put(fwd_chunk_id, tokens)
        return []

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> list[Any]:
        return super().get_bwd_recv_ops(bwd_chunk_id) if self._after is None else []

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> list[Any]:
        if self._before is None:
            return super().get_bwd_send_ops(bwd_chunk_id)
        gradient, *_ = self.bwd_cache.pop(bwd_chunk_id)
        if self._before.sends_back:
            self._before.put(bwd_chunk_id, gradient)
        return []

    def forward_one_chunk(self, fwd_chunk_id: int, *arguments: Any, **keywords: Any) -> Any:
        if self._before is not None:
            (received,) = self.args_recv_info[fwd_chunk_id]
            received.buffer = self._before.take(fwd_chunk_id)
        with self._tracer.piece("forward", self._numbers[fwd_chunk_id], self.stage_index):
            return super().forward_one_chunk(fwd_chunk_id, *arguments, **keywords)

    def backward_one_chunk(self, bwd_chunk_id: int, *arguments: Any, **keywords: Any) -> None:
        if self._after is not None and self._after.sends_back:
            (received,) = self.grad_recv_info[bwd_chunk_id]
            received.buffer = self._after.take(bwd_chunk_id)
        with self._tracer.piece("backward", self._numbers[bwd_chunk_id], self.stage_index):
            super().backward_one_chunk(bwd_chunk_id, *arguments, **keywords)


def example_input(
    arch: Architecture,
    model: VisionTransformer,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    mix_columns: int = 0,
    trains: bool = False,
) -> tuple[Tensor, ...]:
    """What a stage takes, without data: images (and how to mix them) or tokens. Tokens that need gradients are sent back."""
    if not model.stage.has_embed:
        # After the last block only what the heads read is left (`vit.Block`).
        tokens = arch.num_head_tokens if not model.stage.blocks else arch.num_tokens
        shape = (batch_size, tokens, arch.embed_dim)
        return (torch.empty(shape, dtype=precision.tokens, device=device, requires_grad=trains),)
    images = torch.empty(batch_size, arch.num_channels, *arch.image_size, dtype=torch.uint8, device=device)
    return (images, torch.empty(batch_size, mix_columns, device=device)) if mix_columns else (images,)


def example_output(
    arch: Architecture,
    model: VisionTransformer,
    batch_size: int,
    device: torch.device,
    precision: Precision,
    trains: bool = False,
) -> Tensor:
    """What a stage gives: logits (features, where there are no classes) or tokens."""
    if model.stage.has_head:
        return torch.empty(batch_size, arch.num_labels or arch.head_input_dim, device=device, requires_grad=trains)
    tokens = arch.num_head_tokens if arch.depth - 1 in model.stage.blocks else arch.num_tokens
    shape = (batch_size, tokens, arch.embed_dim)
    return torch.empty(shape, dtype=precision.tokens, device=device, requires_grad=trains)
