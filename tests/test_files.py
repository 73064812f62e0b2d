"""Atomic files: whatever happens in the middle, the final name holds all of the old or all of the new."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clp_lightning.errors import ClpError, UsageError
from clp_lightning.files import atomic, check_replaceable, file_at, fingerprint, read_json, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def test_file_appears_when_the_block_ends(tmp_path):
    with atomic(tmp_path / "new" / "file.txt") as beside:
        beside.write_text("new")
        assert names(tmp_path / "new") == [".file.txt.partial"]
    assert (tmp_path / "new" / "file.txt").read_text() == "new"
    assert names(tmp_path / "new") == ["file.txt"]


def test_folder_takes_the_place_of_the_old_one_and_nothing_of_it_stays(tmp_path):
    for name in ("first", "second"):
        with atomic(tmp_path / "folder") as beside:
            beside.mkdir()
            (beside / name).touch()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["second"]


def test_folder_may_take_the_place_of_a_file(tmp_path):
    (tmp_path / "x").write_text("file")
    with atomic(tmp_path / "x") as beside:
        beside.mkdir()
    assert (tmp_path / "x").is_dir()
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), ClpError("no")])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_exception_leaves_the_old_content_and_no_leftovers(tmp_path, error, kind):
    (tmp_path / "x").write_text("old")
    with pytest.raises(type(error)), atomic(tmp_path / "x") as beside:
        if kind == "folder":
            beside.mkdir()
            (beside / "half").touch()
        else:
            beside.write_text("ne")
        raise error
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_block_that_writes_nothing_is_an_error_and_keeps_the_old(tmp_path):
    (tmp_path / "x").write_text("old")
    with pytest.raises(ClpError, match="cannot write"), atomic(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "old"


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_full_disk_is_one_line_and_keeps_the_old(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    try:
        (tmp_path / "x").write_text("old")
        with pytest.raises(ClpError) as raised, atomic(tmp_path / "x") as beside:
            beside.write_bytes(b"n" * 100_000)
        assert str(raised.value) == (
            f"cannot write {tmp_path}/x: No space left on device; free space or fix permissions, then run again"
        )
        assert (tmp_path / "x").read_text() == "old"
        assert names(tmp_path) == ["x"]
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_file_that_grows_over_a_limit_is_one_line_and_keeps_the_old(tmp_path):
    (tmp_path / "x").write_text("old")
    code = """
import resource, signal
from clp_lightning.errors import ClpError, UsageError
from clp_lightning.files import atomic
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic("x") as beside:
        beside.write_bytes(b"n" * 5000)
except ClpError as error:
    print(error)
"""
    output, errors = python(code, tmp_path).communicate(timeout=60)
    assert output == "cannot write x: File too large; free space or fix permissions, then run again\n", errors
    assert (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == ["x"]


def test_parent_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(ClpError, match=r"cannot write .*x/y: .*; free space or fix permissions, then run again"):
        write_json(tmp_path / "x" / "y", {})


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_writer_leaves_the_old_and_the_next_one_cleans_up(tmp_path, kind):
    with atomic(tmp_path / "x") as beside:
        beside.mkdir() if kind == "folder" else beside.write_text("old")
    code = f"""
import time
from clp_lightning.files import atomic
with atomic("x") as beside:
    if {kind == "folder"}:
        beside.mkdir()
        beside = beside / "half"
    beside.write_text("half of the n")
    print("written", flush=True)
    time.sleep(300)
"""
    writer = python(code, tmp_path)
    assert writer.stdout is not None and writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    assert (tmp_path / "x").is_dir() == (kind == "folder")
    assert names(tmp_path / "x") == [] if kind == "folder" else (tmp_path / "x").read_text() == "old"
    assert names(tmp_path) == [".x.partial", "x"]
    with atomic(tmp_path / "x") as beside:
        beside.mkdir() if kind == "folder" else beside.write_text("new")
        (beside / "new").touch() if kind == "folder" else None
    assert names(tmp_path / "x") == ["new"] if kind == "folder" else (tmp_path / "x").read_text() == "new"
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("moved_in", [False, True])
def test_folder_swap_that_was_killed_half_way_is_repaired_by_the_next_writer(tmp_path, moved_in):
    (tmp_path / ".x.old").mkdir()  # the old folder was moved aside ...
    (tmp_path / ".x.old" / "old").touch()
    if moved_in:  # ... and the new one in, but the old one not removed
        (tmp_path / "x").mkdir()
        (tmp_path / "x" / "new").touch()
    with pytest.raises(ValueError), atomic(tmp_path / "x"):
        raise ValueError  # even a writer that fails
    assert names(tmp_path) == ["x"]
    assert names(tmp_path / "x") == ["new" if moved_in else "old"]


def test_error_about_another_file_passes_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / "x") as beside:
        beside.write_text(Path("/nonexistent/input").read_text())
    assert names(tmp_path) == []


def test_reader_never_sees_half_a_file(tmp_path):
    code = """
from clp_lightning.files import write_json
for i in range(300):
    write_json("x.json", [i] * 2000)
"""
    write_json(tmp_path / "x.json", [-1] * 2000)
    writer, seen = python(code, tmp_path), set()
    while writer.poll() is None:
        values = json.loads((tmp_path / "x.json").read_text())
        assert len(values) == 2000 and len(set(values)) == 1
        seen.add(values[0])
        time.sleep(0.001)
    assert len(seen) > 5, writer.communicate()


def test_json_round_trip_and_what_json_cannot_hold(tmp_path):
    value = {"name": "µ–ζ", "numbers": [1, 2.5], "none": None}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", remedy="") == value
    assert "µ–ζ" in (tmp_path / "x.json").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", float("nan"))
    assert read_json(tmp_path / "x.json", remedy="") == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"b": 1}, "a: missing"),
        ([], "a: missing"),
        ("a", "a: missing"),
        ({"a": "x"}, "a: expected a list, but found 'x'"),
        ({"a": None}, "a: expected a list, but found None"),
    ],
)
def test_json_without_a_key_names_file_and_key(tmp_path, value, message):
    path = tmp_path / "x.json"
    write_json(path, value)
    with pytest.raises(ClpError) as raised:
        read_json(path, remedy="run `dvc repro`", keys={"a": list})
    assert str(raised.value) == f"{path}: {message}; run `dvc repro`"
    write_json(path, {"a": [], "b": 1})
    assert read_json(path, remedy="", keys={"a": list}) == {"a": [], "b": 1}


@pytest.mark.parametrize("content", [None, b"", b'{"a":', b"\xff\xfe"])
def test_json_that_cannot_be_read_names_file_and_remedy(tmp_path, content):
    path = tmp_path / "x.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ClpError) as raised:
        read_json(path, remedy="run `dvc repro`")
    text = str(raised.value)
    assert text.startswith(f"cannot read {path}: ") and text.endswith("; run `dvc repro`") and "\n" not in text


def test_fingerprint_covers_values_contents_and_names(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    (tmp_path / "a" / "two").write_text("2")
    before = fingerprint({"b": 1, "a": 2}, tmp_path / "a")
    assert before == fingerprint({"a": 2, "b": 1}, tmp_path / "a")
    assert len(before) == 16 and int(before, 16) >= 0
    assert before != fingerprint({"a": 2, "b": 2}, tmp_path / "a")
    (tmp_path / "a" / "two").write_text("3")
    changed = fingerprint({"a": 2, "b": 1}, tmp_path / "a")
    (tmp_path / "a" / "two").rename(tmp_path / "a" / "three")
    assert len({before, changed, fingerprint({"a": 2, "b": 1}, tmp_path / "a")}) == 3


@pytest.mark.parametrize(("left", "right"), [(["ab", "c"], ["a", "bc"]), ([1, 23], [12, 3]), ([1], ["1"])])
def test_fingerprint_tells_where_one_value_ends(left, right):
    assert fingerprint(*left) != fingerprint(*right)


def test_fingerprint_tells_in_which_folder_a_file_lies(tmp_path):
    for name in ("a/x/file", "b/y/file"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    assert fingerprint(tmp_path / "a") != fingerprint(tmp_path / "b")


def test_files_get_the_mode_that_open_gives(tmp_path):
    with open(tmp_path / "plain", "w"):
        pass
    with atomic(tmp_path / "folder") as beside:
        beside.mkdir()
        os.close(os.open(beside / "tensors", os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "folder" / "tensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_never_takes_the_place_of_a_folder(tmp_path):
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "thesis.txt").write_text("mine")
    with (
        pytest.raises(ClpError, match="is a folder, and a file never takes the place of one"),
        atomic(tmp_path / "reports") as beside,
    ):
        beside.write_text("new")
    assert names(tmp_path) == ["reports"] and names(tmp_path / "reports") == ["thesis.txt"]


@pytest.mark.parametrize("name", [".", "..", "/"])
def test_a_name_that_is_none_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="name a file or folder in it"), atomic(name):
        raise AssertionError("the block must not run")


def test_a_folder_for_a_file_gets_it_under_its_own_name(tmp_path):
    assert file_at(tmp_path, "report.html") == tmp_path / "report.html"
    assert file_at(tmp_path / "new.html", "report.html") == tmp_path / "new.html"


def test_only_a_folder_of_ours_is_replaceable(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / "clp.json").touch()
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "model.safetensors").touch()
    for name in ("empty", "ours", "not-there"):
        check_replaceable(tmp_path / name, "clp.json")
    with pytest.raises(UsageError, match="holds files that this command did not write"):
        check_replaceable(tmp_path / "theirs", "clp.json")
    with pytest.raises(UsageError, match="a file of this name"):
        check_replaceable(tmp_path / "ours" / "clp.json", "clp.json")
    monkeypatch.chdir(tmp_path / "ours")
    for name in (".", "..", str(tmp_path)):
        with pytest.raises(UsageError, match="the folder you are in, or above it"):
            check_replaceable(name, "clp.json")
