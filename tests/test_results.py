import copy
import json
import runpy
import sys

import pytest

from hf_genrec.results import RUN_FIELDS, load_records, results_page, write_result


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
    """Rows of all tables as lists of cells, without headers and rules."""
    lines = [
        line for line in page.splitlines() if line.startswith("| ") and not line.startswith(("| system", "| ---"))
    ]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_row_of_a_run_tells_metrics_settings_and_where_its_command_is():
    page = results_page([make_record()])

    assert table_rows(page)[-1] == [
        "Latte",
        "0.0300",
        "0.0400",
        "0.0500 [0.0000, 0.1000]",
        "0.0600 [0.0000, 0.1200]",
        "0.0000",
        "all-MiniLM-L6-v2",
        "widen 3 × 256",
        "42",
        "61.3",
        "[beauty-latte](#beauty-latte)",
    ]
    assert "22,363 users; 12,101 items; data fingerprint `0123456789abcdef`; 95 % intervals." in page
    assert page.endswith(
        "### beauty-latte\n\n"
        "Latte, Beauty, 7,654,321 parameters, 118.5 minutes of processor time, "
        "[record](hub_cards/results/beauty-latte.json)\n\n"
        "```bash\nhf-genrec train data --ids ids --output beauty-latte\n```\n"
    )


def test_baselines_of_a_data_set_are_listed_once_and_before_the_models():
    tiger = make_record("beauty-tiger", system="TIGER", value=0.025)

    page = results_page([tiger, make_record()])

    assert [row[0] for row in table_rows(page)] == ["popularity", "item_knn", "Latte", "TIGER"]
    assert table_rows(page)[0][6:] == ["–"] * 5


def test_baselines_that_differ_are_both_listed():
    other = make_record("other", baselines={"popularity": metrics(0.01), "item_knn": metrics(0.04)})

    page = results_page([make_record(), other])

    assert [row[0] for row in table_rows(page)] == ["popularity", "item_knn", "item_knn", "Latte", "Latte"]


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
    assert rows[2][1:6] == ["–", "–", "0.0648", "0.0384", "–"]


def test_systems_without_texts_and_ids_leave_those_cells_empty():
    nothing = {"encoder": None, "policy": None, "num_levels": None, "codebook_size": None, "cpu_minutes": None}

    page = results_page([make_record("beauty-sasrec", system="SASRec", run=nothing)])

    assert table_rows(page)[-1][6:9] == ["–", "–", "42"]
    assert "SASRec, Beauty, 7,654,321 parameters, [record]" in page


def test_beams_of_the_evaluation_are_told_where_the_record_has_them():
    assert "7,654,321 parameters, 50 beams, 118.5 minutes" in results_page([make_record(run={"num_beams": 50})])


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
    runpy.run_path(str(repository / "scripts" / "write_results.py"), run_name="__main__")


def test_script_writes_the_page(repository, tmp_path, monkeypatch, capsys):
    write_result(make_record(), tmp_path / "records" / "results")

    run_script(repository, monkeypatch, "--records", tmp_path / "records", "--output", tmp_path / "page.md")

    assert (tmp_path / "page.md").read_text(encoding="utf-8") == results_page([make_record()])
    assert "1 records and 0 sweeps" in capsys.readouterr().out


def test_committed_page_is_made_from_the_committed_records(repository, tmp_path, monkeypatch):
    run_script(repository, monkeypatch, "--records", repository / "hub_cards", "--output", tmp_path / "page.md")

    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert page == (repository / "RESULTS.md").read_text(encoding="utf-8"), "run scripts/write_results.py"


def test_only_runs_that_differ_in_nothing_but_the_seed_are_averaged():
    runs = [
        make_record(f"run{number}", value=value, run={"seed": seed, "settings": {"seed": seed, "epochs": epochs}})
        for number, (value, seed, epochs) in enumerate([(0.02, 1, 5), (0.04, 2, 5), (0.06, 1, 9)])
    ]

    lines = [line for line in results_page(runs).splitlines() if " ± " in line]

    assert len(lines) == 1
    assert "| 2 | 0.0500 ± 0.0141 | 0.0600 ± 0.0141 |" in lines[0]


def test_note_of_a_run_stands_above_its_command():
    page = results_page([make_record(run={"note": "Resumed once."})])

    assert "\n\nResumed once.\n\n```bash\n" in page
