"""ViT training by others, at their best honest settings: timm in a plain loop and as its `train.py` does, Hugging Face's Trainer.

All take float32 pixels, normalised before the clock starts, and do nothing but train: no logging, saving, clipping or averages.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from typing import Any, Dict, List, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

import dataset.transforms.torchvision_operators  # noqa: F401  (first: the peers import torchvision)
from benchmarks.turns import Contender, Turn
from models.architecture import Architecture

# isort: split
try:
    import timm.optim
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.models.vision_transformer import VisionTransformer
except ImportError:
    raise SystemExit("error: this measures timm and transformers too: run `make setup-dev` first.") from None
from transformers import Trainer, TrainerCallback, TrainingArguments, ViTConfig, ViTForImageClassification
from transformers.trainer_callback import PrinterCallback

TIMM, TRAIN_PY, HUGGING_FACE = "timm, plain loop", "timm, train.py's settings", "Hugging Face Trainer"


def peers(arch: Architecture, batch: int, precision: str, compiled: bool) -> List[Contender]:
    """All of them in one precision, compiled or not."""
    bf16 = precision == "bf16"
    about = ["autocast"] * bf16 + ["torch.compile"] * compiled

    def contender(name: str, setting: List[str], build: Any) -> Contender:
        setting = [*setting, *about]
        return Contender(name, precision, ", ".join(setting), lambda: build(arch, batch, bf16, compiled), compiled)

    plain = contender(TIMM, ["fused AdamW"], timm_turn)
    train_py = contender(TRAIN_PY, ["channels-last", "its optimiser factory, fused"], train_py_turn)
    trainer = contender(HUGGING_FACE, ["fused AdamW", "SDPA"], _TrainerTurn)
    # Of timm's model, compiled once is enough.
    return [plain, trainer] if compiled else [plain, train_py, trainer]


def timm_turn(arch: Architecture, batch: int, bf16: bool, compiled: bool) -> Turn:
    """A plain loop around timm's model: cross entropy, fused AdamW, autocast around the forward pass."""
    model: Any = timm_model(arch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    images, labels = pixels(arch, batch)
    model = torch.compile(model) if compiled else model

    def turn(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with _autocast(bf16):
                logits = model(images)
            F.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return turn


def train_py_turn(arch: Architecture, batch: int, bf16: bool, compiled: bool) -> Turn:
    """The update of timm's train.py under `--channels-last --opt adamw --opt-kwargs fused=True [--amp --amp-dtype bfloat16]`:
    its loss (label smoothing 0.1) within autocast, its parameter groups; averages and clipping off.
    """
    assert not compiled
    model: Any = timm_model(arch).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, fused=True)
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
    images, labels = pixels(arch, batch)
    images = images.contiguous(memory_format=torch.channels_last)

    def turn(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            with _autocast(bf16):
                loss = loss_of(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return time.perf_counter() - start

    return turn


def timm_model(arch: Architecture) -> VisionTransformer:
    return VisionTransformer(
        img_size=arch.image_size,
        patch_size=arch.patch_size,
        in_chans=arch.num_channels,
        num_classes=arch.num_labels,
        embed_dim=arch.embed_dim,
        depth=arch.depth,
        num_heads=arch.num_heads,
        mlp_ratio=arch.mlp_dim / arch.embed_dim,
    ).train()


def pixels(arch: Architecture, batch: int) -> Any:
    """Normalised images and labels."""
    return torch.randn(batch, arch.num_channels, *arch.image_size), torch.randint(0, arch.num_labels, (batch,))


def _autocast(bf16: bool) -> Any:
    return torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()


class _TrainerTurn(TrainerCallback):
    """A turn of Hugging Face's `Trainer`: it owns its loop, which has a thread of its own here and waits between turns."""

    def __init__(self, arch: Architecture, batch: int, bf16: bool, compiled: bool) -> None:
        self._built_for = (arch, batch, bf16, compiled)
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._steps_left = 0
        self._seconds, self._begin = 0.0, 0.0
        self._problem: Optional[BaseException] = None
        self._num_threads = torch.get_num_threads()
        threading.Thread(target=self._train, daemon=True).start()

    def __call__(self, steps: int) -> float:
        self._steps_left = steps
        self._go.release()
        self._done.acquire()
        if self._problem is not None:
            raise RuntimeError("the Trainer has failed") from self._problem
        return self._seconds

    def _train(self) -> None:
        try:
            torch.set_num_threads(self._num_threads)  # each thread has its own team
            arch, batch, bf16, compiled = self._built_for
            with tempfile.TemporaryDirectory() as folder:
                trainer = _trainer(folder, arch, batch, bf16, compiled)
                trainer.remove_callback(PrinterCallback)
                trainer.add_callback(self)
                trainer.train()
        except BaseException as error:  # told in the thread that waits
            self._problem = error
        self._done.release()

    def on_train_begin(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._wait()

    def on_step_end(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        self._steps_left -= 1
        if self._steps_left:
            return
        self._seconds = time.perf_counter() - self._begin
        self._done.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        self._begin = time.perf_counter()


class _Numbers(torch.utils.data.Dataset):
    """So many samples that a run does not end; `_trainer`'s collator has the images."""

    def __len__(self) -> int:
        return 10_000_000

    def __getitem__(self, index: int) -> int:
        return index


def _trainer(folder: str, arch: Architecture, batch: int, bf16: bool, compiled: bool) -> Trainer:
    images, labels = pixels(arch, batch)
    ready: Dict[str, Tensor] = {"pixel_values": images, "labels": labels}
    return Trainer(
        model=hugging_face_model(arch),
        args=_training_arguments(folder, batch, bf16, compiled),
        train_dataset=_Numbers(),
        data_collator=lambda rows: ready,
    )


def _training_arguments(folder: str, batch: int, bf16: bool, compiled: bool) -> TrainingArguments:
    return TrainingArguments(
        output_dir=folder,
        max_steps=10_000_000 // batch,
        per_device_train_batch_size=batch,
        bf16=bf16,
        torch_compile=compiled,
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


def hugging_face_model(arch: Architecture) -> ViTForImageClassification:
    return ViTForImageClassification(
        ViTConfig(
            hidden_size=arch.embed_dim,
            num_hidden_layers=arch.depth,
            num_attention_heads=arch.num_heads,
            intermediate_size=arch.mlp_dim,
            image_size=arch.image_size[0],
            patch_size=arch.patch_size[0],
            num_channels=arch.num_channels,
            num_labels=arch.num_labels,
            attn_implementation="sdpa",
        )
    )
