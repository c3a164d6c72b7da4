"""Sections of the results page about decoding: beam sweeps and the two benchmarks."""

import json
import runpy
import sys

import pytest

from decoding_results import load_sweeps
from results import results_page


def table_rows(page):
    """Rows of all tables as lists of cells, without headers and rules."""
    lines = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| system", "| ---"))
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


# --- beam sweeps -----------------------------------------------------------------------------------------------------


def make_row(num_beams=50, *, split="test", ndcg=0.02, aggregation="max", num_rescored=0, hits=None, **fields):
    return {
        "split": split,
        "num_users": 22363,
        "num_beams": num_beams,
        "latent_aggregation": aggregation,
        "num_rescored": num_rescored,
        "ndcg@10": ndcg,
        "recall@10": 2 * ndcg,
        "intervals": {"ndcg@10": [ndcg - 0.001, ndcg + 0.001], "recall@10": [0.0, 4 * ndcg]},
        "num_distinct_items": None if num_beams is None else num_beams - 0.5,
        "milliseconds_per_user": {"cpu": 12.345},
        "sample": {"num_users": 500, "hits": {"7": 0} if hits is None else hits},
    } | fields


def make_sweep(name="beauty-psid", *rows, system="PSID", num_latent_tokens=0, **fields):
    return {
        "name": name,
        "system": system,
        "dataset": "Beauty 2014",
        "protocol": "amazon2014",
        "fingerprint": "0123456789abcdef",
        "num_items": 12101,
        "num_latent_tokens": num_latent_tokens,
        "rows": list(rows),
    } | fields


def page_of(*sweeps, **figures):
    return results_page([], sweeps=sweeps, figures=figures)


def test_row_of_a_sweep_joins_both_splits_time_and_the_difference_to_exact_scores():
    exact = make_row(None, num_users=500, hits={"7": 0, "9": 2})

    page = page_of(make_sweep("a", make_row(), make_row(split="validation", ndcg=0.03), exact))

    first, last = table_rows(page)
    assert first[:-1] == [
        "PSID",
        "50",
        "0.0300 [0.0290, 0.0310]",
        "0.0600 [0.0000, 0.1200]",
        "0.0200 [0.0190, 0.0210]",
        "0.0400 [0.0000, 0.0800]",
        "49.5",
        "12.35",
        "0.0020",
    ]
    assert first[-1].startswith("-0.0010 [-0.00")  # of 500 users one misses 1 / log2(2 + 2)
    assert last == ["PSID", "exact", "–", "–", "–", "–", "–", "12.35", "0.0030", "–"]
    assert "22,363 users of the test split; 22,363 users of the validation split; 12,101 items; data" in page
    assert "![ndcg@10 by milliseconds per user](scripts/evidence/records/beams/beauty_2014.png)" in page


def test_latents_have_a_row_per_aggregation_and_each_is_compared_with_its_own_exact_scores():
    rows = [
        make_row(None, aggregation="sum", hits={}),
        make_row(10, aggregation="sum", num_rescored=40),
        make_row(500),
        make_row(10, aggregation="sum"),
        make_row(10),
    ]

    page = page_of(make_sweep("a", *rows, system="Latte", num_latent_tokens=8))

    assert [(row[0], row[1], row[-1][:7]) for row in table_rows(page)] == [
        ("Latte, max", "10", "–"),
        ("Latte, max", "500", "–"),
        ("Latte, sum", "10", "+0.0020"),
        ("Latte, sum, 40 re-scored", "10", "+0.0020"),
        ("Latte, sum", "exact", "–"),
    ]


def test_rows_on_other_fixed_users_are_not_compared_with_exact_scores():
    other = make_row(sample={"num_users": 30, "hits": {}})

    assert table_rows(page_of(make_sweep("a", other, make_row(None))))[0][-2:] == ["0.0000", "–"]


def test_every_device_has_a_column_of_milliseconds():
    both = make_row(milliseconds_per_user={"cuda": 0.5, "cpu": 20.0})

    page = page_of(make_sweep("a", both, make_row(10)))

    assert "| distinct | ms, cpu | ms, cuda |" in page
    assert [row[5:7] for row in table_rows(page)] == [["12.35", "–"], ["20.00", "0.50"]]


def test_default_is_told_with_what_it_gave_on_the_validation_split():
    rows = [make_row(beams, split="validation", ndcg=ndcg) for beams, ndcg in ((10, 0.02), (50, 0.03), (200, 0.031))]
    chosen = {"num_beams": 50, "latent_aggregation": "max", "num_rescored": 0}

    page = page_of(make_sweep("a", *rows, make_row(10, ndcg=0.9), chosen=chosen))

    assert (
        "The defaults were chosen on the validation split. PSID: 50 beams, with "
        "ndcg@10 0.0300 there; the best of its sweep was 0.0310 (PSID, 200)." in page
    )


def test_page_says_that_no_default_was_chosen():
    assert "No default has been recorded" in page_of(make_sweep("a", make_row()))


def test_sweeps_of_other_data_have_tables_of_their_own():
    page = page_of(
        make_sweep("a", make_row()), make_sweep("b", make_row(), dataset="Toys"), make_sweep("c", make_row())
    )

    assert [line for line in page.splitlines() if line.startswith("###")] == [
        "### Beauty 2014, amazon2014: beams",
        "### Toys, amazon2014: beams",
    ]
    assert len(table_rows(page)) == 3


def test_sweeps_are_read_back_and_a_missing_folder_is_empty(tmp_path):
    sweep = make_sweep("a", make_row())
    (tmp_path / "a.json").write_text(json.dumps(sweep), encoding="utf-8")

    assert load_sweeps(tmp_path) == [sweep]
    assert load_sweeps(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "is no beam sweep: it lacks `name`"),
        (json.dumps(make_sweep("b")), "tells of the sweep 'b'"),
        (json.dumps(make_sweep("a", {"split": "test"})), "row 0 lacks `num_users`"),
        (json.dumps(make_sweep("a", make_row(ndcg=40))), r"row 0: `ndcg@10` must be a share in \[0, 1\], got 40"),
    ],
)
def test_malformed_sweep_is_refused_by_name(tmp_path, content, message):
    (tmp_path / "a.json").write_text(content, encoding="utf-8")

    with pytest.raises(ValueError, match=rf"a\.json.* {message}"):
        load_sweeps(tmp_path)


# --- decoding speed --------------------------------------------------------------------------------------------------


def make_part(*rows):
    machine = {"device": "x86_64", "threads": 2, "torch": "2.13.0"}
    return {"machine": machine, "sizes": {"num_items": 25000, "history_length": 20}, "rows": list(rows)}


def make_cell(num_users=16, num_beams=50, *, is_same=True, **milliseconds):
    ratios = {name: milliseconds["stock"] / value for name, value in milliseconds.items() if name != "stock"}
    return {
        "num_latent_tokens": 0,
        "num_users": num_users,
        "num_beams": num_beams,
        "variants": {name: {"milliseconds_per_user": value} for name, value in milliseconds.items()},
        "ratio_to_stock": ratios,
        "same_items": {"generate": is_same, "recommend": True},
        "largest_score_difference": {"generate": 2e-6, "recommend": 1e-6},
    }


def test_speed_is_told_by_users_and_beams_with_ratios_to_stock():
    without_stock = make_cell(64, 500, stock=1.0, generate=40.0, recommend=20.0) | {
        "ratio_to_stock": {},
        "without_stock": "32000 rows are too many",
    }
    del without_stock["variants"]["stock"]
    grid = make_part(make_cell(stock=100.0, generate=12.5, recommend=8.0), without_stock)

    page = page_of(decoding_speed={"grid": grid})

    assert "25,000 items, histories of 20 unless a column says otherwise; x86_64, 2 threads, torch 2.13.0." in page
    assert "| 16 | 50 | 100.00 | 12.50 | 8.00 | 8.0 | 12.5 |" in page
    assert "| 64 | 500 | – | 40.00 | 20.00 | – | – |" in page
    assert "The best ten items differ in none of the cells; scores differ by 2e-06 at most." in page
    assert "Stock is left out where it has too many rows: 32000 rows are too many." in page


def test_page_tells_in_how_many_cells_the_lists_differ():
    cells = [make_cell(stock=1.0, generate=1.0, recommend=1.0, is_same=is_same) for is_same in (True, False, True)]

    assert "The best ten items differ in 1 of 3 cells;" in page_of(decoding_speed={"grid": make_part(*cells)})


def test_memory_and_sizes_that_vary_have_tables():
    size = {"num_items": 1000000, "num_users": 16, "num_beams": 50, "history_length": 20}
    sizes = make_part(size | {"variants": {"recommend": {"milliseconds_per_user": 1.234}}})
    memory = make_part({"variant": "recommend", "num_users": 16, "num_beams": 500, "peak_growth_mb": 1234.5})

    page = page_of(decoding_speed={"memory": memory, "catalog": sizes})

    assert "| 1,000,000 | 1.23 |" in page
    assert "| 16 | 500 | – | – | 1,234 |" in page
    assert page.index("### Size of the catalog") < page.index("### Memory of one call")


def test_catalog_figures_tell_the_build_and_the_steps():
    steps = {"mask": 0.0123, "mask and child": 0.02, "children": 0.03, "CatalogLogitsProcessor": 0.5}
    stock, ratios = {"prefix_allowed_tokens_fn": 17.0}, {"mask": 1382.1, "CatalogLogitsProcessor": 34.0}
    costs = {"cpu_seconds": 11.5, "held_mb": 250.25}
    catalog = {
        "machine": {"threads": 2, "torch": "2.13.0"},
        "settings": {"num_levels": 4, "codebook_size": 256},
        "builds": [{"num_items": 10**7, "seconds": 12.345, "peak_growth_mb": 1234.5, **costs}],
        "mean_over_depths": [
            {"num_items": 10**7, "rows": 800, **steps, "prefix_allowed_tokens_fn": None, "times_cheaper": {}},
            {"num_items": 10**4, "rows": 800, **steps, **stock, "times_cheaper": ratios},
        ],
    }

    page = page_of(catalog_speed=catalog)

    assert "Random items, 4 levels of 256 codes; 2 threads, torch 2.13.0." in page
    assert "| 10,000,000 | 12.35 | 11.50 | 1,234 | 250 |" in page
    assert "| 800 | 10,000 | 0.012 (1382×) | 0.020 | 0.030 | 0.500 (34×) | 17.000 |\n| 800 | 10,000,000 |" in page
    assert "| 800 | 10,000,000 | 0.012 | 0.020 | 0.030 | 0.500 | – |" in page


# --- the script ------------------------------------------------------------------------------------------------------


def run_script(repository, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["write_results.py", *map(str, words)])
    runpy.run_path(str(repository / "scripts/evidence/write_results.py"), run_name="__main__")


def test_script_joins_all_records_to_one_page(repository, tmp_path, monkeypatch, capsys):
    (tmp_path / "records" / "results").mkdir(parents=True)
    (tmp_path / "records" / "beams").mkdir()
    (tmp_path / "records" / "beams" / "a.json").write_text(json.dumps(make_sweep("a", make_row())), encoding="utf-8")
    speed = {"grid": make_part(make_cell(stock=3.0, generate=2.0, recommend=1.0))}
    (tmp_path / "records" / "decoding_speed.json").write_text(json.dumps(speed), encoding="utf-8")

    run_script(repository, monkeypatch, "--records", tmp_path / "records", "--output", tmp_path / "page.md")

    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == results_page([], sweeps=[make_sweep("a", make_row())], figures={"decoding_speed": speed})
    assert [line for line in page.splitlines() if line.startswith("## ")] == [
        "## Beams, exact scoring and time",
        "## Decoding speed",
    ]
    assert "0 records and 1 sweeps" in capsys.readouterr().out
