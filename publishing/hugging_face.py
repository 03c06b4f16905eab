"""At the end of a run: its best weights in Hugging Face's form, with a model card, and that folder on the hub.

A run's own steps are on the disk before; nothing here can lose them.
"""

from __future__ import annotations

import importlib.util
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from errors import UserError
from publishing.model_readme import MARK, model_readme
from weights.opening import open_model
from weights.writing import write_model

if TYPE_CHECKING:
    from config import Config
    from training import Run

FOLDER = "huggingface"


def check_can_push(config: Config) -> None:
    """Raises UserError, before anything is trained, where it is known already that the hub will take nothing."""
    if not config.push_to_hub:
        return
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"push_to_hub = {config.push_to_hub} needs a package: pip install huggingface_hub")
    import huggingface_hub

    if huggingface_hub.get_token() is None:
        raise UserError(
            f"push_to_hub = {config.push_to_hub}, but nobody is logged in to the Hugging Face hub here.\n"
            "       hf auth login, or set HF_TOKEN to a token that may write."
        )


def publish(run: Run) -> None:
    """Writes the folder and uploads it, as the config asks for. Raises UserError where that fails: the run is saved before."""
    config = run.config
    if run.folder is None or not run.runtime.is_main or not (config.save_huggingface or config.push_to_hub):
        return
    folder = write_folder(run, run.folder)
    print(f"Hugging Face form: {folder}", flush=True)
    if config.push_to_hub:
        print(f"on the hub: {push(folder, config.push_to_hub)}", flush=True)


def write_folder(run: Run, run_folder: Path) -> Path:
    """<run folder>/huggingface, anew; of the best step, else of the latest."""
    target = run_folder / FOLDER
    readme = target / "README.md"
    if readme.is_file() and MARK in readme.read_text(encoding="utf-8", errors="replace"):
        readme.unlink()  # one that is not ours makes `write_model` refuse
    write_model(open_model(str(run_folder), run.config.use_ema), target, "huggingface", overwrite=True)
    readme.write_text(model_readme(run.config, run.card, run.progress), encoding="utf-8")
    return target


def push(folder: Path, name: str) -> str:
    """Uploads the folder to the model repository `name`, which is made where it is not there; gives its address.

    Raises UserError with the command to repeat it.
    """
    import huggingface_hub

    try:
        api = huggingface_hub.HfApi()
        address = api.create_repo(name, repo_type="model", exist_ok=True)
        api.upload_folder(
            repo_id=address.repo_id, folder_path=str(folder), repo_type="model", commit_message="Trained with PipeViT"
        )
        return str(address)
    except Exception as error:  # many kinds, of several packages: network, name, access, disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{name} is not uploaded: {reason}\n"
            f"       The run is whole, and so is {folder}. Once the hub can be reached and lets you write there:\n"
            f"       hf upload {shlex.quote(name)} {shlex.quote(str(folder))}"
        ) from error
