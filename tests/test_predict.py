"""`predict.py` as a user runs it: what it prints, in which order, how it ends, and that its numbers are validation's."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional

import pytest
import torch
from PIL import Image

import predict
from checkpoint import Progress
from dataset.registry import open_source
from errors import UserError
from placement import place
from prediction.options import MOST_DRAWN, parse_options
from prediction.predictor import pick_type
from run_setup import evaluation_loader
from runtime.build import build_runtime
from saving import Saver
from tests import warm
from tests.prediction.models import NAMES, TINY, predictor_of, save_model, write_picture, write_pictures
from tests.small import small_config
from weights.card import card_of

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _in_a_folder_with_a_model(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "model")


def answered(capsys: Any, *words: str, model: str = "model", code: int = 0) -> str:
    """Standard output of the command, run in this process."""
    assert predict.main(["--checkpoint", model, *words]) == code
    return str(capsys.readouterr().out)


def records_of(capsys: Any, *words: str, model: str = "model", code: int = 0) -> List[Dict[str, Any]]:
    return [json.loads(line) for line in answered(capsys, "--json", *words, model=model, code=code).splitlines()]


def command(*words: str) -> List[str]:
    return [sys.executable, str(ROOT / "predict.py"), "--checkpoint", "model", *words]


def run(*words: str, stdin: bytes = b"", code: int = 0) -> subprocess.CompletedProcess[bytes]:
    done = warm.run(command(*words), input=stdin, capture_output=True, timeout=120, check=False)
    assert done.returncode == code, done.stderr.decode()
    return done


# Numbers.


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_probabilities_are_those_of_validation(tmp_path: Path, capsys: Any, batch_size: int) -> None:
    for number in range(9):  # large JPEGs, which are decoded at a fraction of their size, and a size beside each other
        folder = tmp_path / "my/validation" / ("cat" if number < 5 else "dog")
        size = (310 + 7 * number, 222)
        write_picture(folder / f"{number}.{'jpg' if number % 2 else 'png'}", number, size)
        write_picture(tmp_path / "my/train" / folder.name / f"{number}.png", number)
    config = small_config(tmp_path, dataset="folder", dataset_path=str(tmp_path / "my"), num_labels=2, eval_crop=0.8)
    source = open_source(config, "validation")
    assert source is not None
    runtime = build_runtime(config, place(config))
    with torch.no_grad():
        runtime.model.head.weight.normal_(generator=torch.Generator().manual_seed(3))  # type: ignore[attr-defined]
    batches = list(evaluation_loader(config, source, runtime))
    logits = torch.cat([runtime.predict(batch.images) for batch in batches])[: len(source)]  # type: ignore[misc]
    (tmp_path / "run").mkdir()
    saver = Saver(tmp_path / "run", runtime, config, card_of(config, source.class_names), note=print)
    saver.save(Progress(step=1))
    saver.wait()

    flags = ["--batch-size", str(batch_size), "my/validation"]
    records = records_of(capsys, *flags, model="run")
    assert [record["picture"] for record in records] == [
        *(f"my/validation/cat/{n}.{'jpg' if n % 2 else 'png'}" for n in range(5)),
        *(f"my/validation/dog/{n}.{'jpg' if n % 2 else 'png'}" for n in range(5, 9)),
    ]
    ours = [{one["name"]: one["probability"] for one in record["labels"]} for record in records]
    ours_in_order = torch.tensor([[one["cat"], one["dog"]] for one in ours])
    assert logits.std() > 0.1
    # Another batch size may add up in another order.
    torch.testing.assert_close(ours_in_order, logits.softmax(-1), atol=1e-6, rtol=0)


def test_several_labels_a_picture_are_probabilities_of_their_own(tmp_path: Path, capsys: Any) -> None:
    save_model(tmp_path / "several", multi_label=True)
    write_pictures(tmp_path, ["a.png"])
    (one,) = records_of(capsys, "a.png", "--top-k", "4")
    (several,) = records_of(capsys, "a.png", "--threshold", "0", model="several")
    softmax = {label["name"]: label["probability"] for label in one["labels"]}
    sigmoid = {label["name"]: label["probability"] for label in several["labels"]}
    assert sum(softmax.values()) == pytest.approx(1.0, abs=1e-6)
    odds = {
        name: value / (1 - value) for name, value in sigmoid.items()
    }  # exp(logit), as softmax has it before it divides
    assert softmax == pytest.approx({name: value / sum(odds.values()) for name, value in odds.items()}, abs=1e-5)
    best = max(sigmoid, key=lambda name: sigmoid[name])
    over = f"{best}={sigmoid[best] + 1e-3}"
    given = records_of(capsys, "a.png", "--threshold", "0.5", "--threshold", over, model="several")[0]["labels"]
    assert [label["name"] for label in given] == [
        name for name in sorted(sigmoid, key=lambda name: -sigmoid[name]) if sigmoid[name] >= 0.5 and name != best
    ]


# Forms.


def test_the_table_has_a_line_an_answer(tmp_path: Path, capsys: Any) -> None:
    write_pictures(tmp_path, ["b.png", "in/a.png"])
    lines = answered(capsys, "--top-k", "2", "in", "b.png").splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["picture", "in/a.png", "b.png"]
    assert all(line.split()[-1] == "%" and line.split()[-3] in NAMES for line in lines[2:])
    assert len(lines) == 6


def test_csv_and_json_say_the_same(tmp_path: Path, capsys: Any) -> None:
    write_pictures(tmp_path, [f"{number}.png" for number in range(5)])
    words = ["--batch-size", "2", "4.png", "0.png", "3.png", "1.png", "2.png"]
    records = records_of(capsys, *words)
    rows = list(csv.DictReader(io.StringIO(answered(capsys, "--csv", *words))))
    assert [record["picture"] for record in records] == words[2:]
    flat = [(record["picture"], label) for record in records for label in record["labels"]]
    assert [(row["picture"], row["name"]) for row in rows] == [(name, label["name"]) for name, label in flat]
    assert [float(row["probability"]) for row in rows] == pytest.approx(
        [one["probability"] for _, one in flat], rel=1e-5
    )


@pytest.mark.parametrize(
    ("name", "start"), [("x.csv", "picture,rank"), ("x.jsonl", '{"picture"'), ("x.txt", "picture  ")]
)
def test_a_file_gets_the_form_of_its_name(tmp_path: Path, capsys: Any, name: str, start: str) -> None:
    write_pictures(tmp_path, ["a.png"])
    assert answered(capsys, "--output", name, "a.png") == ""
    assert Path(name).read_text().startswith(start)


# Bad pictures.


def test_bad_pictures_are_listed_at_the_end_and_end_with_1(tmp_path: Path, capsys: Any) -> None:
    write_pictures(tmp_path, ["1.png", "3.png"])
    (tmp_path / "2.jpg").write_bytes(b"<html>")
    (tmp_path / "4.png").write_bytes(b"")
    assert predict.main(["--checkpoint", "model", "1.png", "2.jpg", "3.png", "4.png"]) == 1
    streams = capsys.readouterr()
    assert [line.split()[0] for line in streams.out.splitlines()[2::4]] == ["1.png", "3.png"]
    assert streams.err.splitlines()[0] == "pictures that cannot be read: 2"
    assert re.search(r"2\.jpg +not an image.*\n.*4\.png +the file is empty\n$", streams.err)
    records = records_of(capsys, "1.png", "2.jpg", "3.png", code=1)
    assert ["error" in record for record in records] == [False, True, False]
    assert [label["probability"] for label in records[2]["labels"]] == [
        label["probability"] for label in records_of(capsys, "1.png", "3.png")[1]["labels"]
    ]


def test_where_all_are_bad_nothing_is_drawn(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "1.jpg").write_bytes(b"<html>")
    answered(capsys, "1.jpg", "--attention", "x.png", code=1)
    assert not Path("x.png").exists()


def test_a_picture_of_too_many_pixels_is_bad(tmp_path: Path, capsys: Any) -> None:
    write_picture(tmp_path / "a.png", size=(30, 30))
    (record,) = records_of(capsys, "a.png", "--max-image-pixels", "899", code=1)
    assert "900" in record["error"] or "30 x 30" in record["error"]


# Attention.


@pytest.mark.parametrize("count", [1, 3, MOST_DRAWN + 2])
def test_attention_is_one_figure_of_the_first_pictures(tmp_path: Path, capsys: Any, count: int) -> None:
    write_pictures(tmp_path, [f"in/{number:02}.png" for number in range(count)])
    (tmp_path / "in/000.png").write_bytes(b"")
    assert predict.main(["--checkpoint", "model", "in", "--attention", "out.png", "--batch-size", "4"]) == 1
    assert ("(the first 16, 2 more are not drawn)" in capsys.readouterr().err) == (count > MOST_DRAWN)
    with Image.open("out.png") as image:
        assert (image.format, image.width > 600, image.height > 192) == ("PNG", True, True)
    predict.main(["--checkpoint", "model", "in", "--attention", "out.png"])  # its own figure, once more


def test_attention_never_overwrites_a_picture(tmp_path: Path, capsys: Any) -> None:
    write_pictures(tmp_path, ["a.png", "b.png"])
    before = Path("a.png").read_bytes()
    with pytest.raises(UserError, match="before the pictures"):
        answered(capsys, "--attention", "a.png", "b.png")
    with pytest.raises(UserError, match="one of the pictures"):
        answered(capsys, "--output", "a.png", "./a.png")
    assert Path("a.png").read_bytes() == before


@pytest.mark.parametrize("has_instructions", [False, True])
def test_in_bf16_probabilities_are_nearly_those_of_fp32(
    tmp_path: Path, capsys: Any, monkeypatch: Any, has_instructions: bool
) -> None:
    monkeypatch.setattr("prediction.predictor.multiplies", lambda dtype, device: has_instructions)
    write_pictures(tmp_path, [f"{number}.png" for number in range(6)])
    exact, rounded = (
        torch.tensor([[one["probability"] for one in record["labels"]] for record in records])
        for records in (records_of(capsys, "."), records_of(capsys, "--precision", "bf16", "."))
    )
    assert 0 < (exact - rounded).abs().max() < 0.02
    assert predict.main(["--checkpoint", "model", "--precision", "bf16", "0.png"]) == 0
    assert ("no bf16 instructions" in capsys.readouterr().err) != has_instructions


def test_bf16_on_a_gpu_without_it_is_refused(monkeypatch: Any) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Some GPU")
    with pytest.raises(UserError, match=r"Some GPU has no bf16\. Use --precision fp32"):
        pick_type("bf16", torch.device("cuda", 0))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    assert pick_type("bf16", torch.device("cuda", 0)) == (torch.bfloat16, [])


# Mistakes.


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.png", "--top_k", "0"], "--top-k 0"),
        (["a.png", "--topk", "3"], "Did you mean '--top-k'"),
        (["a.png", "--json", "--csv"], "not allowed with"),
        (["a.png", "--threshold", "2"], "--threshold 2"),
        (["a.png", "--threshold", "0.3"], "--top-k"),
        (["a.png", "--batch-size", "0"], "--batch-size 0"),
        (["a.png", "--precision", "16.16"], "invalid choice: '16.16'"),
        (["a.png", "--attention", "x.jpg"], "ends in .png"),
        (["a.png", "--attention", "none/x.png"], "no folder"),
        (["a.png", "--output", "none/x"], "No such file"),
        (["a.png", "--num-heads", "8"], "has 4"),
        (["a.png", "--class-names", "none.txt"], "none.txt cannot be read"),
        (["gone.png"], "gone.png does not exist"),
        ([], "no pictures"),
        (["--serve", "a.png"], "--serve takes no pictures"),
        (["--serve", "--json"], "--serve takes no --json"),
        (["--serve", "--batch-size", "2"], "--serve takes no --batch-size"),
        (["--serve", "--port", "70000"], "--port 70000"),
        (["a.png", "--port", "9"], "--serve"),
    ],
)
def test_a_mistake_is_told(tmp_path: Path, capsys: Any, words: List[str], message: str) -> None:
    write_pictures(tmp_path, ["a.png"])
    with pytest.raises(UserError) as error:
        answered(capsys, *words)
    assert message in str(error.value)


def test_a_mistake_ends_with_2_and_help_with_0(tmp_path: Path) -> None:
    done = run("x.png", "--tpo-k", "3", code=2)
    assert done.stderr.decode() == "error: unknown flag --tpo-k. Did you mean '--top-k'? See --help.\n"
    text = run("--help").stdout.decode()
    for flag in ("--top-k", "--threshold", "--json", "--csv", "--attention FILE.png", "--serve", "--class-names FILE"):
        assert flag in text
    assert f"first {MOST_DRAWN} pictures" in " ".join(text.split())


def test_flags_may_stand_between_pictures_and_after_two_hyphens_all_are_pictures() -> None:
    given = parse_options(["a.png", "--checkpoint", "m", "b.png", "--top_k=2", "c.png", "--", "--csv", "-x.png"])
    assert (given.pictures, given.top_k, given.csv) == (["a.png", "b.png", "c.png", "--csv", "-x.png"], 2, False)
    assert parse_options(["--checkpoint", "m", "--", "--x.png"]).pictures == ["--x.png"]


# Streams.


@pytest.mark.slow
def test_names_come_from_standard_input_and_a_missing_one_is_bad(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b c.png"])
    done = run("--json", "-", stdin=b"b c.png\ngone.png\na.png\n", code=1)
    assert [json.loads(line)["picture"] for line in done.stdout.splitlines()] == ["b c.png", "gone.png", "a.png"]
    assert b"gone.png  No such file" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.slow
def test_names_that_are_no_utf8_come_out_as_they_are(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xffx.png")
    write_pictures(tmp_path, [name])
    assert b"\n\xffx.png,1," in run("--csv", name).stdout


@pytest.mark.slow
def test_a_reader_that_leaves_ends_it_without_a_word(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png"])
    names = "a.png\n" * 3000
    program = f"{' '.join(map(repr, command('--csv', '--batch-size', '8', '-')))} | head -2"
    done = subprocess.run(["bash", "-c", program], input=names.encode(), capture_output=True, timeout=120, check=False)
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 2


def on_a_terminal(words: List[str], stdout_too: bool) -> tuple[bytes, bytes]:
    """What goes to standard output where it is a pipe, and what a terminal gets."""
    ours, theirs = pty.openpty()
    stdout: Optional[int] = theirs if stdout_too else subprocess.PIPE
    process = warm.Popen(
        command(*words), stdout=stdout, stderr=theirs, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        shown += part
    piped = process.stdout.read() if process.stdout else b""
    assert process.wait(timeout=60) == 0
    os.close(ours)
    return piped, shown


@pytest.mark.slow
def test_a_terminal_shows_a_bar_and_a_pipe_does_not_get_it(tmp_path: Path) -> None:
    write_pictures(tmp_path, [f"in/{number}.png" for number in range(7)])
    piped, shown = on_a_terminal(["--csv", "--top-k", "1", "--batch-size", "2", "in"], stdout_too=False)
    assert len(piped.splitlines()) == 8
    assert b"\x1b" not in piped
    assert b"predicting" in shown
    assert b"7/7" in shown
    _, shown = on_a_terminal(["--top-k", "1", "--batch-size", "2", "in"], stdout_too=True)
    assert b"predicting" in shown
    # Every answer on a line of its own, whatever the bar draws around it.
    assert all(f"\nin/{number}.png".encode() in shown.replace(b"\x1b[2K", b"\n") for number in range(7))


@pytest.mark.slow
def test_ctrl_c_ends_it_with_130(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", size=(2000, 2000))
    process = warm.Popen(
        command("--csv", "-"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # What starts in the background of a shell ignores SIGINT, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"a.png\n" * 5000)
    process.stdin.close()
    process.stdin = None
    assert process.stdout.readline()
    process.stdout.readline()  # the first answers are there
    begun = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, b"")
    assert time.monotonic() - begun < 10


def test_memory_does_not_grow_with_the_pictures(tmp_path: Path) -> None:
    """Only so many pictures are decoded ahead of those that were asked for."""
    write_pictures(tmp_path, ["a.png"])
    predictor = predictor_of(tmp_path / "model", batch_size=4)
    taken = [0]

    def names() -> Any:
        while True:
            taken[0] += 1
            yield "a.png"

    batches = predictor.predict_files(names())
    for _ in range(5):
        assert len(next(batches)) == 4
    batches.close()  # type: ignore[attr-defined]
    assert taken[0] <= 5 * 4 + 2 * 4


def test_all_formats_are_known_before_threads_decode(tmp_path: Path, monkeypatch: Any) -> None:
    """Pillow learns the rarer ones when it first fails; a thread that fails meanwhile would call a good picture bad."""
    write_pictures(tmp_path, ["a.webp", "b.tif"])
    predictor, known = predictor_of(tmp_path / "model"), []
    read = predictor._read

    def noted(path: str) -> Any:
        known.append(Image._initialized)
        return read(path)

    monkeypatch.setattr(predictor, "_read", noted)
    monkeypatch.setattr(Image, "_initialized", 0)  # as in a new process
    (batch,) = predictor.predict_files(["a.webp", "b.tif"])
    assert all(one.view is not None for one in batch)
    assert known == [2, 2]


def test_a_model_without_class_names_gets_them_from_a_file(tmp_path: Path, capsys: Any) -> None:
    save_model(tmp_path / "plain", TINY, class_names=())
    write_pictures(tmp_path, ["a.png"])
    (tmp_path / "names.txt").write_text("w\nx\ny\nz\n")
    plain = records_of(capsys, "a.png", model="plain")[0]["labels"]
    named = records_of(capsys, "a.png", "--class-names", "names.txt", model="plain")[0]["labels"]
    assert [label["name"] for label in plain] == [str(label["label"]) for label in plain]
    assert [label["name"] for label in named] == ["wxyz"[label["label"]] for label in named]


@pytest.mark.parametrize("output", ["run/step_1/model.csv", "names.txt", "x.png"])
def test_answers_do_not_take_the_place_of_the_model_or_of_pictures(tmp_path: Path, output: str) -> None:
    from prediction.writing import check_output

    (tmp_path / "run").mkdir()
    (tmp_path / "names.txt").touch()
    paths = [str(tmp_path / output), [], str(tmp_path / "run"), str(tmp_path / "names.txt")]
    with pytest.raises(UserError, match="Give another name"):
        check_output(*paths)
    check_output(str(tmp_path / "run.csv"), [], str(tmp_path / "run"), None)
