"""Which test prompts are drawn: evenly over groups or at random, anew with another seed, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from results_factory import config

from clp_lightning.errors import ClpError
from clp_lightning.evaluation.prompts import draw_prompts

SIZES = {"large": 40, "middle": 12, "small": 3, "single": 1}


def parameters(**changes: object):
    return config(evaluation=config().evaluation.model_dump() | {"prompts": 16} | changes)


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """A test split of four services of 40, 12, 3 and 1 prompts."""
    monkeypatch.chdir(tmp_path)
    service = np.repeat(list(SIZES), list(SIZES.values()))
    rows = pd.DataFrame({"id": [f"p{i}" for i in range(len(service))], "service": service})
    write(rows.assign(document=rows.id, summary=rows.id, topic=[i % 5 for i in range(len(rows))]))
    return tmp_path


def write(rows: pd.DataFrame) -> None:
    from clp_lightning.paths import CORPUS

    CORPUS.mkdir(parents=True, exist_ok=True)
    rows.to_parquet(CORPUS / "test.parquet", index=False)


def test_an_even_draw_takes_as_many_of_each_group_as_it_has_to_give(corpus):
    drawn = draw_prompts(parameters(draw="even"))
    # 1 of the single one, 3 of the small one, and 6 each of the two that have more: 16
    assert drawn.group.value_counts().to_dict() == {"large": 6, "middle": 6, "small": 3, "single": 1}
    assert drawn.id.is_unique and (drawn.group == drawn.service).all()
    assert draw_prompts(parameters(draw="even")).equals(drawn)  # the same for every method
    other = draw_prompts(parameters(draw="even"), seed=1)
    assert (
        set(other.id) != set(drawn.id) and other.group.value_counts().to_dict() == drawn.group.value_counts().to_dict()
    )
    assert len(draw_prompts(parameters(draw="even"), count=30)) == 30
    assert len(draw_prompts(parameters(draw="even", prompts=500))) == 56  # all that there are


def test_a_random_draw_is_what_older_versions_drew(corpus):
    drawn = draw_prompts(parameters(draw="random"))
    rows = pd.read_parquet("data/corpus/test.parquet")
    assert drawn.id.tolist() == rows.sample(16, random_state=0).id.tolist()


def test_every_prompt_of_a_group_is_as_likely_as_another(corpus):
    config = parameters(draw="even")
    counts = pd.concat([draw_prompts(config, seed=seed) for seed in range(100)]).id.value_counts()
    large = counts[[f"p{i}" for i in range(40)]]
    # each is drawn with probability 6 / 40: 15 times in 100, standard deviation 3.6
    assert large.sum() == 6 * 100 and large.between(15 - 14, 15 + 14).all()


def test_groups_are_any_column(corpus):
    drawn = draw_prompts(parameters(draw="even", group="topic", prompts=10))
    assert drawn.group.value_counts().to_dict() == {str(topic): 2 for topic in range(5)}
    assert draw_prompts(parameters(group="id")).group.is_unique


def test_a_column_that_is_missing_or_one_group_is_one_line(corpus):
    with pytest.raises(ClpError) as caught:
        draw_prompts(parameters(group="team"))
    assert str(caught.value) == (
        "evaluation.group: data/corpus/test.parquet has no column 'team'; "
        "name one of id, service, document, summary, topic, or null"
    )
    write(pd.read_parquet("data/corpus/test.parquet").query("service == 'large'"))
    with pytest.raises(
        ClpError, match=r"evaluation.group: all 16 prompts have the service 'large', .* or id, which takes"
    ):
        draw_prompts(parameters())
