"""That all processes of a run have the same config: with two, stages of two models would train as one, without a word."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Callable, Dict, List

from errors import SharedError

if TYPE_CHECKING:
    from config import Config

# Keys that say what a host has, not what the run does.
OF_A_HOST = {
    *("config", "config_file", "debug", "dataset_path", "image_folder", "dataloader_workers", "prefetch_batches"),
    *("pin_memory", "threads_per_process", "executable_cache_dir", "profile_dir", "num_processes"),
}


def check_same_config(config: Config, gather: Callable[[Any], List[Any]]) -> None:
    """Raises SharedError in all processes, naming the keys, where one has another config than the first."""
    values: List[Dict[str, Any]] = gather(config.model_dump(mode="json", exclude=OF_A_HOST))
    for rank, theirs in enumerate(values):
        differing = [key for key, value in values[0].items() if theirs.get(key) != value]
        if differing:
            first, other = (
                ", ".join(f"{key} = {_shown(own[key])}" for key in differing) for own in (values[0], theirs)
            )
            raise SharedError(
                f"the processes of this run have different configs: {first} in rank 0, {other} in rank {rank}.\n"
                "       Start all of them with the same config file and flags."
            )


def _shown(value: object) -> str:
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
