from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from config import load_config
from reporting.__main__ import main
from reporting.comparison import differing_keys, final_figures
from reporting.records import ValidationRecord
from reporting.runs import read_run, read_runs, short_names
from tests.reporting.findings import HOSTILE
from tests.reporting.recorded import write_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(tmp_path, step_record, validation_record):
    """Writes a run folder of that name."""
    return lambda folder, **about: write_run(tmp_path / folder, step_record, validation_record, **about)


def edit(folder, change):
    path = folder / "metrics.jsonl"
    path.write_text(change(path.read_text()))


def test_a_runs_row_has_its_final_figures(run):
    (row,) = [final_figures(one) for one in [read_run(run("a"), "a")]]
    # Slow steps count for the time (2 x 5 s + 2 x 0.5 s + 2 x 0.25 s), not for the speed.
    assert row == ["a", "4 of 4", "75.00 % top-1", "4", "0.5", "0.25", "200", "11.5 s"]


def test_the_best_validation_is_the_one_that_the_run_held_for_best(run):
    longer = read_run(run("a", steps=6), "a")  # whose last validation is worse
    assert final_figures(longer)[2:4] == ["75.00 % top-1", "4"]


@pytest.mark.skipif("auc" not in ValidationRecord.__annotations__, reason="validation records have no area")
def test_a_run_judged_by_its_area_under_the_curve_says_so(run):
    folder = run("a")
    edit(folder, lambda text: text.replace('"multi_label": false', '"multi_label": true'))
    edit(folder, lambda text: text.replace('"auc": null', '"auc": 0.81239'))
    assert final_figures(read_run(folder, "a"))[2] == "0.8124 AUC"


def test_only_keys_that_differ_are_listed_and_a_key_left_out_has_its_default(run):
    first = run("a", mixup=True, gradient_accumulation=8, run_name="a", random_seed=42)  # 42: the default
    second = run("b", mixup=True, layers_per_ipu=[1, 1], run_name="b", learning_rate=1e-05, name="other")
    rows = dict(differing_keys(read_runs([str(first), str(second)])))
    assert rows == {
        "config": ["toy", "other"],
        "gradient_accumulation": ["8", "1"],
        "layers_per_ipu": ["null", "[1, 1]"],
        "learning_rate": ["0.001", "1e-05"],
    }


def test_a_config_as_runs_save_it_is_read(tmp_path):
    config = load_config("pretrain", ["--config", "digits"])
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    (tmp_path / "metrics.jsonl").write_text("")
    settings = read_run(tmp_path, "a").settings
    dumped = json.loads(json.dumps(config.model_dump(mode="json")))
    assert settings["config"] == "digits"
    assert {name: value for name, value in settings.items() if value != dumped[name]} == {}


def test_damaged_lines_are_left_out_and_counted(run):
    folder = run("a")
    broken = [
        "{",
        "[1]",
        '"step"',
        '{"event": "step", "step": 9}',
        '{"event": "step", "step": "x"}',
        "\x00\x00",
        "null",
    ]
    edit(folder, lambda text: "\n".join([*broken, text]))
    found = read_run(folder, "a")
    assert final_figures(found)[1] == "4 of 4"
    assert found.notes == ["7 lines are damaged in its metrics.jsonl and left out"]


def test_a_line_that_is_being_written_is_left_out(run):
    folder = run("a")
    edit(folder, lambda text: text + '{"event": "step", "st')
    assert read_run(folder, "a").notes == ["its last line is cut short: the run goes on, or was killed while it wrote"]


def test_figures_that_are_not_finite_are_compared_as_such(run):
    folder = run("a")
    edit(folder, lambda text: text.replace('"loss": 0.5', '"loss": null, "nonfinite": true'))
    assert final_figures(read_run(folder, "a"))[4] == "not finite"


def test_a_run_without_its_config_or_steps_is_compared_as_far_as_it_goes(run, capsys):
    bare, whole = run("bare"), run("whole")
    (bare / "config.yaml").write_text("{")
    (bare / "metrics.jsonl").write_text("")
    assert main(["compare", str(bare), str(whole), "--output", ""]) == 0
    output = capsys.readouterr().out
    assert "bare: its config.yaml is missing or damaged: its keys are not known\n" in output
    assert "bare: it has no finished step yet\n" in output


@pytest.mark.parametrize(
    ("folders", "problem"),
    [
        (["a"], "there is one run"),
        (["a", "a"], "is named twice"),
        (["a", "nowhere"], "nowhere is no run to compare: it does not exist"),
        (["a", "."], "it has no metrics.jsonl"),
        (["a", "a/config.yaml"], "does not exist or is no folder"),
        (["a", "b", "--output", "nowhere/c.html"], "nowhere/c.html cannot be written: No such file"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(run, folders, problem, monkeypatch, tmp_path, capsys):
    run("a"), run("b")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", *folders]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert problem in message
    assert message.count("\n") == 2  # what is wrong, and what to do
    assert not list(tmp_path.glob("compare*"))


def test_names_are_as_long_as_it_takes_to_tell_runs_apart():
    assert short_names([Path("/x/a"), Path("/x/b")]) == ["a", "b"]
    assert short_names([Path("/x/a"), Path("/y/a")]) == ["x/a", "y/a"]


def test_the_page_has_a_line_for_each_run_and_stands_alone(run, tmp_path):
    first, second = run("a"), run("b", mixup=True, wandb_project_name=HOSTILE)
    assert main(["compare", str(first), str(second), "--output", str(tmp_path / "c.html")]) == 0
    page = (tmp_path / "c.html").read_text()
    (loss,) = [part for part in page.split("<figure")[1:] if 'id="loss"' in part]
    assert loss.count('class="line s0"') == loss.count('class="line s1"') == 2  # in the chart and in the legend
    assert "<img src=x" not in page
    assert not [
        word for word in ("http:", "https:", " src=", "@import", "url(") if word in page.replace("&lt;img src=x", "")
    ]


def test_the_command_runs_from_any_folder_without_torch(run, tmp_path):
    names = [str(run("a")), str(run("b"))]
    program = f"import sys\nfrom reporting.__main__ import main\nmain(['compare', *{names!r}])\nassert 'torch' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, check=True, stdout=subprocess.DEVNULL
    )
    assert (tmp_path / "compare.html").is_file()
    ended = subprocess.run(
        [sys.executable, "-m", "reporting", "compare", names[0]], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 2)
