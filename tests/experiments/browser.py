"""A headless Chromium that opens a page and says what is wrong with it, over the pipe of its developer tools."""

import contextlib
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-quic", "--hide-scrollbars", "--remote-debugging-pipe",
)  # fmt: skip
_TIMEOUT = 60.0  # seconds
# The browser reads commands from descriptor 3 and writes answers to 4.
_START = "import os, sys; r, w = (os.dup2(int(n), 60 + i) for i, n in enumerate(sys.argv[1:3])); os.dup2(r, 3); os.dup2(w, 4); \
os.execv(sys.argv[3], sys.argv[3:])"
_LOOK = """(() => ({
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  widest: [...document.querySelectorAll('body *')].filter(e => !e.closest('.box'))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + '.' + e.className).slice(0, 5),
  broken: [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.alt),
  images: [...document.images].map(i => ({alt: i.alt, source: i.currentSrc.slice(-200), width: i.getBoundingClientRect().width})),
}))()"""


class Browser:
    """An open browser with one page."""

    def __init__(self, commands: int, answers: int):
        self._commands, self._answers, self._rest, self._count = commands, answers, b"", 0
        self.events: list[dict] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session: str | None = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """The answer to a command; events that come before it are kept."""
        self._count += 1
        session = {"sessionId": self._session} if getattr(self, "_session", None) else {}
        os.write(self._commands, json.dumps({"id": self._count, "method": method, "params": params} | session).encode() + b"\0")
        while True:
            message = self._next()
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]

    def look(self, path: pathlib.Path, width: int, scheme: str = "light", height: int = 900) -> dict:
        """What a page is like at a width, in "light" or "dark": overflow in pixels, broken images, images, and errors."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + _TIMEOUT
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._next(deadline)
        found = self.call("Runtime.evaluate", expression=_LOOK, returnByValue=True)["result"]["value"]
        return found | {"errors": [error for event in self.events if (error := _error(event))]}

    def picture(self, path: pathlib.Path) -> None:
        """A screenshot of the whole page as a PNG file."""
        import base64

        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def _next(self, deadline=None):
        deadline = deadline or time.monotonic() + _TIMEOUT
        while b"\0" not in self._rest:
            if not select.select([self._answers], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                raise TimeoutError(f"Chromium did not answer within {_TIMEOUT:.0f} s")
            part = os.read(self._answers, 1 << 20)
            if not part:
                raise RuntimeError("Chromium ended")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextlib.contextmanager
def opened(folder: pathlib.Path) -> Iterator[Browser]:
    """A browser with a fresh profile in a folder; it ends with the context."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = [sys.executable, "-c", _START, str(theirs_in), str(theirs_out), str(CHROMIUM), *_FLAGS, f"--user-data-dir={folder}"]
    process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stderr=subprocess.DEVNULL)
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        os.close(ours_out)  # at the end of its commands the browser ends
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ours_in)


def _error(event):
    params = event["params"]
    if event["method"] == "Runtime.exceptionThrown":
        return params["exceptionDetails"].get("exception", {}).get("description") or params["exceptionDetails"]["text"]
    if event["method"] == "Runtime.consoleAPICalled" and params["type"] == "error":
        return " ".join(str(argument.get("value")) for argument in params["args"])
    if event["method"] == "Log.entryAdded" and params["entry"]["level"] == "error":
        return params["entry"]["text"]
    return None
