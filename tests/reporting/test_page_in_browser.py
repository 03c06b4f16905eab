"""The page in a real browser: desktop and phone, light and dark."""

from __future__ import annotations

import time
from importlib.util import find_spec

import pytest

from tests.prediction.browser import PROGRAM, Browser
from tests.reporting import demo

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        PROGRAM is None or find_spec("websocket") is None,
        reason="needs Chromium (apt install chromium) and websocket-client",
    ),
]
ALL_LOADED = "[...document.images].every((one) => one.complete && one.naturalWidth > 0)"
COLOUR = "getComputedStyle(document.body).backgroundColor"


def open_page(browser, path):
    browser.call("Page.navigate", url=path.as_uri())
    browser.wait_until("document.readyState === 'complete' && location.protocol === 'file:'")


@pytest.mark.parametrize("kind", ["single", "multi", "hostile"])
def test_it_fits_desktop_and_phone_in_light_and_dark(tmp_path, kind):
    path = demo.write(tmp_path, kind)
    with Browser(tmp_path / "profile") as browser:
        open_page(browser, path)
        assert browser.evaluate(ALL_LOADED)
        colours = set()
        for width in (1280, 390):
            for dark in (False, True):
                browser.screenshot(tmp_path / "page.png", width=width, height=800, dark=dark)
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                colours.add(browser.evaluate(COLOUR))
        assert len(colours) == 2
        assert browser.complaints == []


def test_a_running_page_reloads_and_keeps_place_folds_and_pause(tmp_path):
    path = demo.write(tmp_path, "running")
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('data-reload-seconds="30"', 'data-reload-seconds="1"'), encoding="utf-8")
    with Browser(tmp_path / "profile") as browser:
        open_page(browser, path)
        browser.evaluate("window.before = true; document.getElementById('loss-values').open = true; scrollTo(0, 900)")
        browser.wait_until("window.before === undefined && document.readyState === 'complete'")
        browser.wait_until("document.getElementById('loss-values').open && Math.abs(scrollY - 900) < 2")
        browser.evaluate("window.before = true; document.getElementById('pause').checked = true")
        time.sleep(1.5)
        assert browser.evaluate("window.before")
        assert browser.complaints == []


def test_the_keyboard_reaches_the_skip_link_first(tmp_path):
    path = demo.write(tmp_path, "one")
    with Browser(tmp_path / "profile") as browser:
        open_page(browser, path)
        browser.press("Tab")
        assert browser.evaluate("document.activeElement.getAttribute('href')") == "#content"
