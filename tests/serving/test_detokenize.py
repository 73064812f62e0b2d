"""Answers as texts while they are written: the same text as all tokens give, each token decoded a bounded number of times."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import make_policy, write_model
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from clp_lightning.policy.steerable import SteerablePolicy
from clp_lightning.policy.tokens import cut
from clp_lightning.serving.batch import Batch, Request, request
from clp_lightning.serving.detokenize import UNKNOWN, Detokenizer

TEXTS = ["create a queue that holds what is sent", "été à Zürich, naïve café", "日本語のテキスト", "🎉🎉 ok"]
MOST = 25  # times that a token of a text is decoded on average
MOST_OF_NONE = 60  # where the bytes are no characters


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a space is a character of the next word, dropped in front; unknown characters are tokens of a byte each."""
    words = ["▁", "▁a", "▁b", "a", "b", "ab", ".", "é"]
    vocabulary = {token: n for n, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *words])}
    backend = Tokenizer(
        models.BPE(vocabulary, [("a", "b"), ("▁", "a"), ("▁", "b")], unk_token="<unk>", byte_fallback=True)
    )
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind: the rest of a word begins with ##, and spaces are written between words."""
    vocabulary = {token: n for n, token in enumerate(["[UNK]", "a", "b", "##a", "##b", ".", "é", "##é"])}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


@pytest.fixture(scope="module")
def policy(tmp_path_factory) -> SteerablePolicy:
    policy = make_policy(write_model("llama", tmp_path_factory.mktemp("llama") / "reference", TEXTS * 5))
    policy.generation = policy.generation.model_copy(update={"max_new_tokens": 400})
    return policy


@pytest.fixture(scope="module")
def tokenizers(policy) -> dict:
    return {"bytes": policy.tokenizer, "sentencepiece": sentencepiece(), "wordpiece": wordpiece()}


def decoded_while_written(tokenizer, tokens: list[int]) -> tuple[list[str], int]:
    """Return the texts after each token, and how many tokens were decoded for them."""
    count = 0

    def decode(ids) -> str:
        nonlocal count
        count += len(ids)
        return tokenizer.decode(list(ids))

    so_far = Detokenizer(decode)
    return [so_far(tokens[:end]) for end in range(1, len(tokens) + 1)], count


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "wordpiece"])
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_a_text_grows_into_what_all_tokens_give(tokenizers, kind, data):
    tokenizer = tokenizers[kind]
    tokens = tokenizer(data.draw(st.text(st.sampled_from("ab. é日🎉\n"), max_size=60)))["input_ids"]
    texts, count = decoded_while_written(tokenizer, tokens)
    assert texts[-1:] == [tokenizer.decode(tokens)][: len(tokens)]
    assert all(texts[-1].startswith(text.rstrip(UNKNOWN)) for text in texts)
    assert count <= MOST * len(tokens)


@settings(max_examples=100, deadline=None)
@given(tokens=st.lists(st.integers(1, 299), max_size=80))
def test_bytes_that_are_no_characters_are_decoded_alike(tokenizers, tokens):
    texts, count = decoded_while_written(tokenizers["bytes"], tokens)
    assert texts == [tokenizers["bytes"].decode(tokens[:end]) for end in range(1, len(tokens) + 1)]
    assert count <= MOST_OF_NONE * len(tokens)


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece"])
@pytest.mark.parametrize(
    "piece", ["a ", "é", "日", "🎉", b"\x80", b"\xe3", b"\xf0\x9f", b"\xe3\x81a", b"\xf0\x9f\x8e"], ids=repr
)
def test_the_work_grows_with_the_length_whatever_is_written(tokenizers, kind, piece):
    raw = (piece.encode() if isinstance(piece, str) else piece) * 400
    names = bytes_to_unicode() if kind == "bytes" else {byte: f"<0x{byte:02X}>" for byte in range(256)}
    tokens = tokenizers[kind].convert_tokens_to_ids([names[byte] for byte in raw])  # a token for each byte
    texts, count = decoded_while_written(tokenizers[kind], tokens)
    assert texts[-1] == tokenizers[kind].decode(tokens)
    # decoding all after each: 200 times or more
    assert count <= (MOST if isinstance(piece, str) else MOST_OF_NONE) * len(tokens)


def finished(policy: SteerablePolicy, tokens: list[int], stop: list[str]) -> tuple[Request, list[str]]:
    """Give a request these tokens until it ends; return it and its texts on the way."""
    each = Request([1], torch.zeros(1, 2), 0.0, torch.zeros(len(tokens)), stop, lambda _: None)
    texts = []
    for token in tokens:
        each.append(token, policy)
        texts.append(each.text)
        if each.finish:
            break
    return each, texts


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(st.sampled_from("ab é日🎉\n"), min_size=1, max_size=40),
    stop=st.lists(st.text(st.sampled_from("ab é日🎉\n"), min_size=1, max_size=5), max_size=3),
)
def test_an_answer_is_the_text_of_all_tokens_before_the_first_stop_string(policy, text, stop):
    tokens = policy.tokenizer(text)["input_ids"]
    each, texts = finished(policy, tokens, stop)
    assert (each.text, each.finish == "stop") == cut(text, stop)
    for earlier in texts[:-1]:  # what was shown stays, but for half a character and what may begin a stop string
        shown = earlier.rstrip(UNKNOWN)
        held = max((size for mark in stop for size in range(1, len(mark)) if shown.endswith(mark[:size])), default=0)
        assert each.text.startswith(shown[: len(shown) - held].rstrip())
    if each.finish == "stop":  # and it ends with the first token that completes one
        assert not cut(policy.text(tokens[: len(each.tokens) - 1]), stop)[1]


def test_an_end_token_ends_an_answer_and_is_no_part_of_it(policy):
    tokens = [*policy.tokenizer("a b")["input_ids"], policy.tokenizer.eos_token_id, 5, 6]
    each, _ = finished(policy, tokens, [])
    assert (each.text, each.finish, len(each.tokens)) == ("a b", "stop", len(tokens) - 2)


@pytest.mark.parametrize(("streamed", "stop"), [(True, []), (False, ["no such text"]), (False, [])])
def test_serving_decodes_a_token_a_bounded_number_of_times(policy, monkeypatch, streamed, stop):
    count, text = 0, SteerablePolicy.text

    def counting(self, ids) -> str:
        nonlocal count
        count += len(ids)
        return text(self, ids)

    monkeypatch.setattr(SteerablePolicy, "text", counting)
    monkeypatch.setattr(policy, "end_ids", frozenset())
    each = request(policy, "a", None, lambda _: None, temperature=1.0, stop=stop, streamed=streamed)
    batch = Batch(policy)
    with torch.no_grad(), policy.experts.frozen():
        batch.admit([each])
        while batch.requests:
            batch.step()
    assert len(each.tokens) == 400 and each.finish == "length"
    assert count <= (MOST * 400 if streamed or stop else 400)  # all tokens after each: 80,200
