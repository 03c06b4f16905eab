"""Pictures of what a saved model does: where it looks in some samples, what it answers, what its positions have learned."""

from __future__ import annotations

from typing import TYPE_CHECKING, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from dataset.base import Source, sample_name
from dataset.order import Order
from dataset.samples import Samples
from insight.answers import as_probabilities
from insight.attention import patch_attention
from insight.overlay import overlay, shown_view
from insight.positions import position_similarity
from models.vit import VisionTransformer
from reporting.records import AttentionView, ModelViews
from weights.card import ModelCard
from weights.saved_model import SavedModel
from weights.whole_model import load_whole

if TYPE_CHECKING:
    from config import Config

NUM_SAMPLES = 6


class Sample(NamedTuple):
    name: str
    label: np.ndarray  # the class's number, or 0 and 1 of each label [K]
    view: Tensor  # uint8 [C, H, W], as the model sees it


def read_samples(source: Source, config: Config, count: int = NUM_SAMPLES) -> List[Sample]:
    """Samples from all over a set, which often lies sorted by class; without those that cannot be read."""
    indices = np.unique(np.linspace(0, len(source) - 1, count).round().astype(np.int64))
    views, bad = Samples(source, config, augmented=False).read(Order(None, indices))
    left_out = {one.row for one in bad}
    return [
        Sample(sample_name(source, index), source.labels[index], views[row])
        for row, index in enumerate(indices.tolist())
        if row not in left_out
    ]


def model_views(step: int, saved: SavedModel, samples: Sequence[Sample]) -> ModelViews:
    """On the CPU, from the saved weights alone. Raises UserError for a step that cannot be read."""
    model = load_whole(saved, torch.device("cpu"))
    learns = model.arch.pos_embed == "learned"  # the others are known beforehand
    similarity = position_similarity(model.arch, model.pos_embed.detach()) if learns else None
    attentions = _attentions(model, saved.card, samples) if samples else []
    return ModelViews(step, tuple(attentions), similarity)


def _attentions(model: VisionTransformer, card: ModelCard, samples: Sequence[Sample]) -> List[AttentionView]:
    views = torch.stack([sample.view for sample in samples])
    names = card.class_names or tuple(str(label) for label in range(card.arch.num_labels))
    found = []
    for sample, attention, shares in zip(samples, *_attention_and_answers(model, card, views)):
        answer = int(shares.argmax())
        found.append(
            AttentionView(
                name=sample.name,
                wanted=_wanted(sample.label, names),
                answered=names[answer],
                probability=float(shares[answer]),
                picture=np.asarray(shown_view(sample.view)),
                overlay=np.asarray(overlay(sample.view, attention)),
            )
        )
    return found


@torch.inference_mode()
def _attention_and_answers(model: VisionTransformer, card: ModelCard, views: Tensor) -> Tuple[Tensor, Tensor]:
    """Of pictures [B, C, H, W] the patches' shares [B, rows, columns] and probabilities [B, K], in one pass."""
    outputs: List[Tensor] = []  # of the last block
    last = list(model.blocks.values())[-1]
    with last.register_forward_hook(lambda block, inputs, tokens: outputs.append(tokens)):
        attention = patch_attention(model, views)
    return attention, as_probabilities(card, model.classify(outputs[0]))


def _wanted(label: np.ndarray, names: Sequence[str]) -> str:
    if label.ndim == 0:
        return names[int(label)]
    return ", ".join(names[one] for one in np.flatnonzero(label).tolist()) or "none"
