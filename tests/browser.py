"""A real headless browser for the tests of our pages: Debian's chromium, driven by the DevTools protocol.

    with Browser() as browser, browser.open(path, width=390) as page:
        assert page.run("return document.title") == "…"
        page.press("Tab")
        assert page.errors == page.requests == []

The protocol uses a pipe, so no port is opened and the standard library is enough. ``Page.run`` runs JavaScript in the
page and returns its result by way of JSON. ``errors`` holds console messages, exceptions and refused loads.
``requests`` holds every URL that the page requested besides its own file. This module knows nothing about our pages.
Without a browser, the fixture ``browser`` of conftest.py skips the test with :data:`MISSING`.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MISSING = "no chromium here (Debian: apt-get install chromium)"
SECONDS = 60.0  # longest wait for one answer; a loaded machine is slow to start a browser
KEYS = {"Tab": 9, "Enter": 13, "Escape": 27, " ": 32, "Home": 36, "End": 35,
        "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}  # fmt: skip
TEXT = {"Enter": "\r", " ": " "}


def find_browser() -> str | None:
    """The path of a Chromium, or None."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One browser process. Its profile is deleted when it ends. RuntimeError without a browser."""

    def __init__(self) -> None:
        program = find_browser()
        if program is None:
            raise RuntimeError(MISSING)
        self._profile = tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True)
        to_browser, self._in = os.pipe()
        self._out, from_browser = os.pipe()
        # The browser reads fd 3 and writes fd 4. The shell sets these; copies above 9 cannot be overwritten by that.
        ours = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (to_browser, from_browser)]
        command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                   "--no-first-run", "--disable-background-networking", "--disable-component-update",
                   "--remote-debugging-pipe", f"--user-data-dir={self._profile.name}", "about:blank"]  # fmt: skip
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ours[0]} 4>&{ours[1]}', "bash", *command],
            pass_fds=ours, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        for fd in (to_browser, from_browser, *ours):
            os.close(fd)
        self._rest = b""
        self._number = 0
        self._pages: dict[str, Page] = {}

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._in)  # the browser ends when its pipe does
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._out)
        self._profile.cleanup()

    @contextmanager
    def open(self, path: Path, *, width: int = 1280, height: int = 900, is_phone: bool = False) -> Iterator[Page]:
        """A tab with the loaded file, in a window of ``width`` × ``height`` CSS pixels.

        ``is_phone``: touch instead of a mouse, and the viewport of a phone.
        """
        target = self.call("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.call("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height, is_phone=is_phone)
        page.go(path)
        yield page
        del self._pages[session]
        self.call("Target.closeTarget", {"targetId": target})

    def call(self, method: str, values: dict[str, Any] | None = None, session: str | None = None) -> dict[str, Any]:
        """Send one command and return its answer. Events go to their pages meanwhile. RuntimeError for an error."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": values or {}}
        message |= {"sessionId": session} if session else {}
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._in, data) :]
        while True:
            answer = self.receive()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def receive(self) -> dict[str, Any]:
        """The next message. An event is also given to its page. RuntimeError when no message comes."""
        deadline = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            if not select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise RuntimeError(f"the browser said nothing for {SECONDS:.0f} s")
            data = os.read(self._out, 1 << 20)
            if not data:
                raise RuntimeError("the browser ended")
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        message = json.loads(line)
        page = self._pages.get(message.get("sessionId", ""))
        if page is not None and "method" in message:
            page.hear(message["method"], message["params"])
        return message


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.errors: list[str] = []
        self.requests: list[str] = []
        self._own = ""
        self._is_loaded = False

    def call(self, method: str, **values: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol to this tab. The other methods use it."""
        return self._browser.call(method, values, self._session)

    def hear(self, method: str, values: dict[str, Any]) -> None:
        """Record an event: the end of loading, an error or a request."""
        if method == "Page.loadEventFired":
            self._is_loaded = True
        elif method == "Runtime.exceptionThrown":
            details = values["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(a.get("value", a.get("description"))) for a in values["args"]))
        elif method == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent" and values["request"]["url"].partition("#")[0] != self._own:
            self.requests.append(values["request"]["url"])

    def go(self, path: Path) -> None:
        """Show a file and wait until it is loaded."""
        self._own, self._is_loaded = path.resolve().as_uri(), False
        answer = self.call("Page.navigate", url=self._own)
        if "errorText" in answer:
            raise RuntimeError(f"{self._own}: {answer['errorText']}")
        while not self._is_loaded:
            self._browser.receive()

    def run(self, script: str) -> Any:
        """Run the body of a JavaScript function, which may ``await``, and return its result by way of JSON.

        RuntimeError with the exception that the script threw.
        """
        answer = self.call(
            "Runtime.evaluate", expression=f"(async () => {{ {script} }})()", returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"].get("description", "the script threw"))
        return answer["result"].get("value")

    def resize(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Set the window size in CSS pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=is_phone
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=is_phone, maxTouchPoints=1)

    def media(self, kind: str = "screen", **features: str) -> None:
        """Show the page in another medium, such as ``print``, or with features: ``prefers_color_scheme="dark"``."""
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", media=kind, features=named)

    def press(self, key: str, *, shift: bool = False) -> None:
        """Send one key of :data:`KEYS`, or one character, to the focused element."""
        text = TEXT.get(key, key if len(key) == 1 else "")
        values = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS.get(key, 0), "modifiers": 8 if shift else 0}
        self.call("Input.dispatchKeyEvent", type="keyDown", **values, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **values)

    def hover(self, selector: str) -> None:
        """Move the mouse over the middle of the first element that matches."""
        self.call("Input.dispatchMouseEvent", type="mouseMoved", **self._middle(selector))

    def click(self, selector: str) -> None:
        """Click the first element that matches, with the mouse."""
        self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **self._middle(selector))

    def tap(self, selector: str) -> None:
        """Tap the first element that matches, with a finger."""
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[self._middle(selector)])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])

    def _middle(self, selector: str) -> dict[str, float]:
        """The middle of the first element that matches, in window coordinates, after scrolling it into view."""
        place = self.run(
            f"const found = document.querySelector({json.dumps(selector)}); if (!found) return null;"
            "found.scrollIntoView({block: 'center', behavior: 'instant'}); const box = found.getClientRects()[0];"
            "return {x: box.x + box.width / 2, y: box.y + box.height / 2};"
        )
        if place is None:
            raise RuntimeError(f"nothing on the page matches {selector}")
        return place

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """The printed page as PDF."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])
