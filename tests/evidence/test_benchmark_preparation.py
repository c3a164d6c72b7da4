"""The growth of a preparation: what is measured is what the library makes, the same for every format and checkout."""

import json
import runpy


def test_every_size_and_form_is_measured_with_one_result(repository, tmp_path):
    script = runpy.run_path(str(repository / "scripts/evidence/benchmark_preparation.py"))
    output = tmp_path / "speed.json"
    sizes = ["--sizes", "1000", "3000", "--before", str(repository)]
    bounds = ["--most-csv", "1000", "--most-jsonl", "1000", "--most-before", "1000"]

    script["main"](["--work", str(tmp_path / "work"), "--output", str(output), *sizes, *bounds])

    report = json.loads(output.read_text("utf-8"))
    keys = [(run["num_rows"], run["form"], run["code"]) for run in report["runs"]]
    small = [(1000, form, code) for form in ("parquet", "csv", "jsonl") for code in ("this", "before")]
    assert keys == [*small, (3000, "parquet", "this")]
    assert len({run["fingerprint"] for run in report["runs"] if run["num_rows"] == 1000}) == 1
    assert [each["to"] for each in report["exponents"]] == [3000]
    assert list((tmp_path / "work").iterdir()) == []
