"""The whole model on one device: the fast path for one GPU or CPU, and the oracle that other runtimes are tested against."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any, ContextManager, Dict, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import Tensor

from batch import DataShare, HostBatch, HostBatches
from models.architecture import architecture_of
from models.by_core import predict_by_core
from models.freezing import freeze
from models.losses import classification_loss, count_correct, loss_weights, pack_targets
from models.vit import build_model
from runtime.base import StepResult, Trace
from runtime.devices import (
    compile_blocks,
    keep_freed_memory,
    multiply_as_on_cpus,
    peak_memory,
    pick_device,
    set_threads,
    use_native_kernels,
)
from runtime.precision import precision_notes, precision_of
from runtime.precision_choice import decided
from runtime.read_ahead import Uploader, read_ahead
from runtime.report import nonfinite_text
from runtime.tracing import Tracer
from runtime.weight_update import WeightUpdate

if TYPE_CHECKING:
    from config import Config
    from placement import Placement

EVAL_BATCH_SIZE = {"cpu": 64, "cuda": 256}  # at least


class SingleRuntime:
    """Runs every replica and micro-batch of a weight update one after the other on one device. See `base.Runtime`."""

    is_main = True
    backend = "torch"
    makes_every_update = False
    eval_share_index = 0
    eval_num_shares = 1
    num_parts = 1
    num_optimizer_parts = 1

    def __init__(self, config: Config, placement: Placement, num_cores: int) -> None:
        self.device = pick_device(config)
        set_threads(config, default=num_cores)
        config, chosen = decided(config, placement.runtime)
        self.config = config
        keep_freed_memory(self.device)
        self.share = DataShare(replicas=tuple(range(config.replication_factor)))
        self.eval_batch_size = max(config.micro_batch_size, EVAL_BATCH_SIZE[self.device.type])
        self.notes = [note for note in (placement.folding(), *chosen, *precision_notes(config, self.device)) if note]
        self.precision = precision_of(config)
        self.model = freeze(build_model(architecture_of(config), config.random_seed), config)
        self.model.to(self.device, self.precision.weights).eval()
        multiply_as_on_cpus(self.device)
        self._compiles = compile_blocks(self.model, config, self.device)
        self.notes += [] if self._compiles else use_native_kernels([self.model], config, self.device)
        self.update = WeightUpdate(config, [self.model])
        self._tracer = Tracer(self.device)
        self._positive_weights = loss_weights(config, self.device)

    def prepare(self, evaluates: bool, multi_label: bool = False) -> List[str]:
        if not self._compiles:
            return []
        begun = time.perf_counter()
        if self.config.trains:
            self._compile_training()
        if evaluates:
            self.predict(self._blank_images(self.eval_batch_size))
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return [f"compiled the embedding and the blocks in {time.perf_counter() - begun:.0f} s"]

    def _compile_training(self) -> None:
        """A forward and a backward pass as those of training, whose gradients go nowhere."""
        self.model.train()
        trained = list(self.update.trained.values())
        images = self._blank_images(self.config.micro_batch_size)
        columns = 5 if self.config.cutmix else 1  # of `HostBatch.mix`
        mix = images.new_zeros(len(images), columns, dtype=torch.float32)
        with self.precision.forward(self.device):
            logits = self.model(images, mix if self.config.mixup or self.config.cutmix else None)
        if trained:
            torch.autograd.grad(logits.float().sum(), trained, allow_unused=True)

    def _blank_images(self, count: int) -> Tensor:
        config = self.config
        shape = (count, config.num_channels, config.image_size, config.image_size)
        return torch.zeros(shape, dtype=torch.uint8, device=self.device)

    def _on_device(self, images: Tensor) -> Tensor:
        """Compiled code is for one layout: decoded pictures come channel by channel within a pixel, others do not."""
        images = images.to(self.device, non_blocking=True)
        return images.contiguous() if self._compiles else images

    def feed(self, batches: HostBatches) -> HostBatches:
        # A thread that augments seeds torch's generator, as dropout does meanwhile: neither would draw what it should.
        reads_here = self.config.dataloader_workers == 0 or self.config.bad_images == "skip"
        if self.device.type != "cuda" or (self.model.arch.is_random and reads_here):
            return batches
        return read_ahead(batches, Uploader(self.device))

    def train_step(self, batch: HostBatch, learning_rate: float, first_update: int) -> StepResult:
        config = self.config
        if not self.model.training:  # to walk over a small model's layers in each step takes 3 % of it
            self.model.train()
        self.update.skipped = 0
        with self._tracer.piece("data"):
            images, targets, mix = self._micro_batches(batch)
        micro_batches = config.gradient_accumulation * config.replication_factor  # of one weight update
        loss = torch.zeros((), device=self.device)
        correct = torch.zeros((), device=self.device)
        for iteration in range(config.device_iterations):
            self.update.begin(first_update + iteration)
            for micro_batch in range(micro_batches):
                position = iteration * micro_batches + micro_batch
                self.model.dropout_key = (config.random_seed, first_update + iteration, micro_batch)
                part = self._forward_backward(
                    micro_batch, images[position], targets[position], None if mix is None else mix[position]
                )
                loss += part[0]
                correct += part[1]
            with self._tracer.piece("update"):
                loss_sum, num_correct = self.update.apply(learning_rate, loss, correct)  # waits for the device
            self._tracer.stop()
            if self.update.must_stop:
                break
        updates = iteration + 1
        return StepResult(
            loss=loss_sum / (micro_batches * updates),
            accuracy=num_correct / (config.global_batch_size * updates),
            grad_norm=self.update.grad_norm,
            skipped_updates=self.update.skipped,
            loss_scale=self.update.used_scale,
            must_stop=self.update.must_stop,
            nonfinite=nonfinite_text(self.update.nonfinite, config) if self.update.skipped else "",
        )

    def _micro_batches(self, batch: HostBatch) -> Tuple[Sequence[Tensor], Sequence[Tensor], Optional[Sequence[Tensor]]]:
        """Images, packed targets and how to mix, on the device, of each micro-batch of a host step."""
        assert batch.images is not None and batch.targets is not None
        size = self.config.micro_batch_size
        images = self._on_device(batch.images).split(size)
        targets = pack_targets(batch.targets, size, batch.label_weights)
        mix = None if batch.mix is None else batch.mix.to(self.device, non_blocking=True).split(size)
        return images, targets.to(self.device, non_blocking=True).split(size), mix

    def _forward_backward(self, number: int, images: Tensor, targets: Tensor, mix: Optional[Tensor]) -> List[Tensor]:
        """Accumulates one micro-batch's gradients; gives its mean loss and number of right answers."""
        smoothing, weights = self.config.label_smoothing, self._positive_weights
        with self._tracer.piece("forward", number):
            with self.precision.forward(self.device):
                logits = self.model(images, mix)
            loss = classification_loss(logits, targets, self.config.loss, smoothing, weights)
        with self._tracer.piece("backward", number):
            (loss * self.update.seed).backward()
            self.update.collect()
        return [loss.detach(), count_correct(logits.detach(), targets)]

    def trace_next_step(self) -> None:
        self._tracer.start()

    def trace(self) -> Optional[Trace]:
        return self._tracer.trace()

    def peak_memory(self) -> Tuple[int, str]:
        return peak_memory(self.device)

    @torch.no_grad()
    def predict(self, images: Optional[Tensor]) -> Optional[Tensor]:
        assert images is not None
        self.model.eval()
        images = self._on_device(images)
        context = partial(self.precision.forward, self.device)
        # Compiled blocks, and what stands in for autocast to fp16, are the process's: threads would disturb each other.
        if self.device.type == "cpu" and self.config.compile != "on" and self.precision.compute != torch.float16:
            return predict_by_core(self.model, images, context)
        with context():
            return self.model(images).cpu()

    def averaged(self) -> ContextManager[None]:
        return self.update.averaged()

    def weights(self, averaged: bool = False) -> Dict[int, Dict[str, Tensor]]:
        weights = self.update.weights(averaged)
        return {0: {name: value.detach() for name, value in weights.items()}} if weights else {}

    def parameter_names(self) -> Dict[str, Any]:
        return {name: tuple(parameter.shape) for name, parameter in self.model.named_parameters()}

    def load_weights(self, weights: Mapping[str, Tensor], averages: Optional[Mapping[str, Tensor]] = None) -> None:
        self.update.load_weights(weights, averages)

    @property
    def loss_scale_factor(self) -> float:
        return self.update.loss_scale.factor

    @loss_scale_factor.setter
    def loss_scale_factor(self, factor: float) -> None:
        self.update.loss_scale.restore(factor)

    def optimizer_state(self) -> Dict[int, Dict[str, Tensor]]:
        return {0: self.update.state()}

    def load_optimizer_state(self, state: Mapping[str, Tensor]) -> None:
        self.update.load_state(dict(state))

    def sum_totals(self, totals: Tensor) -> Tensor:
        return totals

    def from_first_stage(self, values: Optional[Tensor], size: int) -> Tensor:
        assert values is not None
        return values

    def maximum(self, value: int) -> int:
        return value

    def from_main(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> List[Any]:
        return [value]

    def close(self) -> None:
        return None
