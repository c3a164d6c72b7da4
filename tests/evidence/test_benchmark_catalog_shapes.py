"""The trie by shapes of ids: how they branch, what is timed, what the page says."""

import json

import pytest
import torch


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("benchmark_catalog_shapes")


@pytest.mark.parametrize("num_roots", [3, 7])
def test_prefixes_have_the_same_number_of_children_at_any_number_of_items(script, num_roots):
    codes = script.branching_codes(num_roots, script.Shape(3, 64, 5), 0)

    catalog = script.Catalog(codes, 64)

    assert (catalog.num_nodes, catalog.max_children) == (
        [1, num_roots, 5 * num_roots, 25 * num_roots],
        [num_roots, 5, 5],
    )
    assert catalog.is_unique
    assert codes[:, 0].diff().unique().numel() > 1  # not in order


def test_ids_of_equal_branching_are_whole_subtrees_up_to_all_codes_of_the_root(script):
    shape = script.Shape(2, 8, 3)

    assert [len(shape.codes(size, 0)) for size in (1, 7, 24, 99)] == [3, 6, 24, 24]
    assert shape.codes(24, 0).long().aminmax() == (0, 7)


def test_wide_prefixes_are_stepped_through_by_masks_and_narrow_ones_by_lists(script):
    catalog = script.Catalog(torch.tensor([[0, 0], [0, 1], [0, 3], [1, 2]]), 4)
    nodes, chosen = torch.tensor([0, 1]), torch.tensor([3, 2])

    wide, narrow = script.step_of(catalog, 1), script.step_of(script.Catalog(torch.tensor([[0, 0], [1, 3]]), 4), 1)

    assert (wide[0], narrow[0]) == ("mask", "children")
    mask, child = wide[1](nodes, chosen)
    assert (mask.sum(-1).tolist(), child.tolist()) == ([3, 1], [2, 3])
    assert narrow[1](nodes, chosen)[0].tolist() == [[0], [3]]


def test_cells_are_written_at_once_and_not_measured_again(script, tmp_path, monkeypatch):
    words = ["--shapes", "fixed-4x4096", "--rows", "50", "--turns", "2", "--output", str(tmp_path / "speed.json")]

    script.main([*words, "--sizes", "30000"])
    first = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["cells"]
    monkeypatch.setattr(
        script, "in_a_process", lambda shape, size, options: first[0] | {"asked": size, "num_items": size}
    )
    script.main([*words, "--sizes", "30000", "60000"])

    cells = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))["cells"]
    assert [(cell["asked"], cell["num_items"]) for cell in cells] == [(30_000, 29**3), (60_000, 60_000)]
    assert cells[0] == first[0]
    assert [(step["depth"], step["form"]) for step in cells[0]["steps"]] == [(d, "children") for d in (1, 2, 3)]


def test_page_gives_the_mean_step_below_the_root(load_script):
    step = {"rows": 50, "depth": 1, "form": "children", "milliseconds": 0.5, "again": 0.25}
    cell = {
        "shape": "fixed-3x8192", "num_items": 12_100, "num_nodes": [1, 1, 110, 12_100], "cpu_seconds": 1.234,
        "peak_growth_mb": 99.6, "held_mb": 12.0, "machine": {"load_average": 1.04},
        "steps": [step, step | {"depth": 2, "milliseconds": 1.0}],
    }  # fmt: skip

    page = "\n".join(load_script("catalog_shape_results").shape_blocks({"cells": [cell]}))

    assert "| fixed 3x8192 | 12,100 | 1.0 · 110.0 · 110.0 | 1.23 | 100 | 12 | 0.750 | 0.250 |" in page
    assert "load average 1.0 to 1.0" in page
    assert load_script("catalog_shape_results").shape_blocks(None) == []
