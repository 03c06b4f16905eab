"""What the newest validation says of each class: confusions or ROC curves, a table, and how often a class occurs."""

from __future__ import annotations

from typing import Iterator, List, Sequence, Tuple

import numpy as np

from reporting.charts import MARKERS
from reporting.markup import NONE, bar, escaped, fold, name, number, percent, plain, scrolling, table
from reporting.records import ClassResult, Findings
from reporting.story import Story, mean_auc

MOST_IN_MAP = 30  # classes; of more, the most confused pairs are told
MOST_IN_HALF = 12  # classes of a map in half of the page's width
MOST_PAIRS, MOST_CURVES, MOST_ROWS, ENDS = 25, 30, 200, 20
LEVELS = 9  # of a cell's ground in the style sheet
SHORT = 18  # letters of a class's name at the map's edges
MOST_UPRIGHT = 3  # letters of a name that stands over its column as it is; longer ones lie on their side
SIDE, EDGE = 200, 24  # of a ROC curve's drawing


def section(story: Story) -> str:
    cards = [*_found(story.findings, story), *_prevalence(story)] if story.findings is not None else _prevalence(story)
    curves = _roc(story.findings) if story.findings is not None else ""
    return curves + (f'<div class="grid-of-charts">{"".join(cards)}</div>' if cards else "")


def _found(findings: Findings, story: Story) -> List[str]:
    """The cards of a validation's findings, but for curves."""
    if findings.classes:
        return [_class_table(findings)]
    if findings.confusion is None or not findings.confusion.size:
        return []
    return [_confusion(findings, story), _recall_table(findings, story)]


def _confusion(findings: Findings, story: Story) -> str:
    assert findings.confusion is not None
    names = class_names(story, len(findings.confusion))
    matrix = findings.confusion
    title = "<h3>Which classes are taken for which</h3>"
    hint = f"Rows are labels, columns answers{_whose(findings)}; {int(matrix.trace()):,} of {int(matrix.sum()):,} are right. "
    if len(matrix) <= MOST_IN_MAP:
        hint += "What is right stands on the diagonal; a cell's ground grows stronger with its share of the row."
        wide = " wide" if len(matrix) > MOST_IN_HALF else ""
        return f'<div class="card{wide}">{title}<p class="note">{hint}</p>{_map(matrix, names)}</div>'
    pairs = table(
        "The most confused pairs", ["label", "answer", "samples", "of the label's"], _pairs(matrix, names), "words"
    )
    hint = f"{int(matrix.trace()):,} of {int(matrix.sum()):,} samples are right{_whose(findings)}."
    return f'<div class="card">{title}<p class="note">{hint}</p>{pairs}</div>'


def class_names(story: Story, count: int) -> List[str]:
    known = story.run.class_names if story.run is not None else ()
    return [known[label] if label < len(known) else str(label) for label in range(count)]


def _whose(findings: Findings) -> str:
    return f" at step {findings.step:,}{', with averaged weights' if findings.averaged else ''}"


def _map(matrix: np.ndarray, names: Sequence[str]) -> str:
    """A table whose cells have grounds: it is read as well as seen."""
    totals = matrix.sum(axis=1)
    lying = "" if max(map(len, names)) <= MOST_UPRIGHT else " lying"
    head = "".join(f'<th scope="col"><span>{name(one, SHORT)}</span></th>' for one in names)
    body = "".join(
        f'<tr><th scope="row">{name(names[row], SHORT)}</th>{"".join(_cells(matrix[row], row, int(totals[row])))}</tr>'
        for row in range(len(matrix))
    )
    return scrolling(
        "Confusion matrix",
        f'<table class="heat{lying}"><caption>Samples by label (row) and answer (column)</caption><thead><tr>'
        f'<th scope="col">label</th>{head}</tr></thead><tbody>{body}</tbody></table>',
    )


def _cells(counts: np.ndarray, row: int, total: int) -> Iterator[str]:
    for column, count in enumerate(counts.tolist()):
        if not count:
            yield "<td></td>" if column != row else '<td class="d0">0</td>'
            continue
        share = count / total
        if column == row:
            yield f'<td class="d{min(LEVELS, int(share * LEVELS))}">{count}</td>'
        else:  # by the root: a mistake in a hundred is to be seen
            yield f'<td class="e{min(LEVELS, 1 + int(share**0.5 * (LEVELS - 1)))}">{count}</td>'


def _pairs(matrix: np.ndarray, names: Sequence[str]) -> Iterator[List[str]]:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    totals = matrix.sum(axis=1)
    for index in np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]:
        row, column = divmod(int(index), len(matrix))
        if not wrong[row, column]:
            return
        share = wrong[row, column] / totals[row]
        yield [name(names[row]), name(names[column]), f"{wrong[row, column]:,}", f"{percent(share)} {bar(share)}"]


def _roc(findings: Findings) -> str:
    if not findings.classes:
        return ""
    drawn = [result for result in findings.classes if result.curve][:MOST_CURVES]
    auc = mean_auc(findings)
    parts = [f'<p class="hint">{_roc_words(findings, auc)}</p>']
    if drawn:
        parts.append(f'<div class="curves">{"".join(map(_curve, drawn))}</div>')
    return "".join(parts)


def _roc_words(findings: Findings, auc: object) -> str:
    known = sum(result.auc is not None for result in findings.classes)
    words = "ROC curves: how many of a class's samples are found (upwards) against how many others are taken for it (to the "
    words += "right). The ring is the threshold with the largest sensitivity + specificity - 1. "
    if isinstance(auc, float):
        words += f"Mean area under the curve{_whose(findings)}: <strong>{auc:.4f}</strong>, of {known} classes. "
    left = [result.name for result in findings.classes if result.auc is None]
    if left:
        words += f"Left out, without positive or without negative samples: {', '.join(map(name, left[:20]))}."
    return words


def _curve(result: ClassResult) -> str:
    inner = SIDE - 2 * EDGE

    def place(point: Tuple[float, float]) -> str:
        return f"{EDGE + point[0] * inner:.1f} {SIDE - EDGE - point[1] * inner:.1f}"

    path = "M" + "L".join(map(place, result.curve))
    ring = ""
    if result.sensitivity is not None and result.specificity is not None:
        at = place((1 - result.specificity, result.sensitivity))
        ring = f'<path class="mark s1" transform="translate({at})" d="{MARKERS[0]}"/>'
    area = f"{result.auc:.4f}" if result.auc is not None else NONE
    words = (
        f"ROC curve of {plain(result.name)}: area {number(result.auc)}, sensitivity {number(result.sensitivity)} and "
    )
    words += f"specificity {number(result.specificity)} at threshold {number(result.threshold)}"
    frame = f'<path class="axis" fill="none" d="M{EDGE} {EDGE}V{SIDE - EDGE}H{SIDE - EDGE}"/>'
    chance = f'<path class="grid" d="M{EDGE} {SIDE - EDGE}L{SIDE - EDGE} {EDGE}"/>'
    size = f'viewBox="{EDGE - 8} {EDGE - 8} {inner + 16} {inner + 16}"'
    return (
        f'<figure class="card"><figcaption><h3>{name(result.name, 40)}</h3><p>{area}</p></figcaption>'
        f'<svg {size} role="img" aria-label="{escaped(words, None)}">{frame}{chance}'
        f'<path class="line s0" d="{path}"/>{ring}</svg></figure>'
    )


def _class_table(findings: Findings) -> str:
    headers = ["class", "AUC", "positive", "negative", "threshold", "sensitivity", "specificity"]
    rows = [_class_row(result) for result in findings.classes[:MOST_ROWS]]
    shown = table("Sensitivity and specificity are those at the threshold", headers, rows, "figures")
    return f'<div class="card wide"><h3>Areas and thresholds</h3>{shown}</div>'


def _recall_table(findings: Findings, story: Story) -> str:
    matrix = findings.confusion
    assert matrix is not None
    names = class_names(story, len(matrix))
    headers = ["class", "found (recall)", "precision", "F1", "samples", "answers"]
    rows = [_confusion_row(matrix, label, names[label]) for label in _hardest_first(matrix)]
    shown = table("The hardest first", headers, rows[:MOST_IN_MAP], "figures")
    rest = rows[MOST_IN_MAP:MOST_ROWS]
    more = fold("more-classes", f"{len(rest)} more", table("The next ones", headers, rest, "figures")) if rest else ""
    return f'<div class="card"><h3>How well each class is found</h3>{shown}{more}</div>'


def _class_row(result: ClassResult) -> List[str]:
    auc = f"{result.auc:.4f} {bar(result.auc)}" if result.auc is not None else NONE
    figures = [percent(result.sensitivity), percent(result.specificity)]
    threshold = number(result.threshold)
    return [name(result.name), auc, f"{result.num_positive:,}", f"{result.num_negative:,}", threshold, *figures]


def _hardest_first(matrix: np.ndarray) -> List[int]:
    """Labels by the share of their samples that is found; those without samples last."""
    totals = matrix.sum(axis=1)
    recall = np.where(totals > 0, matrix.diagonal() / np.maximum(totals, 1), 2.0)
    return [int(label) for label in np.argsort(recall, kind="stable")]


def _confusion_row(matrix: np.ndarray, label: int, title: str) -> List[str]:
    right, samples, answers = int(matrix[label, label]), int(matrix[label].sum()), int(matrix[:, label].sum())
    recall = right / samples if samples else None
    precision = right / answers if answers else None
    f1 = 2 * right / (samples + answers) if samples + answers else None
    found = f"{percent(recall)} {bar(recall)}" if recall is not None else NONE
    return [name(title), found, percent(precision), percent(f1), f"{samples:,}", f"{answers:,}"]


def _prevalence(story: Story) -> List[str]:
    """How often classes occur in training: one card, or two where there are many."""
    run = story.run
    if run is None or not any(run.class_counts):
        return []
    names = class_names(story, len(run.class_counts))
    order = sorted(range(len(names)), key=lambda label: -run.class_counts[label])
    largest, total = run.class_counts[order[0]], run.num_train or 1

    def row(label: int) -> List[str]:
        count = run.class_counts[label]
        return [name(names[label]), f"{count:,} {bar(count / largest)}", percent(count / total)]

    headers = ["class", "training samples", "share"]
    title = "<h3>How many training samples each class has</h3>"
    if len(order) <= 2 * ENDS:
        return [
            f'<div class="card">{title}{table("Training samples by class", headers, map(row, order), "figures")}</div>'
        ]
    first, last = order[:ENDS], order[-ENDS:]
    most = table(f"The {ENDS} most frequent of {len(order):,} classes", headers, map(row, first), "figures")
    least = table(f"The {ENDS} least frequent", headers, map(row, last), "figures")
    return [f'<div class="card">{title}{most}</div>', f'<div class="card">{title}{least}</div>']
