"""The testbed of one-word answers: exact figures against second implementations, samples against exact figures."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from locations import REPOSITORY
from tiny_models import GENERATION, write_model

from bench.one_token import __main__ as command
from bench.one_token.bed import OBJECTIVES, Bed, count_words, exactly
from bench.one_token.methods import ENUMERATED, EXACT, GRID, METHODS, SAMPLED, evaluate, kl, module, quadrature, train
from bench.one_token.noise import measure, split
from clp_lightning.config.methods import OwnTraining
from clp_lightning.data.splits import write_split
from clp_lightning.errors import UsageError
from clp_lightning.oracle.exact import optimum, regularized_rewards
from clp_lightning.policy.loading import load_base

WORDS = "make a new bucket or delete the old one and list all of them with their names and tags for good".split()
TEXTS = [" ".join(np.roll(WORDS, shift)[: 5 + shift]) for shift in range(len(WORDS) - 5)]
TRAINING = command.load_config(REPOSITORY / "params.yaml").training.model_copy(update={"rank": 2, "steps": 6})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_model("llama", tmp_path_factory.mktemp("one-token") / "reference", TEXTS * 20, vocabulary=330)


def make_bed(folder, *, steered=1, words=6, dtype=torch.float32):
    model, tokenizer = load_base(folder, dtype=dtype, device="cpu")
    return Bed(model, tokenizer, GENERATION, TEXTS[:4], count_words(TEXTS), words=words, steered=steered)


@pytest.fixture(scope="module")
def bed(folder):
    return make_bed(folder)


def trained_a_little(policy):
    """Experts that matter: fresh ones add nothing."""
    torch.manual_seed(3)
    for layer in policy.experts.layers.values():
        layer.own()[-1].data.normal_(std=0.1)
    return policy


def lend(bed, method, seed=0):
    return bed.policy(conditioning=method.conditioning, shared=method.shared, rank=TRAINING.rank, seed=seed)


@pytest.mark.parametrize("steered", [1, 3, 99])
def test_the_reference_is_the_models_own_distribution_over_the_allowed_words(folder, steered):
    bed, (model, tokenizer) = make_bed(folder, steered=steered), load_base(folder, dtype=torch.float32, device="cpu")
    ids = [tokenizer(" " + word, add_special_tokens=False)["input_ids"] for word in bed.words]
    assert all(len(each) == 1 for each in ids)
    for prompt, own in zip(TEXTS, bed.ref_log_probs, strict=False):
        asked = tokenizer(f"{prompt}\nSummary:", return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            logits = model(**asked).logits[0, -1, [each[0] for each in ids]]
        torch.testing.assert_close(own, logits.log_softmax(-1), atol=1e-5, rtol=0)


def test_rewards_are_standardized_and_what_they_say(bed):
    probs = np.exp(exactly(bed.ref_log_probs))[..., None] / 4
    np.testing.assert_allclose((probs * bed.rewards).sum((0, 1)), 0, atol=1e-9)
    np.testing.assert_allclose((probs * bed.rewards**2).sum((0, 1)), 1)
    short, counts = bed.rewards[0, :, OBJECTIVES.index("short")], count_words(TEXTS)
    assert [bed.words[i] for i in np.argsort(-short, kind="stable")] == sorted(bed.words, key=len)
    rare = bed.rewards[2, :, OBJECTIVES.index("specific")]
    assert counts[bed.words[rare.argmax()].lower()] == min(counts[word.lower()] for word in bed.words)


def test_too_many_words_are_one_line(folder):
    with pytest.raises(UsageError, match="--words: 400, but the model knows"):
        make_bed(folder, words=400)


def test_weightings_of_the_exact_gradient_have_the_moments_of_the_distribution():
    weightings, shares = quadrature(METHODS["clp-full"].weightings)
    moments = weightings.T * shares @ weightings
    # of Dirichlet(0.4, 0.4, 0.4): E[w_i^2] = 0.4 * 1.4 / (1.2 * 2.2), E[w_i w_j] = 0.4^2 / (1.2 * 2.2)
    exact = (np.eye(3) * 0.4 + 0.16) / (1.2 * 2.2)
    np.testing.assert_allclose(moments, exact, rtol=0.05)
    np.testing.assert_allclose(shares @ weightings, 1 / 3)
    for name in ("soups", "smoothed soups"):
        assert quadrature(METHODS[name].weightings)[0].tolist() == np.eye(3).tolist()


@pytest.mark.parametrize("name", ["clp-full", "soups"])
def test_exact_objective_and_gradient_against_a_second_implementation(folder, name):
    bed, method = make_bed(folder, dtype=torch.float64), METHODS[name]
    weightings, shares = quadrature(method.weightings)
    with lend(bed, method) as policy:
        trained_a_little(policy)
        training = TRAINING.model_copy(update={"advantages": "none"})
        trainer = module(policy, method, training, EXACT)
        prompts, each = torch.arange(4).repeat(len(weightings)), np.repeat(weightings, 4, axis=0)
        trainer.record = lambda **values: None
        loss = trainer.loss(prompts, each, np.repeat(shares / 4, 4))
        loss.backward()
        own = split(policy.experts)
        j = (regularized_rewards(bed.problem(training.alpha), policy.table(weightings)) * weightings).sum(-1)
        assert -loss.item() == pytest.approx(shares @ j, abs=1e-9)

        # the policy gradient theorem: the gradient of J is E[(return - anything) grad log pi], alpha KL's part included
        policy.experts.zero_grad()
        log_probs = policy.read(prompts, policy.coefficients(each, len(each)))
        ratio = (log_probs - bed.ref_log_probs[prompts]).detach()
        returns = 0.95 * (torch.as_tensor(bed.rewards)[prompts] * torch.as_tensor(each)[:, None]).sum(-1) - 0.05 * ratio
        weight = log_probs.detach().exp() * torch.as_tensor(np.repeat(shares / 4, 4))[:, None]
        (-(weight * returns * log_probs).sum()).backward()
        for a, b in zip(own, split(policy.experts), strict=True):
            torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("name", list(METHODS))
def test_no_trained_policy_beats_the_optimum_and_training_helps(bed, name):
    best = evaluate(bed, optimum(bed.problem(TRAINING.alpha), GRID), TRAINING.alpha)
    for gradients in (EXACT, ENUMERATED, SAMPLED):
        values = train(bed, METHODS[name], TRAINING.model_copy(update={"learning_rate": 0.02}), gradients)
        assert (np.array(values.j) <= np.array(best.j) + 1e-9).all()
        assert len(values.corners) == 3 and values.kl >= 0
        if gradients == EXACT:
            assert values.mean_j > 0  # the reference policy's
    untrained = np.repeat(bed.problem(TRAINING.alpha).ref_log_probs[None], len(GRID), axis=0)
    values, probs = evaluate(bed, untrained, TRAINING.alpha), np.exp(untrained[0])
    assert values.mean_j == pytest.approx(0, abs=1e-9)
    assert values.entropy == pytest.approx(-(probs * np.log(probs)).sum(-1).mean())
    assert kl(bed.problem(TRAINING.alpha), untrained).max() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("name", "gradients"), [
    ("soups", SAMPLED),
    *(pytest.param(*each, marks=pytest.mark.slow)
      for each in [("clp-full", SAMPLED), ("clp-full, relabel", SAMPLED), ("soups", ENUMERATED)]),
])  # fmt: skip
def test_sampled_gradients_average_to_the_exact_one(bed, name, gradients):
    method = METHODS[name]
    with lend(bed, method) as policy:
        trained_a_little(policy)  # so that relabeling's weights are not 1
        before = [parameter.clone() for parameter in policy.experts.parameters()]
        method = method.model_copy(
            update={"training": OwnTraining(samples_per_prompt=36)}
        )  # so that 40 minibatches can tell
        noise = measure(policy, method, TRAINING, gradients, 40)
        for expert in noise.values():
            assert abs(expert.along - 1) < 4 * expert.along_error
            assert expert.along_error < 0.5 and expert.per_rollout > 0
        for one, other in zip(before, policy.experts.parameters(), strict=True):
            torch.testing.assert_close(one, other, atol=1e-20, rtol=0)  # measuring moves nothing


def test_a_policy_that_always_says_one_word_has_neither_gradient_nor_noise(bed):
    with lend(bed, METHODS["soups"]) as policy:
        for name, layer in policy.experts.layers.items():
            if name == "lm_head":  # B A x with A x > 0 for every prompt: the first word's logit alone rises
                state = torch.cat([bed.hidden(torch.tensor([i]))[0] for i in range(4)]).mean(0)
                layer.a.data[:] = state / state.norm()
                layer.b.data[0] = 1e4
        noise = measure(policy, METHODS["soups"], TRAINING, SAMPLED, 2)
        assert {each.per_rollout for each in noise.values()} == {None}
        assert {each.deviation for each in noise.values()} == {0.0}


@pytest.fixture
def project(tmp_path, folder):
    rows = pd.DataFrame({"id": range(12), "service": list("abcd") * 3, "document": TEXTS[:12], "summary": TEXTS[:12]})
    (tmp_path / "data/corpus").mkdir(parents=True)
    for name in ("train", "validation"):
        write_split(rows, tmp_path / f"data/corpus/{name}.parquet")
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(folder, tmp_path / "models/reference")
    return tmp_path


@pytest.mark.slow
def test_the_command_prints_a_table_and_writes_what_is_in_it(project, monkeypatch, capsys):
    report = project / "report.json"
    arguments = ["--project", str(project), "--words", "6", "--steps", "2", "--seeds", "0", "1", "--draws", "2"]
    monkeypatch.setattr(sys, "argv", ["one_token", *arguments, "--prompts", "4", "--json", str(report)])
    command.main()
    told, written = capsys.readouterr().out, json.loads(report.read_text())
    assert "clp-full, relabel" in told and "signal / noise per rollout" in told
    assert [row["method"] for row in written["trained"]] == [*(n for n in METHODS if "relabel" not in n), *METHODS]
    assert len(written["noise"]) == 2 * len(METHODS) * len(OBJECTIVES)
    assert all(row["mean_j"] < written["optimum"]["mean_j"] for each in written["trained"] for row in each["seeds"])


def test_a_folder_that_is_no_project_is_one_line(tmp_path, monkeypatch):
    for folder in (tmp_path, tmp_path / "nowhere"):
        monkeypatch.setattr(sys, "argv", ["one_token", "--project", str(folder)])
        with pytest.raises(SystemExit, match="error: ") as stopped:
            command.main()
        assert "\n" not in str(stopped.value)
