"""The benchmark of language models at tiny sizes: that all ways agree, what it checks and what it writes."""

import json
import sys

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_llm_decoding")


def test_quick_run_finds_the_same_items_in_every_way_and_writes_the_figures(script, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["benchmark_llm_decoding.py", "--quick", "--output", str(tmp_path / "speed.json")]
    )

    script.main()

    (row,) = json.loads((tmp_path / "speed.json").read_text())["rows"]
    assert row["prompt_length"] == 25
    assert list(row["seconds"]) == ["prefix_function", "processor", "recommend", "recommend_in_catalog"]
    assert row["to_processor"] == row["seconds"]["processor"] / row["seconds"]["recommend"]


def test_other_items_or_scores_stop_the_run(script):
    expected = torch.tensor([[3, 5, 7]]), torch.tensor([[-1.0, -2.0, -3.0]])

    script.check_same(expected, (torch.tensor([[3, 5, 8]]), expected[1]), "tie at the end")
    with pytest.raises(ValueError, match=r"recommend lacks the items \[3\]"):
        script.check_same(expected, (torch.tensor([[4, 5, 7]]), expected[1]), "recommend")
    with pytest.raises(ValueError, match="recommend has other scores, by up to 1"):
        script.check_same(expected, (expected[0], expected[1] + 1), "recommend")
