"""What ran, on what, and where its files are."""

from __future__ import annotations

import json
from typing import Iterable, Tuple

from reporting.lines import size
from reporting.markup import block, escaped, fold, name, scrolling, table
from reporting.story import Story

LONGEST_VALUE = 200  # letters of a key's value
FILES = (
    ("config.yaml", "the resolved config, usable as --config-file"),
    ("metrics.jsonl", "an object a step, a validation and a saved step"),
    ("tensorboard/", "the same curves, for TensorBoard"),
    ("best, latest", "the saved steps to go on from"),
)


def section(story: Story) -> str:
    run = story.run
    if run is None:
        return ""
    keys = sorted(run.settings.items())
    given = [(key, value) for key, value in keys if key in run.given]
    about = [("machine", run.machine), *run.versions.items()]
    rows = ([escaped(key), escaped(value, None)] for key, value in about)
    parts = [f"<h3>Machine and versions</h3>{table('Of the main process', ['what', 'which'], rows, 'words')}"]
    if given:
        parts.append(f"<h3>Keys</h3>{_keys('Those that the config or a flag gives', given)}")
    cards = [f'<div class="card">{part}</div>' for part in parts]
    if run.plan.strip():
        plan = scrolling("Device allocation", f"<pre>{block(run.plan)}</pre>")
        cards.append(f'<div class="card wide"><h3>Device allocation</h3>{plan}</div>')
    folds = [fold("all-keys", f"All {len(keys)} keys", _keys("All keys", keys))]
    notes = [note for note in story.notes if note != run.plan]
    if notes:
        entries = "".join(f"<li>{escaped(note, 400)}</li>" for note in notes)
        folds.append(fold("notes", f"What the run said ({len(notes)})", f"<ul>{entries}</ul>"))
    return f'<div class="grid-of-charts">{"".join(cards)}<div class="card wide folds">{"".join(folds)}</div></div>'


def _keys(caption: str, entries: Iterable[Tuple[str, object]]) -> str:
    rows = ([f"<code>{escaped(key)}</code>", _value(value)] for key, value in entries)
    return table(caption, ["key", "value"], rows, "words")


def _value(value: object) -> str:
    """As in a config: null, true, numbers and lists as JSON has them, text as it is."""
    if isinstance(value, str):
        return name(value, LONGEST_VALUE) if value else '""'
    return escaped(json.dumps(value, ensure_ascii=False, default=str), LONGEST_VALUE)


def files(story: Story, state: str, folder: str) -> str:
    entries = "".join(f"<dt><code>{file}</code></dt><dd>{meaning}</dd>" for file, meaning in FILES)
    parts = [f'<p>Run folder: <code class="folder">{escaped(folder, 1000)}</code></p><dl class="files">{entries}</dl>']
    if story.saved is not None:
        saved = story.saved
        parts.append(f"<p>Newest saved step: step_{saved.step}, {size(saved.num_bytes)}.</p>")
    summary = story.summary
    if summary is not None and summary.next_command:
        verb = "Go on" if state == "stopped" else "Next"
        parts.append(f'<p>{verb}:</p><p class="command"><code>{escaped(summary.next_command, 2000)}</code></p>')
    return f'<div class="card">{"".join(parts)}</div>'
