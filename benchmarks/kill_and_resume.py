"""Kills a training run with SIGKILL again and again, in the middle of saves, too, and resumes it: are the weights the same?

    python benchmarks/kill_and_resume.py [--kills 25] [--runtime pipeline] [--precision 32.32] [--keys KEY=VALUE ...]

A small ViT learns digits with dropout, augmentation and mixup. After every kill all saved steps must be whole. In the end, every
file of weights, averages and optimiser state must be that of a run that nobody disturbed, byte for byte.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import yaml  # noqa: E402

from benchmarks.facts import cpu_name, write_json  # noqa: E402
from checkpoint import check_whole  # noqa: E402
from run_folder import number_of, saved_steps  # noqa: E402

CONFIG: Dict[str, Any] = {
    "dataset": "digits", "image_size": 8, "num_channels": 1, "patches_size": 2, "num_labels": 10,
    "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "mlp_dim": 512,
    "micro_batch_size": 8, "gradient_accumulation": 4, "layers_per_ipu": [1, 1, 1, 1],
    "validation_split": 0.2, "train_crop_scale": None, "rotation": 10, "mixup": True, "alpha": 0.5,
    "hidden_dropout_prob": 0.1, "drop_path_rate": 0.1, "ema_decay": 0.99, "use_ema": True,
    "optimizer": "AdamW", "learning_rate": 0.001, "lr_schedule": "cosine", "warmup_steps": 10,
    "device": "cpu", "threads_per_process": 1, "checkpoint_save_steps": 2, "keep_last": 3, "keep_every": 50,
}  # fmt: skip
DURING_SAVE = 0.05  # seconds after a save has begun


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=25, help="how often the run is killed (default: 25)")
    parser.add_argument("--steps", type=int, default=0, help="host steps of the run (default: 40 a kill)")
    parser.add_argument("--runtime", default="pipeline", choices=("pipeline", "single"))
    parser.add_argument("--precision", default="32.32")
    parser.add_argument("--keys", nargs="*", default=[], metavar="KEY=VALUE", help="further keys of the config")
    parser.add_argument("--within", type=float, default=3.0, help="seconds after a try's first step (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--json", default="", metavar="FILE", help="write the figures there too")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        figures = torture(options, Path(folder))
    moments = f"{figures['kills']} kills ({figures['during_saves']} during a save), {figures['resumes']} resumes"
    print(f"{cpu_name()}, {options.runtime}, {options.precision}: {moments}, {figures['steps']} host steps")
    print(
        f"{figures['bytes']:,} bytes in {figures['files']} files compared: {figures['verdict']} ({figures['seconds']:.0f} s)"
    )
    write_json(options.json, {"cpu": cpu_name(), "options": vars(options), **figures})
    return 0 if figures["verdict"] == "all the same" else 1


def torture(options: argparse.Namespace, folder: Path) -> Dict[str, Any]:
    """Figures of one disturbed run beside one that was left alone."""
    keys = dict(pair.split("=", 1) for pair in options.keys)
    steps = options.steps or 40 * options.kills
    entry = {**CONFIG, "training_steps": steps, "runtime": options.runtime, "precision": options.precision}
    entry.update({key: yaml.safe_load(value) for key, value in keys.items()})
    (folder / "configs.yaml").write_text(yaml.safe_dump({"torture": entry}))
    begun = time.perf_counter()
    finish(start(folder, "whole"))
    kills, during_saves, tries = 0, 0, 0
    draw = random.Random(options.seed)
    while True:
        process = start(folder, "killed", *(["--resume"] if saved_steps(folder / "killed") else []), anew=tries == 0)
        tries += 1
        if kills == options.kills:
            finish(process)
            break
        after = draw.uniform(0, options.within)
        during_saves += kill(process, folder / "killed", after, draw, in_save=kills % 2 == 0)
        kills += 1
        for step in saved_steps(folder / "killed"):
            check_whole(step)
        print(f"kill {kills} after step {newest(folder / 'killed')}", file=sys.stderr)
    compared = compare(folder / "whole" / f"step_{steps}", folder / "killed" / f"step_{steps}")
    seconds = time.perf_counter() - begun
    counts = {"kills": kills, "during_saves": during_saves, "resumes": tries - 1, "steps": steps, "seconds": seconds}
    return {**counts, **compared}


def start(folder: Path, output: str, *flags: str, anew: bool = False) -> subprocess.Popen[str]:
    if output == "killed" and not flags and not anew:  # killed before its first save: nothing to go on from
        for path in (folder / "killed").glob("*.yaml"):
            path.unlink()
    command = [
        sys.executable,
        str(ROOT / "pretrain.py"),
        "--config",
        "torture",
        "--checkpoint-output-dir",
        output,
        *flags,
    ]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    output, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run that nobody killed ended with exit code {process.returncode}:\n{output}")


def kill(process: subprocess.Popen[str], run: Path, after: float, draw: random.Random, in_save: bool) -> bool:
    """Kills the run `after` its first step, or just after the next save has begun. Says whether a save was going on."""
    before = set(run.glob(".step_*"))  # what an earlier kill has left
    lines: List[str] = []
    started = threading.Event()
    reader = threading.Thread(target=_read, args=(process, lines, started), daemon=True)
    reader.start()
    while not started.wait(1.0) and process.poll() is None:
        pass
    time.sleep(after)
    while in_save and process.poll() is None and not set(run.glob(".step_*")) - before:
        time.sleep(0.0005)
    if in_save:
        time.sleep(draw.uniform(0, DURING_SAVE))
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"the run ended, with exit code {process.returncode}, before it was killed:\n{''.join(lines)}")
    return bool(set(run.glob(".step_*")) - before)


def _read(process: subprocess.Popen[str], lines: List[str], started: threading.Event) -> None:
    """Takes in what the run prints, so that it never waits for a reader."""
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if " Step: " in line:
            started.set()


def newest(run: Path) -> int:
    steps = saved_steps(run)
    return number_of(steps[-1]) if steps else 0


def compare(first: Path, second: Path) -> Dict[str, Any]:
    """Whether all tensors' files of two steps hold the same bytes."""
    names = sorted(path.name for path in first.glob("*.safetensors"))
    same = names == sorted(path.name for path in second.glob("*.safetensors")) and bool(names)
    contents = [((first / name).read_bytes(), (second / name).read_bytes()) for name in names] if same else []
    differing = [name for name, (ours, theirs) in zip(names, contents) if ours != theirs]
    verdict = "all the same" if same and not differing else f"DIFFERENT: {', '.join(differing) or 'other files'}"
    return {"files": len(names), "bytes": sum(len(ours) for ours, _ in contents), "verdict": verdict}


if __name__ == "__main__":
    sys.exit(main())
