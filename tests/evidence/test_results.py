import copy
import json
import runpy
import sys

import pandas as pd
import pytest

from hf_genrec.evaluation.record import users_path
from paired_results import load_pairs
from results import RUN_FIELDS, load_records, results_page, write_result


METRICS = ["recall@5", "ndcg@5", "recall@10", "ndcg@10"]


def metrics(value):
    """All metrics of a system: recall@5 is the value, each further one 0.01 more."""
    values = {name: value + step / 100 for step, name in enumerate(METRICS)}
    return values | {"invalid_rate": 0.0, "intervals": {name: [0.0, values[name] * 2] for name in METRICS}}


def make_record(name="beauty-latte", *, system="Latte", value=0.03, run=None, **fields):
    return {
        "protocol": "amazon2014",
        "split": "test",
        "fingerprint": "0123456789abcdef",
        "num_users": 22363,
        "num_items": 12101,
        "max_history_length": None,
        "max_users": None,
        "exclude_seen": False,
        "confidence": 0.95,
        "seed": 0,
        "model": metrics(value),
        "baselines": {"popularity": metrics(0.01), "item_knn": metrics(0.02)},
        "run": {
            "name": name,
            "system": system,
            "dataset": "Beauty",
            "encoder": "sentence-transformers/all-MiniLM-L6-v2",
            "policy": "widen",
            "num_levels": 3,
            "codebook_size": 256,
            "command": f"hf-genrec train data --ids ids --output {name}",
            "seed": 42,
            "minutes": 61.26,
            "cpu_minutes": 118.5,
            "num_parameters": 7654321,
            "settings": {"targets": "all"},
        }
        | (run or {}),
    } | fields


def table_rows(page):
    """Rows of all tables behind the first screen as lists of cells, without headers and rules."""
    lines = page[page.index("\n## ") :].splitlines()
    lines = [line for line in lines if line.startswith("| ") and not line.startswith(("| system", "| ---"))]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_a_run_of_a_gpu_names_it_beside_its_cpu_minutes():
    page = results_page([make_record(run={"device": "NVIDIA H100"})])

    assert "118.5 beside NVIDIA H100" in table_rows(page)[-1]


def test_row_of_a_run_tells_metrics_settings_and_where_its_command_is():
    page = results_page([make_record()])

    assert table_rows(page)[-1] == [
        "Latte",
        "0.0300",
        "0.0400",
        "0.0500 [0.0000, 0.1000]",
        "0.0600 [0.0000, 0.1200]",
        "–",
        "0.0000",
        "all-MiniLM-L6-v2",
        "widen 3 × 256",
        "42",
        "118.5",
        "[beauty-latte](#beauty-latte)",
    ]
    assert "22,363 users; 12,101 items; data fingerprint `0123456789abcdef`; 95 % intervals." in page
    assert page.endswith(
        "### beauty-latte\n\n"
        "Latte, Beauty, 7,654,321 parameters, trained for 61.3 minutes by the clock, "
        "[record](scripts/evidence/records/results/beauty-latte.json)\n\n"
        "```bash\nhf-genrec train data --ids ids --output beauty-latte\n```\n"
    )


def test_baselines_of_a_data_set_are_listed_once_and_before_the_models():
    tiger = make_record("beauty-tiger", system="TIGER", value=0.025)

    page = results_page([tiger, make_record()])

    assert [row[0] for row in table_rows(page)] == ["Popularity", "item-kNN", "Latte", "TIGER"]
    assert table_rows(page)[0][7:] == ["–"] * 5


def test_records_of_baselines_alone_fill_up_what_older_records_lack_of_them():
    both = make_record()
    del both["model"]
    both["baselines"]["item_knn"]["seen_excluded"] = both["baselines"]["item_knn"] | {"ndcg@10": 0.0625}
    both["baselines"]["ridge"] = both["baselines"]["item_knn"]

    page = results_page([make_record()], baselines=[both])

    rows = table_rows(page)
    assert [row[0] for row in rows] == ["item-kNN", "ridge", "Popularity", "Latte"]
    assert [row[7][:6] for row in rows[:2]] == ["0.0625", "0.0625"]
    assert [len(row) for row in rows] == [14, 14, 12, 12]  # those with one column stand in a table of their own
    assert "Earlier runs" in page
    assert "| Beauty | not trained | item-kNN |" in page
    assert page.index("0.0625 |") < page.index("## ")


def test_baselines_that_differ_are_both_listed():
    other = make_record("other", baselines={"popularity": metrics(0.01), "item_knn": metrics(0.04)})

    page = results_page([make_record(), other])

    assert [row[0] for row in table_rows(page)] == ["Popularity", "item-kNN", "item-kNN (other)", "Latte", "Latte"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("protocol", "custom"),
        ("split", "validation"),
        ("fingerprint", "f" * 16),
        ("max_users", 2000),
        ("max_history_length", 20),
        ("exclude_seen", True),
        ("confidence", 0.9),
    ],
)
def test_results_that_cannot_be_compared_stand_in_different_tables(field, value):
    page = results_page([make_record(), make_record("other", **{field: value})])

    assert page.count("## Beauty, ") == 2
    assert len(table_rows(page)) == 6


def test_data_sets_have_tables_of_their_own_and_headings_that_name_them():
    toys = make_record("toys", run={"dataset": "Toys"}, split="validation")

    headings = [line for line in results_page([toys, make_record()]).splitlines() if line.startswith("## ")]

    assert headings == ["## Beauty, amazon2014, test split", "## Toys, amazon2014, validation split", "## Runs"]


def test_seed_of_the_bootstrap_separates_samples_but_not_evaluations_of_all_users():
    everybody = [make_record(), make_record("other", seed=1)]
    samples = [make_record(max_users=2000), make_record("other", max_users=2000, seed=1)]

    assert results_page(everybody).count("## Beauty, ") == 1
    assert results_page(samples).count("## Beauty, ") == 2
    assert "a sample of the users drawn with seed 1" in results_page(samples)


def test_published_numbers_stand_between_baselines_and_models_with_their_source():
    published = [{"system": "TIGER", "source": "Rajput et al. 2023, table 1", "recall@10": 0.0648, "ndcg@10": 0.0384}]

    rows = table_rows(results_page([make_record(run={"published": published})]))

    assert [row[0] for row in rows][2] == "TIGER, published (Rajput et al. 2023, table 1)"
    assert rows[2][1:7] == ["–", "–", "0.0648", "0.0384", "–", "–"]


def test_systems_without_texts_and_ids_leave_those_cells_empty():
    nothing = {"encoder": None, "policy": None, "num_levels": None, "codebook_size": None, "cpu_minutes": None}

    page = results_page([make_record("beauty-sasrec", system="SASRec", run=nothing)])

    assert table_rows(page)[-1][7:11] == ["–", "–", "42", "–"]


def test_beams_of_the_evaluation_are_told_where_the_record_has_them():
    assert "7,654,321 parameters, 50 beams, trained for 61.3 minutes" in results_page(
        [make_record(run={"num_beams": 50})]
    )


def test_pipes_do_not_break_the_table():
    page = results_page([make_record(system="A|B")])

    assert table_rows(page)[-1][0] == r"A\|B"


def test_page_does_not_depend_on_the_order_of_the_records():
    records = [make_record(), make_record("b", system="TIGER"), make_record("c", split="validation")]

    assert results_page(records) == results_page(records[::-1])


def test_page_tells_which_encoder_published_results_use():
    page = results_page([])

    assert "sentence-t5-base" in page
    assert "MiniLM" in page
    assert page.endswith("There are no results yet.\n")


def test_results_are_written_to_the_file_named_after_the_run_and_read_back(tmp_path):
    first, second = make_record("b"), make_record("a")

    path = write_result(first, tmp_path / "results")
    write_result(second, tmp_path / "results")

    assert path == tmp_path / "results" / "b.json"
    assert load_records(tmp_path / "results") == [second, first]


def changed(path, value=None):
    """A record with one entry replaced, or removed where no value is given; and what the error calls it."""
    record = copy.deepcopy(make_record())
    *parents, last = path
    inner = record
    for name in parents:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return record


MALFORMED = [
    (changed(["run"]), "no object `run`"),
    ([1], "no object `run`"),
    *((changed(["run", name]), f"lacks `run.{name}`") for name in RUN_FIELDS),
    (changed(["run", "minutes"], "long"), "`run.minutes` must be an integer or a number, got 'long'"),
    (changed(["run", "seed"], True), "`run.seed` must be an integer, got True"),
    (changed(["run", "name"], "Beauty Latte"), "`run.name` must be of small letters"),
    (changed(["run", "published"], [{"system": "TIGER"}]), "must name its `system` and `source`"),
    (changed(["fingerprint"]), "lacks `fingerprint`"),
    (changed(["baselines"]), "lacks `baselines`"),
    (changed(["model", "ndcg@10"]), "model: `ndcg@10` must be a share in \\[0, 1\\], got None"),
    (changed(["baselines", "item_knn", "recall@5"], 40), "item_knn: `recall@5` must be a share in \\[0, 1\\], got 40"),
    (changed(["model", "recall@10"], float("nan")), "got nan"),
    (changed(["model", "intervals", "ndcg@10"]), "`ndcg@10` must have an interval"),
]


@pytest.mark.parametrize(("record", "message"), MALFORMED, ids=[message for _, message in MALFORMED])
def test_malformed_record_is_refused_by_name(tmp_path, record, message):
    (tmp_path / "beauty-latte.json").write_text(json.dumps(record), encoding="utf-8")

    with pytest.raises(ValueError, match=f"beauty-latte.json.* {message}"):
        load_records(tmp_path)


def test_malformed_record_is_not_written(tmp_path):
    with pytest.raises(ValueError, match="lacks `run.seed`"):
        write_result(changed(["run", "seed"]), tmp_path / "results")

    assert not (tmp_path / "results").exists()


def test_file_that_is_no_json_is_refused_by_name(tmp_path):
    (tmp_path / "half.json").write_text('{"run": ', encoding="utf-8")

    with pytest.raises(ValueError, match=r"half\.json is no JSON"):
        load_records(tmp_path)


def test_file_must_be_named_after_its_run(tmp_path):
    write_result(make_record(), tmp_path).rename(tmp_path / "other.json")

    with pytest.raises(ValueError, match=r"other\.json tells of the run 'beauty-latte'"):
        load_records(tmp_path)


def test_missing_folder_of_records_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_records(tmp_path / "nowhere")


def run_script(repository, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["write_results.py", *map(str, words)])
    runpy.run_path(str(repository / "scripts/evidence/write_results.py"), run_name="__main__")


def test_script_writes_the_page(repository, tmp_path, monkeypatch, capsys):
    write_result(make_record(), tmp_path / "records" / "results")

    run_script(repository, monkeypatch, "--records", tmp_path / "records", "--output", tmp_path / "page.md")

    assert (tmp_path / "page.md").read_text(encoding="utf-8") == results_page([make_record()])
    assert "1 records and 0 sweeps" in capsys.readouterr().out


def test_script_reads_the_results_of_users_and_the_pairs(repository, tmp_path, monkeypatch):
    records, users = pair_of_runs()
    for record in records:
        path = write_result(record, tmp_path / "records" / "results")
        users[path.stem].astype("int32").to_parquet(users_path(path))
    pairs = [pair(["a1", "a2"], ["item_knn"]), pair(["a1"], ["b1"])]
    (tmp_path / "records" / "comparisons.json").write_text(json.dumps(pairs), encoding="utf-8")

    run_script(repository, monkeypatch, "--records", tmp_path / "records", "--output", tmp_path / "page.md")

    assert (tmp_path / "page.md").read_text(encoding="utf-8") == results_page(records, users=users, pairs=pairs)


def test_committed_page_is_made_from_the_committed_records(repository, tmp_path, monkeypatch):
    run_script(
        repository,
        monkeypatch,
        "--records",
        repository / "scripts/evidence/records",
        "--output",
        tmp_path / "page.md",
    )

    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == (repository / "RESULTS.md").read_text(encoding="utf-8"), "run scripts/evidence/write_results.py"


def test_only_runs_of_one_row_are_averaged():
    runs = [
        make_record(f"{row}_seed{seed}", value=value, run={"seed": seed})
        for value, seed, row in [(0.02, 1, "short"), (0.04, 2, "short"), (0.06, 1, "long")]
    ]

    lines = [line for line in results_page(runs).splitlines() if " ± " in line]

    assert len(lines) == 1
    assert "| 2 | 0.0500 ± 0.0141 | 0.0600 ± 0.0141 |" in lines[0]


def test_runs_that_are_decoded_in_another_way_are_not_averaged():
    ways = [{"latent_aggregation": "max"}, {"latent_aggregation": "sum"}]
    runs = [make_record(f"run{seed}", run={"seed": seed} | way) for seed, way in enumerate(ways)]

    assert " ± " not in results_page(runs)


def test_newer_records_tell_more_and_older_ones_show_a_dash():
    old, new = make_record("old"), make_record("new", system="PSID")
    new["model"] |= {"mrr@10": 0.02, "coverage@10": 0.5}
    new["baselines"]["item_knn"]["mrr@10"] = 0.01

    page = results_page([old, new])

    assert [row[5] for row in table_rows(page)[:4]] == ["–", "0.0100", "–", "0.0200"]
    assert "**What the lists are like**" in page
    assert table_rows(page)[4:] == [["PSID", "0.5000", "–", "–", "–", "–", "0.0000", "–"]]


def test_numbers_of_items_stand_beside_those_of_ids_where_ids_collide():
    record = make_record(run={"policy": "keep"})
    shares = {"recall@10": 0.04, "ndcg@10": 0.02}
    record["model"] |= {"corrected": shares, "id_level": {"recall@10": 0.05, "ndcg@10": 0.03}}

    rows = table_rows(results_page([record]))

    assert ["Latte", "recall@10", "0.0500", "0.0400", "0.0500", "+25.0 %", "–"] in rows
    assert ["Latte", "ndcg@10", "0.0600", "0.0200", "0.0300", "+50.0 %", "–"] in rows


def pair_of_runs():
    """Two seeds of each of two systems with the results of 4 users, and of the item-kNN."""
    records, users = [], {}
    for system, seed, ranks in [("A", 1, [0, 0, -1, -1]), ("A", 2, [0, 2, 2, -1]), ("B", 1, [0, -1, -1, -1])]:
        name = f"{system.lower()}{seed}"
        records.append(make_record(name, system=system, value=0.1 * seed, run={"seed": seed}, num_users=4))
        users[name] = pd.DataFrame({"rank": ranks, "rank_item_knn": [2, 2, 2, -1]})
    return records, users


def pair(a, b, **fields):
    return {"dataset": "Beauty", "a": a, "b": b, "metric": "ndcg@10"} | fields


def rows_of_pairs(pairs, records, users):
    page = results_page(records, pairs=pairs, users=users)
    assert "## Paired differences" in page
    (rows,) = [[row for row in table_rows(page) if len(row) == 10]]
    return rows[1:]  # without the header


def test_pair_of_runs_is_compared_over_its_users():
    records, users = pair_of_runs()

    ((title, *cells),) = rows_of_pairs([pair(["a1"], ["b1"], note="A against B, one seed")], records, users)

    assert title == "A against B, one seed"
    assert cells[:3] == ["Beauty", "ndcg@10", "1, 1"]
    assert cells[5:] == ["+0.2500 [0.0000, +0.7500]".replace("[0", "[+0"), "1.000", "–", "–"]


def test_pair_may_be_a_model_and_a_baseline():
    records, users = pair_of_runs()

    ((title, *cells),) = rows_of_pairs([pair(["a1", "a2"], ["item_knn"])], records, users)

    assert title == "A against item-kNN"
    assert cells[2:5] == ["2, –", "0.1800", "0.0500"]


def test_pair_that_waits_for_a_run_is_named_below():
    records, users = pair_of_runs()
    pairs = [pair(["a1", "a3"], ["b1"]), pair(["b2"], ["item_knn"], note="B against item-kNN"), pair(["a1"], ["b1"])]

    page = results_page(records, pairs=pairs, users=users)

    assert "\n\nNot yet compared: a1, a3 against b1; B against item-kNN.\n\n" in page
    assert "\n\nRecords that are missing: a3, b2.\n\n" in page
    assert len(rows_of_pairs(pairs, records, users)) == 1
    assert "a against b" not in results_page(records, pairs=pairs[:2], users=users)


def test_baseline_stands_alone_and_at_the_second_place():
    records, users = pair_of_runs()
    pairs = [pair(["a1"], ["b1", "item_knn"]), pair(["item_knn"], ["a1"]), pair(["a1"], ["sasrec"])]

    assert "Records that are missing: item_knn, sasrec." in results_page(records, pairs=pairs, users=users)


@pytest.mark.parametrize(("a", "b"), [(["a1", "a2"], ["b1"]), (["a1", "a2"], ["b1", "b3"]), (["b1"], ["a1", "a2"])])
def test_pair_of_other_seeds_is_refused(a, b):
    records, users = pair_of_runs()
    records.append(make_record("b3", system="B", run={"seed": 3}, num_users=4))

    with pytest.raises(ValueError, match=r"same seeds on both sides, got \[.*\] of .* against \[.*\] of"):
        results_page(records, pairs=[pair(a, b)], users=users)


def test_single_runs_of_different_seeds_may_be_compared():
    records, users = pair_of_runs()

    assert rows_of_pairs([pair(["a2"], ["b1"])], records, users)[0][3] == "1, 1"


def test_pair_whose_items_share_ids_is_compared_in_their_expectation():
    records, users = pair_of_runs()
    records[0]["model"]["corrected"] = {"recall@10": 0.25, "ndcg@10": 0.125}
    users["a1"]["group_start"], users["a1"]["group_size"] = [0, -1, -1, -1], [2, 1, 1, 1]

    (by_recall, by_ndcg) = rows_of_pairs(
        [pair(["a1"], ["b1"], metric="recall@10"), pair(["a1"], ["b1"])], records, users
    )

    assert by_recall[4:6] == ["0.2500", "0.1200"]
    assert by_recall[6].startswith("+0.0000")  # the whole group stands among the first ten
    assert by_ndcg[4:6] == ["0.1250", "0.1300"]
    assert by_ndcg[6].startswith("-0.0461")  # (1 + 1 / log2(3)) / 2 - 1 of one of four users


def test_pair_without_results_of_users_has_means_only():
    records, _ = pair_of_runs()

    (row,) = rows_of_pairs([pair(["a1"], ["b1"])], records, {})

    assert row[4:] == ["0.1300", "0.1300", "+0.0000", "–", "–", "–"]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"split": "validation"}, "cannot be compared: `split`"), ({"run": {"dataset": "Toys"}}, "names runs on Toys")],
)
def test_pair_of_runs_that_are_not_comparable_is_refused(change, message):
    records, users = pair_of_runs()
    records[2] |= change | {"run": records[2]["run"] | change.get("run", {})}

    with pytest.raises(ValueError, match=message):
        results_page(records, pairs=[pair(["a1"], ["b1"])], users=users)


def test_pairs_are_read_from_their_file_and_checked(tmp_path):
    path = tmp_path / "comparisons.json"
    assert load_pairs(path) == []

    path.write_text(json.dumps([pair(["a"], ["b"])]), encoding="utf-8")
    assert load_pairs(path) == [pair(["a"], ["b"])]

    for content, message in [
        ("[", "is no JSON"),
        ('{"a": 1}', "must be a list"),
        ('[{"a": ["x"]}]', "each pair must"),
    ]:
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_pairs(path)


def test_note_of_a_run_stands_above_its_command():
    page = results_page([make_record(run={"note": "Resumed once."})])

    assert "\n\nResumed once.\n\n```bash\n" in page
