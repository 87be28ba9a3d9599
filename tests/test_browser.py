"""The report in a real browser: it loads nothing, says no error, answers the reader, and fits a phone.

Needs chromium and its driver (Debian: ``apt-get install chromium chromium-driver``), and is skipped without them. The
driver is spoken to by its own protocol (W3C WebDriver), so that no Python package is needed.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import longtail
from longtail.report import write_comparison, write_report
from test_report import fake_run

pytestmark = pytest.mark.slow

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
ARROW_RIGHT = "\ue014"


class Browser:
    """One headless browser, by its driver."""

    def __init__(self, port: int, binary: str) -> None:
        self.at = f"http://127.0.0.1:{port}"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        options = {"binary": binary, "args": flags, "perfLoggingPrefs": {"enableNetwork": True}}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        made = self._send("POST", "/session", {"capabilities": {"alwaysMatch": capabilities}})
        self.session = f"/session/{made['sessionId']}"

    def _send(self, method: str, path: str, values: dict[str, Any] | None = None) -> Any:
        body = None if values is None else json.dumps(values).encode()
        asked = urllib.request.Request(self.at + path, body, {"Content-Type": "application/json"}, method=method)
        with urllib.request.urlopen(asked, timeout=60) as answer:
            return json.load(answer)["value"]

    def tell(self, path: str, **values: Any) -> Any:
        """A command of the session."""
        return self._send("POST", self.session + path, values)

    def devtools(self, command: str, **values: Any) -> Any:
        """A command of the browser's own protocol."""
        return self.tell("/goog/cdp/execute", cmd=command, params=values)

    def run(self, script: str, *values: Any) -> Any:
        """The value that a script returns."""
        return self.tell("/execute/sync", script=script, args=list(values))

    def open(self, page: Path, width: int = 1400, scheme: str = "light") -> None:
        """Show a page in a window so wide, for a reader who prefers this scheme; logs begin anew."""
        for kind in ("browser", "performance"):
            self.log(kind)
        self.devtools(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 700
        )
        scheme_feature = {"name": "prefers-color-scheme", "value": scheme}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme_feature])
        self.tell("/url", url=page.resolve().as_uri())

    def log(self, kind: str) -> list[dict[str, Any]]:
        """The entries since the last look."""
        entries: list[dict[str, Any]] = self.tell("/se/log", type=kind)
        return entries

    def requests(self) -> list[str]:
        """The addresses that the page asked for since it was opened."""
        messages = [json.loads(entry["message"])["message"] for entry in self.log("performance")]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def find(self, selector: str) -> str:
        """The first element that fits."""
        found: dict[str, str] = self.tell("/element", using="css selector", value=selector)
        return found[ELEMENT]

    def type(self, selector: str, keys: str) -> None:
        """Press keys in an element."""
        self.tell(f"/element/{self.find(selector)}/value", text=keys)

    def click(self, selector: str) -> None:
        """Click an element."""
        self.tell(f"/element/{self.find(selector)}/click")

    def picture(self, path: Path) -> None:
        """The whole page as a PNG file."""
        height = self.run("return document.documentElement.scrollHeight")
        width = self.run("return window.innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        made = self.devtools("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(made["data"]))

    def close(self) -> None:
        """End the browser."""
        self._send("DELETE", self.session)


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    binary = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if driver is None or binary is None:
        pytest.skip("no browser: apt-get install chromium chromium-driver")
    port = free_port()
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        shown = Browser(port, binary)
        yield shown
        shown.close()
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page with pictures of a run on scenes, one with hostile names, one of 1,000 classes, and a comparison."""
    folder = tmp_path_factory.mktemp("browser")
    trained = longtail.train(
        "scenes/concutmix", out=folder / "scenes", optim={"epochs": 1}, run={"threads": 1, "compile": False}
    )
    names = ["<img src=x onerror=alert(1)>", "</script><script>alert(1)</script>", "long " * 60, "x" * 300, "e"]
    hostile = fake_run(folder / "hostile", counts=[300, 120, 30, 8, 3], names=names, epochs=3)
    other = fake_run(folder / "other", counts=[300, 120, 30, 8, 3], names=names, epochs=3, method="x" * 300)
    many = fake_run(folder / "many", counts=[max(2, 1280 - 2 * k) for k in range(1000)], tested=2, epochs=3)
    return {
        "scenes": trained.report,
        "hostile": write_report(hostile, folder / "hostile.html", baseline=other),
        "many": write_report(many, folder / "many.html"),
        "compared": write_comparison([hostile, other], folder / "compared.html"),
    }


ALL = ("scenes", "hostile", "many", "compared")


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_loaded_and_the_console_is_silent(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    browser.run("for (const part of document.querySelectorAll('details')) part.open = true")
    asked = [address for address in browser.requests() if not address.startswith("data:")]
    assert asked == [pages[name].resolve().as_uri()]
    assert browser.log("browser") == []


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("width", [400, 1400])
def test_nothing_sticks_out_of_the_page(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    browser.open(pages[name], width)
    assert browser.run("return document.documentElement.scrollWidth") <= width
    outside = """
        return [...document.querySelectorAll('section, .tiles > div, .shot, svg, h1, p')]
            .filter(e => e.getClientRects().length && !e.closest('.scroll'))
            .filter(e => e.getBoundingClientRect().right > window.innerWidth + 1).map(e => e.outerHTML.slice(0, 80))
    """
    assert browser.run(outside) == []


@pytest.mark.parametrize("name", ALL)
def test_one_drawing_of_each_chart_is_shown_for_the_width(browser: Browser, pages: dict[str, Path], name: str) -> None:
    for width, shown in ((400, "narrow"), (1400, "wide")):
        browser.open(pages[name], width)
        seen = "return [...document.querySelectorAll('.explorer svg')].filter(e => e.getClientRects().length)"
        assert browser.run(f"{seen}.map(e => e.classList[1])") == [shown]


def test_pictures_are_there(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["scenes"])
    sizes = browser.run("return [...document.images].map(image => image.naturalWidth)")
    assert len(sizes) > 30
    assert set(sizes) == {32}


@pytest.mark.parametrize("name", ALL)
def test_the_slider_names_each_class_by_keyboard(browser: Browser, pages: dict[str, Path], name: str) -> None:
    browser.open(pages[name])
    said = "return document.querySelector('output').textContent"
    assert "Point at a class" in browser.run(said)
    browser.type("#class", ARROW_RIGHT)
    entry = "JSON.parse(document.getElementById('data').textContent).classes[1]"
    assert browser.run(f"{said}.includes({entry}.said)")
    assert browser.run(f"return document.querySelector('output bdi').textContent[0] === {entry}.name.trimStart()[0]")
    assert float(browser.run("return document.querySelector('svg.wide .cursor').getAttribute('width')")) > 0


def test_pointing_at_a_column_names_its_class_and_marks_its_images(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["scenes"])
    browser.run("document.querySelector('.explorer').scrollIntoView()")
    frame = "document.querySelector('svg.wide').getBoundingClientRect()"
    x, y = browser.run(f"return [{frame}.right - 12, {frame}.top + 40].map(Math.round)")
    move = {"type": "pointerMove", "duration": 0, "x": x, "y": y}
    browser.tell("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])
    assert browser.run("return document.querySelector('output bdi').textContent") == "nine"
    chosen = "return [...document.querySelectorAll('svg.space .dot.chosen')].map(e => e.dataset.class)"
    assert set(browser.run(chosen)) == {"9"}


def test_groups_of_the_feature_space_can_be_left_out(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["scenes"])
    shown = "return [...document.querySelectorAll('svg.space .dot.many')].filter(e => e.getClientRects().length).length"
    assert browser.run(shown) > 0
    browser.click("input[data-group=many]")
    assert browser.run(shown) == 0


def visible_rows(browser: Browser) -> list[str]:
    script = "return [...document.querySelector('table.sortable').tBodies[0].rows].filter(r => !r.hidden)"
    rows: list[str] = browser.run(f"{script}.map(row => row.cells[0].textContent)")
    return rows


def test_the_table_of_classes_is_searched_and_sorted(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["many"])
    assert len(visible_rows(browser)) == 1000
    browser.type("#find", "CLASS 99")
    assert visible_rows(browser) == ["class 99", *(f"class 99{k}" for k in range(10))]
    browser.click("table.sortable th:nth-child(2) button")
    counts = "return [...document.querySelector('table.sortable').tBodies[0].rows].map(r => +r.cells[1].dataset.value)"
    found: Sequence[int] = browser.run(counts)
    assert list(found) == sorted(found)
    browser.click("table.sortable th:nth-child(2) button")
    found = browser.run(counts)
    assert list(found) == sorted(found, reverse=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_told_from_its_ground(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    """Contrast of at least 4.5 (WCAG 2.1, 1.4.3), for all text of the page outside pictures."""
    browser.open(pages["scenes"], scheme=scheme)
    script = """
        const channel = v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
        const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
        const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
            if (!c.includes(', 0)') && c !== 'transparent') return c; } return 'rgb(255, 255, 255)'; };
        const weak = [];
        const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (walk.nextNode()) {
            const e = walk.currentNode.parentElement;
            if (!walk.currentNode.textContent.trim() || !e.getClientRects().length || e.closest('script')) continue;
            const style = getComputedStyle(e);
            const [a, b] = [light(e.closest('svg') ? style.fill : style.color), light(ground(e))].sort((x, y) => y - x);
            if ((a + 0.05) / (b + 0.05) < 4.5) weak.push(e.outerHTML.slice(0, 80));
        }
        return weak;
    """
    assert browser.run(script) == []


def test_pictures_of_the_pages_can_be_looked_at(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    """``LONGTAIL_PICTURES=FOLDER`` keeps them."""
    folder = Path(os.environ.get("LONGTAIL_PICTURES", tmp_path))
    for name in ALL:
        for width in (400, 1400):
            for scheme in ("light", "dark"):
                browser.open(pages[name], width, scheme)
                browser.picture(folder / f"{name}-{width}-{scheme}.png")
    grounds = set()
    for scheme in ("light", "dark"):
        browser.open(pages["scenes"], scheme=scheme)
        grounds.add(browser.run("return getComputedStyle(document.body).backgroundColor"))
    assert len(grounds) == 2
