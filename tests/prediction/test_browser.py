"""The web page in a real browser, from `predict.py --serve` to the answer on the screen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Iterator

import pytest

from tests import warm
from tests.prediction.browser import PROGRAM, Browser
from tests.prediction.models import NAMES, save_model, write_picture

ROOT = Path(__file__).resolve().parents[2]
MISSING = [name for name in ("flask", "waitress", "websocket") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None or bool(MISSING),
        reason=f"needs Chromium (apt install chromium) and {MISSING or 'nothing else'}",
    ),
]
CARDS = "document.querySelectorAll('.answer')"


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """`predict.py --serve` as a user starts and stops it."""
    save_model(tmp_path / "model")
    process = warm.Popen(
        [sys.executable, str(ROOT / "predict.py"), "--checkpoint", "model", "--serve", "--port", "0"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What starts in the background of a shell ignores SIGINT, and so does all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("http://127.0.0.1:"), line
    yield line.split()[0]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_pictures_are_chosen_dropped_and_answered(address: str, tmp_path: Path) -> None:
    first = write_picture(tmp_path / "<i>first.png", 1)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"<html>")
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.choose_files("#files", first, bad)
        browser.wait_until(f"{CARDS}.length === 2 && {CARDS}[0].querySelectorAll('.labels li').length === {len(NAMES)}")
        card = f"{CARDS}[0]"
        assert browser.evaluate(f"{card}.querySelector('h2').textContent") == first.name
        names = browser.evaluate(f"[...{card}.querySelectorAll('.label')].map((one) => one.textContent)")
        assert sorted(names) == sorted(NAMES)
        shares = browser.evaluate(f"[...{card}.querySelectorAll('.percent')].map((one) => parseFloat(one.textContent))")
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(100, abs=0.3)
        for kind in ("view", "attention"):
            browser.wait_until(f"{card}.querySelector('.{kind}').naturalWidth === 192")
        browser.wait_until(f"{CARDS}[1].classList.contains('bad')")
        assert "not an image" in browser.evaluate(f"{CARDS}[1].querySelector('.state').textContent")

        # Dropped anywhere on the page; the newest comes first.
        content = json.dumps(list(write_picture(tmp_path / "second.png", 2).read_bytes()))
        browser.evaluate(
            f"""(() => {{ const data = new DataTransfer();
            data.items.add(new File([new Uint8Array({content})], "second.png", {{ type: "image/png" }}));
            document.dispatchEvent(new DragEvent("drop", {{ dataTransfer: data, bubbles: true, cancelable: true }})); }})()"""
        )
        browser.wait_until(f"{CARDS}.length === 3 && {CARDS}[0].querySelectorAll('.labels li').length > 0")
        assert browser.evaluate(f"{CARDS}[0].querySelector('h2').textContent") == "second.png"

        browser.choose_files("#files", *[first] * 9)
        browser.wait_until("!document.getElementById('message').hidden")
        assert browser.evaluate(f"{CARDS}.length") == 3
        assert browser.complaints == []


def test_the_keyboard_reaches_the_file_button_first(address: str, tmp_path: Path) -> None:
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.id") == "files"
        browser.screenshot(tmp_path / "page.png", width=360)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 360
