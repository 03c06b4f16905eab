"""Fine-tunes a ViT from a checkpoint, or trains it from scratch where none is named.

    python finetune.py --config b16_cifar10 --pretrained-checkpoint runs/pretrained
    python finetune.py --config b16_imagenet1k --dataset-path /data/imagenet1k --pretrained-checkpoint vit.safetensors
    torchrun --nproc-per-node 4 finetune.py --config b16_cifar10 --pretrained-checkpoint vit.safetensors

Starts a local process for every pipeline stage that the config plans. `--help` lists all keys.
"""

from __future__ import annotations

import sys
from typing import List, Optional, Sequence

import launch


def main(argv: Optional[Sequence[str]] = None) -> int:
    from compile_only import compile_only
    from config import load_config
    from placement import follow_launcher, place

    config = follow_launcher(load_config("finetune", argv))
    placement = place(config)
    if config.compile_only:
        return compile_only(config, placement)

    from publishing.hugging_face import check_can_push, publish
    from run_setup import prepare_run
    from training import fit
    from weights.pretrained import class_notes, follow_checkpoint, load_pretrained, open_pretrained

    check_can_push(config)
    starts_from_weights = bool(config.pretrained_checkpoint) and not config.resume_training_from_checkpoint
    saved = open_pretrained(config) if starts_from_weights else None  # before a run folder is made for nothing
    notes: List[str] = []
    if saved is not None:
        config, notes = follow_checkpoint(saved, config)
    run = prepare_run(config, placement)
    if saved is not None:
        run.note(*notes, *load_pretrained(saved, config, run.runtime), *class_notes(saved, run.card.class_names))
    elif not config.resume_training_from_checkpoint:
        run.note("no pretrained_checkpoint is given: the model is trained from scratch")
    code = fit(run)
    run.runtime.close()
    if code == 0:
        publish(run)
    return code


if __name__ == "__main__":
    sys.exit(launch.run("finetune", main))
