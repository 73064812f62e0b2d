"""Chat templates that take arguments or ask for the date: told by `generation.chat_template_kwargs`, the same on any day."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import DOCUMENTS, GENERATION, OBJECTIVES, make_policy, write_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from clp_lightning.errors import UsageError
from clp_lightning.policy.loading import DATE, DIRECTIVES, fix_date, load_tokenizer
from clp_lightning.policy.prompts import PromptTemplate
from clp_lightning.policy.steerable import SteerablePolicy

TURNS = "{% for m in messages %}<{{ m.role }}> {{ m.content }}\n{% endfor %}<assistant>"
LLAMA = """\
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n" -}}
"""
SMOL = """\
{%- macro today() %}{{ strftime_now('%d %B %Y') }}{% endmacro -%}
{% for m in messages %}{% if loop.first %}Today Date: {{ today() }}
{% endif %}{% endfor %}"""
QWEN = TURNS + "{% if enable_thinking is defined and not enable_thinking %} <think></think>{% endif %}"


@pytest.fixture
def folder(tmp_path):
    return write_model("llama", tmp_path / "reference")


def with_template(folder, template):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return load_tokenizer(folder)


def generation(**variables):
    return GENERATION.model_copy(
        update={
            "chat": True, "template": "{document}", "max_prompt_tokens": 200, "chat_template_kwargs": variables,
        }
    )  # fmt: skip


def read(tokenizer, **variables):
    prompts = PromptTemplate(tokenizer, generation(**variables), OBJECTIVES).prompts(DOCUMENTS[:1], None, "cpu")
    return tokenizer.decode(prompts.ids[0][prompts.mask[0]])


def test_a_template_that_asks_for_the_date_is_told_the_same_on_any_day(folder):
    asked = f"<user> {DOCUMENTS[0]}\n<assistant>"
    for template, date in ((LLAMA, "26 Jul 2024"), (SMOL, "26 July 2024")):
        tokenizer = with_template(folder, template + TURNS)
        assert read(tokenizer) == f"Today Date: {date}\n{asked}"
        fixed = tokenizer.chat_template
        fix_date(tokenizer)
        assert tokenizer.chat_template == fixed
    assert read(with_template(folder, LLAMA + TURNS), date_string="1 May 2026") == f"Today Date: 1 May 2026\n{asked}"
    assert with_template(folder, TURNS).chat_template == TURNS  # what asks for no date stays as it is
    named = PreTrainedTokenizerFast(tokenizer_object=load_tokenizer(folder).backend_tokenizer)
    named.chat_template = {"default": LLAMA + TURNS, "tool_use": TURNS}
    fix_date(named)
    assert "26 Jul 2024" in named.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    assert named.chat_template["tool_use"] == TURNS


@settings(max_examples=15)  # each compiles two templates
@given(
    st.sampled_from(["", "  ", "\n "]),
    st.lists(st.sampled_from([*(f"%{each}" for each in DIRECTIVES), "-", " ", "x", "ÄY"]), max_size=12),
)
def test_the_date_is_written_as_strftime_writes_it(before, parts):
    asked, tokenizer = "".join(parts), PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({})))
    tokenizer.chat_template = f"{before}{{% if true %}}{{{{ strftime_now('{asked}') }}}}{{% endif %}}\nend"
    fix_date(tokenizer)
    shown = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)
    tokenizer.chat_template = f"{before}{{% if true %}}{DATE.strftime(asked)}{{% endif %}}\nend"
    assert shown == tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False)


def test_what_a_template_is_told_is_in_the_card_and_in_the_export(folder, tmp_path):
    tokenizer = with_template(folder, LLAMA + QWEN)
    assert read(tokenizer).endswith("<assistant>")
    assert read(tokenizer, enable_thinking=False).endswith("<assistant> <think></think>")
    policy = make_policy(folder)
    policy = SteerablePolicy(
        policy.model, policy.tokenizer, generation(enable_thinking=False), objectives=OBJECTIVES, experts=policy.experts
    )
    expected = policy.tokenize(DOCUMENTS[:1]).ids.tolist()
    policy.save(tmp_path / "saved", base_model="../reference")
    loaded = SteerablePolicy.from_pretrained(tmp_path / "saved")
    assert loaded.tokenize(DOCUMENTS[:1]).ids.tolist() == expected
    for format in ("peft", "hf"):  # the latter consumes the model
        loaded.export({"a": 1.0}, tmp_path / format, format)
        note = json.loads((tmp_path / format / "clp_export.json").read_text())
        asked = [{"role": "user", "content": note["template"].replace("{document}", DOCUMENTS[0])}]
        elsewhere = AutoTokenizer.from_pretrained(tmp_path / format)
        shown = elsewhere.apply_chat_template(asked, tokenize=False, **note["chat_template_kwargs"])
        assert shown == elsewhere.decode(expected[0])


def test_what_a_template_would_not_read_is_one_line(folder):
    tokenizer = with_template(folder, LLAMA + QWEN)
    for name, message in (
        ("enable_thinkin", "this model's chat template reads no such name; correct it, or leave it out"),
        ("messages", "this is set by CLP Lightning; leave it out"),
        ("tokenize", "this is set by CLP Lightning; leave it out"),
        ("strftime_now", "this is set by CLP Lightning; leave it out"),
    ):
        with pytest.raises(UsageError) as raised:
            read(tokenizer, **{name: False})
        assert str(raised.value) == f"generation.chat_template_kwargs.{name}: {message}"
