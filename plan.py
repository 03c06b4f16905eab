"""Shows what a config resolves to and how its stages are placed on this machine, without running anything.

python plan.py --config b16_imagenet1k
python plan.py --config b16_imagenet1k --runtime pipeline --num-processes 4
"""

from __future__ import annotations

import sys
from typing import Optional, Sequence

import launch


def main(argv: Optional[Sequence[str]] = None) -> int:
    from allocation import plan_text
    from config import load_config
    from placement import follow_launcher, place

    config = follow_launcher(load_config("plan", argv))
    print(plan_text(config, place(config)))
    return 0


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(launch.guarded(lambda: main(arguments), debug="--debug" in arguments))
