"""The benchmark of lists as the catalog grows, at tiny sizes."""

from types import SimpleNamespace

import pytest

from line_plots import Panel
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


# In MB: 12 * width + 13 rows of a block, 50 of positions and 2 of the last norm; 4 special tokens before all others.
ROWS = 50 + 2 * (12 * 128 + 13) + 2
WEIGHTS = {
    "SASRec": (4 + 47 + ROWS) * 128 * 4 / 1e6,
    "VQ-Rec": ((4 + 32 * 256 + ROWS) * 128 * 4 + 47 * 32 * 2) / 1e6,
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_cell_says_what_a_user_costs_at_the_median_and_how_large_the_weights_are(script, monkeypatch, name):
    clock = iter([0, 9, 10, 10.3, 20, 20.9, 30, 30.15])  # seconds around a first call and three that count
    monkeypatch.setattr(script, "time", SimpleNamespace(process_time=lambda: next(clock)))

    row = script.measure(name, 47, 3, 3)

    assert row == {
        "model": name,
        "num_items": 47,
        "milliseconds_per_user": 100.0,
        "weights_mb": round(WEIGHTS[name], 1),
    }
    page = pool_blocks({"users": 3, "machine": {"torch": "2"}, "rows": [row]})
    assert page[-1].splitlines()[-1] == f"| {name} | 47 | 100.00 | {WEIGHTS[name]:.0f} |"
    assert pool_blocks(None) == []


def test_each_model_is_a_line_over_the_sizes_of_the_catalog(script, monkeypatch):
    plots = []
    monkeypatch.setattr(script, "plot_lines", lambda *words, **options: plots.append((words, options)))
    cells = [("SASRec", 47, 0.5, 1.6), ("VQ-Rec", 47, 0.25, 5.8), ("SASRec", 99, 0.75, 1.7)]
    rows = [dict(zip(("model", "num_items", *script.TITLES), cell, strict=True)) for cell in cells]

    script.draw(rows, "pools.png")

    panels = [
        Panel("CPU milliseconds per user", {"SASRec": [(47, 0.5), (99, 0.75)], "VQ-Rec": [(47, 0.25)]}),
        Panel("MB of weights and codes", {"SASRec": [(47, 1.6), (99, 1.7)], "VQ-Rec": [(47, 5.8)]}),
    ]
    assert plots == [((panels, "pools.png"), {"x_label": "items", "y_label": "", "log_x": True, "log_y": True})]
