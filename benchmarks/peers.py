"""ViT-S training by others, each at its best honest setting: timm's model in a plain loop, and Hugging Face's `Trainer`.

Both take float32 pixels, normalised before the clock starts, and do nothing but train: no logging, saving, clipping.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from typing import Any, Callable, Dict, List

import torch
import torch.nn.functional as F
from torch import Tensor

Turn = Callable[[int], float]  # trains so many steps and gives the seconds that they took


def timm_turn(arch: Any, batch_size: int, bf16: bool) -> Turn:
    """A plain loop around timm's model: cross entropy, fused AdamW, autocast around the forward pass."""
    import dataset.torchvision_operators  # noqa: F401  (timm imports torchvision)
    import timm

    model = timm.create_model("vit_small_patch16_224", num_classes=arch.num_labels).train()
    assert model.embed_dim == arch.embed_dim, "the peer's model has another size"
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


class _Pixels(torch.utils.data.Dataset):
    """A few images in memory, again and again."""

    def __init__(self, arch: Any, batch_size: int) -> None:
        self.images = torch.randn(batch_size, 3, *arch.image_size)
        self.labels = torch.randint(0, arch.num_labels, (batch_size,))

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> Dict[str, Tensor]:
        row = index % len(self.labels)
        return {"pixel_values": self.images[row], "labels": self.labels[row]}


def train_in_turns(
    arch: Any, batch_size: int, bf16: bool, others: Dict[str, Turn], rounds: int, turn_seconds: float
) -> Dict[str, List[float]]:
    """Seconds a step of the `others` and of Hugging Face's `Trainer`, one figure a round for each.

    The Trainer owns its loop, so it leads: after each turn of its own it lets the others have theirs. A turn lasts about
    `turn_seconds`, at least a step, and as many steps for each.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    seconds: Dict[str, List[float]] = {name: [] for name in [*others, "Hugging Face Trainer"]}

    class Turns(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            for turn in others.values():
                turn(2)  # warm-up
            slowest = max(turn(1) for turn in others.values())
            self.steps = max(1, round(turn_seconds / slowest))
            self.turn_ends = 2  # the Trainer's own warm-up

        def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
            if state.global_step < self.turn_ends:
                return
            if state.global_step > 2:
                seconds["Hugging Face Trainer"].append((time.perf_counter() - self.start) / self.steps)
            if len(seconds["Hugging Face Trainer"]) == rounds:
                control.should_training_stop = True
                return
            for name, turn in others.items():
                seconds[name].append(turn(self.steps) / self.steps)
            self.turn_ends += self.steps
            self.start = time.perf_counter()

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=1_000_000,  # the callback stops it
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
        trainer = Trainer(
            model=_hugging_face_model(arch),
            args=arguments,
            train_dataset=_Pixels(arch, batch_size),
            callbacks=[Turns()],
        )
        trainer.train()
    return seconds


def _hugging_face_model(arch: Any) -> Any:
    from transformers import ViTConfig, ViTForImageClassification

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
