"""The report in a real browser with the network closed: no request, no console error."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from test_report import HOSTILE

from posttrain.report import write_report
from tests.run_edits import add_note, copy_run

pytestmark = pytest.mark.browser

CHROMIUM = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
        if (found := shutil.which(name))
    ),
    None,
)
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-sync", "--disable-background-networking", "--disable-component-update"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe", "--hide-scrollbars"),
)
SECONDS = 60.0


class Browser:
    """Headless Chromium behind its debugging pipe: messages are JSON, each ended by a zero byte."""

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        # Chromium reads from descriptor 3 and writes to 4; copies past 10 cannot be either.
        copies = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (theirs_in, theirs_out)]
        wire = f"import os, sys; os.dup2({copies[0]}, 3); os.dup2({copies[1]}, 4); "
        rules = "--host-resolver-rules=MAP * ~NOTFOUND"
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-c", wire + "os.execv(sys.argv[1], sys.argv[1:])"),
                *(CHROMIUM, *FLAGS, rules, f"--user-data-dir={profile}"),
            ],
            pass_fds=copies,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *copies):
            os.close(fd)
        self._buffer = b""
        self._next_id = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Network", "Log", "Runtime", "Page"):
            self.call(f"{domain}.enable")
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self.call("Network.emulateNetworkConditions", **offline)

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events on the way are kept."""
        self._next_id += 1
        message: dict[str, Any] = {"id": self._next_id, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + SECONDS
        while True:
            answer = self._read(deadline)
            assert answer is not None, f"no answer to {method} within {SECONDS} s"
            if answer.get("id") == self._next_id:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def settle(self, seconds: float) -> None:
        """Collect events for a while."""
        deadline = time.monotonic() + seconds
        while (event := self._read(deadline)) is not None:
            self.events.append(event)

    def open(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Show a file, wait until it is loaded, unfold everything on it."""
        self.events.clear()
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.navigate", url=path.as_uri())
        deadline = time.monotonic() + SECONDS
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            event = self._read(deadline)
            assert event is not None, "the page did not load"
            self.events.append(event)
        self.run("document.querySelectorAll('details').forEach(d => d.open = true)")
        self.settle(0.5)

    def run(self, code: str) -> Any:
        """The value of a JavaScript expression on the page."""
        result = self.call("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def requests(self) -> list[str]:
        """Addresses that the page asked for, itself and data: left out."""
        here = self.run("location.href").partition("#")[0]
        sent = [e["params"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        urls = [p["request"]["url"] for p in sent]
        return [url for url in urls if url != here and not url.startswith("data:")]

    def complaints(self) -> list[str]:
        """Console messages, log entries and exceptions."""
        kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
        return [json.dumps(e["params"]) for e in self.events if e.get("method") in kinds]

    def shoot(self, path: Path) -> None:
        """Save a picture of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _read(self, deadline: float) -> dict[str, Any] | None:
        while b"\0" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._in], [], [], left)[0]:
                return None
            read = os.read(self._in, 1 << 16)
            assert read, "Chromium ended"
            self._buffer += read
        line, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(line)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on PATH")
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def report(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(tiny_run / "run", tmp_path_factory.mktemp("page") / "report.html")


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_it_opens_without_a_request_or_a_complaint(
    browser: Browser, report: Path, width: int, dark: bool
) -> None:
    browser.open(report, width=width, dark=dark)
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.run("document.querySelectorAll('svg.chart').length") > 20
    assert browser.run("document.documentElement.scrollWidth") <= width
    paper = browser.run("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(21, 23, 26)" if dark else "rgb(252, 251, 248)")
    axis = "getComputedStyle(document.querySelector('svg.chart text')).fill"
    assert browser.run(axis) == ("rgb(160, 165, 171)" if dark else "rgb(98, 104, 111)")


def test_hostile_text_runs_nothing_and_asks_for_nothing(
    browser: Browser, tiny_run: Path, tmp_path: Path
) -> None:
    run = copy_run(tiny_run / "run", tmp_path / "hostile")
    add_note(run, HOSTILE)
    browser.open(write_report(run, tmp_path / "report.html"), width=390)
    assert browser.requests() == []
    assert browser.complaints() == []
    assert browser.run("document.scripts.length + document.images.length") == 0
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert browser.run("document.body.innerText.includes('<script>alert(1)</script>')")


def test_this_harness_sees_requests_and_complaints(browser: Browser, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<!doctype html><img src='https://evil.example/x.png'><script>console.error(1)</script>"
    )
    browser.open(bad)
    assert browser.requests() == ["https://evil.example/x.png"]
    assert len(browser.complaints()) >= 2
