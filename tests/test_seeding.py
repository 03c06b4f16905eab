"""Seeds are the same everywhere and different for different purposes."""

from __future__ import annotations

from seeding import derive_seed


def test_seeds_do_not_change_between_versions() -> None:
    # From this project's first version: a change would make runs and resumes irreproducible.
    assert derive_seed(42, "order", 3) == 5500105927861195030


def test_neighbouring_keys_and_types_give_unrelated_seeds() -> None:
    seeds = {derive_seed(42, "order", epoch) for epoch in range(1000)}
    assert len(seeds) == 1000
    assert derive_seed(1) != derive_seed("1")
    assert all(0 <= seed < 2**63 for seed in seeds)
