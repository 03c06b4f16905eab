"""DataLoader: torch's, with batches that hold the rows of one call of the executor; each process has its part."""

# Names are PopTorch's.
# ruff: noqa: N802
from __future__ import annotations

from typing import Any, Iterator, List, Optional

import torch

from poptorch._api import CLASSES, enforced
from poptorch._errors import Error
from poptorch._layout import Layout
from poptorch.enums import DataLoaderMode, SharingStrategy  # type: ignore[attr-defined]


class _Part(torch.utils.data.Sampler):
    """One process's part of the samples: contiguous, of equal length for all, in an order that all draw alike."""

    def __init__(self, num_samples: int, options: Any, step: int, shuffled: bool, drop_last: bool) -> None:
        processes, process = options.Distributed.numProcesses, options.Distributed.processId
        together = step * processes
        count = step * (num_samples // together) if drop_last else -(-num_samples // processes)
        self._rows = range(process * count, min((process + 1) * count, num_samples))
        self._num_samples, self._seed = num_samples, options.random_seed if shuffled else None
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[int]:
        if self._seed is None:
            return iter(self._rows)
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        self._epoch += 1
        order = torch.randperm(self._num_samples, generator=generator).tolist()
        return iter([order[row] for row in self._rows])


@enforced("poptorch.DataLoader")
class DataLoader(torch.utils.data.DataLoader):
    """All modes load in the loop's own process or torch's workers here; the asynchronous ones give the same batches."""

    def __init__(
        self,
        options: Any,
        dataset: Any,
        batch_size: Optional[int] = 1,
        shuffle: Optional[bool] = None,
        num_workers: int = 0,
        drop_last: bool = True,
        persistent_workers: Optional[bool] = None,
        auto_distributed_partitioning: bool = True,
        mode: Any = DataLoaderMode.Sync,
        async_options: Any = None,
        rebatched_worker_size: Optional[int] = None,
        batch_sampler: Any = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(options, CLASSES["Options"]):
            raise Error(f"options must be a poptorch.Options, not {type(options)}")
        options._freeze()
        is_distributed = options.Distributed.numProcesses > 1 and auto_distributed_partitioning
        if batch_sampler is not None and (batch_size != 1 or shuffle or is_distributed):
            raise Error("batch_sampler excludes batch_size, shuffle and automatic partitioning between processes")
        self._options_used = options
        self._batches = Layout(options, training=True).num_batches
        self._combined = None if batch_size is None else batch_size * self._batches
        if is_distributed:
            known = options.exists("random_seed")
            assert known or not shuffle, "shuffling in several processes needs Options.randomSeed, the same in all"
            part = _Part(len(dataset), options, self._combined or self._batches, bool(shuffle), drop_last)
            kwargs["sampler"], shuffle = part, None
        if num_workers:
            kwargs["persistent_workers"] = True if persistent_workers is None else persistent_workers
        if batch_sampler is not None:
            kwargs["batch_sampler"] = batch_sampler
        else:
            kwargs.update(batch_size=self._combined, shuffle=shuffle, drop_last=drop_last)
        super().__init__(dataset, num_workers=num_workers, **kwargs)

    @property
    def combinedBatchSize(self) -> Optional[int]:
        return self._combined

    @property
    def options(self) -> Any:
        return self._options_used

    def __len__(self) -> int:
        return super().__len__()

    def __iter__(self) -> Any:
        return super().__iter__()

    def terminate(self) -> None:
        self._iterator = None


@enforced("poptorch.AsynchronousDataAccessor")
class AsynchronousDataAccessor:
    """Reads ahead in PopTorch. Here it overwrites what it handed out last, as PopTorch's ring of buffers may."""

    def __init__(
        self,
        dataset: Any,
        buffer_size: int = 3,
        miss_sleep_time_in_ms: float = 0.1,
        load_indefinitely: bool = True,
        early_preload: bool = False,
        sharing_strategy: Any = SharingStrategy.ForkServer,
        rebatched_size: Optional[int] = None,
    ) -> None:
        self._dataset, self._iterator = dataset, iter(())
        self._last: List[torch.Tensor] = []

    def terminate(self) -> None:
        self._iterator = iter(())

    def __len__(self) -> int:
        return len(self._dataset)

    def __iter__(self) -> AsynchronousDataAccessor:
        self._iterator = iter(self._dataset)
        return self

    def __next__(self) -> Any:
        from poptorch._arithmetic import each_tensor

        for tensor in self._last:
            tensor.fill_(0)
        self._last = []
        batch = each_tensor(torch.Tensor.clone, next(self._iterator))
        each_tensor(self._last.append, batch)
        return batch
