"""The server's settings, and the threads that it may take."""

import pytest

from hf_genrec.serving.server.app import num_threads
from hf_genrec.serving.server.settings import ServerSettings
from hf_genrec.training.threads import threads


def test_threads_stay_within_the_quota_of_a_container(tmp_path):
    for text, number in [("max 100000", 5), ("250000 100000", 2), ("50000 100000", 1), ("nonsense", 5)]:
        (tmp_path / "cpu.max").write_text(text)
        with threads(5):
            assert num_threads(tmp_path / "cpu.max") == number


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match="`max_batch` must be at least 1"):
        ServerSettings(max_batch=0)
    with pytest.raises(ValueError, match="`max_queue` must be at least `max_histories`"):
        ServerSettings(max_queue=5, max_histories=6)
