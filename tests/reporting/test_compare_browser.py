"""compare.html in a real browser: at the width of a desk and of a phone, light and dark."""

from __future__ import annotations

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from typing import Iterator

import pytest

from reporting.__main__ import main
from tests.prediction.browser import PROGRAM, Browser
from tests.reporting.findings import HOSTILE
from tests.reporting.recorded import write_run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None or find_spec("websocket") is None,
        reason="needs Chromium (apt install chromium) and websocket-client",
    ),
]


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def address(tmp_path, step_record, validation_record) -> Iterator[str]:
    names = ["a", "b <b>bold", "c" * 90]
    runs = [
        write_run(tmp_path / name, step_record, validation_record, wandb_project_name=f"{HOSTILE} {name}")
        for name in names
    ]
    assert main(["compare", *map(str, runs), "--output", str(tmp_path / "compare.html")]) == 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/compare.html"
    server.shutdown()


def test_curves_and_tables_fit_a_desk_and_a_phone(address, tmp_path):
    with Browser(tmp_path / "profile") as browser:
        browser.open(address)
        assert browser.evaluate("document.querySelectorAll('#loss svg.scales path.line').length") == 3
        assert browser.evaluate("document.querySelectorAll('b, img, script').length") == 0
        for width in (1200, 390):
            for dark in (False, True):
                browser.screenshot(tmp_path / f"{width}.png", width, dark=dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
        paper = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == "rgb(20, 22, 26)"  # dark, as the last one was asked for
        assert browser.complaints == []
