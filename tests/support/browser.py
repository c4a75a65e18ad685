"""A Chromium, driven over the DevTools protocol through a pipe: it needs nothing else."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest

_PLACES: Final = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

ABSENT: Final = (
    "no Chromium at the usual places; $CHROMIUM names one (Debian: apt install chromium)"
)


def find_browser() -> str | None:
    """The browser to test with: what $CHROMIUM names, or one at the usual places."""
    named = os.environ.get("CHROMIUM")
    places = [place for place in (named, *_PLACES) if place]
    return next((found for place in places if (found := shutil.which(place))), None)


class Browser:
    """A browser without windows, with an empty profile. As a context manager it ends afterwards."""

    def __init__(self, program: str, profile: Path, *arguments: str) -> None:
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()

        def pipes() -> None:
            # The protocol is spoken on 3 and 4, where each of them may be already.
            kept = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser, from_browser)]
            os.dup2(kept[0], 3)
            os.dup2(kept[1], 4)

        self._log = profile.with_suffix(".log")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    program, "--headless=new", "--remote-debugging-pipe", "--no-first-run",
                    "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
                    "--disable-background-networking", "--disable-component-update",
                    "--force-color-profile=srgb", "--font-render-hinting=none",
                    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
                    *(("--no-sandbox",) if os.geteuid() == 0 else ()),
                    *arguments, f"--user-data-dir={profile}", "about:blank",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                close_fds=False, preexec_fn=pipes, start_new_session=True,
            )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._number = 0
        self._lock = threading.Lock()
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._listeners: list[Callable[[dict[str, Any]], None]] = []
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End it and all its processes, which are a group of their own."""
        with suppress(AssertionError, OSError, subprocess.TimeoutExpired):
            self.call("Browser.close", timeout=5)
            self.process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        os.close(self._write)

    def call(
        self, method: str, session: str | None = None, *, timeout: float = 30, **parameters: Any
    ) -> Any:
        """The result of a command."""
        with self._lock:
            self._number += 1
            number = self._number
            answer = self._answers[number] = queue.Queue()
            message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
            if session:
                message["sessionId"] = session
            data = json.dumps(message).encode() + b"\0"
            while data:
                data = data[os.write(self._write, data) :]
        try:
            received = answer.get(timeout=timeout)
        except queue.Empty:
            log = self._log.read_text(errors="replace")[-2000:]
            raise AssertionError(f"{method}: no answer after {timeout} s\n{log}") from None
        finally:
            del self._answers[number]
        assert "error" not in received, f"{method}: {received['error']}"
        return received["result"]

    def listen(self, listener: Callable[[dict[str, Any]], None]) -> None:
        """Call it with every event of the protocol."""
        self._listeners.append(listener)

    def tab(self, *, width: int = 1280, height: int = 900, dark: bool = False) -> Tab:
        """A new tab, in a context of its own: cookies and storage are not shared with others."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)
        session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)[
            "sessionId"
        ]
        return Tab(self, context, session, width, height, dark=dark)

    def _listen(self) -> None:
        buffered = b""
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while data := pipe.read(1 << 16):
                buffered += data
                *messages, buffered = buffered.split(b"\0")
                for message in map(json.loads, messages):
                    if (number := message.get("id")) is None:
                        for listener in list(self._listeners):
                            listener(message)
                    elif number in self._answers:
                        self._answers[number].put(message)


class Tab:
    """One tab, and what went wrong in it."""

    def __init__(
        self,
        browser: Browser,
        context: str,
        session: str,
        width: int,
        height: int,
        *,
        dark: bool,
    ) -> None:
        self._browser = browser
        self._context = context
        self._session = session
        self.problems: list[str] = []
        """Exceptions, and errors of the console: violations of the policy are among them."""
        self.requested: list[str] = []
        """The URLs of all requests."""
        browser.listen(self._note)
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )

    def call(self, method: str, *, timeout: float = 30, **parameters: Any) -> Any:
        """The result of a command."""
        return self._browser.call(method, self._session, timeout=timeout, **parameters)

    def close(self) -> None:
        """Close it, and forget its cookies."""
        self._browser.call("Target.disposeBrowserContext", browserContextId=self._context)

    def resize(self, width: int, height: int) -> None:
        """Give it another size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=False,
        )  # fmt: skip

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("sessionId") != self._session:
            return
        method, event = message["method"], message["params"]
        if method == "Runtime.exceptionThrown":
            details = event["exceptionDetails"]
            said = details.get("exception", {}).get("description", "")
            self.problems.append(f"{details['text']} {said}")
        elif method == "Runtime.consoleAPICalled" and event["type"] == "error":
            said = " ".join(str(a.get("value", a.get("description"))) for a in event["args"])
            self.problems.append(said)
        elif method == "Log.entryAdded" and event["entry"]["level"] == "error":
            # What the server refuses, and that it is away, is shown by the page.
            if event["entry"]["source"] != "network":
                self.problems.append(event["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requested.append(event["request"]["url"])

    def replace(self, end: str, body: str | None, content_type: str = "text/javascript") -> None:
        """From now on, what has a URL with this end is `body`; None: there is no such thing."""

        def answer(request: str) -> None:
            headers = [{"name": "content-type", "value": content_type}]
            with suppress(AssertionError):  # a tab that was closed meanwhile
                self.call(
                    "Fetch.fulfillRequest",
                    requestId=request, responseCode=404 if body is None else 200,
                    responseHeaders=headers,
                    body=base64.b64encode((body or "").encode()).decode(),
                )  # fmt: skip

        def note(message: dict[str, Any]) -> None:
            if message.get("sessionId") == self._session and message["method"] == _PAUSED:
                # Not here: whoever listens is who reads the answer.
                request = message["params"]["requestId"]
                threading.Thread(target=answer, args=(request,), daemon=True).start()

        self._browser.listen(note)
        self.call("Fetch.enable", patterns=[{"urlPattern": f"*{end}"}])

    def open(self, url: str) -> None:
        """Go there."""
        self.call("Page.navigate", url=url)

    def run(self, script: str, *, timeout: float = 30) -> Any:
        """The value of an expression; a promise is waited for."""
        answer = self.call(
            "Runtime.evaluate",
            expression=script, awaitPromise=True, returnByValue=True, userGesture=True,
            timeout=timeout,
        )  # fmt: skip
        if "exceptionDetails" in answer:
            raise AssertionError(f"{script[:200]}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if self.run(f"!!({condition})"):
                    return
            except AssertionError:  # a page that is just being left, or that has begun
                if time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                text = self.run("document.body?.innerText")
                raise AssertionError(f"{condition} does not become true; the page says:\n{text}")
            time.sleep(0.03)

    def text(self, selector: str = "body") -> str:
        """The text that is seen."""
        return str(self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def click(self, selector: str) -> None:
        """Click on the first element that matches, where it is; again if the page has put it
        somewhere else meanwhile, as somebody who looks would."""
        for _ in range(5):
            place = self.run(
                f"""(() => {{ const s = {json.dumps(selector)}, e = document.querySelector(s);
                globalThis.hit = false;
                const note = event => {{ globalThis.hit = !!event.target.closest(s); }};
                document.addEventListener("click", note, {{ capture: true, once: true }});
                e.scrollIntoView({{ block: "center" }}); const r = e.getBoundingClientRect();
                return [r.x + r.width / 2, r.y + r.height / 2]; }})()"""
            )
            for kind in ("mousePressed", "mouseReleased"):
                self.call(
                    "Input.dispatchMouseEvent",
                    type=kind, x=place[0], y=place[1], button="left", clickCount=1,
                )  # fmt: skip
            try:
                if self.run("globalThis.hit !== false"):
                    return
            except AssertionError:
                return  # the page is being left
        raise AssertionError(f"clicks do not reach {selector}")

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def press(self, *keys: str) -> None:
        """Press keys, one after the other, such as `Tab` and `Enter`."""
        for key in keys:
            code = _KEYS.get(key, 0)
            text: dict[str, Any] = {"text": "\r"} if key == "Enter" else {}
            for kind in ("keyDown", "keyUp"):
                self.call(
                    "Input.dispatchKeyEvent",
                    type=kind, key=key, code=key, windowsVirtualKeyCode=code,
                    **(text if kind == "keyDown" else {}),
                )  # fmt: skip

    def screenshot(self, file: Path, *, full: bool = False) -> Path:
        """What is seen, as PNG; all of the page with `full`."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=full)
        file.write_bytes(base64.b64decode(data["data"]))
        return file


_PAUSED: Final = "Fetch.requestPaused"
_KEYS: Final = {
    "Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "PageDown": 34,
    "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40,
}  # fmt: skip


def started(profile: Path, arguments: Sequence[str] = ()) -> Browser:
    """A browser; skips the test where there is none."""
    program = find_browser()
    if program is None:
        pytest.skip(ABSENT)
    return Browser(program, profile, *arguments)
