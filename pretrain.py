"""Trains a ViT from scratch.

    python pretrain.py --config digits
    python pretrain.py --config b16_in1k_pretrain --dataset-path /data/imagenet1k
    torchrun --nproc-per-node 8 pretrain.py --config b16_in1k_pretrain

Starts a local process for every pipeline stage that the config plans. `--help` lists all keys.
"""

from __future__ import annotations

import sys
from typing import Optional, Sequence

import launch


def main(argv: Optional[Sequence[str]] = None) -> int:
    from compile_only import compile_only
    from config import load_config
    from errors import UserError
    from placement import follow_launcher, place

    config = follow_launcher(load_config("pretrain", argv))
    placement = place(config)
    if config.compile_only:
        return compile_only(config, placement)
    if config.pretrained_checkpoint and not config.resume_training_from_checkpoint:
        raise UserError(
            "pretrain.py starts from random weights, but pretrained_checkpoint is "
            f'{config.pretrained_checkpoint}.\n       Use finetune.py to start from it, or --pretrained-checkpoint "".'
        )

    from publishing.hugging_face import check_can_push, publish
    from run_setup import prepare_run
    from training import fit

    check_can_push(config)
    run = prepare_run(config, placement)
    code = fit(run)
    run.runtime.close()
    if code == 0:
        publish(run)
    return code


if __name__ == "__main__":
    sys.exit(launch.run("pretrain", main))
