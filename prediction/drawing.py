"""Keeps the first pictures of a run and draws their attention at its end: what --attention does."""

from __future__ import annotations

import os
from pathlib import Path
from typing import List, Sequence, Tuple

import torch

from errors import user_path
from insight.attention import patch_attention
from prediction.answers import Answer
from prediction.figure import Drawn, check_target, figure, save
from prediction.options import MOST_DRAWN
from prediction.predictor import Predictor, Seen


class AttentionFigure:
    """The first `MOST_DRAWN` pictures that can be read, in one figure."""

    def __init__(self, name: str, predictor: Predictor) -> None:
        """Raises UserError, before any work, where the figure cannot be written."""
        self._path: Path = user_path(name)
        self._predictor = predictor
        self._kept: List[Tuple[Seen, Answer]] = []
        self._num_seen = 0
        check_target(self._path)

    def add(self, seen: Sequence[Seen], answers: Sequence[Answer]) -> None:
        pairs = [(one, answer) for one, answer in zip(seen, answers) if one.view is not None]
        self._num_seen += len(pairs)
        self._kept += pairs[: MOST_DRAWN - len(self._kept)]

    def save(self, model_name: str) -> str:
        """Draws and writes the figure; gives what to say of it."""
        if not self._kept:
            return "no attention is drawn: no picture can be read"
        views = torch.stack([seen.view for seen, _ in self._kept if seen.view is not None])
        maps = patch_attention(self._predictor.model, views)
        entries = [
            Drawn(os.path.basename(seen.path), view, attention, answer.labels)
            for (seen, answer), view, attention in zip(self._kept, views, maps)
        ]
        save(figure(entries, f"Where {model_name} looks (attention rollout)"), self._path)
        rest = self._num_seen - len(entries)
        return f"attention: {self._path}" + (
            f" (the first {len(entries)}, {rest:,} more are not drawn)" if rest else ""
        )
