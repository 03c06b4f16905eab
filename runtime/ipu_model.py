"""The model as PopTorch compiles it: blocks on IPUs, what is kept for the backward pass, and the loss inside."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Optional, Tuple

import poptorch
import torch
from torch import Tensor, nn

from models.architecture import architecture_of
from models.losses import classification_loss, count_correct, loss_weights
from models.products import computing
from models.stages import Stage, plan_stages
from models.vit import VisionTransformer, build_model
from runtime.precision import precision_of

if TYPE_CHECKING:
    from config import Config


class TrainingModel(nn.Module):
    """Images [B, C, H, W], packed targets, how to mix [1 or B, 1 or 5] of one micro-batch -> its mean loss, right answers."""

    _positive_weights: Optional[Tensor]

    def __init__(self, vit: VisionTransformer, config: Config) -> None:
        super().__init__()
        self.vit = vit
        self._loss, self._label_smoothing = config.loss, config.label_smoothing
        self.register_buffer("_positive_weights", loss_weights(config), persistent=False)
        self._compute = _compute_type(config)

    def forward(self, images: Tensor, targets: Tensor, mix: Optional[Tensor] = None) -> Tuple[Tensor, Tensor]:
        with computing(self._compute):
            logits = self.vit(images, mix)
        loss = classification_loss(logits, targets, self._loss, self._label_smoothing, self._positive_weights)
        # The one loss of the model: PopTorch would take the cross entropy inside for it, and leave the rest out of the gradient.
        return poptorch.identity_loss(loss, reduction="none"), count_correct(logits.detach(), targets)


class EvaluationModel(nn.Module):
    """Images [B, C, H, W] of one micro-batch -> logits [B, K]."""

    def __init__(self, vit: VisionTransformer, config: Config) -> None:
        super().__init__()
        self.vit = vit
        self._compute = _compute_type(config)

    def forward(self, images: Tensor) -> Tensor:
        with computing(self._compute):
            return self.vit(images)


def build_ipu_vit(config: Config) -> VisionTransformer:
    """The whole model on the host, each stage of the plan begun on its IPU, tensors marked that are kept."""
    # PopTorch has no fused attention, and recomputes by rules of its own instead of torch's.
    arch = replace(architecture_of(config), fused_attention=False, recompute=False)
    vit = build_model(arch, config.random_seed).to(precision_of(config).weights)
    for stage in plan_stages(config.stage_layers):
        poptorch.BeginBlock(first_module(vit, stage), user_id=f"stage {stage.index}", ipu_id=stage.index)
    if config.recompute_checkpoint_every_layer:
        _keep_layers(vit, config.recompute_mid_layers or ())
    return vit


def first_module(vit: VisionTransformer, stage: Stage) -> nn.Module:
    """The module that a stage's computation begins with. What comes before the first stage's runs on its IPU, too."""
    if stage.has_embed:
        return vit.patch_embed
    return vit.blocks[str(stage.blocks[0])] if stage.blocks else vit.norm


def _keep_layers(vit: VisionTransformer, mid_layers: Tuple[int, ...]) -> None:
    """Marks every block's output, and what is between attention and MLP in some: recomputation begins anew there."""
    for index, block in vit.blocks.items():
        block.register_forward_hook(_keep_output)
        if int(index) in mid_layers:
            block.get_submodule("norm2").register_forward_pre_hook(_keep_inputs)


def _keep_output(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return poptorch.recomputationCheckpoint(output)


def _keep_inputs(module: nn.Module, inputs: Tuple[Tensor, ...]) -> Tuple[Tensor, ...]:
    return tuple(poptorch.recomputationCheckpoint(tensor) for tensor in inputs)


def _compute_type(config: Config) -> Optional[torch.dtype]:
    """Of matrix products, where the weights are wider."""
    precision = precision_of(config)
    return None if precision.compute == precision.weights else precision.compute
