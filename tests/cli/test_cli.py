"""The command line from a log to recommendations on an invented shop, in one process."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from hf_genrec.cli.main import app
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.semantic_ids import SemanticIds
from hf_genrec.training.arguments import training_arguments


NUM_ITEMS, NUM_USERS = 23, 31
SHAPE = ["--d-model", "16", "--d-ff", "24", "--d-kv", "8", "--heads", "2", "--layers", "1", "--decoder-layers", "1"]
TRAIN = [*SHAPE, "--latents", "3", "--batch-size", "64", "--beams", "10", "--precision", "fp32"]


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def result_of(*words: object) -> dict:
    result = run(*words, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def error_of(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.stderr
    return result.stderr.splitlines()[-1]


def write_log(path: Path, *, num_items: int = NUM_ITEMS, num_users: int = NUM_USERS) -> Path:
    draw = random.Random(7)
    lines = ["user,sku,at"]
    for user in range(num_users):
        first = draw.randrange(num_items)
        visits = range(draw.randint(5, 26))
        lines += [f"u{user},i{(first + visit) % num_items},{1_600_000_000 + 60 * visit}" for visit in visits]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


COLUMNS = ["--user-column", "user", "--item-column", "sku", "--timestamp-column", "at"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    """A folder with everything that the verbs make of a log: data, emb, ids, run."""
    folder = tmp_path_factory.mktemp("shop")
    write_log(folder / "log.csv")
    lines = [json.dumps({"item_id": f"i{n}", "title": f"thing number {n}"}) for n in range(NUM_ITEMS)]
    (folder / "items.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.save(folder / "matrix.npy", np.random.default_rng(3).normal(size=(NUM_ITEMS, 13)).astype(np.float32))
    steps = [
        ["prepare", "--interactions", folder / "log.csv", *COLUMNS, "--items", folder / "items.jsonl"],
        ["embed", folder / "data", "--matrix", folder / "matrix.npy"],
        ["tokenize", folder / "data", "--embeddings", folder / "emb", "--codebook-size", "8", "--whiten", "5"],
        ["train", folder / "data", "--ids", folder / "ids", *TRAIN, "--epochs", "2", "--weight-decay", "0.125"],
    ]
    for step, name in zip(steps, ["data", "emb", "ids", "run"], strict=True):
        result_of(*step, "--output", folder / name)
    return folder


def test_run_folder_is_the_folder_for_the_hub(shop):
    names = {path.name for path in (shop / "run").iterdir()}
    quantizer = {path.name for path in (shop / "run" / "quantizer").iterdir()}
    training = json.loads((shop / "run" / "training.json").read_text(encoding="utf-8"))

    assert {"config.json", "model.safetensors", "items.parquet", "tokenizer.json", "README.md"} <= names
    assert quantizer == {"config.json", "quantizer.safetensors", "whitening.safetensors", "encoder.json"}
    assert training["settings"]["training"]["weight_decay"] == 0.125
    assert [entry["epoch"] for entry in training["log_history"] if "eval_loss" in entry] == [1.0, 2.0]


def test_prepare_prints_the_statistics_of_every_step(shop, tmp_path):
    source = ["--interactions", shop / "log.csv", *COLUMNS, "--items", shop / "items.jsonl"]

    result = run("prepare", *source, "--output", tmp_path / "data", "--k-core", "2")

    assert result.exit_code == 0, result.stderr
    assert "read" in result.stdout
    assert "2-core" in result.stdout
    assert f"train {NUM_USERS}, validation {NUM_USERS}, test {NUM_USERS}" in result.stdout
    assert f"next: hf-genrec embed {tmp_path / 'data'}" in result.stdout.replace("\n", "")
    assert "Pass `--overwrite` to replace it" in error_of("prepare", *source, "--output", tmp_path / "data")


def test_sequences_are_prepared_as_they_are(tmp_path):
    (tmp_path / "sequences.tsv").write_text("u\ta b c d\nv\tb c a\n", encoding="utf-8")
    items = "".join(json.dumps({"item_id": item, "title": item}) + "\n" for item in "abcd")
    (tmp_path / "items.jsonl").write_text(items, encoding="utf-8")
    source = ["--sequences", tmp_path / "sequences.tsv", "--items", tmp_path / "items.jsonl"]

    found = result_of("prepare", *source, "--output", tmp_path / "data")

    assert found["statistics"]["num_interactions"] == 7
    assert found["splits"] == {"train": 2, "validation": 2, "test": 2}


def test_malformed_lines_are_skipped_and_counted_if_asked_for(shop, tmp_path):
    text = (shop / "log.csv").read_text(encoding="utf-8") + "u1,,12\n"
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    source = ["--interactions", tmp_path / "log.csv", *COLUMNS, "--items", shop / "items.jsonl"]

    message = error_of("prepare", *source, "--output", tmp_path / "data")
    found = result_of("prepare", *source, "--output", tmp_path / "data", "--on-error", "skip")

    assert f"line {len(text.splitlines())}" in message
    assert found["skipped"]["log_lines"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["prepare", "--output", "x"], "exactly one of --interactions, --sequences, --movielens, --amazon"),
        (["prepare", "--output", "x", "--interactions", "log.csv"], "`--items` is missing"),
        (["prepare", "--output", "x", "--amazon", "2023"], "needs `--category`"),
        (
            [
                "prepare",
                "--output",
                "x",
                "--movielens",
                "ml-100k",
                "--k-core",
                "3",
                "--min-history",
                "2",
                "--no-strict",
            ],
            "`--k-core`, `--min-history`, `--strict` would have no effect with `--movielens`",
        ),
        (
            ["prepare", "--output", "x", "--amazon", "2014", "--category", "Beauty", "--benchmark", "last_out"],
            "`--benchmark` would have no effect with `--amazon 2014`",
        ),
        (
            ["prepare", "--output", "x", "--amazon", "2023", "--category", "Beauty", "--user-column", "user_id"],
            "`--user-column` would have no effect with `--amazon 2023`",
        ),
        (["prepare", "--output", "x", "--sequences", "y", "--min-rating", "3"], "`--min-rating` would have no effect"),
        (["prepare", "--output", "x", "--sequences", "nope.tsv", "--items", "y"], "There is no file nope.tsv."),
        (["prepare", "--output", "x", "--sequences", ".", "--items", "y"], ".: Is a directory."),
        (["compare", "nowhere"], "There is no file nowhere."),
        (["tokenize", "x", "--output", "misspelt", "--report"], "misspelt holds no ids to report on"),
        (["tokenize", "x", "--output", "y"], "either `--embeddings` or `--ids`"),
        (["train", "x", "--output", "y"], "either `--ids`"),
        (["train", "x", "--output", "y", "--ids", "z"], "x is not a prepared folder"),
        (["recommend", "--model", "x"], "either `--history`"),
        (["recommend", "--model", "./x", "--history", "a"], "no run folder ./x"),
        (["evaluate", "a/b/c", "x"], "no run folder a/b/c"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, list) else None,
)
def test_wrong_calls_end_with_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    assert message in error_of(*words)


def test_tokenize_prints_collisions_and_usage(shop, tmp_path):
    words = ["tokenize", shop / "data", "--embeddings", shop / "emb", "--codebook-size", "4", "--levels", "2"]

    result = run(*words, "--whiten", "0", "--policy", "append", "--output", tmp_path / "ids")

    assert result.exit_code == 0, result.stderr
    assert "distinct ids" in result.stdout
    assert "perplexity" in result.stdout
    fit = json.loads((tmp_path / "ids" / "tokenizer.json").read_text(encoding="utf-8"))["fit"]
    rows = [line.replace("│", " ").split() for line in result.stdout.splitlines() if "%" in line][-3:]
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert [row[-1] for row in rows] == [*(f"{error:.3f}" for error in fit["relative_error"]), "-"]
    assert SemanticIds.load(tmp_path / "ids" / "semantic_ids.parquet").num_levels == 3
    assert not (tmp_path / "ids" / "quantizer" / "whitening.safetensors").exists()


def test_ids_of_other_projects_are_imported(shop, tmp_path):
    table = {f"i{n}": [n % 4, n // 4] for n in range(NUM_ITEMS)}
    (tmp_path / "ids.json").write_text(json.dumps(table), encoding="utf-8")
    words = ["tokenize", shop / "data", "--ids", tmp_path / "ids.json", "--output", tmp_path / "ids"]

    found = result_of(*words, "--policy", "keep")

    assert found["statistics"]["after"]["num_distinct"] == NUM_ITEMS
    assert "centroids" in error_of(*words, "--policy", "rematch")


def test_embeddings_of_other_items_are_refused(shop, tmp_path):
    (tmp_path / "sequences.tsv").write_text("u\ti1 i2 i3\n", encoding="utf-8")
    words = ["--sequences", tmp_path / "sequences.tsv", "--items", shop / "items.jsonl"]
    result_of("prepare", *words, "--output", tmp_path / "data")

    message = error_of("tokenize", tmp_path / "data", "--embeddings", shop / "emb", "--output", tmp_path / "ids")

    assert "other items" in message


def test_bidirectional_attention_reads_codes_unless_items_are_asked_for(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", *TRAIN, "--epochs", "1"]
    words += ["--history-attention", "bidirectional", "--output", tmp_path / "run"]

    model = result_of(*words)["settings"]["model"]

    assert (model["history_attention"], model["history_unit"]) == ("bidirectional", "code")
    assert "`--history-unit item` needs `--history-attention causal`" in error_of(*words, "--history-unit", "item")


def test_unknown_and_wrong_training_options_are_named(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", "--output", tmp_path / "run"]

    assert "Unknown options: --wieght-decay 1. Did you mean --weight-decay?" in error_of(*words, "--wieght-decay", "1")
    assert "invalid float value: 'much'" in error_of(*words, "--weight-decay", "much")
    assert "before --weight-decay" in error_of("train", "--weight-decay", "1", *words[1:])
    assert "output-dir" in error_of(*words, "--output-dir", "elsewhere")
    assert "`--beams` must be at least 10" in error_of(*words, "--beams", "3")
    assert "rpg has no `--decoder-layers`, `--dropout`:" in error_of(
        *words, "--architecture", "rpg", "--decoder-layers", 2, "--dropout", 0, "--max-history", 7
    )
    assert "does not go with `--d-model`, `--heads`" in error_of(
        "train", shop / "data", "--from", shop / "run", "--d-model", 8, "--heads", 2, *words[4:]
    )
    assert "checkpoint" in error_of("train", shop / "data", "--from", shop / "run", "--d-model", 8, *words[4:])
    assert not (tmp_path / "run").exists()


def test_settings_lose_to_words_of_the_command_line():
    args = training_arguments("run", settings={"learning_rate": 0.5}, options=["--learning_rate", "0.25"])

    assert (args.learning_rate, args.output_dir, args.report_to) == (0.25, os.path.join("run", "checkpoints"), [])


def test_finished_run_says_so(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", "--output", shop / "run", *TRAIN]

    assert "is finished" in error_of(*words)
    resumed = run(*words, "--resume")
    assert resumed.exit_code == 0
    assert "nothing to resume" in resumed.stderr
    result_of(
        "tokenize", shop / "data", "--embeddings", shop / "emb", "--codebook-size", "4", "--output", tmp_path / "x"
    )
    message = error_of(*words[:2], "--ids", tmp_path / "x", *words[4:6], "--resume", "--architecture", "rpg")
    assert "semantic_ids_fingerprint was " in message
    assert message.endswith("architecture was latte, is rpg. Repeat its settings, or choose another folder.")


def test_interrupted_run_resumes_to_the_same_recommendations(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", *TRAIN, "--epochs", "2", "--weight-decay", "0.125"]
    result_of(*words, "--output", tmp_path / "run")
    whole = Recommender.from_pretrained(tmp_path / "run").recommend(["i1", "i2"], top_k=5)
    (tmp_path / "run" / "training.json").unlink()
    (tmp_path / "run" / "model.safetensors").unlink()
    checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("checkpoint-*"), key=lambda path: len(path.name))
    (checkpoints[-1] / "trainer_state.json").write_text('{"epo', encoding="utf-8")  # killed while it was written

    assert "Pass `--resume`" in error_of(*words, "--output", tmp_path / "run")
    assert "learning_rate" in error_of(*words, "--output", tmp_path / "run", "--resume", "--learning-rate", "0.5")
    record = result_of(*words, "--output", tmp_path / "run", "--resume")

    assert record["resumed_from"] == checkpoints[0].name
    assert Recommender.from_pretrained(tmp_path / "run").recommend(["i1", "i2"], top_k=5) == whole


def test_checkpoint_is_tuned_on_a_new_log_of_its_catalog_only(shop, tmp_path):
    write_log(tmp_path / "log.csv", num_users=11)
    words = ["prepare", "--interactions", tmp_path / "log.csv", *COLUMNS, "--items", shop / "items.jsonl"]
    result_of(*words, "--keep-all-items", "--output", tmp_path / "data")
    result_of("train", tmp_path / "data", "--from", shop / "run", "--output", tmp_path / "tuned", "--epochs", "1")
    before, after = (Recommender.from_pretrained(folder) for folder in (shop / "run", tmp_path / "tuned"))

    assert after.model.config.catalog_fingerprint == before.model.config.catalog_fingerprint
    assert (tmp_path / "tuned" / "quantizer" / "config.json").is_file()

    (tmp_path / "sequences.tsv").write_text("u\ti1 i2 i3\n", encoding="utf-8")
    words = ["--sequences", tmp_path / "sequences.tsv", "--items", shop / "items.jsonl"]
    result_of("prepare", *words, "--output", tmp_path / "few")
    message = error_of("train", tmp_path / "few", "--from", shop / "run", "--output", tmp_path / "other")
    assert f"({NUM_ITEMS} items) is not about the catalog" in message
    assert "is not about the catalog" in error_of("evaluate", shop / "run", tmp_path / "few")


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
    assert users.column_names == ["rank", "num_train", "history_length"]  # nothing that names a user


def test_fewer_beams_than_the_lists_have_items_are_an_error(shop):
    assert "Give it at least 20 (`--beams`)" in error_of("evaluate", shop / "run", shop / "data", "--beams", 19)


def test_recommend_names_titles_scores_and_unknown_ids(shop):
    found = result_of("recommend", "--model", shop / "run", "--history", "i3", "nope", "i4", "--top-k", "5")

    assert found["history"] == [{"item_id": f"i{n}", "title": f"thing number {n}"} for n in (3, 4)]
    assert found["unknown"] == ["nope"]
    expected = Recommender.from_pretrained(shop / "run").recommend(["i3", "i4"], top_k=5)
    assert [item["item_id"] for item in found["recommendations"]] == expected.item_ids
    assert [item["score"] for item in found["recommendations"]] == pytest.approx(list(expected.scores))


def test_options_saved_with_a_model_hold_unless_the_command_line_names_others(shop, tmp_path):
    shutil.copytree(shop / "run", tmp_path / "run")
    saved = {"num_beams": 21, "latent_aggregation": "sum", "top_k": 3}
    (tmp_path / "run" / "recommend_config.json").write_text(json.dumps(saved), encoding="utf-8")
    words = ["evaluate", tmp_path / "run", shop / "data", "--no-baselines", "--max-users", 2]

    run, other = result_of(*words)["run"], result_of(*words, "--beams", 23)["run"]
    found = result_of("recommend", "--model", tmp_path / "run", "--history", "i3")

    assert (run["num_beams"], run["latent_aggregation"]) == (21, "sum")
    assert (other["num_beams"], other["latent_aggregation"]) == (23, "sum")
    assert len(found["recommendations"]) == 3


def test_recommend_reads_a_file_of_histories_and_an_empty_history(shop, tmp_path):
    (tmp_path / "histories.txt").write_text("i3 i4\n\ni5\n", encoding="utf-8")

    many = result_of("recommend", "--model", shop / "run", "--histories", tmp_path / "histories.txt", "--top-k", 2)
    nobody = result_of("recommend", "--model", shop / "run", "--history", "--top-k", 2)

    assert [len(user["recommendations"]) for user in many["users"]] == [2, 2, 2]
    assert nobody["history"] == many["users"][1]["history"] == []
    assert [[item["item_id"] for item in user["recommendations"]] for user in (nobody, many["users"][1])] == [
        [item["item_id"] for item in nobody["recommendations"]]
    ] * 2


def test_recommend_leaves_out_seen_items(shop):
    table = run("recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "21")

    assert table.exit_code == 0, table.stderr
    lines = [line for line in table.stdout.splitlines() if "thing number" in line]
    assert len(lines) == 2 + 21
    assert sum("thing number 3 " in line for line in lines) == 1
    both = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "23"]
    again = result_of(*both, "--include-seen")["recommendations"]
    assert {"i3", "i4"} <= {item["item_id"] for item in again}


def test_recommend_keeps_to_ids_that_are_excluded_or_allowed(shop):
    words = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "9"]

    found = result_of(*words, "--exclude", "i5", "i7", "--allow", "i5", "i6", "--allow", "i9", "--exclude", "i8")

    assert sorted(item["item_id"] for item in found["recommendations"]) == ["i6", "i9"]
    assert "`--allow` holds no id of the catalog: 'nope'" in error_of(*words, "--allow", "nope")
    assert len(result_of(*words, "--exclude", "nope")["recommendations"]) == 9
    assert "'--allow' requires an argument" in error_of(*words, "--allow")


def test_recommend_draws_and_varies_its_lists(shop):
    words = ["recommend", "--model", shop / "run", "--history", "i3", "i4", "--top-k", "9"]
    plain, again, first, other, varied = (
        [item["item_id"] for item in result_of(*words, *options)["recommendations"]]
        for options in ([], ["--sample-seed", 0], ["--sample-seed", 0], ["--sample-seed", 1], ["--diversity", 1])
    )

    recommender = Recommender.from_pretrained(shop / "run")
    for found, options in ((first, {"sample_seed": 0}), (varied, {"diversity": 1.0})):
        assert recommender.recommend(["i3", "i4"], top_k=9, **options).item_ids == found
    assert again == first
    assert plain not in (first, varied)
    assert first != other
    assert "cannot be combined" in error_of(*words, "--sample-seed", "0", "--diversity", "0.5")


@pytest.mark.parametrize("verb", ["prepare", "embed", "tokenize", "train", "evaluate", "recommend", "demo"])
def test_help_has_examples_and_json(verb):
    result = run(verb, "--help")

    assert result.exit_code == 0
    assert f"hf-genrec {verb}" in result.stdout.split("Examples:")[1]
    assert "--json" in result.stdout


@pytest.mark.slow
def test_item_texts_are_embedded_by_the_quick_starts_encoder(shop, tmp_path, repository):
    folder = tmp_path / "all-MiniLM-L6-v2"
    subprocess.run([sys.executable, repository / "scripts" / "fetch_minilm.py", folder], check=True)
    words = ["embed", shop / "data", "--model", folder, "--output", tmp_path / "minilm.safetensors"]

    found = result_of(*words)

    assert (found["num_items"], found["dim"], found["model"]) == (NUM_ITEMS, 384, folder.name)
    assert found["identity"]
    result_of(
        "tokenize", shop / "data", "--embeddings", found["file"], "--codebook-size", "8", "--output", tmp_path / "i"
    )
    encoder = json.loads((tmp_path / "i" / "quantizer" / "encoder.json").read_text(encoding="utf-8"))
    assert encoder == {"model": folder.name, "revision": None, "identity": found["identity"]}


@pytest.mark.slow
def test_training_works_under_accelerate_launch(shop, tmp_path, repository):
    launch = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    words = [shop / "data", "--ids", shop / "ids", "--output", tmp_path / "run", *TRAIN, "--epochs", "1", "--json"]
    command = [sys.executable, *launch, repository / "scripts" / "train.py", *words]
    environment = os.environ | {"PYTHONPATH": str(repository)}

    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, env=environment, check=False
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["settings"]["targets"] == "all"
    assert len(Recommender.from_pretrained(tmp_path / "run").recommend(["i1"]).item_ids) == 10


def test_the_papers_recipe_runs_in_one_command_and_continues(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import latte

    matrix, amazon = tmp_path / "matrix.npy", repository / "tests" / "fixtures" / "amazon"
    np.save(matrix, np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32))
    words = ["latte.py", "Gift_Cards", "--output", str(tmp_path / "run")]
    words += ["--prepare", f"--data-dir {amazon} --missing-text keep", "--embed", f"--matrix {matrix}"]
    words += ["--tokenize", "--codebook-size 4 --levels 2 --whiten 2", "--evaluate", "--beams 7"]
    words += ["--train", "--latents 2 --epochs 1 --beams 5"]
    monkeypatch.setattr("sys.argv", words)

    latte.main()
    capsys.readouterr()
    latte.main()
    again = capsys.readouterr()

    assert "finished; nothing to resume" in again.err
    assert "ndcg@10" in again.out
    record = json.loads((tmp_path / "run" / "model" / "evaluation.json").read_text(encoding="utf-8"))
    assert (record["protocol"], record["run"]["num_beams"], record["model"]["invalid_rate"]) == ("amazon2023", 7, 0.0)
    settings = json.loads((tmp_path / "run" / "model" / "training.json").read_text(encoding="utf-8"))["settings"]
    assert settings["model"]["history_attention"] == "bidirectional"
