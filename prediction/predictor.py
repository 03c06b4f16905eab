"""Pictures in, probabilities out: decoded ahead by threads, batch by batch through the model, in order, with bounded memory."""

from __future__ import annotations

import warnings
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Deque, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
from PIL import Image
from torch import Tensor

import machine
from dataset.base import BadImageError, Encoded, read_file
from dataset.decode import open_picture
from errors import UserError
from insight.answers import probabilities
from models.native.build import BuildError
from models.products import gpu_computes_bf16, multiplies
from models.vit import VisionTransformer
from prediction.view import view_of
from weights.card import ModelCard

BATCHES_AHEAD = 2  # that are decoded before the model asks for them


class Seen(NamedTuple):
    """A picture as the model sees it, uint8 [C, H, W], and its probabilities [K]; neither where it cannot be read."""

    path: str
    view: Optional[Tensor] = None
    probabilities: Optional[Tensor] = None
    reason: str = ""  # why it cannot be read


class Predictor:
    """A model with what surrounds it. `predict` and `see` may be called from one thread at a time."""

    def __init__(
        self,
        model: VisionTransformer,
        card: ModelCard,
        max_image_pixels: int,
        batch_size: int = 64,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """`model` is in evaluation mode, on the device that is to be used; it multiplies in `dtype`."""
        self.model, self.card, self.batch_size, self._dtype = model, card, batch_size, dtype
        if next(model.parameters()).device.type == "cpu":
            with suppress(BuildError):  # without a compiler it is slower, no more
                model.use_native_kernels()
        self._view, self._max_pixels = view_of(card), max_image_pixels

    def see(self, item: Encoded) -> Tensor:
        """A picture as the model sees it, uint8 [C, H, W]. Raises BadImageError."""
        return self._view(open_picture(item, self.card.arch.num_channels, self._max_pixels))

    def predict(self, views: Tensor) -> Tensor:
        """uint8 [B, C, H, W] to probabilities [B, K], float32 on the CPU. Raises UserError where the model gives none."""
        answers = probabilities(self.model, self.card, views, self._dtype)
        if not bool(answers.isfinite().all()):
            raise UserError("the model's answers are not finite: its weights are damaged, or training went astray.")
        return answers

    def predict_files(self, paths: Iterable[str]) -> Iterator[List[Seen]]:
        """All pictures in order, a batch at a time."""
        seen = self._decoded(paths)
        for batch in iter(lambda: list(islice(seen, self.batch_size)), []):
            yield self._with_probabilities(batch)

    def _with_probabilities(self, batch: Sequence[Seen]) -> List[Seen]:
        views = [one.view for one in batch if one.view is not None]
        rows = iter(self.predict(torch.stack(views)) if views else ())
        return [one if one.view is None else one._replace(probabilities=next(rows)) for one in batch]

    def _decoded(self, paths: Iterable[str]) -> Iterator[Seen]:
        """Every picture as it is seen. Threads are enough: the decoders let go of the interpreter."""
        waiting: Deque[Future] = deque()
        # Pillow learns its rarer formats when it first meets one; a thread that meets another meanwhile would not know it.
        Image.init()
        # The decoders silence warnings picture by picture, which threads would undo for each other.
        with warnings.catch_warnings(), ThreadPoolExecutor(machine.num_cores()) as pool:
            warnings.simplefilter("ignore")
            try:
                for path in paths:
                    waiting.append(pool.submit(self._read, path))
                    if len(waiting) >= BATCHES_AHEAD * self.batch_size:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:  # after Ctrl-C nobody waits for them
                    future.cancel()

    def _read(self, path: str) -> Seen:
        try:
            return Seen(path, self.see(read_file(path)))
        except BadImageError as error:
            return Seen(path, reason=error.reason)


def pick_type(name: str, device: torch.device) -> Tuple[torch.dtype, List[str]]:
    """fp32 or bf16, and what should be known of it on this device. Raises UserError for bf16 on a GPU without it."""
    if name == "fp32":
        return torch.float32, []
    if device.type == "cuda" and not gpu_computes_bf16(device):
        raise UserError(f"--precision bf16: {torch.cuda.get_device_name(device)} has no bf16. Use --precision fp32.")
    is_slow = not multiplies(torch.bfloat16, device)
    return torch.bfloat16, ["this CPU has no bf16 instructions: --precision fp32 is faster here"] * is_slow


def pick_device(name: str) -> torch.device:
    """auto, cpu or cuda. Raises UserError where there is no GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here. Leave the flag out.")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")
