"""Entry point: `streamlit run dashboard/app.py [-- --store FILE]`; the file may also be named by `CLP_STORE`."""

import argparse
import functools
import importlib
import os
import pkgutil

# As `clp` does, before torch is loaded: threads that wait should not starve what runs beside the page.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import streamlit as st
import views

from clp_lightning.store.queries import Store


def store_path() -> str:
    """File to read: `--store`, else the environment's `CLP_STORE`, else `frontier.duckdb` in the working folder."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--store", default=os.environ.get("CLP_STORE") or "frontier.duckdb")
    return str(parser.parse_known_args()[0].store)


@st.cache_resource(max_entries=4)
def open_store(path: str) -> Store:
    """Share one `Store` between sessions; it keeps data frames, never a connection."""
    return Store(path)


@st.fragment(run_every="3s")
def follow(store: Store) -> None:
    """Draw the page again when the file was published anew."""
    if st.session_state.get("drawn") != store.identity():
        st.rerun(scope="app")


# Plotly draws what is on the page once more when any font arrives: so those of icons and of code are asked for at once.
FONTS = """<style>
body::before, body::after { content: "a"; position: absolute; visibility: hidden; font-size: 1px }
body::before { font-family: "Material Symbols Rounded" }
body::after { font-family: "Source Code Pro" }
</style>"""

st.set_page_config(page_title="CLP Lightning", layout="wide")
st.html(FONTS)
store = open_store(store_path())
modules = [importlib.import_module(f"views.{found.name}") for found in pkgutil.iter_modules(views.__path__)]
PAGES = {module.__name__.rpartition(".")[2].title(): module for module in sorted(modules, key=lambda each: each.PLACE)}
page = st.navigation(
    [
        st.Page(functools.partial(module.page, store), title=title, url_path=title.lower(), default=not number)
        for number, (title, module) in enumerate(PAGES.items())
    ],
    position="top",
)
page.run()
follow(store)
