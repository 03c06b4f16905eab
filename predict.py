"""Says what is on pictures, with a saved model: names and probabilities, and where the model looked.

    python predict.py picture.jpg                                     with the newest run in runs/
    python predict.py --checkpoint runs/digits-20260101-120000 picture.jpg folder/ 'shots/*.png'
    python predict.py --checkpoint runs/digits-20260101-120000 --csv --output answers.csv --attention attention.png folder/
    find . -name '*.jpg' -print0 | python predict.py --checkpoint runs/digits-20260101-120000 --json -
    python predict.py --checkpoint runs/digits-20260101-120000 --serve

Ends with 0 where all pictures could be read, 1 where some could not. `--help` lists all flags.
"""

from __future__ import annotations

import argparse
import io
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, List, Optional, Sequence

import launch
from errors import printable

if TYPE_CHECKING:
    from prediction.answers import Chooser
    from prediction.predictor import Predictor


def main(argv: Optional[Sequence[str]] = None) -> int:
    from prediction.options import form_of, parse_options, parse_thresholds

    options = parse_options(sys.argv[1:] if argv is None else argv)
    thresholds = parse_thresholds(options.threshold)

    from prediction.answers import Chooser
    from prediction.loading import complete, read_class_names
    from prediction.pictures import find_pictures
    from prediction.predictor import Predictor, pick_device, pick_type
    from run_folder import newest_run
    from weights.opening import open_model
    from weights.whole_model import load_whole

    paths = [] if options.serve else find_pictures(options.pictures, getattr(sys.stdin, "buffer", io.BytesIO()))
    if options.checkpoint is None:
        options.checkpoint = str(newest_run(Path("runs")))
        print(f"model: {printable(options.checkpoint)}, the newest run here", file=sys.stderr, flush=True)
    saved = open_model(options.checkpoint, options.use_ema == "true")
    names = read_class_names(options.class_names) if options.class_names else None
    saved = complete(saved, options.num_heads, names)
    chooser = Chooser(saved.card, options.top_k, thresholds)
    device = pick_device(options.device)
    dtype, notes = pick_type(options.precision, device)
    predictor = Predictor(load_whole(saved, device), saved.card, options.max_image_pixels, options.batch_size, dtype)
    print(*(f"{printable(note)}\n" for note in (*saved.notes, *notes)), sep="", end="", file=sys.stderr, flush=True)
    if options.serve:
        from prediction.server import serve

        return serve(predictor, chooser, options.checkpoint, options.port)
    return _answer(predictor, chooser, paths, form_of(options), options)


def _answer(
    predictor: Predictor, chooser: Chooser, paths: List[str], form_name: str, options: argparse.Namespace
) -> int:
    """Asks the model about every picture; gives the exit code."""
    from prediction.drawing import AttentionFigure
    from prediction.forms import form
    from prediction.writing import AnswerWriter, check_output

    check_output(options.output, paths, options.checkpoint, options.class_names)
    drawing = AttentionFigure(options.attention, predictor) if options.attention else None
    answer_form = form(form_name, paths, chooser.names)
    with AnswerWriter(answer_form, len(paths), options.output, bar_from=predictor.batch_size + 1) as writer:
        for seen in predictor.predict_files(paths):
            answers = [chooser.answer(one) for one in seen]
            writer.write(answers)
            if drawing is not None:
                drawing.add(seen, answers)
    if drawing is not None:
        print(drawing.save(printable(options.checkpoint)), file=sys.stderr, flush=True)
    writer.list_bad()
    return 1 if writer.bad else 0


def quietly(argv: Sequence[str]) -> int:
    """`main`, which ends without a word where nobody reads on: `predict.py ... | head`."""
    try:
        code = main(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Python would try to write the rest when it ends, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE


if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.exit(launch.guarded(lambda: quietly(arguments), debug="--debug" in arguments))
