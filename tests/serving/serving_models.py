"""A tiny policy in a folder, as `clp serve` and its tests read it."""

from pathlib import Path

from tiny_models import make_policy, write_model

TEXTS = [f"queue {n}: the name of the queue that " + "receives or sends messages, " * (1 + n % 3) for n in range(16)]


def write_policy(folder: Path, family: str = "llama") -> Path:
    """Write a random base and a policy on it with the objectives a and b; returns the policy's folder, `clp-full`."""
    make_policy(write_model(family, folder / "base")).save(folder / "clp-full", base_model="../base")
    return folder / "clp-full"
