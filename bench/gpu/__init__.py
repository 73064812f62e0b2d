"""The GPU script: `python -m bench.gpu --part right`, `--part fast`; docs/gpu.md says how to run it and what it printed."""
