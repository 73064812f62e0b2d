"""What messages say alike: a number with its noun, and the command that works in the folder at hand."""

import pytest
from locations import REPOSITORY

from clp_lightning.errors import ClpError, make, plural
from clp_lightning.paths import package_folder
from clp_lightning.store.queries import Store


def test_a_number_has_the_noun_that_fits():
    assert [plural(number, "row") for number in (0, 1, 2)] == ["0 rows", "1 row", "2 rows"]
    assert plural(1, "policy", "policies") == "1 policy" and plural(3, "policy", "policies") == "3 policies"


def test_make_is_named_where_a_makefile_has_the_target(tmp_path):
    assert make("repro", folder=REPOSITORY) == "`make repro`" and make("pull", folder=REPOSITORY) == "`make pull`"
    assert make("repro", folder=tmp_path) == "`dvc repro`" and make("pull", folder=tmp_path) == "`dvc pull`"
    (tmp_path / "Makefile").write_text("pull := 1\nrepro : data\n\ttrue\n")  # of the user's own
    assert make("repro", folder=tmp_path) == "`make repro`" and make("pull", folder=tmp_path) == "`dvc pull`"
    assert make("setup", "pip install botocore", tmp_path) == "`pip install botocore`"


def test_messages_in_a_project_of_ones_own_name_what_works_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ClpError, match="does not exist yet; run `dvc repro` to build it"):
        Store("frontier.duckdb").runs()
    with pytest.raises(ClpError, match="no_such_package is not installed; run `pip install --no-deps no-such-package`"):
        package_folder("no_such_package")
