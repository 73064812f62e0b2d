"""A policy's card, `clp.json`: whatever it lacks or has wrong is one line that names file and key."""

import json

import pytest
from tiny_models import make_policy, write_model
from typer.testing import CliRunner

from clp_lightning.cli.app import app
from clp_lightning.errors import ClpError
from clp_lightning.policy.folder import read_card
from clp_lightning.policy.steerable import SteerablePolicy


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("policy")
    make_policy(write_model("llama", made / "base")).save(made / "clp-full", base_model="../base", method="clp-full")
    return made / "clp-full"


@pytest.fixture
def card(folder):
    """The card's values; the file is as it was afterwards."""
    text = (folder / "clp.json").read_text()
    yield json.loads(text)
    (folder / "clp.json").write_text(text)


NEEDED = "objectives base_model prompted takes_alpha generation conditioning rank shared scaling".split()


@pytest.mark.parametrize("key", NEEDED)
def test_a_key_that_is_missing_is_named(folder, card, key):
    del card[key]
    (folder / "clp.json").write_text(json.dumps(card))
    with pytest.raises(ClpError, match=f"^{folder}/clp.json: {key}: missing; .*(make|dvc) repro"):
        SteerablePolicy.from_pretrained(folder)


def test_keys_that_came_later_may_be_missing(folder, card):
    assert set(NEEDED) <= set(card)
    older = {key: card[key] for key in NEEDED}
    older["generation"] = {key: value for key, value in card["generation"].items() if key not in ("chat", "end_token")}
    (folder / "clp.json").write_text(json.dumps(older))
    assert read_card(folder).generation.model_dump() == card["generation"]
    assert SteerablePolicy.from_pretrained(folder).objectives == ("a", "b")


def test_a_policy_with_an_expert_for_all_weightings_everywhere_is_loaded(folder, tmp_path):
    base = folder.parent / "base"
    make_policy(base, shared="everywhere").save(tmp_path / "saved", base_model=str(base))
    assert SteerablePolicy.from_pretrained(tmp_path / "saved").experts.shared == "everywhere"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objectives": "a"}, "objectives: expected a list, but found 'a'"),
        ({"objectives": []}, "objectives: List should have at least 1 item"),
        ({"objectives": ["a", 7]}, "objectives.1: Input should be a valid string, but found 7"),
        ({"base_model": None}, "base_model: Input should be a valid string, but found None"),
        ({"prompted": 1}, "prompted: Input should be a valid boolean, but found 1"),
        ({"rank": 0}, "rank: Input should be greater than or equal to 1, but found 0"),
        ({"rank": "half"}, "rank: Input should be a valid integer, but found 'half'"),
        ({"scaling": "2"}, "scaling: Input should be a valid number, but found '2'"),
        ({"conditioning": "some"}, "conditioning: Input should be 'full', 'attention', 'logits', 'blocks' or 'none'"),
        (
            {"parameterization": "svd"},
            "parameterization: Input should be 'experts', 'bilinear' or 'singular', but found 'svd'",
        ),
        ({"shared": "nowhere"}, "shared: Input should be False, True or 'everywhere', but found 'nowhere'"),
        ({"generation": []}, "generation: Input should be a valid dictionary or instance of Generation, but found"),
        ({"generation": {"chat": False}}, "generation.max_prompt_tokens: missing; run"),
        ({"listed": [[1.0, 0.0], [1.0]]}, "listed: expected rows of 2 shares, one for each objective, but found"),
        ({"layers": {"attention": "x"}}, "layers.mlp: missing; run"),
        ({"quantization": "int4"}, "quantization: Input should be 'int8' or 'nf4', but found 'int4'"),
    ],
)
def test_a_value_of_another_kind_is_named(folder, card, changes, message):
    (folder / "clp.json").write_text(json.dumps(card | changes))
    with pytest.raises(ClpError) as raised:
        SteerablePolicy.from_pretrained(folder)
    assert str(raised.value).startswith(f"{folder}/clp.json: {message}") and "\n" not in str(raised.value)


@pytest.mark.parametrize("values", [[], None, 7, {}])
def test_what_is_no_card_is_one_line(folder, card, values):
    (folder / "clp.json").write_text(json.dumps(values))
    with pytest.raises(ClpError, match=r"clp.json: objectives: missing; it is not a model that CLP wrote"):
        SteerablePolicy.from_pretrained(folder)


@pytest.mark.parametrize(
    ("objectives", "message"),
    [({}, "objectives: expected a list, but found {}"), ([1], r"objectives: expected names, but found \[1\]")],
)
def test_the_command_reads_objectives_with_the_same_care(folder, card, objectives, message):
    (folder / "clp.json").write_text(json.dumps(card | {"objectives": objectives}))
    done = CliRunner().invoke(app, ["generate", "--model", str(folder), "--weighting", "a=1", "x"])
    assert isinstance(done.exception, ClpError)
    with pytest.raises(ClpError, match=message):
        raise done.exception


def test_the_command_samples_and_stops_as_asked(folder):
    policy = SteerablePolicy.from_pretrained(folder)
    whole = policy.generate(["x", "y"], {"a": 1.0}, samples=2, top_p=0.9, seed=4)
    stop = next(text[1] for text in whole if len(text) > 2)
    asked = ["--temperature", "1", "--samples", "2", "--top-p", "0.9", "--seed", "4"]
    command = ["generate", "--model", str(folder), "--weighting", "a=1,b=0", "--json", *asked, "x", "y"]
    for more, expected in (
        ([], whole),
        (["--stop", stop], policy.generate(["x", "y"], {"a": 1.0}, samples=2, top_p=0.9, seed=4, stop=stop)),
    ):
        done = CliRunner().invoke(app, [*command, *more])
        assert done.exit_code == 0, done.exception
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        assert [row["response"] for row in rows] == expected
        assert [row["prompt"] for row in rows] == ["x", "x", "y", "y"]
    table = CliRunner().invoke(app, ["generate", "--model", str(folder), "--weighting", "a=1,b=0", "--weighting", "b=1",
                                     "--temperature", "1", "--samples", "2", "x"]).stdout  # fmt: skip
    assert table.count("a=1") == table.count("b=1") == 1


def test_several_samples_need_a_temperature(folder):
    done = CliRunner().invoke(app, ["generate", "--samples", "2", "--weighting", "a=1", "x"])
    assert str(done.exception) == "--samples 2: at temperature 0 all would be the same; give e.g. --temperature 1"
