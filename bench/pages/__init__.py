"""The dashboard in headless Chromium: `python -m bench.pages`."""
