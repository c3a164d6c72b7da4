"""Tables of runs: what they run, what they skip, and what the page and the plot make of the records."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from hf_genrec import SemanticIds
from hf_genrec.cli.main import app
from hf_genrec.tokenizers.folder import import_ids, load_tokenized
from results import curves_name, load_records, results_page, write_result


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


@pytest.fixture(params=["in this process", pytest.param("as programs", marks=pytest.mark.slow)])
def fill_table(request, script, load_script, monkeypatch):
    """Fills a table; what it starts runs in this process too, where the libraries are imported already."""

    def program(command, *, cwd, stdout, **_):
        monkeypatch.chdir(cwd)
        is_train = command[1] == "train"
        monkeypatch.setattr(sys, "argv", command if is_train else command[1:])
        if is_train:
            result = CliRunner().invoke(app, command[1:])
            stdout.write(f"{result.output}{result.exception or ''}")
            return SimpleNamespace(returncode=result.exit_code)
        load_script("record_run").main()
        return SimpleNamespace(returncode=0)

    def fill(*words):
        monkeypatch.setattr(sys, "argv", ["run_table.py", *map(str, words)])
        script.main()

    if request.param == "in this process":
        monkeypatch.setattr(script, "subprocess", SimpleNamespace(run=program))
    return fill


def test_every_seed_of_every_row_gets_a_record_that_the_page_and_the_plot_show(
    work, fill_table, load_script, monkeypatch, capsys
):
    pytest.importorskip("matplotlib")
    words = (work / "table.json", "--work", work, "--records", work / "records")

    fill_table(*words)
    records = load_records(work / "records")
    capsys.readouterr()
    fill_table(*words)
    again = capsys.readouterr().err
    twice = records[0] | {"run": records[0]["run"] | {"name": "toy_seed1_summed"}}  # the same weights, drawn once
    for record in (*records, twice):
        write_result(record, work / "curves")
    folders = ["--records", str(work / "curves"), "--output", str(work / "curves")]
    monkeypatch.setattr(sys, "argv", ["plot_curves.py", *folders])
    load_script("plot_curves").main()

    assert [record["run"]["name"] for record in records] == ["toy_seed1", "toy_seed2"]
    assert [record["run"]["seed"] for record in records] == [1, 2]
    assert [record["run"]["decoding"] for record in records] == ["exact", "exact"]
    assert [epoch for epoch, _ in records[0]["run"]["curve"]] == [1.0, 2.0]
    assert records[0]["run"]["command"].startswith("hf-genrec train data --ids ids --output runs/toy_seed1")
    assert "2 of 2 runs have their records" in again
    assert capsys.readouterr().out.startswith("2 runs, written to ")
    assert (work / "curves" / f"{curves_name('Toy data')}.png").stat().st_size > 1000
    page = results_page(records)
    assert "scripts/evidence/records/curves/toy_data.png" in page
    assert "| RPG | keep 7 × 5 | none | 2 |" in page


def test_a_run_that_fails_is_told_and_leaves_no_record(work, fill_table):
    table = json.loads((work / "table.json").read_text(encoding="utf-8"))
    table["rows"][0]["train"] += ["--set", "projection=triple"]
    (work / "table.json").write_text(json.dumps(table), encoding="utf-8")

    with pytest.raises(SystemExit, match="2 runs failed"):
        fill_table(work / "table.json", "--work", work, "--records", work / "records")

    assert "`projection` must be one of" in (work / "logs" / "toy_seed1.log").read_text(encoding="utf-8")
    assert not (work / "records").exists()


@pytest.mark.slow
def test_a_row_with_vectors_and_without_ids_trains_what_fits_the_data(work, fill_table):
    vectors = np.random.default_rng(0).normal(size=(13, 7)).astype(np.float32)
    np.save(work / "vectors.npy", vectors)
    row = {"name": "sum", "system": "Sum", "ids": None, "encoder": None, "train": ["--embeddings", "vectors.npy"]}
    table = {"dataset": "Toy data", "prepared": "data", "seeds": [3], "rows": [row]}
    (work / "table.json").write_text(json.dumps(table), encoding="utf-8")

    fill_table(work / "table.json", "--work", work, "--records", work / "records")

    (record,) = load_records(work / "records")
    assert (record["run"]["name"], record["run"]["seed"], record["run"]["policy"]) == ("sum_seed3", 3, None)
    assert "--embeddings vectors.npy --seed 3 --resume" in record["run"]["command"]


def test_a_row_with_a_missing_field_is_refused(script, tmp_path):
    table = write_rows(tmp_path / "table.json", {"name": "toy"})

    with pytest.raises(SystemExit, match=r"a row must have encoder, ids, name, system, train; got name\."):
        script.read_table(table)


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


def test_a_row_may_have_seeds_of_its_own_which_are_trained_in_their_turn(script, tmp_path):
    more = TRAINED | {"name": "more", "seeds": [5, 3, 4]}
    other = {"name": "sum", "system": "Summed", "run_of": "more", "record": []}

    runs = script.read_table(write_rows(tmp_path / "table.json", TRAINED, more, other))

    names = "toy_seed3 more_seed3 sum_seed3 more_seed5 sum_seed5 more_seed4 sum_seed4"
    assert [run.name for run in runs] == names.split()


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
        ({"name": "sum", "system": "Summed", "run_of": "toy", "record": [], "seeds": [3]}, "run_of, seeds, system"),
        (TRAINED | {"epochs": 3}, "must have encoder, ids, name, system, train; got encoder, epochs"),
        (TRAINED, "two rows have the same name"),
    ],
)
def test_rows_that_make_no_sense_are_refused(script, tmp_path, row, match):
    with pytest.raises(SystemExit, match=match):
        script.read_table(write_rows(tmp_path / "table.json", TRAINED, row))


@pytest.fixture
def evidence(repository, tmp_path):
    """Runs `scripts/evidence/evidence.mk` on programs that only note their words; some of them fail."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")

    def run(*, failing="nothing"):
        for name in ("python", "hf-genrec"):
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            fails = f'case "$*" in *{failing}*) exit 1;; esac'
            program.write_text(f'#!/bin/sh\necho "$*" >> {tmp_path}/log\n{fails}\n', encoding="utf-8")
            program.chmod(0o755)
        work = tmp_path / "work"
        work.mkdir()
        for ending in ("json", "png"):  # of the diagnosis
            (work / f"amazon_2014_beauty.{ending}").touch()
        words = {"DATA": "data", "WORK": work, "BIN": tmp_path / "bin", "CARDS": tmp_path / "cards"}
        made = subprocess.run(
            ["make", "-f", "scripts/evidence/evidence.mk", *(f"{name}={value}" for name, value in words.items())],
            cwd=repository, capture_output=True, check=False,
        )  # fmt: skip
        return made.returncode, (tmp_path / "log").read_text(encoding="utf-8").splitlines()

    return run


def test_one_command_makes_all_ids_tables_and_plots_and_last_the_page(repository, script, evidence, tmp_path):
    status, lines = evidence()

    tables = sorted((repository / "scripts/evidence/tables").glob("*.json"))
    rows = [run.row for table in tables for run in script.read_table(table)]
    made = {
        verb: [line.rsplit("/", 1)[-1] for line in lines if line.startswith(verb)] for verb in ("tokenize", "embed")
    }
    vectors = {row["train"][row["train"].index("--embeddings") + 1] for row in rows if "--embeddings" in row["train"]}
    assert status == 0
    assert sorted(made["tokenize"]) == sorted({row["ids"] for row in rows} - {None})
    assert sorted(made["embed"]) == ["beauty_embeddings", "scientific_embeddings"]
    assert vectors == {"beauty_embeddings"}
    assert [line.split("--quantizer ")[1] for line in lines if "_opq16" in line] == [
        f"opq --levels 16 --policy keep --output {tmp_path}/work/beauty_minilm_opq16"
    ]
    for table in tables:
        assert sum(f"run_table.py scripts/evidence/tables/{table.name} " in line for line in lines) == 1
    assert sum(line.startswith("diagnose PSID=runs/beauty_psid_own_seed1 ") for line in lines) == 1
    assert (tmp_path / "cards" / "trees" / "amazon_2014_beauty.png").is_file()
    assert [line.split()[0] for line in lines[-4:]] == [
        f"scripts/evidence/{name}.py"
        for name in ("synthetic_siblings", "plot_curves", "plot_long_ids", "write_results")
    ]


@pytest.mark.parametrize("failing", ["tables/beauty_evidence", "output */work/scientific_opq32"])
def test_what_fails_keeps_neither_the_rest_nor_the_page_from_being_made(evidence, failing):
    status, lines = evidence(failing=failing.replace(" ", "\\ "))

    assert status != 0
    assert any("tables/beauty_parallel.json" in line for line in lines)
    assert lines[-1].startswith("scripts/evidence/write_results.py")


@pytest.fixture
def trained_on(work, load_script):
    """Checks the ids of a record of a run, given the fingerprint of the run's ids and the model of its encoder."""
    record_run = load_script("record_run")

    def check(fingerprint, *, model=None, encoder="none"):
        folder = work / "run"
        (folder / "quantizer").mkdir(parents=True)
        training = {"settings": {"semantic_ids_fingerprint": fingerprint}}
        (folder / "training.json").write_text(json.dumps(training), encoding="utf-8")
        (folder / "quantizer" / "encoder.json").write_text(json.dumps({"model": model}), encoding="utf-8")
        arguments = SimpleNamespace(run=folder, ids=str(work / "ids"), encoder=encoder)
        config = SimpleNamespace(has_codes=True)
        record_run.check_ids(arguments, SimpleNamespace(model=SimpleNamespace(config=config)))

    return check


def test_a_record_names_the_ids_of_the_training_and_no_others(work, trained_on):
    fingerprint = load_tokenized(work / "ids")[0].fingerprint

    with pytest.raises(SystemExit, match=f"trained on the ids f00, those of --ids .*ids are {fingerprint}"):
        trained_on("f00")


@pytest.mark.parametrize(
    ("model", "encoder"),
    [(None, "none"), ("matrix a.npy", "any"), ("a-b", "x/a-b"), ("x/a-b", "a-b"), ("x/a-b", "x/a-b")],
)
def test_a_record_names_the_encoder_of_its_run(work, trained_on, model, encoder):
    trained_on(load_tokenized(work / "ids")[0].fingerprint, model=model, encoder=encoder)


def test_a_record_names_no_other_encoder_than_its_run(work, trained_on):
    with pytest.raises(SystemExit, match="made with the encoder x/a-b, got --encoder x/a-c"):
        trained_on(load_tokenized(work / "ids")[0].fingerprint, model="x/a-b", encoder="x/a-c")
