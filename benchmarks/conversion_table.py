"""How far logits are from those of the library that a model comes from or goes to, for every conversion: docs/checkpoints.md.

    python benchmarks/conversion_table.py [--fast]

The conversions are those of tests/weights, on random-weight models made here; `--fast` leaves the published sizes out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Optional, Sequence

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tests.weights.cells import Cell, cells  # noqa: E402


def main(argv: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fast", action="store_true")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| from | to | model | largest difference of logits |\n|---|---|---|---|")
    for cell in cells().values():
        if not (options.fast and cell.is_slow):
            print(f"| {cell.source} | {cell.target} | {cell.model} | {measured(cell):.1e} |", flush=True)
    return 0


def measured(cell: Cell) -> float:
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        return cell.measure(Path(folder))


if __name__ == "__main__":
    sys.exit(main())
