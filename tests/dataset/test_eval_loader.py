"""Evaluation sees every sample exactly once, over any number of shares, in batches of one size."""

from __future__ import annotations

import pytest
import torch

from dataset.loader import EvalLoader
from errors import UserError
from tests.dataset.numbered import Numbered, numbers
from tests.small import small_config


def shares(config, num_samples, batch_size, num_shares):
    return [
        list(EvalLoader(Numbered(num_samples), config, batch_size=batch_size, share_index=index, num_shares=num_shares,
                        images=True, targets=True))
        for index in range(num_shares)
    ]  # fmt: skip


@pytest.mark.parametrize("num_shares", [1, 2, 3])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(37, 8), (32, 8), (1, 4), (7, 1), (2, 64)])
def test_every_sample_is_seen_once_over_all_shares(tmp_path, num_samples, batch_size, num_shares):
    seen = []
    for batches in shares(small_config(tmp_path), num_samples, batch_size, num_shares):
        for batch in batches:
            valid = numbers(batch.images[: batch.num_valid])
            assert valid == batch.targets[: batch.num_valid].tolist()
            seen += valid
    assert sorted(seen) == list(range(num_samples))


@pytest.mark.parametrize("num_shares", [1, 2, 3])
@pytest.mark.parametrize(("num_samples", "batch_size"), [(37, 8), (32, 8), (1, 4), (7, 1)])
def test_all_shares_have_as_many_batches_of_full_size(tmp_path, num_samples, batch_size, num_shares):
    all_batches = shares(small_config(tmp_path), num_samples, batch_size, num_shares)
    longest_share = -(-num_samples // num_shares)
    assert {len(batches) for batches in all_batches} == {-(-longest_share // batch_size)}
    for batch in (batch for batches in all_batches for batch in batches):
        assert batch.images.shape == (batch_size, 3, 8, 8)
        assert batch.targets.shape == (batch_size,)


def test_padding_is_zeros_and_a_share_may_have_no_samples_at_all(tmp_path):
    batches = shares(small_config(tmp_path), num_samples=2, batch_size=4, num_shares=3)
    assert [share[0].num_valid for share in batches] == [1, 1, 0]
    assert not batches[1][0].images[1:].any()
    assert not batches[1][0].targets[1:].any()
    assert not batches[2][0].images.any()


def test_share_i_of_n_takes_every_nth_sample(tmp_path):
    batches = shares(small_config(tmp_path), num_samples=10, batch_size=2, num_shares=3)
    assert [batch.targets.tolist() for batch in batches[1]] == [[1, 4], [7, 0]]


def test_it_can_be_gone_through_again_and_left_in_the_middle(tmp_path):
    loader = EvalLoader(
        Numbered(20), small_config(tmp_path), batch_size=3, share_index=0, num_shares=1, images=True, targets=True
    )
    next(iter(loader))
    assert len(loader) == len(list(loader)) == 7
    assert all(torch.equal(first.images, second.images) for first, second in zip(loader, loader))


def test_images_and_targets_come_only_where_asked_for(tmp_path):
    source = Numbered(6)
    kinds = {"batch_size": 4, "share_index": 0, "num_shares": 1}
    targets_alone = list(EvalLoader(source, small_config(tmp_path), **kinds, images=False, targets=True))
    assert [batch.images for batch in targets_alone] == [None, None]
    assert [batch.num_valid for batch in targets_alone] == [4, 2]
    assert source.read == []
    images_alone = EvalLoader(source, small_config(tmp_path), **kinds, images=True, targets=False)
    assert all(batch.targets is None for batch in images_alone)


def test_an_empty_set_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no validation images"):
        shares(small_config(tmp_path), num_samples=0, batch_size=4, num_shares=1)
