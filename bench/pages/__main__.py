"""The dashboard in headless Chromium: `python -m bench.pages shoot` takes pictures of it, `... time` measures it.

`time` publishes a store of millions of per-prompt rows (as `bench.store_scale`) and prints JSON: seconds to the first paint,
to the title and to the finished page, of every interaction, each from the action to the last change of the page, and of each
page's script on the server. With `--playground` it also times how soon the playground writes.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from PIL import Image
from streamlit.testing.v1 import AppTest

from bench.pages.browsing import APP, PAGES, Visit, chromium, serving
from bench.store_scale import synthetic_store
from clp_lightning.errors import ClpError
from clp_lightning.store.queries import Store

LARGEST = 400_000  # bytes of a picture in git
QUIET_MS = 700  # without a change for so long, a page is finished
SCRIPT = """
import streamlit
from views import {page}
from clp_lightning.store.queries import Store

opened = streamlit.cache_resource(lambda: Store({store!r}))
{page}.page(opened())
"""
app = typer.Typer(no_args_is_help=True)


@app.command()
def shoot(
    store: Annotated[Path, typer.Option(help="The store to show; its folder has the models.")] = Path(
        "frontier.duckdb"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the pictures.")] = Path("docs/pages"),
    wait: Annotated[float, typer.Option(help="Seconds given to each page.")] = 3.0,
) -> None:
    """Take a picture of every page, light and 1,280 pixels wide, the playground dark too, the first page 390 wide too."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = [(page, 1280, "light") for page in PAGES] + [("Playground", 1280, "dark"), ("Frontier", 390, "light")]
    with serving(store) as address, chromium() as browser:
        _needed(browser)
        for title, width, scheme in wanted:
            visit = Visit(browser, address, width, scheme)
            page = visit.open(title, width)
            if title == "Playground":
                page.locator(".st-key-landed, [data-testid=stAlert]").first.wait_for()  # written, or no model
            page.wait_for_timeout(wait * 1000)
            height = page.evaluate("document.querySelector('[data-testid=stMainBlockContainer]').scrollHeight")
            page.set_viewport_size({"width": width, "height": min(height, 3200)})
            page.wait_for_timeout(1500)
            name = f"{title.lower()}{'' if scheme == 'light' else '-dark'}{'' if width == 1280 else f'-{width}'}.png"
            page.screenshot(path=out / name)
            page.close()
            with Image.open(out / name) as picture:  # 256 colours are enough for a page, and a third of the bytes
                picture.convert("P", palette=Image.Palette.ADAPTIVE).save(out / name, optimize=True)
            size = (out / name).stat().st_size
            print(f"{out / name}: {size / 1000:.0f} KB" + (" TOO LARGE" if size > LARGEST else ""), *visit.problems)


@app.command(name="time")
def measure(
    rows: Annotated[int, typer.Option(help="Per-prompt rows of the store.")] = 10_000_000,
    playground: Annotated[
        Path | None, typer.Option(help="A store with models beside it: times the playground too.")
    ] = None,
) -> None:
    """Measure first paint and interactions on a large store."""
    with tempfile.TemporaryDirectory() as name:
        store = synthetic_store(Path(name), rows)
        methods = Store(store).points(Store(store).run()["run_id"]).method.nunique()
        with serving(store) as address, chromium() as browser:
            _needed(browser)
            report = {"rows": rows, "methods": methods, **_measured(browser, address), "script_s": _scripts(store)}
        if playground:
            with serving(playground) as address, chromium() as browser:
                report["playground_s"] = _played(Visit(browser, address).open("Playground"))
        print(json.dumps(report, indent=2))


def _played(page: Any) -> dict[str, float]:
    """Move the first slider by one step: seconds until words are being written, and until all is drawn."""
    page.locator(".st-key-landed .js-plotly-plot .main-svg").first.wait_for()
    page.wait_for_timeout(3000)
    started = page.evaluate("performance.now()")
    page.get_by_role("slider").first.press("ArrowLeft")
    page.get_by_text("▍").first.wait_for()
    first = page.evaluate("performance.now()")
    page.get_by_text("▍").first.wait_for(state="detached")
    page.wait_for_function("document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'")
    seconds = {"first words": first, "all written and drawn": page.evaluate("performance.now()")}
    return {name: round((value - started) / 1000, 2) for name, value in seconds.items()}


def _measured(browser: Any, address: str) -> dict[str, Any]:
    Visit(browser, address).open("Frontier").close()  # the server imports its libraries for its first visitor
    visit = Visit(browser, address)
    page = visit.page
    page.add_init_script(
        """window.changed = 0; addEventListener('DOMContentLoaded', () => new MutationObserver(
            () => { window.changed = performance.now() }
        ).observe(document.body, {subtree: true, childList: true, characterData: true}))"""
    )
    page.goto(address)
    visit.arrived("Frontier")
    titled = page.evaluate("performance.now()")
    finished = _finished(page)
    paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    seconds = {
        name: round(value / 1000, 2) for name, value in [("first_paint", paint), ("title", titled), ("page", finished)]
    }
    return {"opening_s": seconds, "interactions_s": {name: _timed(page, act) for name, act in _interactions(visit)}}


def _scripts(store: Path) -> dict[str, float]:
    """Return the seconds that each page's script takes on the server, run a second time: what no browser has a part in."""
    sys.path.insert(0, str(APP.parent))
    seconds = {}
    for title in PAGES:
        script = SCRIPT.format(page=title.lower(), store=str(store))
        drawn = AppTest.from_string(script, default_timeout=60).run()
        started = time.monotonic()
        drawn.run()
        seconds[title] = round(time.monotonic() - started, 2)
    return seconds


def _interactions(visit: Visit) -> list[tuple[str, Callable[[], None]]]:
    page = visit.page

    def pick(key: str, option: str) -> None:
        field = page.locator(f".st-key-{key} input")
        field.click()
        field.fill(option)
        page.get_by_role("option", name=option).first.wait_for()  # Enter before the list is there chooses nothing
        page.keyboard.press("Enter")

    def search(text: str) -> None:
        page.get_by_label("Search the documents").fill(text)
        page.keyboard.press("Enter")

    return [
        ("frontier: leave a method out", lambda: page.get_by_role("checkbox", name="morlhf").or_(
            page.get_by_role("button", name="morlhf")).first.click()),
        ("frontier: move the weighting", lambda: page.get_by_role("slider").first.press("ArrowRight")),
        ("frontier: search the documents", lambda: search("resource 777")),
        ("open Dominance", lambda: visit.go("Dominance")),
        ("dominance: another statistic", lambda: page.get_by_role("radio", name="Win rate").click()),
        ("dominance: another cost", lambda: pick("cost", "models kept")),
        ("open Steering", lambda: visit.go("Steering")),
        ("steering: another monitor", lambda: pick("monitor", "length")),
        ("open Samples", lambda: visit.go("Samples")),
        ("samples: another method", lambda: pick("sampled", "rewarded-soups")),
        ("samples: search the documents", lambda: search("resource 4242")),
        ("samples: the worst answers", lambda: page.get_by_role("tab", name="Worst answers first").click()),
        ("samples: worst of another objective", lambda: pick("least", "readability")),
        ("open Runs", lambda: visit.go("Runs")),
        ("open Frontier", lambda: visit.go("Frontier")),
    ]  # fmt: skip


def _timed(page: Any, act: Callable[[], None]) -> float:
    started = page.evaluate("window.changed = performance.now()")
    act()
    return round((_finished(page) - started) / 1000, 2)


def _finished(page: Any) -> float:
    """Wait until nothing changes any more; returns when the last change was, in milliseconds of the page's clock."""
    page.wait_for_function(
        f"""() => performance.now() - window.changed > {QUIET_MS}
            && document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'"""
    )
    return float(page.evaluate("window.changed"))


def _needed(browser: Any) -> None:
    if browser is None:
        raise ClpError("no chromium on this machine; install it (Debian: apt install chromium)")


if __name__ == "__main__":
    app()
