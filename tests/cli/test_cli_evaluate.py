"""`hf-genrec evaluate`: records, tables, samples, baselines."""

import json
import os
import shutil
import signal
import time

import pyarrow.parquet as pq
import pytest
from cli_shop import NUM_USERS, error_of, result_of, run

from hf_genrec.files import single_writer
from results import load_records


def test_evaluation_has_the_model_beside_the_baselines(shop):
    record = result_of("evaluate", shop / "run", shop / "data", "--beams", "20", "--batch-size", "7")
    names = {f"{name}@{k}" for name in ("recall", "ndcg", "mrr") for k in (1, 5, 10, 20)}

    assert (record["protocol"], record["split"], record["num_users"]) == ("custom", "test", NUM_USERS)
    for values in (record["model"], record["baselines"]["popularity"], record["baselines"]["item_knn"]):
        assert names | {"invalid_rate", "intervals"} <= set(values)
        assert set(values["intervals"]) == names
    assert record["model"]["invalid_rate"] == 0
    assert json.loads((shop / "run" / "evaluation.json").read_text(encoding="utf-8")) == record
    assert [record["run"][name] for name in ("policy", "num_levels", "codebook_size")] == ["widen", 3, 8]
    users = pq.read_table(shop / "run" / "evaluation_users.parquet")
    assert (users["rank"].to_numpy() == 0).mean() == record["model"]["recall@1"]
    assert (users["rank_item_knn"].to_numpy() == 0).mean() == record["baselines"]["item_knn"]["recall@1"]
    assert {"user_id", "target"} <= set(users.column_names)
    assert "This checkpoint was not evaluated" not in (shop / "run" / "README.md").read_text(encoding="utf-8")


def test_evaluation_of_a_folder_that_another_process_writes_is_refused_before_it_is_computed(shop):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with single_writer(shop / "run"):
            os.write(writer, b"x")
            time.sleep(60)
    os.read(reader, 1)

    message = error_of("evaluate", shop / "run", shop / "data")

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert f"run is being written by process {child} on" in message


def test_sample_of_users_does_not_replace_the_evaluation(shop, tmp_path):
    words = ["evaluate", shop / "run", shop / "data", "--beams", "20", "--no-baselines", "--split", "validation"]

    result = run(*words, "--max-users", "5", "--exact-sample", "3", "--output", tmp_path / "record.json")

    assert result.exit_code == 0, result.stderr
    assert "ndcg@10" in result.stdout
    record = json.loads((tmp_path / "record.json").read_text(encoding="utf-8"))
    assert (record["num_users"], record["split"], record["baselines"]) == (5, "validation", {})
    assert record["model"]["exact_gap"]["num_users"] == 3
    for shown in ("coverage", "recall@10 by", "overlap@10", "published rows use", "sentence-t5-base"):
        assert shown in result.stdout
    users = pq.read_table(tmp_path / "record_users.parquet")
    assert users.column_names == [
        "rank",
        "num_train",
        "history_length",
        "seen_excluded_rank",
    ]  # nothing that names a user


def test_rounded_weights_are_recorded_and_leave_the_evaluation_of_the_run(shop, tmp_path):
    shutil.copytree(shop / "run", tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))
    words = ["evaluate", tmp_path / "run", shop / "data", "--beams", 20, "--no-baselines"]

    rounded = result_of(*words, "--dtype", "bfloat16")

    assert rounded["run"]["dtype"] == "bfloat16"
    assert not (tmp_path / "run" / "evaluation.json").exists()
    assert result_of(*words)["run"]["dtype"] == "float32"
    assert (tmp_path / "run" / "evaluation.json").exists()


def test_fewer_beams_than_the_lists_have_items_are_an_error(shop):
    assert "Give it at least 20 (`--beams`)" in error_of("evaluate", shop / "run", shop / "data", "--beams", 19)


@pytest.mark.parametrize(("name", "system"), [("rpg", "RPG"), ("acerec", "ACERec")])
def test_run_is_evaluated_beside_the_baselines_by_exact_scores(parallel, name, system):
    data, folder = parallel

    record = result_of("evaluate", folder / name, data)
    card = (folder / name / "README.md").read_text(encoding="utf-8")

    assert record["run"]["decoding"] == "exact"
    assert "num_beams" not in record["run"]
    assert record["model"]["invalid_rate"] == 0
    assert set(record["baselines"]) == {"popularity", "item_knn", "ridge"}
    assert f"# An {system} recommender" in card
    assert "predicts all codes" in card


def test_run_is_evaluated_by_exact_scores_and_its_card_speaks_of_no_codes(sasrec):
    data, run_folder = sasrec
    record = result_of("evaluate", run_folder, data)

    card = (run_folder / "README.md").read_text(encoding="utf-8")
    assert record["run"]["decoding"] == "exact"
    assert "num_beams" not in record["run"]
    assert record["model"]["invalid_rate"] == 0
    assert record["model"]["ndcg@10"] > 0.9  # an item follows the one before it
    assert "# A SASRec recommender" in card
    assert "The model reads a history of items and scores every item of the catalog" in card
    assert "codes" not in card
    assert "semantic-ids" not in card


def test_baseline_tuned_on_the_users_that_are_evaluated_is_told_of(sasrec):
    data, run_folder = sasrec
    words = ["evaluate", run_folder, data, "--max-users", "5"]

    told, validated = "item_knn was tuned on users of this split", ["--split", "validation"]
    assert told in " ".join(run(*words, *validated).stdout.split())
    assert told not in " ".join(run(*words).stdout.split())
    assert told not in " ".join(run(*words, *validated, "--no-baselines").stdout.split())


def test_record_for_the_results_page_names_no_ids(sasrec, tmp_path, load_script, monkeypatch):
    data, run_folder = sasrec
    record_run = load_script("record_run")
    words = ["record_run.py", run_folder, data, "--name", "toy_sasrec", "--dataset", "Toy"]
    words = [str(word) for word in (*words, "--records", tmp_path / "records")]

    monkeypatch.setattr("sys.argv", [*words, "--ids", "ids"])
    with pytest.raises(SystemExit, match="has no semantic IDs: leave out --ids"):
        record_run.main()
    monkeypatch.setattr("sys.argv", words)
    record_run.main()

    (record,) = load_records(tmp_path / "records")
    assert record["run"]["system"] == "SASRec"
    assert [record["run"][name] for name in ("encoder", "policy", "num_levels", "codebook_size")] == [None] * 4


CODES = [[1, 0], [0, 2], [2, 2], [1, 0], [0, 1], [1, 0], [2, 2], [3, 3], [0, 2], [3, 1], [2, 0], [3, 1]]


def test_imported_table_with_shared_ids_is_trained_evaluated_and_served(make_prepared, tmp_path):
    names = [f"i{number:02}" for number in range(12)]
    log = {f"u{start:02}": [names[(start + step) % 12] for step in range(6)] for start in range(12)}
    ids = tmp_path / "table.json"
    ids.write_text(json.dumps(dict(zip(names, CODES, strict=True))), encoding="utf-8")
    data, run = make_prepared(log).folder, tmp_path / "run"
    tiny = ["--d-model", 16, "--d-ff", 24, "--heads", 2, "--layers", 1, "--epochs", 2, "--precision", "fp32"]

    result = result_of("tokenize", data, "--ids", ids, "--policy", "keep", "--output", tmp_path / "ids")
    result_of("train", data, "--ids", tmp_path / "ids", "--output", run, *tiny)
    record = result_of("evaluate", run, data)
    found = result_of(
        "recommend", "--model", run, "--history", "i02", "i03", "--top-k", 11, "--exclude", "i05", "--include-seen"
    )

    assert result["statistics"]["after"]["group_sizes"] == {"1": 3, "2": 3, "3": 1}
    assert record["model"]["invalid_rate"] == 0
    items = [names.index(item["item_id"]) for item in found["recommendations"]]
    assert sorted(items) == [item for item in range(12) if item != 5]
    assert items[items.index(0) + 1] == 3
    assert items[items.index(9) + 1] == 11
