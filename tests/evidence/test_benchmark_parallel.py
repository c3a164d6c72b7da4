"""The benchmark of exact and graph decoding at tiny sizes."""

import json
import sys

import numpy as np
import pytest
import torch

from hf_genrec import SemanticIds, save_recommender
from hf_genrec.modeling.configuration_rpg import RPGConfig
from hf_genrec.modeling.modeling_rpg import RPGForItemGeneration
from parallel_results import parallel_blocks


ITEM_IDS = [f"item-{number:02}" for number in range(29)]


@pytest.fixture(scope="module")
def module(load_script, repository):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(repository / "scripts"))  # it imports other scripts
        return load_script("benchmark_parallel")


@pytest.fixture
def script(module, monkeypatch):
    """The script, with its cells measured in this process."""

    def in_this_process(arguments, *words):
        given = [arguments.run, arguments.prepared] if arguments.run else []
        fixed = [
            "--ndcg-users",
            arguments.ndcg_users,
            "--graphs",
            arguments.graphs,
            "--users",
            arguments.users,
            "--seconds",
            0,
            "--walks",
            *arguments.walks,
        ]
        monkeypatch.setattr(sys, "argv", ["x", *map(str, [*given, *fixed, *words])])
        again = module.parse_arguments()
        return module.measure(again) if again.cell else module.build(again)

    monkeypatch.setattr(module, "in_a_process", in_this_process)
    return module


@pytest.fixture
def run(make_prepared, tmp_path):
    """A saved RPG of 29 items and its data."""
    generator = np.random.default_rng(0)
    sequences = {f"user-{user}": [ITEM_IDS[item] for item in generator.permutation(29)[:7]] for user in range(11)}
    prepared = make_prepared(sequences | {"user-of-all": ITEM_IDS})
    shape = {"num_levels": 4, "codebook_size": 5, "d_model": 8, "d_ff": 12, "num_heads": 2, "num_layers": 1}
    torch.manual_seed(0)
    model = RPGForItemGeneration(RPGConfig(num_items=29, max_history_length=9, **shape))
    codes = torch.randint(5, (29, 4), generator=torch.Generator().manual_seed(2))
    model.set_catalog(codes)
    save_recommender(tmp_path / "run", model, SemanticIds(ITEM_IDS, codes.numpy(), 5, "keep"), prepared.items)
    return tmp_path / "run", prepared.folder


def test_cells_of_a_run_are_measured_once_and_drawn(script, run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    output = tmp_path / "speed.json"
    words = [*run, "--items", 29, 61, "--walks", "3x5x1", "--users", 5, "--seconds", 0]
    words += ["--ndcg-users", 12]
    words += ["--graphs", tmp_path / "graphs", "--output", output]

    for _ in range(2):
        monkeypatch.setattr(sys, "argv", ["x", *map(str, words)])
        script.main()
        cells = json.loads(output.read_text(encoding="utf-8"))["cells"]

        assert [(cell["num_items"], cell["variant"]) for cell in cells] == [
            (29, "exact"), (29, "3x5x1"), (61, "exact"), (61, "3x5x1")
        ]  # fmt: skip
    assert [cell["overlap"] for cell in cells if cell["variant"] == "exact"] == [1.0, 1.0]
    assert cells[0]["visited"] == 29
    assert cells[3]["visited"] <= 3 + 3 * 5 or cells[3]["visited"] == 61
    assert 0 <= cells[1]["ndcg@10"] <= 1
    page = "\n".join(parallel_blocks(json.loads(output.read_text(encoding="utf-8"))))
    assert f"| 61 | 3x5x1 | {cells[3]['milliseconds_per_user']:.2f} |" in page
    assert page.count("\n| 29 |") == page.count("\n| 61 |") == 3  # two cells and a graph
    assert "ndcg@10 of 12 validation users" in page
    assert (output.parent / "speed.png").read_bytes()[:4] == b"\x89PNG"


def test_page_has_no_section_without_figures():
    assert parallel_blocks(None) == parallel_blocks({"cells": [], "graphs": []}) == []


def test_dummy_items_stand_behind_the_real_ones_and_use_their_codes(script, run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", *map(str, run)])
    arguments = script.parse_arguments()
    real = script.load_model(arguments, 29).item_codes

    codes = script.load_model(arguments, 83).item_codes

    assert codes[:29].tolist() == real.tolist()
    assert all(set(codes[29:, level].tolist()) <= set(real[:, level].tolist()) for level in range(4))
    with pytest.raises(SystemExit, match="has 29 items already"):
        script.load_model(arguments, 28)


def test_names_of_walks_stand_for_options(script):
    assert script.options_of("exact") == {}
    assert script.options_of("20x100x3") == {
        "decoding": "graph",
        "num_beams": 20,
        "num_neighbors": 100,
        "num_propagations": 3,
    }


def test_cells_stand_by_items_then_exact_then_by_beams(module):
    variants = ["100x30x5 similar", "20x200x3", "20x100x3 similar", "100x30x5", "exact", "20x100x3"]
    rows = [{"num_items": size, "variant": variant} for size in (900, 31) for variant in variants]

    found = [(row["num_items"], row["variant"]) for row in sorted(rows, key=module.place_of)]

    order = ["exact", "20x100x3", "20x100x3 similar", "20x200x3", "100x30x5", "100x30x5 similar"]
    assert found == [(size, variant) for size in (31, 900) for variant in order]
