"""A reward model scores a text as transformers scores it alone and unpadded, whatever its family, padding and company."""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_classifiers import DECODERS, ENCODERS, PADDING, write_classifier
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from clp_lightning.data.transcripts import from_transcript
from clp_lightning.errors import ClpError
from clp_lightning.rewards.batches import Padding, places
from clp_lightning.rewards.models import Encoder, Learned, set_padding

END = "<|im_end|>"  # of the tiny decoders
VARIANTS = [
    *((family, "own", side) for family in ENCODERS for side in ("right", "left")),
    *((family, padding, side) for family in DECODERS for padding in PADDING for side in ("right", "left")),
]
QUICK = [
    *(("bert", "own", "left"), ("roberta", "own", "left"), ("bart", "own", "right"), ("xlnet", "own", "right")),
    *(("gpt2", "none", "left"), ("llama", "none", "right"), ("gpt2", "end", "left"), ("fnet", "own", "right")),
]
PIECES = [
    "a",
    "b c ",
    "鼠標在桌子上。",
    "猫が",
    "кошка ",
    "मेरा",
    "🙂",
    "\n\n",
    "x" * 90,
    END,
    "</s>",
    "<s>",
    "<pad>",
    "d " * 40,
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=4).map("".join)
ROWS = st.lists(st.tuples(TEXTS.filter(bool), TEXTS), min_size=1, max_size=6)
LONGEST = 96


@functools.cache
def folder(family, padding, side) -> Path:
    """Written once, as is what is loaded from it."""
    return write_classifier(family, Path(tempfile.mkdtemp(dir=folder.base)), padding, side)


@pytest.fixture(scope="module", autouse=True)
def _base(tmp_path_factory):
    folder.base = tmp_path_factory.mktemp("classifiers")
    yield
    for cached in (folder, loaded, reward):
        cached.cache_clear()


@functools.cache
def loaded(*variant):
    path = folder(*variant)
    return AutoModelForSequenceClassification.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)


@functools.cache
def reward(template, *variant):
    return Learned(folder(*variant), template=template, index=1, max_tokens=LONGEST, batch_size=5)


def alone(variant, template, document, response):
    """What transformers says to one text, whose tokenizer cuts as the template has it."""
    model, tokenizer = loaded(*variant)
    tokenizer.truncation_side = "right" if template == "pair" else "left"
    # Lists, as of (document, "") alone the tokenizer makes one text, but of ([document], [""]) a pair.
    texts = ([document], [response]) if template == "pair" else ([document + response],)
    tokens = tokenizer(*texts, truncation=True, max_length=LONGEST, return_tensors="pt")
    with torch.inference_mode():
        return model(**tokens).logits[0, 1].item()


def check(variant, template, rows):
    expected = [alone(variant, template, *row) for row in rows]
    found = reward(template, *variant)(*map(list, zip(*rows, strict=True)))
    assert found == pytest.approx(expected, abs=1e-5)


TEMPLATES = st.sampled_from(["pair", "{document}{response}"])


@pytest.mark.parametrize("variant", QUICK, ids="-".join)
@settings(max_examples=4, derandomize=True)
@given(ROWS, TEMPLATES)
def test_a_text_in_company_has_the_value_that_it_has_alone(variant, rows, template):
    check(variant, template, rows)


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
@settings(max_examples=25, derandomize=True)
@given(ROWS, TEMPLATES)
def test_in_every_family_too(variant, rows, template):
    check(variant, template, rows)


@pytest.mark.parametrize("variant", [("gpt2", "none", "right"), ("llama", "none", "left")], ids="-".join)
def test_an_end_token_at_the_end_is_read_where_the_model_has_no_padding_token(variant):
    rows = [("a", "b"), ("a", f"b{END}"), ("a", f"b{END}{END}"), ("d " * 30, "c")]
    check(variant, "pair", rows)
    assert len(set(np.round(reward("pair", *variant)(*map(list, zip(*rows, strict=True))), 4))) == 4


def test_padding_that_the_configuration_names_wrongly_is_none(tmp_path):
    """Reward models are published with padding token -1, which transformers finds in no text."""
    path = write_classifier("llama", tmp_path, "none")
    config = (path / "config.json").read_text().replace('"pad_token_id": null', '"pad_token_id": -1')
    (path / "config.json").write_text(config)
    assert '"pad_token_id": -1' in config
    rows = [("a", f"b{END}"), ("d " * 30, "c"), ("猫", "")]
    found = Learned(path, index=1)(*map(list, zip(*rows, strict=True)))
    assert found == pytest.approx([alone(("llama", "none", "right"), "pair", *row) for row in rows], abs=1e-5)


def test_texts_that_end_in_every_token_there_is_are_read_by_length(tmp_path, monkeypatch):
    model, tokenizer = loaded("llama", "none", "right")
    padding = Padding(model, tokenizer)
    monkeypatch.setattr(padding, "vocabulary", 3)
    assert padding.possible([[0], [1]]) and not padding.possible([[0], [1], [5, 2]])
    assert padding.tensors(padding.rows({"input_ids": [[0], [1], [2]]}))["input_ids"].tolist() == [[0], [1], [2]]


def test_a_text_without_tokens_has_one_value(tmp_path):
    """A decoder's tokenizer gives no token for no text; transformers takes none, so the text's end stands for it."""
    for template in ("pair", "{document}{response}"):
        found = reward(template, "llama", "none", "left")(["", "a b", "", END], ["", "c", "", ""])
        assert found[0] == found[2] == pytest.approx(found[3], abs=1e-5) and np.isfinite(found).all()


@pytest.mark.parametrize(("family", "size"), [("roberta", 539), ("opt", 512), ("bert", 512), ("llama", np.inf)])
def test_what_is_longer_than_the_table_of_positions_is_cut(family, size):
    """By hand: RoBERTa's 800 positions begin behind the padding token's number, 260."""
    variant = family, "own", "right"
    assert places(loaded(*variant)[0]) == size
    long = Learned(folder(*variant), index=0, max_tokens=600)(["x z " * 400] * 2, ["a" * 9, "b c d" * 9])
    assert np.isfinite(long).all() and np.ptp(long) > 1e-4


def test_columns_that_a_model_does_not_take_are_left_out(tmp_path):
    """DistilBERT has no kinds of token, but many of its tokenizers number them."""
    path = write_classifier("distilbert", tmp_path)
    written = path / "tokenizer_config.json"
    names = '"model_input_names": ["input_ids", "token_type_ids", "attention_mask"], '
    written.write_text(written.read_text().replace("{", "{" + names, 1))
    assert "token_type_ids" in AutoTokenizer.from_pretrained(path)("a")
    found = Learned(path, index=1)(["a", "b c"], ["d", "e"])
    variant = "distilbert", "own", "right"
    assert found == pytest.approx([alone(variant, "pair", *row) for row in (("a", "d"), ("b c", "e"))], abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "bert", "roberta", "fnet"])
def test_embeddings_are_those_of_a_text_alone(family, side):
    texts = ["a", "d " * 30, "鼠標在桌子上。", f"b{END}"]
    variant = family, "none" if family in DECODERS else "own", side
    model, tokenizer = AutoModel.from_pretrained(folder(*variant)).eval(), loaded(*variant)[1]
    expected = []
    for text in texts:
        with torch.inference_mode():
            mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
        expected.append((mean / mean.norm()).numpy())
    assert Encoder(folder(*variant))(texts) == pytest.approx(np.array(expected), abs=1e-5)
    assert np.isfinite(Encoder(folder(*variant))(["", "a"])).all()


def test_padding_is_set_where_a_model_of_several_parts_reads_it():
    class Tokenizer:
        pad_token, eos_token, pad_token_id = None, "</s>", 7

    class Config:
        pad_token_id, text = None, None

        def get_text_config(self):
            return self.text

    class Model:
        config = Config()

    Model.config.text = Config()
    set_padding(Model, Tokenizer)
    assert Model.config.pad_token_id == Model.config.text.pad_token_id == 7


def with_template(path, template):
    (path / "chat_template.jinja").write_text(template)
    return path


CHAT = "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}</s>"
TALK = "System: Be kind.\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Why: so?"


def test_a_transcript_is_passed_to_the_chat_template_as_turns(tmp_path):
    path = with_template(write_classifier("roberta", tmp_path), CHAT)
    model, tokenizer = loaded("roberta", "own", "right")
    documents = [TALK, "Human: Hi", "Human: Hi\n\nAssistant:", " Say Human: Hi ", "System: a"]
    turns = [
        "[system]Be kind.[user]Hi[assistant]Hello[user]Why: so?",
        "[user]Hi",
        "[user]Hi",  # what waits for the answer is no turn
        "[user] Say Human: Hi ",  # another document stays as it is
        "[user]System: a",
    ]
    texts = [f"<s>{turn}[assistant]Well</s>" for turn in turns]
    with torch.inference_mode():
        rows = [tokenizer(text, add_special_tokens=False, return_tensors="pt") for text in texts]
        expected = [model(**row).logits[0, 1].item() for row in rows]
    documents = [from_transcript(document) for document in documents]
    found = Learned(path, template="chat", index=1)(documents, ["Well"] * 5)
    assert found == pytest.approx(expected, abs=1e-5)


def test_what_is_cut_keeps_the_response_and_the_special_tokens(tmp_path):
    path, read = with_template(write_classifier("roberta", tmp_path), CHAT), []
    for template in ("chat", "{document}{response}"):
        learned = Learned(path, template=template, index=0, max_tokens=12)
        _, tokenizer, longest = learned._load()
        rows = learned._tokens(tokenizer, ["x" * 50, "y"], ["abc", "z"], longest)
        read += [tokenizer.decode(ids) for ids in rows["input_ids"]]
        assert [len(mask) for mask in rows["attention_mask"]] == [len(ids) for ids in rows["input_ids"]]
    assert read[0] == "<s>istant]abc</s>" and read[1] == "<s>ssistant]z</s>"
    assert read[2] == "<s>xxxxxxxabc</s>" and read[3] == "<s>yz</s>"


def test_a_chat_template_that_refuses_a_conversation_is_one_line(tmp_path):
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('No system\n role') }}{% endif %}"
    learned = Learned(with_template(write_classifier("bert", tmp_path), refusing), template="chat", index=0)
    with pytest.raises(
        ClpError, match=r"the chat template of .* refuses a conversation \(No system role\); set"
    ) as raised:
        learned([from_transcript(TALK)], ["Well"])
    assert "\n" not in str(raised.value)
