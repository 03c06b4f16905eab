"""How images are mixed: a function of (seed, update), drawn from the right distributions, the same in every process."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from batch import DataShare
from dataset.loader import TrainLoader
from dataset.mixing import draw_mix
from tests.dataset.numbered import Numbered
from tests.small import small_config

STEP = {"micro_batch_size": 3, "gradient_accumulation": 2, "replication_factor": 2, "device_iterations": 2}
MIXUP = {"mixup": True, "alpha": 0.5}


def test_an_update_has_one_weight_for_all_its_images(tmp_path):
    config = small_config(tmp_path, **MIXUP, **STEP)
    loader = TrainLoader(Numbered(75), config, DataShare((1,)))  # 3 steps of 2 updates an epoch, 6 own images each
    batches = [batch for epoch in (0, 1) for batch in loader.epoch(epoch)]
    weights = torch.cat([batch.mix for batch in batches])
    assert weights.shape == (72, 1)
    assert weights.dtype == torch.float32
    assert torch.equal(weights[:, 0], torch.cat([batch.label_weights for batch in batches]))
    updates = weights.view(12, 6)
    assert torch.equal(updates, updates[:, :1].expand(12, 6))
    assert len(set(updates[:, 0].tolist())) == 12
    # As the public PopTorch app draws them: one value of Beta(alpha, alpha) an update.
    assert updates[:, 0].tolist() == pytest.approx([float(draw_mix(config, n, (1,)).labels[0]) for n in range(12)])
    assert next(TrainLoader(Numbered(75), small_config(tmp_path), DataShare((0,))).epoch(0)).mix is None


def test_weights_follow_the_beta_distribution(tmp_path):
    config = small_config(tmp_path, random_seed=7, **MIXUP)
    draws = np.array([float(draw_mix(config, update, (0,)).labels[0]) for update in range(4000)])
    assert draws.min() >= 0
    assert draws.max() <= 1
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); standard errors of 4,000 draws: 0.0056 and 0.001.
    assert draws.mean() == pytest.approx(0.5, abs=0.02)
    assert draws.var() == pytest.approx(1 / 8, abs=0.005)


def test_labels_weigh_what_is_left_of_the_image_outside_the_pasted_rectangle(tmp_path):
    config = small_config(tmp_path, cutmix=True, mix_mode="sample", micro_batch_size=500, image_size=20)
    mix = draw_mix(config, 3, (0,))
    weight, top, bottom, left, right = mix.images.unbind(1)
    assert torch.equal(weight, torch.ones(2000))
    assert ((top >= 0) & (top <= bottom) & (bottom <= 20) & (left >= 0) & (left <= right) & (right <= 20)).all()
    torch.testing.assert_close(mix.labels, 1 - (bottom - top) * (right - left) / 400)
    # Beta(1, 1) is uniform; rectangles cut off by the border leave more of the image than that.
    assert 0.5 < float(mix.labels.mean()) < 0.8
    assert len(set(mix.labels.tolist())) > 100


def test_both_kinds_share_the_images_by_the_switch_and_some_are_left_alone(tmp_path):
    keys = {"mix_mode": "sample", "mix_probability": 0.8, "mix_switch_probability": 0.25, "cutmix": True}
    config = small_config(tmp_path, **MIXUP, **keys, micro_batch_size=1000, image_size=64, patches_size=8)
    mix = draw_mix(config, 0, (0,))
    weight, top, bottom, left, right = mix.images.unbind(1)
    has_rectangle = (bottom > top) & (right > left)
    is_blended = weight < 1
    assert not (has_rectangle & is_blended).any()
    # Four standard errors of a share of 4,000 images: at most 0.032. A few rectangles are too thin to have a pixel.
    assert float(has_rectangle.float().mean()) == pytest.approx(0.2, abs=0.032)
    assert float(is_blended.float().mean()) == pytest.approx(0.6, abs=0.032)


def test_replicas_take_their_rows_of_one_draw(tmp_path):
    config = small_config(tmp_path, **MIXUP, mix_mode="sample", **STEP)
    whole = draw_mix(config, 5, (0, 1)).images.view(2, 2, 3)
    for replica in (0, 1):
        assert torch.equal(draw_mix(config, 5, (replica,)).images.view(2, 3), whole[:, replica])
    assert len(set(whole.flatten().tolist())) == 12
