"""The growth of a preparation: what is measured is what the library makes, the same for every format and checkout."""

import contextlib
import io
import json
import sys
from types import SimpleNamespace

import pytest


@pytest.fixture(params=["in this process", pytest.param("as programs", marks=pytest.mark.slow)])
def script(request, load_script, monkeypatch):
    """The benchmark; what it starts runs in this process too, where the libraries are imported already."""
    script = load_script("benchmark_preparation")

    def program(command, **_):
        monkeypatch.setattr(sys, "argv", command[2:])  # behind `python -c`
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(command[2], {})
        return SimpleNamespace(returncode=0, stdout=said.getvalue())

    if request.param == "in this process":
        monkeypatch.setattr(script.subprocess, "run", program)
    return script


def test_every_size_and_form_is_measured_with_one_result(script, repository, tmp_path):
    output = tmp_path / "speed.json"
    sizes = ["--sizes", "1000", "3000", "--before", str(repository)]
    bounds = ["--most-csv", "1000", "--most-jsonl", "1000", "--most-before", "1000"]

    script.main(["--work", str(tmp_path / "work"), "--output", str(output), *sizes, *bounds])

    report = json.loads(output.read_text("utf-8"))
    keys = [(run["num_rows"], run["form"], run["code"]) for run in report["runs"]]
    small = [(1000, form, code) for form in ("parquet", "csv", "jsonl") for code in ("this", "before")]
    assert keys == [*small, (3000, "parquet", "this")]
    assert len({run["fingerprint"] for run in report["runs"] if run["num_rows"] == 1000}) == 1
    assert [each["to"] for each in report["exponents"]] == [3000]
    assert list((tmp_path / "work").iterdir()) == []
