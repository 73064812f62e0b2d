"""Progress lines where output is a log: what a person reads in CI and in Prefect."""

from clp_lightning import progress
from clp_lightning.training.progress import ProgressLines, progress_bar


def test_track_prints_the_time_left_and_the_end(capsys, monkeypatch):
    clock = iter([0, 10, 20, 30, 40])  # started; then one reading per item
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    assert list(progress.track("abcd", "sample")) == list("abcd")
    # lines at least 15 s apart: after 20 s with 2 of 4 done 20 s are left, and after the last item
    assert capsys.readouterr().out.splitlines() == ["sample: 2 of 4, 0:20 left", "sample: 4 of 4, 0:00 left"]


def test_track_is_empty_for_nothing(capsys):
    assert list(progress.track([], "sample")) == []
    assert capsys.readouterr().out == ""


def test_duration():
    assert [progress.duration(seconds) for seconds in (0, 59.4, 61, 754)] == ["0:00", "0:59", "1:01", "12:34"]


def test_a_log_gets_lines_and_no_bar():
    assert isinstance(progress_bar(), ProgressLines)
