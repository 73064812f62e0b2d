"""The sections of `params.yaml` that say where prompts, preference pairs and pretrained models come from."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from clp_lightning.config.types import Positive, Rate, Section, Share

Column = Annotated[str, Field(min_length=1)]


class ApiDescriptions(Section):
    """Summarization pairs `name + body -> first sentence` from botocore's API descriptions, split by service."""

    kind: Literal["api_descriptions"]
    max_body_words: Positive
    max_summary_words: Positive
    min_overlap: Share  # share of the summary's content words that occur in name + body
    validation_services: Rate
    test_services: Rate
    limit: Positive | None  # rows kept in all, sampled with the seed; null keeps every row

    @model_validator(mode="after")
    def _leaves_something(self) -> "ApiDescriptions":
        if self.validation_services + self.test_services >= 1:
            raise ValueError("validation_services and test_services leave nothing to train on; lower them")
        return self


class HashSplits(Section):
    """Splits by a hash of each row, so that a row keeps its split when others come and go."""

    kind: Literal["hash"]
    validation: Rate
    test: Rate
    group: Column | None  # rows that agree in this column stay in one split; null splits by prompt

    @model_validator(mode="after")
    def _leaves_something(self) -> "HashSplits":
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on; lower them")
        return self


class ColumnSplits(Section):
    """Splits that a column names: train, validation (or valid, dev) and test."""

    kind: Literal["column"]
    column: Column


class GivenSplits(Section):
    """The splits that a Hugging Face dataset has; without a validation split a tenth of the training rows becomes it."""

    kind: Literal["given"]


Splits = Annotated[HashSplits | ColumnSplits | GivenSplits, Field(discriminator="kind")]


class Table(Section):
    """Own prompts: a CSV, JSON Lines or Parquet file, a local folder of Hugging Face datasets, or a hub name."""

    kind: Literal["table"]
    source: Annotated[str, Field(min_length=1)]
    subset: str | None  # configuration of a dataset on the hub or, with a / at its end, one of its folders
    prompt: str | None  # a column, or a template over columns: "{title}: {text}"
    messages: Column | None  # a column of chat messages (role, content); the last one of the assistant is the reference
    transcript: Column | None  # a column as in hh-rlhf: Human and Assistant in turns, the last answer is the reference
    reference: Column | None  # a reference answer, for supervised finetuning, ROUGE and judges
    splits: Splits
    limit: Positive | None  # rows kept in all, chosen by hash; null keeps every row
    skip_bad_rows: bool  # false: one bad row ends the stage with its line; true: they are left out and counted

    @model_validator(mode="after")
    def _one_prompt(self) -> "Table":
        given = [name for name in ("prompt", "messages", "transcript") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) or "none of them"
            raise ValueError(f"state exactly one of prompt, messages and transcript, the others null; found {what}")
        if self.reference is not None and given[0] == "transcript":
            raise ValueError("reference: a transcript's last answer is its reference; use null")
        return self


class Pretrained(Section):
    """Any causal or encoder-decoder model that transformers loads."""

    kind: Literal["pretrained"]
    model: Annotated[str, Field(min_length=1)]  # `package:NAME/PATH`, a local folder or GGUF file, or a hub name
    revision: str | None  # of a hub name: a commit, so that a run can be repeated
    allow_pickle: bool  # false refuses weights that are only there as pickles, which can run code


class RandomModel(Section):
    """A tiny Llama with random parameters and a tokenizer trained on the prompts, for tests."""

    kind: Literal["random"]
    vocabulary: Positive
    hidden: Positive
    layers: Positive
    heads: Positive


class Layers(Section):
    """Patterns (regular expressions on whole module names) that say which linear layers are which."""

    attention: str
    mlp: str
    logits: str


Quantization = Literal["int8", "nf4"]


class Compute(Section):
    """What the model is computed in and on, and how its frozen parameters are stored.

    With `quantization` whatever samples from the reference policy or trains against it (all stages from `normalization` on)
    loads its linear layers quantized, by bitsandbytes; the experts stay float32. `sft` trains, and merges, unquantized.
    """

    dtype: Literal["auto", "float32", "bfloat16", "float16"]  # auto: bfloat16 where the hardware is faster with it
    device: Literal["auto", "cpu", "cuda"]  # auto: a GPU where there is one
    quantization: Quantization | None  # int8: LLM.int8(); nf4: 4 bits as in QLoRA; null: none


class Corruptions(Section):
    """Pairs that the pipeline makes: the reference summary against worse answers, a number of each kind for training.

    The held-out split has a fifth of each. Needs `data` of the kind api_descriptions.
    """

    kind: Literal["corruptions"]
    other_same_service: Positive
    other_service: Positive
    halved: Positive
    words_dropped: Positive
    repeated: Positive
    name_only: Positive
    copied: Positive
    generic: Positive


class Preferences(Section):
    """Own pairs in TRL's columns, from the kinds of source that `data` reads."""

    kind: Literal["preferences"]
    source: Annotated[str, Field(min_length=1)]
    subset: str | None
    prompt: Column | None  # null: the prompt is what both answers begin with, as in hh-rlhf
    chosen: Column
    rejected: Column
    heldout: Rate  # share of the prompts, by hash, on which accuracy is measured
    limit: Positive | None
    skip_bad_rows: bool


class Scores(Section):
    """Pairs of two answers to one prompt from rows with an answer and a number for it each, as HelpSteer has them.

    The answer with the larger number is the chosen one; equal numbers make no pair.
    """

    kind: Literal["scores"]
    source: Annotated[str, Field(min_length=1)]
    subset: str | None
    prompt: Column
    response: Column
    score: Column  # a column of numbers, larger is better: helpfulness, correctness ...
    heldout: Rate  # share of the prompts, by hash, on which accuracy is measured
    limit: Positive | None  # pairs kept in all, chosen by hash; null keeps every pair
    skip_bad_rows: bool


class RewardModel(Section):
    """One learned reward: Bradley-Terry training of an encoder on preference pairs; written to models/NAME."""

    pairs: Annotated[Corruptions | Preferences | Scores, Field(discriminator="kind")]
    encoder: Annotated[str, Field(min_length=1)]  # `package:NAME/PATH`, a local folder or a hub name
    max_tokens: Positive  # of both texts; the longer one loses its end, a conversation its start
    steps: Positive
    batch_size: Positive
    learning_rate: Rate
