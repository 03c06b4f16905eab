"""ViT training by others, each at its best honest setting: timm's model in a plain loop, and Hugging Face's `Trainer`.

Both take float32 pixels, normalised before the clock starts, and do nothing but train: no logging, saving or clipping.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from typing import Any, Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

import dataset.transforms.torchvision_operators  # noqa: F401  (first: the peers import torchvision)
from models.architecture import Architecture

# isort: split
try:
    import timm
except ImportError:
    raise SystemExit("error: this measures timm and transformers too: run `make setup-dev` first.") from None
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_callback import PrinterCallback

HUGGING_FACE = "Hugging Face Trainer"
Turn = Callable[[int], float]  # trains so many steps and gives the seconds that they took


def timm_turn(arch: Architecture, batch_size: int, bf16: bool) -> Turn:
    """A plain loop around timm's ViT-S/16: cross entropy, fused AdamW, autocast around the forward pass."""
    model = timm.create_model("vit_small_patch16_224", num_classes=arch.num_labels).train()
    assert (model.embed_dim, len(model.blocks)) == (arch.embed_dim, arch.depth), "the peer's model has another size"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    images, labels = torch.randn(batch_size, 3, *arch.image_size), torch.randint(0, arch.num_labels, (batch_size,))

    def turn(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext():
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return turn


def take_turns(
    arch: Architecture, batch_size: int, bf16: bool, others: Dict[str, Turn], rounds: int, budget_seconds: float
) -> Dict[str, List[float]]:
    """Seconds a step of the `others` and of Hugging Face's `Trainer`: one figure a round for each, in turns.

    At most `rounds`, within about `budget_seconds`. The first step of each is a warm-up, unless it takes half of the budget:
    then it is the measurement.
    """
    turns = _Turns(others, rounds, budget_seconds)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=_hugging_face_model(arch),
            args=_training_arguments(folder, batch_size, bf16),
            train_dataset=_Pixels(arch, batch_size),
            callbacks=[turns],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return turns.seconds


class _Turns(TrainerCallback):
    """The Trainer owns its loop, so it leads: after each turn of its own it lets the others have theirs."""

    def __init__(self, others: Dict[str, Turn], rounds: int, budget_seconds: float) -> None:
        self.others, self.rounds, self.budget_seconds = others, rounds, budget_seconds
        self.seconds: Dict[str, List[float]] = {name: [] for name in [*others, HUGGING_FACE]}
        self._steps_of_turn = self._steps_left = 1

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._others_turn()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._steps_left -= 1
        if self._steps_left:
            return
        self.seconds[HUGGING_FACE].append((time.perf_counter() - self._start) / self._steps_of_turn)
        if state.global_step == 1:
            self._plan_turns()
        if len(self.seconds[HUGGING_FACE]) >= self.rounds:
            control.should_training_stop = True
        else:
            self._others_turn()

    def _plan_turns(self) -> None:
        """Chooses rounds and steps from what the warm-up took."""
        step_of_each = sum(times[0] for times in self.seconds.values())
        if 2 * step_of_each > self.budget_seconds:
            self.rounds = 1
            self._measure_the_quick()
            return
        self.rounds = min(self.rounds, int(self.budget_seconds / step_of_each))
        self._steps_of_turn = max(1, int(self.budget_seconds / step_of_each / self.rounds))
        for times in self.seconds.values():
            times.clear()

    def _measure_the_quick(self) -> None:
        """Where the warm-up is the measurement: warms up all the same those whose steps are so short that it matters."""
        share = self.budget_seconds / 10
        for name, turn in self.others.items():
            steps = int(share / self.seconds[name][0])
            if steps > 0:
                self.seconds[name] = [turn(steps) / steps]

    def _others_turn(self) -> None:
        for name, turn in self.others.items():
            self.seconds[name].append(turn(self._steps_of_turn) / self._steps_of_turn)
        self._steps_left = self._steps_of_turn
        self._start = time.perf_counter()


class _Pixels(torch.utils.data.Dataset):
    """A few images in memory, again and again."""

    def __init__(self, arch: Architecture, num_images: int) -> None:
        self.images = torch.randn(num_images, 3, *arch.image_size)
        self.labels = torch.randint(0, arch.num_labels, (num_images,))

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        row = index % len(self.labels)
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


def _training_arguments(folder: str, batch_size: int, bf16: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=10_000,  # `_Turns` ends it
        per_device_train_batch_size=batch_size,
        bf16=bf16,
        use_cpu=True,
        optim="adamw_torch_fused",
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
    )


def _hugging_face_model(arch: Architecture) -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=arch.embed_dim,
            num_hidden_layers=arch.depth,
            num_attention_heads=arch.num_heads,
            intermediate_size=arch.mlp_dim,
            image_size=arch.image_size[0],
            patch_size=arch.patch_size[0],
            num_labels=arch.num_labels,
        )
    )
