"""The growth table of large catalogs: its data, its steps and its exponents."""

import json

import pytest
import torch

from hf_genrec import PreparedDataset


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_large_catalogs")


def test_invented_data_are_a_prepared_folder(script, tmp_path):
    script.write_data(tmp_path / "shop", 30, 7, 4)

    data = PreparedDataset.load(tmp_path / "shop" / "data")
    assert (len(data.item_ids), len(data.split("train")), len(set(data.item_ids))) == (30, 7, 30)
    assert data.split("test")[0]["history"][:-1] == data.split("validation")[0]["history"]


def test_random_codes_are_distinct(script):
    assert len(torch.unique(script.random_codes(5000), dim=0)) == 5000


def test_exponents_are_those_of_computing_per_user_between_the_two_largest_sizes(script):
    rows = [(10, 7.0, None), (100, 1.0, None), (1000, 10.0, None), (1000, 0.05, None)]
    steps = [{"phase": "trie", "step": "build", "num_items": n, "cpu_seconds": s} for n, s, _ in rows]
    steps += [
        {"phase": "evaluate", "step": "all", "num_items": 100, "cpu_seconds": 2.0, "num_users": 20},
        {"phase": "evaluate", "step": "all", "num_items": 1000, "cpu_seconds": 2.0, "num_users": 2},
    ]

    assert script.exponents(steps) == {"trie: build": 1.0, "evaluate: all": 1.0}


def test_a_phase_measures_its_steps_in_a_process_of_its_own(script, tmp_path, capsys):
    options = script.parse_arguments(["--quick", "--worker", "trie"])

    script.work(options)

    rows = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [row["step"] for row in rows] == [
        "building the trie", "set_catalog", "tables with 1,000 further items", "their trie",
    ]  # fmt: skip
    assert all(row["num_items"] == 300 and row["peak_mb"] >= 0 for row in rows)


@pytest.mark.slow
def test_all_phases_run(script, tmp_path):
    script.main(["--quick", "--output", str(tmp_path / "figures.json")])

    phases = {row["phase"] for row in json.loads((tmp_path / "figures.json").read_text(encoding="utf-8"))["steps"]}
    assert phases == set(script.PHASES)
