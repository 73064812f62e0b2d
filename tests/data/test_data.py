import numpy as np
import pandas as pd
import pytest

from clp_lightning.config.parameters import load_config
from clp_lightning.data import api_descriptions, pairs
from clp_lightning.data import corpus as data
from clp_lightning.data.splits import SPLITS, read_split
from clp_lightning.errors import ClpError

SERVICES = ("acm", "account", "athena", "backup", "batch", "sqs", "sns", "glacier", "kms", "lambda")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project") / "corpus"
    card = data.build_corpus(load_config("params.yaml"), folder, services=SERVICES)
    return folder, card


def test_splits_share_no_service_and_rows_are_unique(corpus):
    folder, card = corpus
    parts = {split: read_split(folder, split) for split in SPLITS}
    services = [set(part["service"]) for part in parts.values()]
    assert set.union(*services) == set(SERVICES) and sum(map(len, services)) == len(SERVICES)
    rows = pd.concat(parts.values())
    assert rows["id"].is_unique and rows["document"].str.lower().is_unique and rows["summary"].str.lower().is_unique
    assert (rows["document"] == rows["name"] + ": " + rows["body"]).all()
    assert card["rows"] == len(rows)


def test_corpus_is_reproducible_and_limited(corpus, tmp_path):
    config = load_config("params.yaml")
    again = data.build_corpus(config, tmp_path / "again", services=SERVICES)
    assert again["sha256"] == corpus[1]["sha256"]
    smaller = config.model_copy(update={"data": config.data.model_copy(update={"limit": 100})})
    assert data.build_corpus(smaller, tmp_path / "small", services=SERVICES)["rows"] == 100


def test_text_is_extracted_from_html():
    summary, rest = api_descriptions.split_summary(
        "<p>Deletes a <b>key</b> &amp; more.</p><note>Aside.</note><p>It e.g. is gone. Really.</p>"
    )
    assert (summary, rest) == ("Deletes a key & more.", "It e.g. is gone. Really.")
    assert api_descriptions.spoken_name("ListDBRolesRequest.maxResults") == "list DB roles request, max results"
    assert api_descriptions.content_words("The keys of the bucket") == {"key", "bucket"}


def test_missing_corpus_is_one_line(tmp_path):
    with pytest.raises(ClpError, match=r"cannot read .*train.parquet: no such file; run `dvc repro`"):
        read_split(tmp_path, "train")


def test_pairs_are_what_their_kind_says(corpus, tmp_path):
    folder, _ = corpus
    config = load_config("params.yaml")
    sizes = pairs.build_pairs(config, "informativeness", folder, tmp_path / "pairs")
    train, heldout = (read_split(tmp_path / "pairs", split) for split in ("train", "heldout"))
    assert train["kind"].value_counts().to_dict() == config.reward_models["informativeness"].pairs.model_dump(
        exclude={"kind"}
    )
    assert sizes == {"train": len(train), "heldout": len(heldout)}
    assert not set(train["service"]) & set(heldout["service"])
    for part in (train, heldout):
        assert (part["chosen"].str.lower().str.rstrip(".") != part["rejected"].str.lower().str.rstrip(".")).all()
    rows = read_split(folder, "train")
    by_service = {service: set(group["summary"].str.rstrip(".")) for service, group in rows.groupby("service")}
    same = train[train["kind"] == "other_same_service"]
    assert all(row.rejected.rstrip(".") in by_service[row.service] for row in same.itertuples())
    halved = train[train["kind"] == "halved"]
    assert all(row.chosen.startswith(row.rejected.rstrip(".")) for row in halved.itertuples())
    assert 0.3 < halved["rejected"].str.endswith(".").mean() < 0.7  # a full stop proves nothing


def test_words_dropped_keeps_order():
    rng = np.random.default_rng(0)
    kept = pairs._words_dropped("one two three four five.", rng).rstrip(".").split()
    assert 0 < len(kept) < 5 and kept == [word for word in "one two three four five".split() if word in kept]
