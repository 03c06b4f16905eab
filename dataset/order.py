"""The order of the training samples: which ones a process works on in a host step of an epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from seeding import derive_seed

if TYPE_CHECKING:
    from config import Config


class Order(NamedTuple):
    """What to read for a batch: the samples `indices` [n], as they are in `epoch` (None: not augmented).

    `copies` [n]: which of the sample's changed copies of that epoch each is; None: the first.
    """

    epoch: Optional[int]
    indices: np.ndarray
    copies: Optional[np.ndarray] = None

    def rows(self, begin: int, end: int) -> Order:
        copies = None if self.copies is None else self.copies[begin:end]
        return Order(self.epoch, self.indices[begin:end], copies)


class TrainOrder:
    """Every epoch has an order of its own, cut into host steps; `replicas` are those whose samples are wanted.

    With `repeated_augmentation` a weight update takes each of its samples so often, and an epoch, of as many host steps, goes
    through that much less of the order. Copies lie far apart in the update, so that they are not mixed with each other.

    It is a permutation, or with `balanced_sampling` as many draws in which each class comes equally often: a sample that is drawn
    again in an epoch is another copy.
    """

    def __init__(
        self, num_samples: int, config: Config, replicas: Tuple[int, ...], labels: Optional[np.ndarray] = None
    ) -> None:
        """`labels` of all samples, as `base.Source` has them, are needed where classes are to be drawn equally often."""
        self.steps_per_epoch, self.dropped = divmod(num_samples, config.samples_per_step)
        self._num_samples, self._config, self._replicas = num_samples, config, list(replicas)
        self._permutations: Dict[int, np.ndarray] = {}
        self._repeats: Dict[int, np.ndarray] = {}  # of an epoch's draws, how often each sample has come before
        self._classes = samples_of_classes(labels) if config.balanced_sampling and labels is not None else []

    def step(self, epoch: int, step: int) -> np.ndarray:
        """Samples of a host step, seen as [device iteration][accumulation][replica][micro], flattened."""
        return self._permutation(epoch)[self._places(self._positions(step))]

    def order(self, epoch: int, step: int) -> Order:
        """What to read for a host step."""
        return Order(epoch, self.step(epoch, step), self._copies(epoch, self._positions(step)))

    def _copies(self, epoch: int, positions: np.ndarray) -> Optional[np.ndarray]:
        """Which copy of its sample stands at each of some positions of the epoch: no two are the same."""
        times = self._config.repeated_augmentation
        if times == 1 and not self._classes:
            return None
        copies = positions % self._config.global_batch_size // self._samples_per_update
        if not self._classes:
            return copies
        self._permutation(epoch)
        return self._repeats[epoch][self._places(positions)] * times + copies

    @property
    def _samples_per_update(self) -> int:
        """Different ones."""
        return -(-self._config.global_batch_size // self._config.repeated_augmentation)

    def _places(self, positions: np.ndarray) -> np.ndarray:
        """Where in the permutation the samples at some positions of the epoch stand."""
        update, position = np.divmod(positions, self._config.global_batch_size)
        return update * self._samples_per_update + position % self._samples_per_update

    def after(self, epoch: int, step: int, row: int) -> Iterator[int]:
        """The samples that follow a row of `step` in the epoch's order, round to the one before it."""
        order, position = self._permutation(epoch), int(self._places(self._positions(step))[row])
        for distance in range(1, self._num_samples):
            yield int(order[(position + distance) % self._num_samples])

    def _positions(self, step: int) -> np.ndarray:
        """Positions of a host step in the epoch: the layout above, counted through all steps."""
        config, size = self._config, self._config.samples_per_step
        layout = np.arange(step * size, (step + 1) * size).reshape(
            -1, config.replication_factor, config.micro_batch_size
        )
        return layout[:, self._replicas].reshape(-1)

    def following(self, epoch: int, step: int) -> Iterator[Order]:
        """The host steps from this one on, without end."""
        while True:
            for at in range(step, self.steps_per_epoch):
                yield self.order(epoch, at)
            epoch, step = epoch + 1, 0

    def _permutation(self, epoch: int) -> np.ndarray:
        if epoch not in self._permutations:
            # The one before is still in use where loader processes are ahead.
            self._permutations = {kept: order for kept, order in self._permutations.items() if kept == epoch - 1}
            self._repeats = {kept: repeats for kept, repeats in self._repeats.items() if kept == epoch - 1}
            generator = np.random.default_rng(derive_seed(self._config.random_seed, "order", epoch))
            self._permutations[epoch] = (
                drawn_equally(self._classes, self._num_samples, generator)
                if self._classes
                else generator.permutation(self._num_samples)
            )
            if self._classes:
                self._repeats[epoch] = times_before(self._permutations[epoch])
        return self._permutations[epoch]


def samples_of_classes(labels: np.ndarray) -> List[np.ndarray]:
    """The samples of each class that has any. With several labels, one with two is in both, and those without are a class."""
    if labels.ndim == 1:
        columns = [labels == label for label in np.unique(labels)]
    else:
        columns = [*(labels > 0).T, ~labels.any(axis=1)]
    classes = [np.flatnonzero(column) for column in columns]
    return [members for members in classes if len(members)]


def drawn_equally(classes: List[np.ndarray], count: int, generator: np.random.Generator) -> np.ndarray:
    """`count` samples in random order, of each class as many (or one more). A class goes through all its samples before one
    comes again.
    """
    shares = np.full(len(classes), count // len(classes))
    shares[generator.permutation(len(classes))[: count % len(classes)]] += 1
    drawn = [_go_round(members, share, generator) for members, share in zip(classes, shares.tolist())]
    return generator.permutation(np.concatenate(drawn))


def _go_round(members: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    rounds = [generator.permutation(members) for _ in range(-(-count // len(members)))]
    return np.concatenate(rounds)[:count] if rounds else members[:0]


def times_before(draws: np.ndarray) -> np.ndarray:
    """[n]: how often the sample of each of n draws has been drawn before."""
    order = np.argsort(draws, kind="stable")
    ordered = draws[order]
    is_first = np.append(True, np.diff(ordered) != 0)
    places = np.arange(len(draws))
    times = np.empty_like(places)
    times[order] = places - np.maximum.accumulate(np.where(is_first, places, 0))
    return times
