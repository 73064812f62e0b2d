"""The documentation site: built strictly, complete for parameters and commands, whole in its links, and without other hosts."""

import http.server
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import pytest
import typer
from locations import DEFAULT, REPOSITORY, recipe_values
from pydantic import BaseModel, Field
from ruamel.yaml import YAML

from clp_lightning.cli.app import app
from clp_lightning.config.recipes import recipes
from docs_site import commands, hooks, parameters

LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
}


class Html(HTMLParser):
    """Ids, links, and what a browser fetches by itself."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.ids, self.keys, self.links, self.fetched = set[str](), set[str](), list[str](), list[str]()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if "id" in values:
            self.ids.add(values["id"])
            self.keys |= {values["id"]} if tag == "code" else set()
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.fetched.append(values["href"])
        if values.get(LOADED.get(tag, "")):
            self.fetched.append(values[LOADED[tag]])
        self.fetched += [part.split()[0] for part in values.get("srcset", "").split(",") if part.strip()]
        self.fetched += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The site, built as `make docs` does; not to be changed."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


@pytest.fixture(scope="module")
def pages(built) -> dict[Path, Html]:
    return {path: Html(path) for path in built.rglob("*.html")}


ONE_KIND = ".risk"  # the section that has one kind: its keys stand beside it


def leaves(values: Any, path: str = "") -> Iterator[str]:
    """Paths of all values of a parameter file; below a section with kinds the kind is part of the path."""
    if not isinstance(values, dict) or not values:
        yield path
        return
    inner = path
    if "kind" in values:
        yield f"{path}.kind"
        inner = path if path.endswith(ONE_KIND) else f"{path}.{values['kind']}"
    for key, below in values.items():
        if key != "kind":
            yield from leaves(below, f"{inner}.{key}".removeprefix("."))


FILES = {"params": DEFAULT} | {name: recipe_values(name) for name in recipes(REPOSITORY)}


@pytest.mark.parametrize("file", FILES)
def test_every_key_of_a_parameter_file_is_on_the_page(pages, built, file):
    page = pages[built / "reference" / "parameters.html"]
    # NAME is any name, and a value that is a mapping has keys of its own
    known = re.compile("|".join(rf"{re.escape(key).replace('NAME', '[a-z0-9_+-]+')}(\.[^.]+)?" for key in page.keys))
    found = list(leaves(FILES[file]))
    assert len(found) > 50
    missing = [path for path in found if not known.fullmatch(path)]
    assert [path for path in missing if not {path, f"{path}.NAME"} & page.ids] == []  # a section that is null or empty


def test_every_command_is_on_the_page(pages, built):
    names = list(typer.main.get_command(app).commands)
    assert {f"clp-{name}" for name in names} <= pages[built / "reference" / "commands.html"].ids
    assert "generate" in names and "clp-generate.weighting" in pages[built / "reference" / "commands.html"].keys


def test_readme_is_the_home_page_and_every_page_of_docs_is_there(pages, built):
    assert "One finetuned language model, every trade-off between its rewards." in (built / "index.html").read_text()
    home = pages[built / "index.html"]
    assert "design.html" in home.links and "frontier.png" in home.fetched
    assert [
        page.stem for page in (REPOSITORY / "docs").glob("*.md") if not (built / f"{page.stem}.html").exists()
    ] == []


def test_links_lead_somewhere(pages, built):
    broken = []
    for path, page in pages.items():
        for link in (link for link in page.links + page.fetched if not urlsplit(link).scheme):
            parts = urlsplit(link)
            # the page for unknown addresses (404.html) names files from the root
            base = built if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            anchor = unquote(parts.fragment)
            if not target.exists() or (anchor and not anchor.startswith("__") and anchor not in pages[target].ids):
                broken.append(f"{path.name}: {link}")
    assert broken == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_no_page_fetches_anything_from_another_host(pages, built):
    fetched = {url for page in pages.values() for url in page.fetched}
    for sheet in built.rglob("*.css"):
        fetched |= set(re.findall(r"url\(\s*['\"]?([^'\")]+)", sheet.read_text(encoding="utf-8")))
        fetched |= set(re.findall(r"@import\s+['\"]([^'\"]+)", sheet.read_text(encoding="utf-8")))
    assert len(fetched) > 5
    assert [url for url in fetched if urlsplit(url).netloc] == []
    assert not [
        path.name for path in pages if 'class="mermaid"' in path.read_text()
    ]  # the theme would fetch its script


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_asks_no_other_host_and_finds_a_key(built, width):
    from bench.pages.browsing import chromium

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(built))

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    problems: list[str] = []
    try:
        with chromium() as browser:
            if browser is None:
                pytest.skip("no chromium on this machine")
            page = browser.new_page(viewport={"width": width, "height": 900})
            page.on(
                "request", lambda request: request.url.startswith((address, "data:")) or problems.append(request.url)
            )
            page.on("console", lambda message: message.type == "error" and problems.append(message.text))
            page.on("pageerror", lambda error: problems.append(str(error)))
            for name in ("index", "reference/parameters", "reference/commands", "reference/python/policy.steerable"):
                page.goto(f"{address}{name}.html", wait_until="networkidle")
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name
            if width < 800:
                page.locator(".md-header__button[for=__search]").click()
            page.get_by_role("textbox", name="Search").press_sequentially("gradient_clip")
            page.locator(".md-search-result__link[href*='reference/parameters.html']").first.wait_for()
    finally:
        server.shutdown()
        server.server_close()
    assert problems == []


class Square(BaseModel):
    """A square."""

    kind: Literal["square"]
    side: Annotated[float, Field(gt=0)]  # of each edge, a|b


class Circle(BaseModel):
    """A circle."""

    kind: Literal["circle"]
    radius: Annotated[float, Field(ge=0, le=1)] | None = None


class Toy(BaseModel):
    """A configuration."""

    # how often:
    # each time
    count: Annotated[int, Field(ge=1)] | Literal["all"]
    names: Annotated[list[str], Field(min_length=1)]
    shapes: dict[str, Annotated[Square | Circle, Field(discriminator="kind")]]  # what is drawn
    more: list[Circle] | None  # noqa: RUF100
    said: bool = Field(default=True, description="whether it is said")


TOY = """
count: 3  # as ever
names: [a]
shapes:
  one: {kind: square, side: 2.0}
  two: {kind: circle, radius: 1.0}
more: null
"""


def test_parameters_are_read_from_any_model():
    page = parameters.page(Toy, YAML().load(TOY))
    rows = {}
    for line in page.splitlines():
        if found := re.match(r'\| <code id="(.*?)">(.*?)</code> \| (.*) \|$', line):
            rows[found[1]] = [found[2], *found[3].split(" | ")]
    assert rows == {
        "count": ["count", "`3`", "whole number, at least 1; or `all`<br>how often: each time. Default run: as ever"],
        "names": ["names", '`["a"]`', "list of text, not empty"],
        "said": ["said", "–", "`true` or `false`; if left out `true`<br>whether it is said"],
        "shapes.NAME.kind": [
            "shapes.<wbr>NAME.<wbr>kind",
            "`square` (one), `circle` (two)",
            "`square` or `circle`<br>which of those below",
        ],
        "shapes.NAME.square.side": [
            "shapes.<wbr>NAME.<wbr>side",
            "`2.0` (one)",
            "number, above 0<br>of each edge, a&#124;b",
        ],
        "shapes.NAME.circle.radius": [
            "shapes.<wbr>NAME.<wbr>radius",
            "`1.0` (two)",
            "number, from 0 to 1; or `null`; if left out `null`",
        ],
        "more.N.kind": ["more[].<wbr>kind", "–", "`circle`"],
        "more.N.radius": ["more[].<wbr>radius", "–", "number, from 0 to 1; or `null`; if left out `null`"],
    }
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == [
        "# Parameters",
        "## `shapes.NAME` { #shapes.NAME }",
        "### kind `square` { #shapes.NAME.square }",
        "### kind `circle` { #shapes.NAME.circle }",
        "## `more[]` { #more.N }",
    ]
    assert "One for each NAME of your choice (text). What is drawn." in page.splitlines()
    assert {"A square.", "A list. Or `null`. The default run has `null`."} <= set(page.splitlines())


def test_commands_are_read_from_any_application():
    toy = typer.Typer()

    @toy.command()
    def draw(count: Annotated[int, typer.Option(min=1, help="How many.")] = 2) -> None:
        """Draw.

        Example: toy draw --count 3
        """

    toy.command("rub-out")(lambda: None)
    lines = commands.page(toy, "toy").splitlines()
    assert {"## toy draw { #toy-draw }", "Draw.", "toy draw --count 3", "## toy rub-out { #toy-rub-out }"} <= set(lines)
    assert "| `--count`{ .option #toy-draw.count } | How many.<br>`int, default 2, x>=1` |" in lines


@pytest.mark.parametrize(
    ("page", "written", "shown"),
    [
        ("index.md", "[log](docs/log.md#a) ![x](docs/pages/a.png)", "[log](log.md#a) ![x](pages/a.png)"),
        ("index.md", "[the table](params.yaml)", "the table (`params.yaml`)"),
        ("design.md", "[files.py](../src/clp_lightning/files.py)", "`src/clp_lightning/files.py`"),
        ("design.md", "[home](../README.md) [b](metrics.md) [c](#d)", "[home](index.md) [b](metrics.md) [c](#d)"),
        ("design.md", "`[a](../README.md)` [no](nosuch.md)", "`[a](../README.md)` [no](nosuch.md)"),
        ("design.md", "```\n[a](../README.md)\n```\n", "```\n[a](../README.md)\n```\n"),
        ("design.md", "| `a \\|\\| b` |\n\n`c \\| d`", "| `a || b` |\n\n`c \\| d`"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(page, written, shown):
    assert hooks.on_page_markdown(written, page=SimpleNamespace(file=SimpleNamespace(src_uri=page))) == shown
