"""Data in the formats of public data sets, generated here, and tiny random encoders: what recipes name on the hub, as folders."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, BertModel, PreTrainedTokenizerFast

THINGS = (
    "bicycle", "guitar", "kettle", "lamp", "tent", "carpet", "window", "boat", "oven", "piano", "shovel", "camera", "jacket",
    "table", "clock", "basket", "ladder", "mirror", "heater", "radio",
)  # fmt: skip
TASKS = {
    "clean": ("wipe", "with a soft cloth and warm water", "let it dry in the shade"),
    "store": ("keep", "in a dry room under a cover", "look at it once a month"),
    "repair": ("open", "with a small screwdriver", "replace the worn part"),
    "sell": ("photograph", "by daylight", "write an honest advert"),
    "move": ("carry", "with a second person", "put a blanket around it"),
    "paint": ("sand", "with fine paper", "put on two thin coats"),
}
PLACES = ("cellar", "garage", "attic", "garden", "kitchen", "hall")
EVASIONS = (
    "I am not sure, there is a lot to say about that.", "That is a good question, people see it in many ways.",
    "Perhaps somebody else knows more about such things.", "It depends, as so much does, on what you want.",
)  # fmt: skip
REFUSALS = (
    "I would rather not help with that, it is not yours.", "Please ask its owner first, I will not help here.",
    "That belongs to somebody else, so please leave it alone.", "No, talk to your neighbour about it before anything else.",
)  # fmt: skip


def answer(thing: str, task: str) -> str:
    """What answers "How do I TASK the THING?"."""
    verb, how, then = TASKS[task]
    return f"You {verb} the {thing} {how}, and then you {then}."


def conversations(kind: str, count: int, *, noise: float = 0.0, seed: int = 0) -> list[dict[str, str]]:
    """Pairs as hh-rlhf has them: `chosen` and `rejected` are whole conversations that differ in their last answer.

    Of the kind `helpful` the chosen answer answers the question, and the rejected one evades it or is about something else.
    Of the kind `harmless` somebody asks about what is not theirs: the chosen answer declines, the rejected one tells how. A
    share `noise` of the pairs is the wrong way round, as people's own are now and then.
    """
    rng = np.random.default_rng(seed)
    found: dict[tuple[str, ...], dict[str, str]] = {}
    while len(found) < count:
        thing, other = (str(each) for each in rng.choice(THINGS, 2, replace=False))
        task, elsewhere = (str(each) for each in rng.choice(list(TASKS), 2, replace=False))
        place, whose = str(rng.choice(PLACES)), "my" if kind == "helpful" else "my neighbour's"
        good = answer(thing, task)
        if kind == "helpful":
            bad = str(rng.choice([*EVASIONS, answer(other, elsewhere), answer(other, task)]))
        else:
            good, bad = str(rng.choice(REFUSALS)), good
        start = f"\n\nHuman: There is a {thing} in {whose} {place}.\n\nAssistant: What about the {thing}?"
        start += f"\n\nHuman: How do I {task} the {thing}?\n\nAssistant: "
        better, worse = (bad, good) if rng.random() < noise else (good, bad)
        found.setdefault((start, good, bad), {"chosen": start + better, "rejected": start + worse})
    return list(found.values())


def write_hh(folder: Path, count: int, *, noise: float = 0.0) -> None:
    """Write the folders `helpful-base` and `harmless-base` as Anthropic/hh-rlhf has them: gzipped JSON Lines, two splits."""
    for number, kind in enumerate(("helpful", "harmless")):
        rows, part = conversations(kind, count, noise=noise, seed=number), folder / f"{kind}-base"
        part.mkdir(parents=True)
        for split, chosen in (("train", rows[count // 5 :]), ("test", rows[: count // 5])):
            with gzip.open(part / f"{split}.jsonl.gz", "wt", encoding="utf-8") as stream:
                stream.writelines(json.dumps(row) + "\n" for row in chosen)


def write_xsum(folder: Path, count: int) -> None:
    """Write Parquet files of three splits with the columns of EdinburghNLP/xsum: document, summary, id."""
    rng, names = np.random.default_rng(0), ("train", "validation", "test")
    for part, split in enumerate(names):
        rows = [
            {"document": f"Number {part} {n}. {answer(thing, task)} It stood in the {place}.",
             "summary": f"How to {task} a {thing}.", "id": f"{part}{n}"}
            for n in range(count)
            for thing, task, place in [(rng.choice(THINGS), rng.choice(list(TASKS)), rng.choice(PLACES))]
        ]  # fmt: skip
        (folder / "data").mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


def write_tldr(folder: Path, count: int) -> None:
    """Write Parquet files with the columns of trl-lib/tldr-preference: prompt, chosen, rejected."""
    rng = np.random.default_rng(1)
    (folder / "data").mkdir(parents=True)
    for part, split in enumerate(("train", "validation")):
        rows = [
            {"prompt": f"SUBREDDIT: r/{thing}\n\nTITLE: {part} {n}\n\nPOST: {answer(thing, task)}\n\nTL;DR:",
             "chosen": f" How to {task} the {thing}.", "rejected": f" {rng.choice(EVASIONS)}"}
            for n in range(count)
            for thing, task in [(rng.choice(THINGS), str(rng.choice(list(TASKS))))]
        ]  # fmt: skip
        datasets.Dataset.from_list(rows).to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))


OWN = (*THINGS, *TASKS, *PLACES, *EVASIONS, *REFUSALS, *(" ".join(each) for each in TASKS.values()))


def write_encoder(folder: Path, *, labels: dict[int, str] | None = None, texts: Iterable[Any] = OWN) -> Path:
    """Write two random BERT layers and a tokenizer of the words in `texts`; with `labels` a classifier."""
    words = sorted({word.strip(".,") for text in texts for word in text.split()} | set(".,:?") | {"Human", "Assistant"})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    size = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, pad_token_id=0, **({"id2label": labels} if labels else {}),
    )  # fmt: skip
    (BertForSequenceClassification(size) if labels else BertModel(size)).save_pretrained(folder)
    return folder
