"""A server under load: `python -m bench.serving`."""
