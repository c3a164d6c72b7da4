"""Tables of runs: what they run, what they skip, and what the page and the plot make of the records."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from hf_genrec import SemanticIds
from hf_genrec.results import curves_name, load_records, results_page
from hf_genrec.tokenized import import_ids


ITEM_IDS = [f"item-{number:02}" for number in range(13)]
TINY = ["--d-model", "8", "--d-ff", "12", "--heads", "2", "--layers", "1", "--batch-size", "64", "--epochs", "2"]


@pytest.fixture
def work(make_prepared, tmp_path):
    """A work folder with data and ids of seven codes, in which items 0 and 1 share theirs, and a table."""
    generator = np.random.default_rng(0)
    prepared = make_prepared({f"u{user}": [ITEM_IDS[i] for i in generator.permutation(13)[:6]] for user in range(17)})
    folder = tmp_path / "work"
    folder.mkdir()
    shutil.copytree(prepared.folder, folder / "data")
    codes = generator.integers(0, 5, (13, 7))
    codes[1] = codes[0]
    SemanticIds(tuple(ITEM_IDS), codes, 5, "keep").to_json(folder / "ids.json")
    import_ids(prepared, folder / "ids.json", folder / "ids", policy="keep", codebook_size=5)
    row = {"name": "toy", "system": "RPG", "ids": "ids", "encoder": "none", "train": ["--architecture", "rpg", *TINY]}
    table = {"dataset": "Toy data", "prepared": "data", "seeds": [1, 2], "rows": [row]}
    (folder / "table.json").write_text(json.dumps(table), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("run_table")


def run(repository, script, *words):
    command = [sys.executable, repository / "scripts" / script, *words]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment, check=False)


def test_every_seed_of_every_row_gets_a_record_that_the_page_and_the_plot_show(work, repository):
    words = (work / "table.json", "--work", work, "--records", work / "records", "--jobs", 2)

    first = run(repository, "run_table.py", *words)
    assert first.returncode == 0, first.stderr
    records = load_records(work / "records")
    again = run(repository, "run_table.py", *words)
    plot = run(repository, "plot_curves.py", "--records", work / "records", "--output", work / "curves")

    assert [record["run"]["name"] for record in records] == ["toy_seed1", "toy_seed2"]
    assert [record["run"]["seed"] for record in records] == [1, 2]
    assert [record["run"]["decoding"] for record in records] == ["exact", "exact"]
    assert [epoch for epoch, _ in records[0]["run"]["curve"]] == [1.0, 2.0]
    assert records[0]["run"]["command"].startswith("hf-genrec train data --ids ids --output runs/toy_seed1")
    assert "2 of 2 runs have their records" in again.stderr
    assert plot.returncode == 0, plot.stderr
    assert (work / "curves" / f"{curves_name('Toy data')}.png").stat().st_size > 1000
    page = results_page(records)
    assert "hub_cards/curves/toy_data.png" in page
    assert "| RPG | keep 7 × 5 | none | 2 |" in page


def test_a_run_that_fails_is_told_and_leaves_no_record(work, repository):
    table = json.loads((work / "table.json").read_text(encoding="utf-8"))
    table["rows"][0]["train"] += ["--set", "projection=triple"]
    (work / "table.json").write_text(json.dumps(table), encoding="utf-8")

    process = run(repository, "run_table.py", work / "table.json", "--work", work, "--records", work / "records")

    assert process.returncode == 1
    assert "2 runs failed" in process.stderr
    assert "`projection` must be one of" in (work / "logs" / "toy_seed1.log").read_text(encoding="utf-8")
    assert not (work / "records").exists()


def test_a_row_with_a_missing_field_is_refused(work, repository):
    (work / "table.json").write_text(
        json.dumps({"dataset": "Toy", "prepared": "data", "seeds": [1], "rows": [{"name": "toy"}]}), encoding="utf-8"
    )

    process = run(repository, "run_table.py", work / "table.json", "--work", work)

    assert "a row must have encoder, ids, name, system, train; got name." in process.stderr


def write_rows(path, *rows):
    table = {"dataset": "Toy", "prepared": "data", "seeds": [3], "rows": rows}
    path.write_text(json.dumps(table), encoding="utf-8")
    return path


TRAINED = {"name": "toy", "system": "Latte", "ids": "ids", "encoder": "none", "train": ["--epochs", "2"]}


def words_of(command):
    """What stands behind the program (and, for a script, behind its name)."""
    return " ".join(command[1:] if command[1] == "train" else command[2:])


def test_a_row_without_ids_names_none(script, tmp_path):
    row = {"name": "toy", "system": "SASRec", "ids": None, "encoder": None, "train": ["--architecture", "sasrec"]}

    (run,) = script.read_table(write_rows(tmp_path / "table.json", row))
    train, record = map(words_of, run.commands(tmp_path))

    assert train == "train data --output runs/toy_seed3 --architecture sasrec --seed 3 --resume"
    assert record == (f"runs/toy_seed3 data --name toy_seed3 --dataset Toy --system SASRec --records {tmp_path}")


def test_a_row_that_reads_the_run_of_another_trains_that_one_and_keeps_its_evaluation(script, tmp_path):
    other = {"name": "sum", "system": "Summed", "run_of": "toy", "record": ["--latent-aggregation", "sum"]}
    table = write_rows(tmp_path / "table.json", other, TRAINED)

    summed, trained = (list(map(words_of, run.commands(tmp_path))) for run in script.read_table(table))

    assert summed[0] == trained[0] == "train data --ids ids --output runs/toy_seed3 --epochs 2 --seed 3 --resume"
    assert summed[1] == (
        "runs/toy_seed3 data --ids ids --name sum_seed3 --dataset Toy --system Summed --encoder none "
        f"--keep-evaluation --latent-aggregation sum --records {tmp_path}"
    )
    assert "--keep-evaluation" not in trained[1]


def test_runs_are_read_another_way_after_all_are_trained(script, tmp_path, monkeypatch):
    other = {"name": "sum", "system": "Summed", "run_of": "toy", "record": []}
    table = write_rows(tmp_path / "table.json", other, TRAINED)
    filled = []
    monkeypatch.setattr(script, "fill", lambda run, *_: filled.append(run.name) or 0)
    monkeypatch.setattr(sys, "argv", ["run_table.py", str(table), "--work", str(tmp_path)])

    script.main()

    assert filled == ["toy_seed3", "sum_seed3"]


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"name": "sum", "system": "Summed", "run_of": "absent", "record": []}, "a row that is trained, got 'absent'"),
        ({"name": "sum", "system": "Summed", "run_of": "toy"}, "must have name, record, run_of, system; got name"),
        (TRAINED | {"run_of": "toy"}, "must have name, record, run_of, system"),
        (TRAINED | {"epochs": 3}, "must have encoder, ids, name, system, train; got encoder, epochs"),
        (TRAINED, "two rows have the same name"),
    ],
)
def test_rows_that_make_no_sense_are_refused(script, tmp_path, row, match):
    with pytest.raises(SystemExit, match=match):
        script.read_table(write_rows(tmp_path / "table.json", TRAINED, row))


def test_tables_of_the_repository_have_distinct_names_and_known_settings(repository, script):
    tables = sorted((repository / "scripts" / "tables").glob("*.json"))

    names = [run.name for table in tables for run in script.read_table(table)]

    assert tables
    assert len(names) == len(set(names))


@pytest.mark.parametrize("table", ["beauty_evidence", "scientific_latents"])
def test_the_ids_of_the_table_of_evidence_are_made_by_one_command(repository, script, table):
    made = (repository / "scripts" / "evidence.mk").read_text(encoding="utf-8")

    runs = script.read_table(repository / "scripts" / "tables" / f"{table}.json")

    assert f"scripts/tables/{table}.json" in made
    for folder in {run.row["ids"] for run in runs} - {None}:
        assert f"$(WORK)/{folder}:" in made
