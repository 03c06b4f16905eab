"""The page from records: well-formed, alone, escaped, small, and saying what it was told."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest

from reporting.base import Reporter
from reporting.markup import CSS_FILE, SCRIPT_FILE
from reporting.page.positions import by_distance
from reporting.records import Findings, Summary, Timeline
from tests.reporting import demo
from tests.reporting.html_check import Page


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each kind of page's text, made once."""
    made = {}

    def page(kind: str) -> str:
        if kind not in made:
            made[kind] = demo.write(tmp_path_factory.mktemp(kind), kind).read_text(encoding="utf-8")
        return made[kind]

    return page


@pytest.mark.parametrize("kind", demo.KINDS)
def test_a_page_is_well_formed_stands_alone_and_is_small(pages, kind):
    text = pages(kind)
    page = Page(text)
    assert page.problems == []
    assert len(text.encode("utf-8")) < 3_000_000
    assert "http:" not in text.replace("http://www.w3.org", "") and "https:" not in text
    assert page.headings[0] == 1 and page.headings.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(page.headings, page.headings[1:]))
    assert page.count("main") == page.count("header") == page.count("nav") == 1


@pytest.mark.parametrize(("kind", "script"), [("running", True), ("single", False)])
def test_the_policy_lets_nothing_in_but_our_own_style_and_script(pages, kind, script):
    text = pages(kind)
    (policy,) = [value for value in Page(text).all("content") if "default-src" in value]
    sources = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    digest = {
        path: base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode() for path in (CSS_FILE, SCRIPT_FILE)
    }
    assert sources["default-src"] == sources["base-uri"] == sources["form-action"] == "'none'"
    assert sources["img-src"] == "data:"
    assert sources["style-src"] == f"'sha256-{digest[CSS_FILE]}'"
    assert sources["script-src"] == (f"'sha256-{digest[SCRIPT_FILE]}'" if script else "'none'")


def test_names_come_out_as_text_whatever_they_hold(pages):
    page = Page(pages("hostile"))
    assert page.count("script") == 0
    assert {source[:11] for source in page.all("src")} == {"data:image/"}
    assert demo.NASTY[0] in page.text and demo.NASTY[1] in page.text and demo.NASTY[6] in page.text
    assert "صورة الصدر ? gnp.exe" in page.text
    assert "lone ? and ? surrogates" in page.text
    classes = re.search(r'<section id="classes".*?</section>', pages("hostile"), re.S).group()
    assert "x" * 40 in classes and "x" * 81 not in classes
    assert "\u202e" not in pages("hostile")


def test_a_page_says_what_is_not_finite_and_that_an_error_ended_the_run(pages):
    text = Page(pages("hostile")).text
    assert "Ended by an error" in text
    assert "11 values were not finite" in text


def test_a_running_page_reloads_and_a_finished_one_does_not(pages):
    assert 'data-reload-seconds="30"' in pages("running")
    assert "Running" in Page(pages("running")).text and "step 222 of 440" in Page(pages("running")).text
    assert 'data-reload-seconds="0"' in pages("single") and "<script" not in pages("single")


def test_sections_without_data_are_left_out(pages):
    page = Page(pages("one"))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["learning", "effort", "run", "files"]
    assert "Stopped (Ctrl-C)" in page.text
    assert "python pretrain.py --resume" in page.text


def test_the_most_important_comes_first(pages):
    page = Page(pages("single"))
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    names = "learning effort timeline memory classes mistakes attention positions run files"
    assert " ".join(sections) == names


def test_a_chart_has_its_figures_in_words_and_in_a_table(pages):
    (words,) = [label for label in Page(pages("single")).all("aria-label") if label.startswith("Loss by step")]
    loss = [demo.step_record(step).loss for step in range(1, 441)]
    assert f"training: {loss[0]:.4g} at step 1, {loss[-1]:.4g} at step 440, lowest {min(loss):.4g}, highest" in words
    table = re.search(r'<details id="loss-values">.*?</table>', pages("single"), re.S).group()
    assert f'<th scope="row">1</th><td>{loss[0]:.4g}</td>' in table
    assert f"<td>{demo.validation_record(440).loss:.4g}</td>" in table


def told(findings: Findings, tmp_path) -> str:
    reporter = demo.ReportReporter(tmp_path)
    reporter.began(demo.run_record(class_names=(), class_counts=()))
    reporter.found(findings)
    reporter.close()
    return (tmp_path / "report.html").read_text()


def test_the_class_table_has_scikit_learns_figures(tmp_path):
    from sklearn.metrics import precision_recall_fscore_support

    matrix = demo.confusion(6)
    pairs = [(row, column) for row in range(6) for column in range(6) for _ in range(matrix[row, column])]
    labels, answers = zip(*pairs)
    precision, recall, f1, samples = precision_recall_fscore_support(labels, answers)
    text = Page(told(Findings(1, confusion=matrix), tmp_path)).text
    for label in range(6):
        assert (
            f"{label}{100 * recall[label]:.2f} % {100 * precision[label]:.2f} %{100 * f1[label]:.2f} %{samples[label]}"
            in text
        )


def test_many_classes_show_their_most_confused_pairs(tmp_path):
    matrix = np.diag(np.full(40, 10))
    matrix[7, 3], matrix[1, 2] = 5, 9
    text = Page(told(Findings(1, confusion=matrix), tmp_path)).text
    assert "labelanswersamplesof the label's12947.37 % 73533.33 %" in text.replace("1 2 9", "129")


def test_a_planned_timeline_says_so(tmp_path):
    reporter = demo.ReportReporter(tmp_path)
    reporter.traced(replace(demo.timeline(), is_measured=False))
    reporter.close()
    text = Page((tmp_path / "report.html").read_text()).text
    assert "Planned, not measured: step 3, schedule 1f1b, 4 rows" in text
    assert "Bubble planned: 29.41 %, by the schedule's formula 27.27 %" in text


def test_the_timeline_draws_every_span_of_a_short_step(pages):
    timeline: Timeline = demo.timeline()
    assert pages("single").count('class="on-forward"') == sum(span.kind == "forward" for span in timeline.spans)
    assert pages("single").count('class="on-backward"') == sum(span.kind == "backward" for span in timeline.spans)


def test_similarity_by_distance_is_the_mean_over_all_pairs():
    similarity = demo.views(8, 4).position_similarity
    sums = {}
    for a, b, c, d in np.ndindex(*similarity.shape):
        sums.setdefault(round(float(np.hypot(a - c, b - d))), []).append(similarity[a, b, c, d])
    assert by_distance(similarity) == [
        (distance, pytest.approx(np.mean(sums[distance]), abs=1e-6)) for distance in sorted(sums)
    ]


def test_every_kind_of_record_reaches_the_page():
    told = {name for name in vars(Reporter) if not name.startswith("_")}
    assert told - {"validating"} <= set(vars(demo.ReportReporter))  # how far a pass is, is nothing to keep


COLOUR = re.compile(r"--([\w-]+): (#[0-9a-f]{3,6}|\d+ \d+ \d+)")


def themes():
    """Each theme's colours by name, as RGB of 0 to 255."""
    light, dark = CSS_FILE.read_text().split("@media screen and (prefers-color-scheme: dark)")
    dark = dark[: dark.index("\n}\n")]
    parsed = {name: rgb(value) for name, value in COLOUR.findall(light)}
    return {"light": parsed, "dark": {**parsed, **{name: rgb(value) for name, value in COLOUR.findall(dark)}}}


def rgb(value):
    if not value.startswith("#"):
        return tuple(map(int, value.split()))
    digits = value[1:] if len(value) == 7 else "".join(2 * digit for digit in value[1:])
    return tuple(int(digits[place : place + 2], 16) for place in (0, 2, 4))


def luminance(colour):
    """WCAG 2.2, relative luminance."""
    parts = [part / 255 for part in colour]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast_reaches_wcag_aa(theme):
    colours = themes()[theme]
    texts = [(ink, ground) for ink in ("ink", "faint", "accent", "good", "bad") for ground in ("paper", "card")]
    texts += [("on-forward", "forward"), ("on-backward", "backward"), ("ink", "ground"), ("cell-ink", "ground")]
    assert {
        pair: contrast(*(colours[name] for name in pair))
        for pair in texts
        if contrast(*(colours[name] for name in pair)) < 4.5
    } == {}
    drawn = [(f"s{style}", "card") for style in range(8)] + [
        ("accent", "ground"),
        ("strong-line", "card"),
        ("update", "ground"),
    ]
    assert {
        pair: contrast(*(colours[name] for name in pair))
        for pair in drawn
        if contrast(*(colours[name] for name in pair)) < 3
    } == {}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_counts_can_be_read_on_every_ground_of_the_confusion_map(theme):
    colours = themes()[theme]
    rules = re.findall(
        r"\.heat \.([de]\d) \{ background: rgb\(var\(--(\w+)\) / (\d+)%\);( color:)?", CSS_FILE.read_text()
    )
    assert len(rules) == 19
    low = {}
    for name, hue, alpha, strong in rules:
        ground = [int(alpha) / 100 * a + (1 - int(alpha) / 100) * b for a, b in zip(colours[hue], colours["card"])]
        reached = contrast(colours["cell-ink-strong" if strong else "cell-ink"], ground)
        if reached < 4.5:
            low[name] = reached
    assert low == {}


def test_what_a_timeline_leaves_out_is_said(tmp_path):
    reporter = demo.ReportReporter(tmp_path)
    reporter.traced(replace(demo.timeline(), num_left_out=12_345))
    reporter.close()
    assert (
        "12,345 later pieces of this weight update were not kept." in Page((tmp_path / "report.html").read_text()).text
    )


def test_one_device_tells_of_no_schedule(tmp_path):
    reporter = demo.ReportReporter(tmp_path)
    spans = [span for span in demo.timeline().spans if span.row == 0]
    reporter.traced(replace(demo.timeline(), rows=("stage 0",), spans=tuple(spans), schedule="one device"))
    reporter.close()
    page = Page((tmp_path / "report.html").read_text())
    assert "Measured: step 3, one device" in page.text
    assert "Bubble" not in page.text and "1 rows" not in page.text


def test_short_names_stand_upright_over_the_confusions_and_long_ones_lie(tmp_path):
    record = told(Findings(1, confusion=np.eye(3, dtype=np.int64)), tmp_path)
    assert 'class="heat"' in record
    reporter = demo.ReportReporter(tmp_path)
    reporter.began(replace(demo.run_record(), class_names=("ape", "bear", "cat")))
    reporter.found(Findings(1, confusion=np.eye(3, dtype=np.int64)))
    reporter.close()
    assert 'class="heat lying"' in (tmp_path / "report.html").read_text()


def test_a_resumed_runs_time_stands_beside_the_steps_that_took_it(tmp_path):
    reporter = demo.ReportReporter(tmp_path, resumed_step=50)
    reporter.began(demo.run_record(resumed_step=50))
    reporter.finished(Summary(88, 11.5))
    assert "11.5 s38 steps from step 50 on" in Page((tmp_path / "report.html").read_text()).text
