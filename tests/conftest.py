"""Fixtures for all tests. Real data and weights are used where they lie beside the checkout, else skipped.

So is a browser where one is installed. It is driven over its own pipe (`--remote-debugging-pipe`: JSON messages that
end with a zero byte), so that neither a package nor a port is needed.
"""

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.faults.warm import Bench

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage", "remote-debugging-pipe",
)  # fmt: skip
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Tab": 9, "Home": 36, "End": 35}
PATIENCE = 30.0  # seconds for any answer, on a machine that does a lot besides
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


# A slow machine is no fault: no example has a time limit, and generating inputs may take as long as it takes.
hypothesis.settings.register_profile(
    "patient", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], print_blob=True
)
hypothesis.settings.load_profile("patient")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, with the reason, where there is none."""
    waiting = [item for item in items if item.get_closest_marker("gpu")]
    if not waiting:
        return
    import torch

    if not torch.cuda.is_available():
        for item in waiting:
            item.add_marker(pytest.mark.skip(reason="no CUDA device that torch can use"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("no shared/data folder beside the checkout (outside users do not have it)")
    return folder


@pytest.fixture(scope="session")
def shared_imagenet() -> Path:
    path = SHARED / "weights" / "tf_efficientnet_lite0.safetensors"
    if not path.is_file():
        pytest.skip("no shared/weights folder beside the checkout (outside users do not have it)")
    return path


@pytest.fixture(scope="session")
def shared_weights() -> Path:
    path = SHARED / "weights" / "resnet18_ebhi.safetensors"
    if not path.is_file():
        pytest.skip("no shared/weights folder beside the checkout (outside users do not have it)")
    return path


class Browser:
    """One headless browser with one page."""

    def __init__(self, binary: str, profile: Path) -> None:
        to_browser, self._send = os.pipe()
        self._receive, from_browser = os.pipe()
        flags = [f"--{flag}" for flag in FLAGS] + [f"--user-data-dir={profile}", "about:blank"]
        # The protocol wants the file descriptors 3 and 4, whatever numbers the pipes have here.
        shell = f'exec 3<&{to_browser} 4>&{from_browser}; exec "$0" "$@"'
        self.process = subprocess.Popen(
            ["bash", "-c", shell, binary, *flags], pass_fds=(to_browser, from_browser), start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        self._rest, self._id, self.session, self.events = b"", 0, "", []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params) -> dict:
        """One command and its answer; what the browser tells meanwhile is kept in `events`."""
        self._id += 1
        message = {"id": self._id, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._send, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while (answer := self._read(deadline)).get("id") != self._id:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _read(self, deadline: float) -> dict:
        while b"\0" not in self._rest:
            if not select.select([self._receive], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._receive, 1 << 16)
            if not part:
                raise RuntimeError(f"the browser has ended with {self.process.wait()}")
            self._rest += part
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def js(self, expression: str):
        """The value of an expression in the page."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in done:
            raise RuntimeError(done["exceptionDetails"]["exception"]["description"])
        return done["result"].get("value")

    def wait(self, expression: str):
        """The value of an expression as soon as it is true."""
        deadline = time.monotonic() + PATIENCE
        while not (value := self.js(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(expression)
            time.sleep(0.02)
        return value

    def settle(self) -> None:
        """Until everything asked for is drawn."""
        self.js("new Promise((f) => requestAnimationFrame(() => requestAnimationFrame(f))).then(() => true)")

    def open(self, url: str, width: int = 1300, height: int = 1000, dark: bool = False) -> None:
        self.events.clear()
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.js("window.before = true")
        self.call("Page.navigate", url=url)
        self.wait("!window.before && document.readyState === 'complete'")

    def key(self, name: str) -> None:
        """A key pressed and let go, as if typed."""
        key = {"key": name, "code": name, "windowsVirtualKeyCode": KEYS[name]}
        text = {"text": "\r"} if name == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", **key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **key)

    def shot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def complaints(self) -> list[str]:
        """Errors and warnings of the page since it was opened, and every address it asked for but its own."""
        found = []
        for event in self.events:
            name, p = event.get("method", ""), event.get("params", {})
            if name in ("Runtime.exceptionThrown", "Log.entryAdded") or (
                name == "Runtime.consoleAPICalled" and p["type"] in ("error", "warning", "assert")
            ):
                found.append(json.dumps(p)[:500])
            elif name == "Network.requestWillBeSent":
                url = p["request"]["url"]
                if not (url.startswith(("data:", "blob:")) or (p["type"] == "Document" and url.startswith("file:"))):
                    found.append(f"asked for {url[:200]}")
        return found

    def close(self) -> None:
        os.close(self._send)  # at the end of its pipe the browser ends
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        os.close(self._receive)


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of a process; `open` gives each of them a fresh page."""
    named = os.environ.get("BROWSER_BINARY")
    binary = named or next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is installed and BROWSER_BINARY is not set")
    browser = Browser(binary, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def warm_bench() -> Iterator[Bench]:
    """The real command line without the seconds of importing: `warm_bench(*words)`, `warm_bench.start(*words)`."""
    bench = Bench()
    yield bench
    bench.close()
