"""The tables of the repository against its records: which table makes a record again, and with which words."""

import json
import shlex

import pytest


TWO_HEADS = "two heads on texts and behaviour, some with a teacher: vectors, ids and teacher are made by hand"
SUM = "`hf-genrec ensemble` of runs made by hand"
OTHER_TEXTS = "text vectors of an encoder that the record does not name; those of MiniLM give other ids"
OTHER_DATA = "data that `evidence.mk` is not given"
MADE_BY_HAND = {
    "all_beauty_default_seed1": OTHER_DATA,
    "retail_default_seed1": OTHER_DATA,
    "beauty_decoder_seed1": TWO_HEADS,
    **{f"beauty_decoder_taught_seed{seed}": TWO_HEADS for seed in (1, 2, 3)},
    **{f"beauty_taught_seed{seed}": TWO_HEADS for seed in (1, 2, 3)},
    "beauty_two_heads_seed1": TWO_HEADS,
    "scientific_taught_seed1": TWO_HEADS,
    "scientific_two_heads_seed1": TWO_HEADS,
    **{f"scientific_default_seed{seed}": OTHER_TEXTS for seed in (1, 2, 3)},
    "beauty_sum_of_four_seed1": SUM,
    "scientific_sum_of_four_seed1": SUM,
    "beauty_psid_minilm": "the earlier fit of our ids, which is lost",
}
# Records made without `--seed`, when the seed was 42; their tables make them again with the seed of their name.
OF_SEED_42 = {"beauty_sasrec_seed1", "beauty_default_seed1", "scientific_sasrec_seed1"}
FOLDERS = {"--ids", "--embeddings", "--output"}  # each machine names them as it likes


@pytest.fixture(scope="module")
def records(repository):
    """What is said of the run of each record, by its name."""
    paths = (repository / "scripts/evidence/records/results").glob("*.json")
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["run"] for path in paths}


@pytest.fixture(scope="module")
def runs(repository, load_script):
    """The runs of all tables by their names."""
    tables = sorted((repository / "scripts/evidence/tables").glob("*.json"))
    found = [run for table in tables for run in load_script("run_table").read_table(table)]
    assert len(found) == len({run.name for run in found})
    return {run.name: run for run in found}


def test_every_record_is_of_a_table_or_made_by_hand(records, runs):
    assert sorted(records.keys() - runs.keys()) == sorted(MADE_BY_HAND)
    assert runs.keys() >= OF_SEED_42


def test_a_record_was_trained_with_the_words_of_its_row(records, runs):
    made = {name: run for name, run in records.items() if name in runs}

    assert {name: options(run["command"]) for name, run in made.items()} == {
        name: options(" ".join(["hf-genrec", *runs[name].commands(None)[0][1:]])) for name in made
    }


def options(command):
    """The options of a training and their values but for folders, sorted, without the seed."""
    words = iter(shlex.split(command)[3:])  # behind `hf-genrec train data`
    pairs = [(word, next(words)) for word in words if word != "--resume"]
    return sorted((word, "" if word in FOLDERS else value) for word, value in pairs if word != "--seed")


def test_a_record_says_what_its_row_says(records, runs):
    for name in records.keys() & runs.keys():
        run, record = runs[name], records[name]
        assert record["seed"] == (42 if name in OF_SEED_42 else run.seed), name
        assert {key: record[key] for key in ("dataset", "system", "encoder")} == {
            "dataset": run.dataset,
            "system": run.row["system"],
            "encoder": run.row["encoder"],
        }
