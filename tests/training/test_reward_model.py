"""Bradley-Terry training on a tiny random cross-encoder: seconds, and no packaged encoder."""

import json
import math
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_data import write_encoder
from transformers import AutoModelForSequenceClassification

from clp_lightning.config.data import Preferences, RewardModel
from clp_lightning.data.transcripts import from_transcript
from clp_lightning.errors import ClpError
from clp_lightning.rewards.models import Learned
from clp_lightning.training import reward_model

WORDS = "deletes creates lists key bucket role the a of . good bad".split()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """An encoder's folder: two tiny BERT layers and a tokenizer of whole words."""
    return write_encoder(tmp_path_factory.mktemp("package") / "model", texts=WORDS)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs that one word decides, so that a few steps must learn them."""
    folder = tmp_path_factory.mktemp("pairs")
    rng = np.random.default_rng(0)
    for split, count in (("train", 64), ("heldout", 20)):
        documents = [" ".join(rng.choice(WORDS[:6], 4)) for _ in range(count)]
        frame = pd.DataFrame({"service": "s", "document": documents, "kind": ["halved", "generic"] * (count // 2)})
        frame["chosen"], frame["rejected"] = [f"{d} good" for d in documents], [f"{d} bad" for d in documents]
        frame.to_parquet(folder / f"{split}.parquet", index=False)
    return folder


@pytest.fixture
def train(encoder, pairs, tmp_path):
    """Train `steps` steps into `tmp_path`/`out`."""

    def run(out, checkpoints="checkpoints", steps=24, encoder=encoder):
        preferences = Preferences(
            kind="preferences", source="x.jsonl", subset=None, prompt=None, chosen="chosen", rejected="rejected",
            heldout=0.1, limit=None, skip_bad_rows=False,
        )  # fmt: skip
        section = RewardModel(
            pairs=preferences, encoder=str(encoder), max_tokens=64, steps=steps, batch_size=8, learning_rate=2e-3
        )
        return reward_model.train_reward_model(section, 0, pairs, tmp_path / out, tmp_path / checkpoints)

    return run


def test_learns_what_decides_and_writes_a_plain_folder(train, tmp_path):
    metrics = train("model")
    assert metrics["heldout"]["accuracy"] == 1.0 and metrics["heldout"]["pairs"] == 20
    assert set(metrics["per_kind"]) == {"halved", "generic"}
    # all of n right: the lower Clopper-Pearson bound solves p^n = 0.025, so p = 0.025^(1/20)
    assert metrics["heldout"]["low"] == pytest.approx(0.025 ** (1 / 20))
    assert metrics["heldout"]["high"] == 1.0
    folder = tmp_path / "model"
    assert AutoModelForSequenceClassification.from_pretrained(folder, local_files_only=True).config.num_labels == 1
    assert "auto_map" not in json.loads((folder / "config.json").read_text())  # loads without this package's code
    assert not [file for file in folder.rglob("*") if file.suffix in {".bin", ".pt", ".pkl", ".ckpt"}]
    curve = pd.read_csv(folder / "training_curve.csv")
    assert curve["step"].tolist() == list(range(24))
    assert curve["loss"].tail(4).mean() < 0.5 * curve["loss"].head(4).mean()


def test_a_classifiers_head_is_left_out(train, tmp_path):
    """Three labels, as NLI models have: the encoder is its own, the head a fresh one with one logit."""
    nli = write_encoder(tmp_path / "nli", labels={0: "no", 1: "maybe", 2: "yes"}, texts=WORDS)
    assert train("model", encoder=nli)["heldout"]["accuracy"] == 1.0
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "model", local_files_only=True)
    assert trained.config.num_labels == 1 and trained.classifier.out_features == 1
    train("barely", "other", steps=1, encoder=nli)
    own, barely = (AutoModelForSequenceClassification.from_pretrained(tmp_path / name) for name in ("nli", "barely"))
    near = [(a - b).abs().max().item() for a, b in zip(own.bert.parameters(), barely.bert.parameters(), strict=True)]
    assert max(near) < 0.01  # one step from what was there, not drawn anew


def test_weights_that_are_no_encoders_are_one_line(train, encoder, tmp_path):
    for name, change, message in (
        (
            "wide",
            {"hidden_size": 48},
            "lacks bert.embeddings.LayerNorm.bias of BertForSequenceClassification, or has it in",
        ),
        ("deep", {"num_hidden_layers": 3}, "lacks bert.encoder.layer.2.attention.output.LayerNorm.bias of BertForSequ"),
        ("none", {"model_type": "nothing"}, "; name a folder with safetensors and a tokenizer"),
    ):
        folder = shutil.copytree(encoder, tmp_path / name)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ClpError, match=rf"reward_models\.model\.encoder: .*{name}.*{message}") as raised:
            train("model", encoder=folder)
        assert "\n" not in str(raised.value)


def test_first_loss_is_that_of_a_fair_coin(train, tmp_path):
    # a fresh head gives nearly equal logits: -log sigmoid(0) = log 2
    train("model", steps=1)
    assert pd.read_csv(tmp_path / "model" / "training_curve.csv")["loss"][0] == pytest.approx(math.log(2), abs=0.05)


def test_of_a_long_conversation_the_start_is_left_out(encoder, monkeypatch):
    """By hand: of 14 tokens 3 are the model's own, two the answer's, so that of the conversation's 11 the last 9 are read."""
    talk = from_transcript("Human: lists the key\n\nAssistant: of\n\nHuman: bucket")
    pairs, read = pd.DataFrame([{"document": talk, "chosen": "a good", "rejected": "a bad"}], dtype=object), []

    def forward(self, input_ids, **rest):
        read.extend(tokenizer.batch_decode(input_ids))
        return SimpleNamespace(logits=torch.zeros(2, 1))

    model, tokenizer = reward_model._classifier(str(encoder), "encoder")
    monkeypatch.setattr(type(model), "forward", forward)
    options = {"steps": 1, "batch_size": 1, "learning_rate": 0.1, "max_tokens": 14, "seed": 0}
    module = reward_model.RewardModule(model, tokenizer, pairs, **options)
    monkeypatch.setattr(module, "record", lambda **values: None)
    module.training_step(None, 0)
    kept = "[CLS] lists the key Assistant : of Human : bucket [SEP]"
    assert read == [f"{kept} a good [SEP]", f"{kept} a bad [SEP]"]


def test_killed_training_resumes_to_the_same_model(train, tmp_path, monkeypatch):
    train("whole", "first", steps=12)
    step = reward_model.RewardModule.training_step

    def killed(self, batch, batch_idx):
        if self.global_step == 8:  # checkpoints are written every 3 steps: 6 is the last before
            raise RuntimeError("killed")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(reward_model.RewardModule, "training_step", killed)
    with pytest.raises(RuntimeError, match="killed"):
        train("resumed", "second", steps=12)
    assert not (tmp_path / "resumed").exists()  # nothing half-made
    monkeypatch.setattr(reward_model.RewardModule, "training_step", step)
    train("resumed", "second", steps=12)
    whole, resumed = (tmp_path / name for name in ("whole", "resumed"))
    assert (resumed / "training_curve.csv").read_text() == (whole / "training_curve.csv").read_text()
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_scores_do_not_depend_on_order_or_company(train, tmp_path):
    train("model", steps=3)
    documents = ["the key", "a bucket of the role . lists creates", "role"]
    responses = ["deletes the key of a role .", "good", "bad ."]
    together = Learned(tmp_path / "model", batch_size=2)(documents, responses)
    alone = [Learned(tmp_path / "model")([d], [r])[0] for d, r in zip(documents, responses, strict=True)]
    assert together == pytest.approx(alone, abs=1e-5)  # padding is masked, sorting by length is undone
    assert len(set(np.round(together, 6))) == 3
