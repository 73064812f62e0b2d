"""What ends a response: the tokenizer's end, `generation.end_token`, and all that a model's generation_config names."""

import json
from types import SimpleNamespace

import pytest
import torch
from tiny_models import DOCUMENTS, GENERATION, OBJECTIVES, make_policy, write_model
from transformers import AutoModelForCausalLM, GenerationConfig

from clp_lightning.policy import rollout
from clp_lightning.policy.loading import load_base
from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.policy.tokens import response_ends

RIGHT = {"b": 1.0}  # where both families write several tokens greedily


def greedy(policy: SteerablePolicy) -> list[int]:
    coefficients = policy.coefficients(RIGHT, 1)
    responses = policy.rollout(policy.tokenize(DOCUMENTS[:1]), coefficients, samples=1, temperature=0.0)
    return responses.ids[0].tolist()


def name_ends(folder, ends) -> None:
    """What Llama 3, Gemma and Qwen publish: one end for a turn and one for a text."""
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))


@pytest.fixture(scope="module", params=["llama", "gemma"])
def two_ends(request, tmp_path_factory):
    """A base of two ends, of which the policy writes the second in the middle; its folder, the second end and the text so far."""
    folder = write_model(request.param, tmp_path_factory.mktemp(request.param) / "reference")
    policy = make_policy(folder)
    written = greedy(policy)
    own = policy.tokenizer.eos_token_id
    place = next(at for at, token in enumerate(written) if token != own and token not in written[:at] and at)
    name_ends(folder, [own, written[place]])
    return folder, written[place], written[: place + 1]


def test_a_response_ends_at_every_end_that_the_model_names(two_ends):
    folder, second, expected = two_ends
    policy = make_policy(folder)
    assert policy.end_ids == {policy.tokenizer.eos_token_id, second}
    assert greedy(policy) == expected
    # transformers ends there too
    plain = policy.materialize(RIGHT)
    prompts = plain.tokenize(DOCUMENTS[:1])
    ids = plain.model.generate(
        input_ids=prompts.ids, attention_mask=prompts.mask.long(), max_new_tokens=6, do_sample=False
    )  # fmt: skip
    assert ids[0, prompts.ids.shape[1] :].tolist() == expected
    # the end is no part of the text, though this token is an ordinary one; training counts it
    assert plain.decode(ids[:, -len(expected) :]) == [plain.text(expected[:-1]).strip()]


def test_without_ends_every_response_has_all_tokens(two_ends):
    policy = make_policy(two_ends[0])
    prompts, steer = policy.tokenize(DOCUMENTS), policy.steer(policy.coefficients(RIGHT, 3))
    steps = rollout.sampling_steps(
        policy.model, steer, prompts, torch.zeros(3, 6), samples=1, end_ids=(), pad_id=0, temperature=0.0
    )
    assert rollout.stacked(steps).mask.sum(1).tolist() == [6, 6, 6]


def test_folders_and_exports_have_the_same_ends(two_ends, tmp_path):
    folder, _, expected = two_ends
    policy = make_policy(folder)
    saved = folder.parent / "clp-full"
    policy.save(saved, base_model="../reference")
    loaded = SteerablePolicy.from_pretrained(saved, dtype=torch.float32)
    assert loaded.end_ids == policy.end_ids and greedy(loaded) == expected
    loaded.export(RIGHT, tmp_path / "peft", "peft")
    loaded.export(RIGHT, tmp_path / "hf", "hf")
    for format in ("peft", "hf"):
        assert set(GenerationConfig.from_pretrained(tmp_path / format).eos_token_id) == policy.end_ids
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    prompts = policy.tokenize(DOCUMENTS[:1])
    ids = exported.generate(
        input_ids=prompts.ids, attention_mask=prompts.mask.long(), max_new_tokens=6, do_sample=False
    )
    assert ids[0, -len(expected) :].tolist() == expected


def test_an_end_token_joins_the_ends_and_is_that_of_texts_to_learn_from(tmp_path):
    folder = write_model("llama", tmp_path / "reference")
    model, tokenizer = load_base(folder, dtype=torch.float32)
    own, chosen = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("d")
    generation = GENERATION.model_copy(update={"end_token": "d"})
    policy = SteerablePolicy(model, tokenizer, generation, objectives=OBJECTIVES)
    assert policy.end_ids == {own, chosen}
    assert policy.tokenize_responses(["x"])[0][0, -1] == chosen
    # as stage sft writes its result, and as the next stage reads it: the tokenizer's own end is not forgotten
    model.save_pretrained(tmp_path / "next")
    tokenizer.save_pretrained(tmp_path / "next")
    again, reader = load_base(tmp_path / "next", dtype=torch.float32)
    assert response_ends(again, reader, None) == response_ends(again, reader, "d") == {own, chosen}


def test_one_end_is_written_as_it_was(tmp_path):
    """So that a model of one end, as the default's, stays the same file."""
    folder = write_model("llama", tmp_path / "reference")
    policy = make_policy(folder)
    assert policy.end_ids == {policy.tokenizer.eos_token_id}
    assert type(policy.model.generation_config.eos_token_id) is int
    policy.model.generation_config.save_pretrained(tmp_path / "again")
    before, after = (json.loads((f / "generation_config.json").read_text()) for f in (folder, tmp_path / "again"))
    assert before == after


@pytest.mark.parametrize(
    ("named", "own", "expected"),
    [
        ([128001, 128008, 128009], 128009, {128001, 128008, 128009}),  # Llama 3.1 Instruct
        ([1, 106], 1, {1, 106}),  # Gemma 3 Instruct
        ([151645, 151643], 151645, {151645, 151643}),  # Qwen 2.5 Instruct
        (50256, 50257, {50256, 50257}),
        (None, 2, {2}),
        ([], None, set()),
    ],
)
def test_published_ends(named, own, expected):
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=named))
    assert response_ends(model, SimpleNamespace(eos_token_id=own), None) == expected
    assert response_ends(SimpleNamespace(), SimpleNamespace(eos_token_id=own), None) == {own} - {None}
