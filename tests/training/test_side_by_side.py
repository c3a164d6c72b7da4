"""A second process beside a training."""

import time
from pathlib import Path

import pytest

from hf_genrec.training.side_by_side import pays_off, side_by_side


def test_second_process_works_while_the_block_runs(tmp_path):
    with side_by_side(Path.mkdir, tmp_path / "made"):
        deadline = time.monotonic() + 60
        while not (tmp_path / "made").is_dir() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "made").is_dir()


def test_error_in_the_block_ends_the_second_process():
    start = time.monotonic()
    with pytest.raises(ValueError, match="the first one"), side_by_side(time.sleep, 600):
        raise ValueError("the first one")
    assert time.monotonic() - start < 60


def test_short_trainings_and_those_of_a_launcher_stay_in_one_process(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0, 1})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert pays_off(300_000)
    assert not pays_off(299_999)
    monkeypatch.setenv("RANK", "0")
    assert not pays_off(300_000)
    monkeypatch.delenv("RANK")
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {0})
    assert not pays_off(300_000)
