"""Lightning checkpoints without pickle: tensors as safetensors, everything else as JSON in the same file's header."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from clp_lightning.errors import ClpError
from clp_lightning.files import atomic

LAST = "last.ckpt"


class SafeCheckpointIO(CheckpointIO):
    """Stores a checkpoint as one safetensors file, written beside its name and swapped in.

    Dicts with keys of any plain type, lists, tuples, numbers, strings, None and tensors survive a round trip; anything
    else raises TypeError when saving.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically; raises `ClpError` when the disk is full."""
        tensors: dict[str, torch.Tensor] = {}
        structure = json.dumps(_encode(checkpoint, tensors))
        with atomic(Path(path)) as beside:
            metadata = {"structure": structure, "sha256": _digest(structure, tensors)}
            safetensors.torch.save_file(tensors, beside, metadata=metadata)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote; a broken file is a `ClpError` that says how to go on."""
        try:
            with safetensors.safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                structure = file.metadata()["structure"]
                if file.metadata()["sha256"] != _digest(structure, tensors):
                    raise ValueError("its contents do not match their checksum")
                return _decode(json.loads(structure), tensors)
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ClpError(
                f"checkpoint {path} is broken ({error}); delete it to train this stage from its start"
            ) from error

    def remove_checkpoint(self, path: Any) -> None:
        """Delete a checkpoint; one that is already gone is no error."""
        Path(path).unlink(missing_ok=True)


def last_checkpoint(folder: Path | str) -> Path | None:
    """Return the checkpoint to resume from, or None."""
    path = Path(folder) / LAST
    return path if path.is_file() else None


def _digest(structure: str, tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over structure and tensor bytes: safetensors itself does not notice a flipped bit."""
    digest = hashlib.sha256(structure.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        name = f"t{len(tensors)}"
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[_encode(key, tensors), _encode(item, tensors)] for key, item in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_encode(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_encode(item, tensors) for item in value]
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if hasattr(value, "item"):  # a numpy scalar
        return value.item()
    raise TypeError(f"cannot store {type(value).__name__} in a checkpoint without pickle")


def _decode(value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(_decode(item, tensors) for item in content)
    return {_decode(key, tensors): _decode(item, tensors) for key, item in content}
