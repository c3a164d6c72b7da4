"""The benchmark of the catalog, at a size at which its figures mean nothing: what is timed, and that it is right."""

import json
import runpy

import pytest
import torch

from hf_genrec.modeling.genrec_catalog import Catalog


@pytest.fixture(scope="module")
def script(repository):
    return runpy.run_path(str(repository / "scripts/evidence/benchmark_catalog.py"))


@pytest.fixture(scope="module")
def report(script):
    options = script["parse_arguments"](["--quick"])
    return script["benchmark"](options, make_worker=script["Measurement"])


def test_items_are_distinct_and_use_all_codes(script):
    codes = script["random_codes"](70_001, 3).long()

    assert codes.shape == (70_001, 4)
    assert len({tuple(item) for item in codes.tolist()}) == 70_001
    assert codes.aminmax() == (0, 255)
    assert all(len(column.unique()) == 256 for column in codes.T)


def test_every_cell_is_timed_and_the_dictionary_only_where_it_is_wanted(report):
    cells = {(step["num_items"], step["rows"], step["depth"]): step for step in report["milliseconds"]}

    assert set(cells) == {(n, rows, depth) for n in (300, 700) for rows in (50, 100) for depth in range(4)}
    for (num_items, _, _), step in cells.items():
        assert all(step[name] > 0 for name in ("mask", "mask and child", "children", "CatalogLogitsProcessor"))
        assert (step["prefix_allowed_tokens_fn"] is None) == (num_items == 700)


def test_builds_tell_what_was_built(report):
    assert [build["num_items"] for build in report["builds"]] == [300, 700]
    assert all(build["num_nodes"][-1] == build["num_items"] for build in report["builds"])
    assert all(build["seconds"] >= 0 and build["peak_growth_mb"] >= 0 for build in report["builds"])


def test_what_a_trie_holds_are_its_tables_to_the_byte(script):
    catalog = Catalog(torch.tensor([[0, 2], [1, 0], [1, 1]]), codebook_size=3)
    of_the_root, of_both_below = 2 + 4 * 2 + 4 * 2 + 6 + 4 * 6, 3 + 4 * 3 + 4 * 3 + 9 + 4 * 9

    assert script["held_memory"](catalog) * 2**20 == 8 * 3 + of_the_root + of_both_below


def test_both_processors_that_are_compared_do_the_same(script):
    measurement = script["Measurement"](300, script["parse_arguments"](["--quick"]))
    codes = measurement.codes[:50]
    for depth in range(4):
        start = torch.zeros(50, 1, dtype=torch.long)
        input_ids = torch.cat([start, measurement.tokens_of(codes[:, :depth])], dim=1)
        scores = torch.randn(50, measurement.config.vocab_size, generator=torch.Generator().manual_seed(depth))

        torch.testing.assert_close(measurement.processor(input_ids, scores), measurement.baseline(input_ids, scores))


def test_means_are_over_depths_and_ratios_to_the_dictionary(script):
    ones = dict.fromkeys(script["VARIANTS"], 1.0)
    steps = [
        {"num_items": 9, "rows": 50, "depth": depth} | ones | {"mask": mask, "prefix_allowed_tokens_fn": stock}
        for depth, (mask, stock) in enumerate([(1.0, 30.0), (3.0, 50.0)])
    ]

    [mean] = script["mean_over_depths"](steps)

    assert (mean["mask"], mean["prefix_allowed_tokens_fn"], mean["times_cheaper"]["mask"]) == (2.0, 40.0, 20.0)
    [no_dictionary] = script["mean_over_depths"]([steps[0] | {"prefix_allowed_tokens_fn": None}])
    assert no_dictionary["times_cheaper"]["mask"] is None


def test_plot_and_tables_show_the_report(script, report, tmp_path, capsys):
    pytest.importorskip("matplotlib")

    script["draw"](report, tmp_path / "speed.png")
    script["print_tables"](report)

    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "700" in capsys.readouterr().out


def test_rows_that_are_no_whole_users_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script["parse_arguments"](["--rows", "60"])
    assert "multiples of 50" in capsys.readouterr().err


@pytest.mark.slow
def test_command_writes_figures_and_plot_from_processes_of_their_own(script, tmp_path):
    pytest.importorskip("matplotlib")

    script["main"](["--quick", "--output", str(tmp_path / "speed.json")])

    report = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    assert len(report["milliseconds"]) == 16
    assert (tmp_path / "speed.png").is_file()
