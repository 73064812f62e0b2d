import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from clp_lightning.errors import ClpError
from clp_lightning.training.checkpoints import SafeCheckpointIO, last_checkpoint

PLAIN = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(max_size=5)
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.integers() | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(NESTED)
def test_any_nesting_of_plain_values_survives(tmp_path_factory, value):
    path = tmp_path_factory.mktemp("c") / "c.ckpt"
    SafeCheckpointIO().save_checkpoint({"value": value}, path)
    assert SafeCheckpointIO().load_checkpoint(path) == {"value": value}


def test_tensors_of_every_dtype_survive(tmp_path):
    saved = {0: torch.arange(3), "b": torch.ones(2, dtype=torch.bfloat16), "c": (torch.tensor(True), torch.zeros(0))}
    SafeCheckpointIO().save_checkpoint(saved, tmp_path / "c")
    loaded = SafeCheckpointIO().load_checkpoint(tmp_path / "c")
    assert loaded[0].dtype == torch.int64 and loaded["b"].dtype == torch.bfloat16
    assert loaded["c"][0].item() is True and loaded["c"][1].shape == (0,)
    with pytest.raises(TypeError, match="without pickle"):
        SafeCheckpointIO().save_checkpoint({"x": object()}, tmp_path / "d")


def test_broken_file_names_itself_and_the_remedy(tmp_path):
    path = tmp_path / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ClpError, match=r"last.ckpt is broken .*; delete it"):
        SafeCheckpointIO().load_checkpoint(path)


@given(st.integers(0), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(tmp_path_factory, position, bit):
    path = tmp_path_factory.mktemp("c") / "last.ckpt"
    SafeCheckpointIO().save_checkpoint({"a": torch.ones(10), "step": 3}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    try:
        loaded = SafeCheckpointIO().load_checkpoint(path)
    except ClpError as error:
        assert "delete it" in str(error)
    else:  # a bit in the header's padding or in a name that stands nowhere else changes nothing
        assert torch.equal(loaded["a"], torch.ones(10)) and loaded["step"] == 3


class Toy(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def train_dataloader(self):
        return torch.utils.data.DataLoader(range(100), batch_size=None)

    def training_step(self, batch, batch_idx):
        generator = torch.Generator().manual_seed(self.global_step)
        return self.layer(torch.randn(8, 4, generator=generator)).square().mean()


def fit(steps, folder):
    module = Toy()
    last = last_checkpoint(folder)
    Trainer(
        max_steps=steps,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[SafeCheckpointIO()],
        callbacks=[
            ModelCheckpoint(dirpath=folder, filename="last", every_n_train_steps=3, enable_version_counter=False)
        ],
    ).fit(module, ckpt_path=str(last) if last else None)
    return module.layer.weight.detach().clone()


def test_resumed_training_is_bit_exact(tmp_path):
    whole = fit(9, tmp_path / "whole")
    assert last_checkpoint(tmp_path / "nothing") is None
    fit(6, tmp_path / "parts")
    assert last_checkpoint(tmp_path / "parts") is not None
    assert torch.equal(fit(9, tmp_path / "parts"), whole)
