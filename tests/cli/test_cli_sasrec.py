"""The command line without semantic IDs: `--architecture sasrec` from a log to recommendations."""

import json
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from test_cli import COLUMNS, error_of, result_of, run, write_log

from hf_genrec import PreparedDataset, SemanticIds, save_recommender
from hf_genrec.training.initial import start_fresh
from results import load_records


TINY = ["--d-model", "16", "--heads", "2", "--layers", "1", "--batch-size", "64", "--precision", "fp32"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A prepared log and a run."""
    folder = tmp_path_factory.mktemp("shop")
    lines = [json.dumps({"item_id": f"i{n}", "title": f"thing number {n}"}) for n in range(23)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    log = ["--interactions", write_log(folder / "log.csv"), *COLUMNS, "--items", folder / "items.jsonl"]
    result_of("prepare", *log, "--output", folder / "data")
    train = ["train", folder / "data", "--output", folder / "run", "--architecture", "sasrec"]
    result_of(*train, *TINY, "--epochs", "30", "--learning-rate", "0.02", "--dropout", "0.1")
    return folder


def test_run_is_evaluated_by_exact_scores_and_its_card_speaks_of_no_codes(shop):
    record = result_of("evaluate", shop / "run", shop / "data")

    card = (shop / "run" / "README.md").read_text(encoding="utf-8")
    assert record["run"]["decoding"] == "exact"
    assert "num_beams" not in record["run"]
    assert record["model"]["invalid_rate"] == 0
    assert record["model"]["ndcg@10"] > 0.9  # an item follows the one before it
    assert "# A SASRec recommender" in card
    assert "The model reads a history of items and scores every item of the catalog" in card
    assert "codes" not in card
    assert "semantic-ids" not in card


def test_run_folder_lists_the_items_without_codes(shop):
    items = pq.read_table(shop / "run" / "items.parquet")
    settings = json.loads((shop / "run" / "training.json").read_text(encoding="utf-8"))["settings"]

    assert items.column_names == ["item_id", "title", "text"]
    assert settings["semantic_ids_fingerprint"] is None
    assert not (shop / "run" / "quantizer").exists()


def test_history_is_continued_under_rules(shop):
    asked = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "3"]

    first = result_of(*asked)["recommendations"]
    second = result_of(*asked, "--exclude", "i5", "--diversity", "0.3")["recommendations"]

    assert first[0]["item_id"] == "i5"
    assert len(second) == 3
    assert "i5" not in [entry["item_id"] for entry in second]


def test_run_is_tuned_on_another_log_over_its_items(shop, tmp_path):
    tune = ["train", shop / "data", "--from", shop / "run", "--output", tmp_path / "tuned", "--epochs", "1"]

    record = result_of(*tune, "--precision", "fp32")

    assert record["settings"]["model"]["model_type"] == "sasrec"
    assert record["settings"]["from"] == str(shop / "run")


def test_finished_run_is_another_one_where_what_is_asked_for_differs(shop, tmp_path):
    words = ["--architecture", "sasrec", *TINY, "--output", shop / "run", "--resume"]
    log = ["--interactions", write_log(tmp_path / "log.csv", num_users=29), *COLUMNS]
    result_of("prepare", *log, "--items", shop / "items.jsonl", "--output", tmp_path / "data")

    assert result_of("train", shop / "data", *words)["folder"] == str(shop / "run")
    assert "finished and is another one than asked for: seed was 42, is 7." in error_of(
        "train", shop / "data", *words, "--seed", 7
    )
    assert "data_fingerprint was " in error_of("train", tmp_path / "data", *words)
    assert "from was None, is base" in error_of("train", shop / "data", "--from", "base", *words[-3:])


def test_baseline_tuned_on_the_users_that_are_evaluated_is_told_of(shop):
    words = ["evaluate", shop / "run", shop / "data", "--max-users", "5"]

    told, validated = "item_knn was tuned on users of this split", ["--split", "validation"]
    assert told in " ".join(run(*words, *validated).stdout.split())
    assert told not in " ".join(run(*words).stdout.split())
    assert told not in " ".join(run(*words, *validated, "--no-baselines").stdout.split())


def test_what_needs_codes_is_refused(shop, tmp_path):
    train = ["train", shop / "data", "--output", tmp_path / "run"]

    assert "SASRec has no semantic IDs: leave out `--ids`" in error_of(
        *train, "--architecture", "sasrec", "--ids", tmp_path
    )
    assert "Give either `--ids`" in error_of(*train)
    assert "Give either `--ids`" in error_of(*train, "--architecture", "rpg")
    assert "does not go with --architecture" in error_of(*train, "--from", shop / "run", "--architecture", "sasrec")
    assert "The architecture sasrec has no `--decoder-layers`" in error_of(
        *train, "--architecture", "sasrec", "--decoder-layers", "2"
    )
    assert "which knows no codes" in error_of("graph", shop / "run")
    assert "`--decoding` must be 'exact'" in error_of("evaluate", shop / "run", shop / "data", "--decoding", "beam")


def test_folder_of_ids_must_fit_the_architecture(shop):
    prepared = PreparedDataset.load(shop / "data")

    with pytest.raises(ValueError, match="'latte' needs semantic IDs: name the tokenized folder"):
        start_fresh(prepared, None, shape={}, seed=0)
    with pytest.raises(ValueError, match="'sasrec' has no semantic IDs: leave out the tokenized folder"):
        start_fresh(prepared, "ids", shape={}, seed=0, architecture="sasrec")


def test_model_without_codes_is_not_saved_with_a_table_of_them(shop, tmp_path):
    prepared = PreparedDataset.load(shop / "data")
    model = start_fresh(prepared, None, shape={"d_model": 8}, seed=0, architecture="sasrec").model
    semantic_ids = SemanticIds.from_codes(prepared.item_ids, [[n] for n in range(23)], codebook_size=23, policy="keep")

    with pytest.raises(ValueError, match="this is a 'sasrec' model, got a table"):
        save_recommender(tmp_path, model, semantic_ids, prepared.items)


def test_record_for_the_results_page_names_no_ids(shop, tmp_path, repository):
    script = [sys.executable, repository / "scripts/evidence/record_run.py", shop / "run", shop / "data"]
    words = ["--name", "toy_sasrec", "--dataset", "Toy", "--records", tmp_path / "records"]

    wrong = subprocess.run([*script, *words, "--ids", "ids"], capture_output=True, text=True, check=False)
    done = subprocess.run([*script, *words], capture_output=True, text=True, check=False)

    assert "has no semantic IDs: leave out --ids." in wrong.stderr
    assert done.returncode == 0, done.stderr
    (record,) = load_records(tmp_path / "records")
    assert record["run"]["system"] == "SASRec"
    assert [record["run"][name] for name in ("encoder", "policy", "num_levels", "codebook_size")] == [None] * 4
