"""What `mkdocs` calls while it builds: pages that are made from README, CHANGELOG and the code, and links out of docs/."""

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from ruamel.yaml import YAML

from clp_lightning.cli.app import app
from clp_lightning.config.parameters import Config
from docs_site import commands, parameters

ROOT = Path(__file__).resolve().parent.parent
STYLE = Path(__file__).with_name("site.css")
COPIED = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
WRITTEN: dict[str, Callable[[], str]] = {
    "reference/parameters.md": lambda: parameters.page(Config, YAML().load(ROOT / "params.yaml")),
    "reference/commands.md": lambda: commands.page(app, "clp"),
}
MODULE = re.compile(r"reference/python/([\w.]+)\.md")  # a page of the navigation with such a name documents that module
# Code is matched first, so that what looks like a link in it stays.
LINK = re.compile(
    r"(?P<code>^```.*?^```|`[^`\n]+`)|\[(?P<text>[^\]]*)\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that no file in docs/ holds."""
    for source, page in COPIED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for page, write in WRITTEN.items():
        files.append(File.generated(config, page, content=write()))
    files.append(File.generated(config, STYLE.name, abs_src_path=str(STYLE)))
    for page in _pages(config.nav):
        if found := MODULE.fullmatch(page):
            files.append(File.generated(config, page, content=f"::: clp_lightning.{found[1]}\n"))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Make links of the repository's files links of the site; what the site does not have becomes code."""
    name = page.file.src_uri
    origin = next((source for source, copy in COPIED.items() if copy == name), f"docs/{name}")
    return LINK.sub(lambda found: _code(found) if found["code"] else _link(found, origin, name), markdown)


def _code(found: re.Match[str]) -> str:
    """Return code as it was; in a table GitHub needs a backslash before its pipes, which would be shown here."""
    line = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
    return found[0].replace("\\|", "|") if line.startswith("|") else found[0]


def _link(found: re.Match[str], origin: str, page: str) -> str:
    path, _, anchor = found["target"].partition("#")
    if not path or ":" in path:
        return found[0]
    target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), path))
    own = COPIED.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
    if own:
        there = posixpath.relpath(own, posixpath.dirname(page) or ".")
        return f"[{found['text']}]({there}{'#' if anchor else ''}{anchor})"
    if not (ROOT / target).exists():
        return found[0]  # mkdocs warns of it
    label = found["text"].strip("`")
    return f"`{target}`" if label in (path, target, posixpath.basename(target)) else f"{found['text']} (`{target}`)"


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    elif isinstance(nav, dict | list):
        for below in nav.values() if isinstance(nav, dict) else nav:
            yield from _pages(below)
