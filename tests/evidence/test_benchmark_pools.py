"""The benchmark of lists as the catalog grows, at tiny sizes."""

import pytest

from long_id_results import pool_blocks


@pytest.fixture
def script(load_script, repository, monkeypatch):
    monkeypatch.syspath_prepend(str(repository / "scripts/evidence"))
    return load_script("benchmark_pools")


def test_random_ids_of_a_catalog_differ(script):
    codes = script.distinct_codes(3001, 7)

    assert codes.shape == (3001, 7)
    assert 0 <= codes.min() <= codes.max() < script.CODEBOOK
    assert len(codes[:, :4].unique(dim=0)) == 3001


@pytest.mark.parametrize("name", ["SASRec", "VQ-Rec"])
def test_a_cell_says_what_a_call_costs_and_stands_on_the_page(script, name):
    row = script.measure(name, 47, 3, 1)

    assert row["milliseconds_per_user"] > 0
    assert row["weights_mb"] > 0
    page = "\n".join(pool_blocks({"users": 3, "machine": {"torch": "2"}, "rows": [row]}))
    assert f"| {name} | 47 |" in page
    assert pool_blocks(None) == []
