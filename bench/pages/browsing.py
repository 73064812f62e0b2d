"""A dashboard's server and a page of headless Chromium: what a person sees, and what went wrong. For tests and `bench.pages`."""

import contextlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import TimeoutError, sync_playwright

from bench.listening import free_port, wait_for

PAGES = ("Frontier", "Dominance", "Steering", "Samples", "Playground", "Runs")
APP = Path(__file__).resolve().parents[2] / "dashboard" / "app.py"
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
# Opened by its address, a page first asks for these below its own path, before it looks at the root (Streamlit 1.67).
DEEP_LINK = ("/_stcore/health", "/_stcore/host-config")


@contextlib.contextmanager
def serving(store: Path) -> Iterator[str]:
    """Run the dashboard on a store; yields its address."""
    port = free_port()
    options = ["--server.port", str(port), "--", "--store", str(store)]
    command = [sys.executable, "-m", "streamlit", "run", str(APP), *options]
    process = subprocess.Popen(command, cwd=APP.parent.parent, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/_stcore/health", process, 60)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """Start headless Chromium; yields playwright's browser, None when the machine has none."""
    path = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
    if path is None:
        yield None
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page on the dashboard; `problems` collects errors of the console and requests to other hosts."""

    def __init__(self, browser: Any, address: str, width: int = 1280, scheme: str = "light") -> None:
        self.address, self.problems, self.lost_clicks = address, list[str](), 0
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.page.set_default_timeout(60_000)
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self._request(request.url))
        self.page.on("websocket", lambda socket: self._request(socket.url))

    def open(self, title: str, width: int = 1280) -> Any:
        """Open the first page, then the one with this title as a person does, from the navigation."""
        self.page.goto(self.address)
        self.arrived("Frontier")
        if title != "Frontier":
            if width < 800:
                self.page.get_by_test_id("stExpandSidebarButton").click()
            self.go(title)
            if width < 800:
                self.page.get_by_test_id("stSidebarCollapseButton").get_by_role("button").click()
        self.settle()
        return self.page

    def go(self, title: str) -> None:
        """Follow the navigation's link to another page.

        A click is lost when it meets the moment in which a page starts over for a new publication: Streamlit 1.67 then
        starts the old page over. So a second one.
        """
        link = self.page.get_by_role("link", name=title, exact=True)
        link.click()
        try:
            self.arrived(title, 10_000)
        except TimeoutError:
            self.lost_clicks += 1
            link.click()
            self.arrived(title)

    def arrived(self, title: str, milliseconds: int = 60_000) -> None:
        """Wait for the heading of a page."""
        heading = "Runs and promotions" if title == "Runs" else title
        self.page.get_by_role("heading", name=heading, exact=True, level=1).wait_for(timeout=milliseconds)

    def settle(self) -> None:
        """Wait until the script has run and the figures are drawn."""
        self.page.wait_for_function(
            """() => !document.querySelector('[data-testid=stStatusWidget]')
                && document.querySelectorAll('[data-stale=true]').length === 0
                && [...document.querySelectorAll('.js-plotly-plot')].every(plot => plot.querySelector('.main-svg'))"""
        )

    def traces(self, key: str) -> list[dict[str, Any]]:
        """Return the traces of the figure drawn under a key, as plotly holds them (typed arrays as lists)."""
        # while a figure is replaced there are two of it, or one that has no data yet: looked at and read in one step
        handle = self.page.wait_for_function(
            """selector => {
                const plots = document.querySelectorAll(selector);
                if (plots.length !== 1 || !plots[0].data) return null;
                return JSON.stringify(plots[0].data.map(({name, x, y, z, type}) => ({name: name ?? null, x, y, z, type})),
                    (_, value) => ArrayBuffer.isView(value) ? Array.from(value) : value?.bdata !== undefined ? value._inputArray
                    ? Array.from(value._inputArray) : value : value);
            }""",
            arg=f".st-key-{key} .js-plotly-plot",
        )
        found: list[dict[str, Any]] = json.loads(handle.json_value())
        return found

    def shown(self) -> str:
        """Return all text of the page."""
        return str(self.page.get_by_test_id("stMain").inner_text())

    def _console(self, message: Any) -> None:
        if message.type == "error" and not message.location.get("url", "").endswith(DEEP_LINK):
            self.problems.append(message.text)

    def _request(self, url: str) -> None:
        if not url.startswith(("data:", "blob:")) and url.split("/")[2] != self.address.split("/")[2]:
            self.problems.append(f"request to {url}")
