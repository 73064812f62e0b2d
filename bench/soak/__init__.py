"""Scheduled retraining under `kill -9`: `python -m bench.soak`."""
