from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from reporting.console import ConsoleReporter
from reporting.lines import step_line, validation_line
from reporting.records import SaveRecord, Summary
from tests.reporting.findings import run_record

ROOT = Path(__file__).resolve().parents[2]

A_RUN = """
from reporting.records import StepRecord, Summary
from reporting.console import ConsoleReporter

console = ConsoleReporter(num_steps=2)
for step in (1, 2):
    console.step(StepRecord(step, 2, 0.5 * step, 1.0, 0.1, 1.234, 0.912, 123.4, 0.1, 0.001))
    print("printed elsewhere")
console.note("a [bold]note[/bold] :smile:")
console.finished(Summary(steps=2, seconds=0.2))
"""


def test_lines_outside_a_terminal_are_plain_and_whole(step_record, validation_record, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = ConsoleReporter(num_steps=440)
    console.note("a [bold]note[/bold] :smile: with https://example.org/ and 'quotes' that goes past forty columns")
    console.step(step_record())
    console.validated(validation_record())
    console.finished(Summary(steps=440, seconds=1.0))
    output = capsys.readouterr().out.splitlines()
    assert output == [
        "a [bold]note[/bold] :smile: with https://example.org/ and 'quotes' that goes past forty columns",
        step_line(step_record()),
        validation_line(validation_record()),
        "epoch  train loss  eval loss  accuracy",
        "-----  ----------  ---------  --------",
        " 1.25      1.2340     0.1230    0.9901",
        "Done: 440 steps in 1.0 s",
    ]


def test_a_quiet_run_prints_its_result_and_what_goes_wrong(step_record, validation_record, capsys):
    console = ConsoleReporter(num_steps=440, quiet=True)
    console.note("Device allocation")
    console.note("note: no TensorBoard files from here on")
    console.began(run_record())
    console.step(step_record())
    console.validated(validation_record())
    console.saved(SaveRecord(55, 0.1, 0.1, 1000))
    console.note("step 55: 1 update left out")
    console.finished(Summary(steps=440, seconds=1.0))
    output = capsys.readouterr().out.splitlines()
    assert output[:2] == ["note: no TensorBoard files from here on", "step 55: 1 update left out"]
    assert output[2].split() == ["epoch", "train", "loss", "eval", "loss", "accuracy"]  # part of the result
    assert output[-1] == "Done: 440 steps in 1.0 s"
    assert not [line for line in output if line.startswith(("Epoch:", "Valid", "Saved", "Device"))]


def test_a_quiet_terminal_has_no_bar():
    output = run_in_terminal(A_RUN.replace("num_steps=2)", "num_steps=2, quiet=True)"), columns=80)
    assert "\x1b" not in output
    assert output.endswith("Done: 2 steps in 0.2 s\r\n")


def test_a_long_validation_shows_in_a_terminal_that_it_is_alive():
    validation = "for done in (1, 2, 3):\n    time.sleep(0.12)\n    console.validating(done, 40)\n"
    output = run_in_terminal(A_RUN.replace("console.note(", f"import time\n{validation}console.note("), columns=80)
    assert "validating: 2 % of 40 batches" in output
    assert "validating: 7 % of 40 batches" in output


def test_each_line_is_flushed_at_once(step_record, tmp_path):
    with open(tmp_path / "log", "w") as stream:
        ConsoleReporter(num_steps=440, stream=stream).step(step_record())
        assert (tmp_path / "log").read_text() == step_line(step_record()) + "\n"


def test_plain_output_imports_no_rich():
    program = A_RUN + "\nimport sys\nassert not any(name.split('.')[0] == 'rich' for name in sys.modules)\n"
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, stdout=subprocess.PIPE)


@pytest.fixture(scope="module")
def terminal_output() -> str:
    return run_in_terminal(A_RUN, columns=80)


def test_terminal_shows_a_bar_with_the_figures(terminal_output):
    assert "step 1/2" in terminal_output
    assert "loss 1.234 lr 1.0e-01 123 images/s data wait 1%" in terminal_output


def test_log_lines_in_a_terminal_are_not_broken_up(terminal_output):
    assert "Step: 1/2 Lr: 0.100000 loss: 1.234 accuracy: 0.912 throughput: 123.4 samples/sec Mean" in terminal_output
    assert "a [bold]note[/bold] :smile:\r\n" in terminal_output


def test_what_others_print_stands_on_its_own_line(terminal_output):
    assert terminal_output.count("printed elsewhere\r\n") == 2


def test_bar_is_gone_and_the_cursor_back_when_the_run_ends(terminal_output):
    hide, show, erase_line = "\x1b[?25l", "\x1b[?25h", "\x1b[2K"
    assert terminal_output.rindex(show) > terminal_output.rindex(hide)
    assert terminal_output.rindex(erase_line) > terminal_output.rindex("step 2/2")
    assert terminal_output.endswith("Done: 2 steps in 0.2 s\r\n")


def test_cursor_comes_back_after_a_crash():
    output = run_in_terminal(A_RUN.replace("console.note(", "raise SystemExit("), columns=80)
    assert output.rindex("\x1b[?25h") > output.rindex("\x1b[?25l")


def test_terminal_that_cannot_redraw_gets_plain_lines():
    output = run_in_terminal(A_RUN, columns=80, term="dumb")
    assert "\x1b" not in output
    assert "data wait" not in output


def run_in_terminal(program: str, columns: int, term: str = "xterm-256color") -> str:
    """What `program` writes to a terminal of that width."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": term, "COLUMNS": str(columns), "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    chunks = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not chunk:
            break
        chunks.append(chunk)
    os.close(ours)
    process.wait(timeout=60)
    return b"".join(chunks).decode()
