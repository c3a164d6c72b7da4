"""`hf-genrec train`: options, run folders, resuming, fine-tuning; each architecture."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_shop import COLUMNS, NUM_ITEMS, SASREC, TINY, TRAIN, error_of, result_of, run, write_log
from safetensors.numpy import load_file

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.evaluation.record import read_training
from hf_genrec.hub.save import save_recommender
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.semantic_ids import SemanticIds
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.trainer import Stopwatch


def test_run_folder_is_the_folder_for_the_hub(shop):
    names = {path.name for path in (shop / "run").iterdir()}
    quantizer = {path.name for path in (shop / "run" / "quantizer").iterdir()}
    training = json.loads((shop / "run" / "training.json").read_text(encoding="utf-8"))

    assert {"config.json", "model.safetensors", "items.parquet", "tokenizer.json", "README.md"} <= names
    parts = {"config.json", "quantizer.safetensors", "whitening.safetensors", "encoder.json", "choice.json"}
    assert quantizer == parts
    assert training["settings"]["training"]["weight_decay"] == 0.125
    assert [entry["epoch"] for entry in training["log_history"] if "eval_loss" in entry] == [1.0, 2.0]


def test_bidirectional_attention_reads_codes_unless_items_are_asked_for(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", *TRAIN, "--epochs", "1"]
    words += ["--history-attention", "bidirectional", "--output", tmp_path / "run"]

    model = result_of(*words)["settings"]["model"]

    assert (model["history_attention"], model["history_unit"]) == ("bidirectional", "code")
    assert "`--history-unit item` needs `--history-attention causal`" in error_of(*words, "--history-unit", "item")


def test_second_head_is_trained_where_it_is_asked_for_and_its_weight_is_saved(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", *TRAIN, "--epochs", "1", "--output", tmp_path / "run"]

    record = result_of(*words, "--dense-head", "--embeddings", shop / "emb")

    vectors = load_file(shop / "emb" / "embeddings.safetensors")["embeddings"]
    kept = load_file(tmp_path / "run" / "model.safetensors")["item_table.text_vectors"].astype("float64")
    assert record["settings"]["model"]["dense_text_dim"] == vectors.shape[1]
    np.testing.assert_allclose(np.linalg.norm(kept, axis=1).mean(), 1, rtol=1e-3)
    np.testing.assert_allclose(kept * np.linalg.norm(vectors, axis=1).mean(), vectors, atol=1e-3)
    weight = json.loads((tmp_path / "run" / "recommend_config.json").read_text(encoding="utf-8"))["dense_weight"]
    assert record["settings"]["model"]["dense_head"] is True
    assert record["settings"]["model"]["dense_codes"] is False
    assert [entry["dense_weight"] for entry in record["log_history"] if "dense_weight" in entry] == [weight]
    assert "`--dense-head` needs `--history-unit item`" in error_of(
        *words[:-1], tmp_path / "other", "--dense-head", "--history-unit", "code"
    )
    assert "for an architecture without ids: leave it out" in error_of(*words, "--embeddings", shop / "emb")


def test_sasrec_reads_the_vectors_of_texts_that_it_is_given(shop, tmp_path):
    words = ["train", shop / "data", "--architecture", "sasrec", "--d-model", "8", "--epochs", "1"]

    result_of(*words, "--embeddings", shop / "emb", "--output", tmp_path / "run")

    vectors = load_file(shop / "emb" / "embeddings.safetensors")["embeddings"]
    kept = load_file(tmp_path / "run" / "model.safetensors")["text_vectors"].astype("float64")
    np.testing.assert_allclose(kept * np.linalg.norm(vectors, axis=1).mean(), vectors, atol=1e-3)


def test_training_without_options_makes_ids_and_chooses_by_the_size_of_the_data(shop, tmp_path):
    seeded = ["train", shop / "data", "--output", tmp_path / "run", "--seed", 7]
    words = [*seeded, "--epochs", 1, "--d-model", 16, "--d-ff", 24]

    finished = run(*words, "--precision", "fp32")
    told = finished.stderr
    record = result_of(*words, "--resume")
    network = read_training(tmp_path / "run" / "checkpoints" / "psid")

    assert f"{NUM_ITEMS} items, " in told
    assert "ids of 2 x 8 codes; PSID with two heads" in told
    assert (record["settings"]["seed"], network["settings"]["seed"]) == (7, 7)
    assert "weights, chosen on validation users: psid " in told
    assert f"psid is trained; now {tmp_path / 'run' / 'checkpoints' / 'sasrec'}:" in told
    assert f"{record['cpu_minutes']:.1f} CPU minutes" in finished.stdout
    assert network["semantic_ids"] == {"policy": "widen", "num_levels": 2, "codebook_size": 8}
    assert (network["settings"]["model"]["d_model"], network["settings"]["model"]["dense_head"]) == (16, True)
    assert network["settings"]["model"]["dense_text_dim"] == 0  # for so few items
    assert record["ensemble"]["scores"] == ["psid", "psid, dense head", "sasrec", "ridge", "item-knn"]
    assert "is finished" in error_of(*words)
    assert "d_model was 16, is 8" in error_of(*words[:-4], "--d-model", 8, *words[-2:], "--resume")
    found = result_of("recommend", "--model", tmp_path / "run", "--history", "i3", "i4", "--top-k", 5)
    assert len(found["recommendations"]) == 5


@pytest.mark.slow
def test_two_networks_side_by_side_are_those_trained_one_after_the_other(shop, tmp_path, monkeypatch):
    words = ["train", shop / "data", "--epochs", 1, "--d-model", 16, "--precision", "fp32", "--threads", 1]
    run(*words, "--output", tmp_path / "after")
    monkeypatch.setattr("hf_genrec.training.side_by_side.MANY_TARGETS", 0)
    told = run(*words, "--output", tmp_path / "beside").stderr

    assert (tmp_path / "beside" / "checkpoints" / "sasrec" / "training.json").is_file()
    assert "sasrec was trained at the same time, by a second process." in told
    after, beside = (load_file(tmp_path / name / "model.safetensors") for name in ("after", "beside"))
    assert after.keys() == beside.keys()
    assert all((after[name] == beside[name]).all() for name in after)


def test_training_with_texts_alone_sets_the_behaviour_beside_them_and_adds_similar_texts(chosen):
    record = read_training(chosen)

    assert record["ensemble"]["scores"][3:] == ["ridge", "item-knn", "text"]
    source = json.loads((chosen / "checkpoints/ids/quantizer/encoder.json").read_text(encoding="utf-8"))
    assert (source["model"], source["behavior"], source["weight"]) == ("matrix matrix.npy", "svd", "0.6")


def test_unknown_and_wrong_training_options_are_named(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", "--output", tmp_path / "run"]

    assert "Unknown options: --wieght-decay 1. Did you mean --weight-decay?" in error_of(*words, "--wieght-decay", "1")
    assert "invalid float value: 'much'" in error_of(*words, "--weight-decay", "much")
    assert "before --weight-decay" in error_of("train", "--weight-decay", "1", *words[1:])
    assert "output-dir" in error_of(*words, "--output-dir", "elsewhere")
    assert "`--beams` must be at least 10" in error_of(*words, "--beams", "3")
    assert "rpg has no `--dropout`, `--decoder-layers`: leave it out. Did you mean `--layers`?" in error_of(
        *words, "--architecture", "rpg", "--decoder-layers", 2, "--dropout", 0, "--max-history", 7
    )
    assert "does not go with `--d-model`, `--heads`" in error_of(
        "train", shop / "data", "--from", shop / "run", "--d-model", 8, "--heads", 2, *words[4:]
    )
    assert "checkpoint" in error_of("train", shop / "data", "--from", shop / "run", "--d-model", 8, *words[4:])
    assert not (tmp_path / "run").exists()


def test_an_output_without_a_name_is_not_the_folder_of_the_moment(shop):
    assert "`--output` must name a folder" in error_of("train", shop / "data", *SASREC, "--output", "")


def test_settings_lose_to_words_of_the_command_line():
    args = training_arguments("run", settings={"learning_rate": 0.5}, options=["--learning_rate", "0.25"])

    assert (args.learning_rate, args.output_dir, args.report_to) == (0.25, os.path.join("run", "checkpoints"), [])


def test_finished_run_says_so(shop, tmp_path):
    words = ["train", shop / "data", "--ids", shop / "ids", "--output", shop / "run", *TRAIN]

    assert "is finished" in error_of(*words)
    resumed = run(*words, "--resume", "--threads", 1)  # with more threads the same is computed
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
    shutil.copytree(shop / "run", tmp_path / "run")
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


def test_two_trainings_into_one_folder_are_one_and_a_refusal_and_a_killed_one_blocks_nothing(shop, tmp_path):
    words = ["train", shop / "data", *SASREC, "--output", tmp_path / "run"]
    child = os.fork()
    if child == 0:
        try:
            run(*words, "--epochs", 1000)
        finally:
            os._exit(0)
    while not (tmp_path / "run" / "checkpoints" / "run.json").exists():
        time.sleep(0.02)

    assert f"run is being written by process {child} on" in error_of(*words)
    assert f"run is being written by process {child} on" in error_of(*words, "--resume")
    assert f"by process {child} on" in error_of("fit", shop / "data", "--output", tmp_path / "run")

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert result_of(*words, "--epochs", 1)["folder"] == str(tmp_path / "run")
    assert not list((tmp_path / "run").glob(".*"))


def test_training_that_diverges_stops_with_the_step_and_what_to_do(shop, tmp_path):
    words = ["train", shop / "data", *SASREC, "--output", tmp_path / "run", "--learning-rate", 1e20]

    message = error_of(*words, "--max-grad-norm", 0)

    assert "The loss is nan at step" in message
    assert "Lower `--learning-rate` (it is 1e+20)" in message
    assert not (tmp_path / "run" / "training.json").exists()


def test_ctrl_c_keeps_the_last_checkpoint_and_shows_the_command_that_goes_on(shop, tmp_path, monkeypatch):
    words = ["train", shop / "data", "--ids", shop / "ids", *TRAIN, "--epochs", "2", "--output", tmp_path / "run"]
    words = [str(word) for word in (*words, "--weight-decay", "0.125")]
    whole = json.loads((shop / "run" / "training.json").read_text(encoding="utf-8"))
    monkeypatch.setattr("sys.argv", ["hf-genrec", *words])

    with monkeypatch.context() as pressed:
        pressed.setattr(Stopwatch, "on_step_end", press_ctrl_c, raising=False)
        assert run(*words).stderr.splitlines()[-1] == "Stopped before the first checkpoint; nothing to continue."
    with monkeypatch.context() as pressed:
        pressed.setattr(Stopwatch, "on_save", press_ctrl_c)
        stopped = run(*words)

    assert stopped.exit_code == 130
    assert "Traceback" not in stopped.stderr
    kept, again = stopped.stderr.splitlines()[-2:]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("checkpoint-*")
    assert kept == f"Stopped. {checkpoint} is kept; continue with:"
    assert shlex.split(again) == ["hf-genrec", *words, "--resume"]
    record = result_of(*shlex.split(again)[1:])
    assert record["resumed_from"] == checkpoint.name
    assert record["best_metric"] == whole["best_metric"]


def press_ctrl_c(*_, **__):
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell takes from jobs in the background
    signal.raise_signal(signal.SIGINT)


def test_checkpoint_is_trained_on_rewards_of_its_own_lists(shop, tmp_path):
    words = ["train", shop / "data", "--from", shop / "run", "--objective", "grpo", "--output", tmp_path / "tuned"]
    options = [
        "--rewards",
        "hit=1,diversity=0.1",
        "--num-generations",
        "3",
        "--max-steps",
        "2",
        "--logging-steps",
        "1",
    ]
    record = result_of(*words, *options, "--eval-steps", "2", "--plot", tmp_path / "rewards.png")

    assert [line["step"] for line in record["log_history"] if "reward_diversity" in line] == [1, 2]
    assert record["settings"]["training"]["rewards"] == "hit=1,diversity=0.1"
    assert (tmp_path / "rewards.png").read_bytes()[1:4] == b"PNG"
    assert "needs a trained model" in error_of(*words[:2], "--ids", shop / "ids", *words[4:])
    assert "draws the log" in error_of(*words[:4], "--output", tmp_path / "other", "--plot", "x.png")


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


# on a CPU, `accelerate launch --cpu --num_processes 2` would start a single process
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
TORCHRUN = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571"]


def launched(repository, launcher, *words):
    """What two processes write on stdout."""
    command = [sys.executable, "-m", *launcher, *words]
    environment = os.environ | {"PYTHONPATH": str(repository)}
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_two_processes_train_and_evaluate_as_one_writes_it_down(shop, tmp_path, repository):
    script, run = repository / "scripts" / "train.py", tmp_path / "run"
    words = [shop / "data", "--ids", shop / "ids", "--output", run, *TRAIN, "--epochs", "1", "--json"]

    record = json.loads(launched(repository, ACCELERATE, script, *words))

    assert (record["settings"]["targets"], record["settings"]["num_processes"]) == ("all", 2)
    assert len(Recommender.from_pretrained(run).recommend(["i1"]).item_ids) == 10
    words = ["evaluate", run, shop / "data", "--json", "--no-baselines", "--batch-size", 3]
    two = json.loads(launched(repository, TORCHRUN, "-m", "hf_genrec.cli.main", *words))
    one = result_of(*words)
    assert (run / "evaluation.json").is_file()
    assert {**two["model"], **SECONDS} == {**one["model"], **SECONDS}


SECONDS = {"seconds_per_user": 0, "seen_excluded": 0}


@pytest.mark.slow
def test_two_processes_choose_a_model_and_one_makes_its_ids(shop, tmp_path, repository):
    script = repository / "scripts" / "train.py"

    out = launched(repository, TORCHRUN, script, shop / "data", "--output", tmp_path / "run", "--epochs", 1, "--json")

    scores = ["psid", "psid, dense head", "sasrec", "ridge", "item-knn"]
    assert json.loads(out)["ensemble"]["scores"] == scores
    assert read_training(tmp_path / "run" / "checkpoints" / "sasrec")["settings"]["num_processes"] == 2


def test_the_papers_recipe_runs_in_one_command_and_continues(tmp_path, repository, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(repository / "scripts"))
    import latte

    matrix, amazon = tmp_path / "matrix.npy", repository / "tests" / "fixtures" / "amazon"
    np.save(matrix, np.random.default_rng(3).normal(size=(5, 3)).astype(np.float32))
    words = ["latte.py", "Gift_Cards", "--output", str(tmp_path / "run")]
    words += ["--prepare", f"--data-dir {amazon} --missing-text keep", "--embed", f"--matrix {matrix}"]
    words += ["--tokenize", "--codebook-size 4 --levels 2 --whiten 2", "--evaluate", "--beams 7"]
    words += ["--train", "--latents 2 --epochs 1 --beams 5 --d-model 16 --layers 1 --decoder-layers 1"]
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


def test_settings_of_the_config_are_set_by_name_and_wrong_ones_are_told(parallel, tmp_path):
    data, folder = parallel
    words = ["train", data, "--ids", folder / "ids", "--output", tmp_path / "run", "--architecture", "acerec", *TINY]
    more = ["--set", "merger=conv", "--set", "alignment_weight=0", "--set", "reconstruction_weight=0"]

    record = result_of(*words, "--epochs", "1", *more, "--set", "num_merged_tokens=2")

    assert record["settings"]["model"]["merger"] == "conv"
    assert record["settings"]["model"]["num_merged_tokens"] == 2
    assert "takes NAME=VALUE" in error_of(*words, "--set", "merger")
    for wrong in ("num_levels=3", "dtype=float16"):
        assert f"acerec has no `{wrong.partition('=')[0]}`: leave it out" in error_of(*words, "--set", wrong)
    assert "value of the wrong type" in error_of(*words, "--set", "temperature=cold")
    assert "has no `--decoder-layers`" in error_of(*words, "--decoder-layers", "2")
    assert "is not one of 'latte', 'decoder', 'rpg', 'acerec', 'sasrec', 'hstu', 'vqrec'" in error_of(
        "train", data, "--ids", folder / "ids", "--output", tmp_path, "--architecture", "gru"
    )


def test_each_architecture_has_its_recipe(parallel):
    _, folder = parallel

    settings = json.loads((folder / "rpg" / "training.json").read_text(encoding="utf-8"))["settings"]

    assert settings["model"]["position_std"] == 0.002
    assert settings["training"]["weight_decay"] == 0.0
    assert settings["training"]["learning_rate"] == 5e-4


def test_checkpoint_keeps_its_architecture_when_it_is_tuned(parallel, tmp_path):
    data, folder = parallel
    tune = ["train", data, "--from", folder / "acerec", "--output", tmp_path / "tuned", "--epochs", "1"]

    record = result_of(*tune, "--batch-size", "64", "--precision", "fp32")

    assert record["settings"]["training"]["learning_rate"] == 5e-4
    assert record["settings"]["model"]["model_type"] == "acerec"
    assert "--architecture" in error_of(*tune, "--architecture", "rpg")


def test_run_folder_lists_the_items_without_codes(sasrec):
    data, run_folder = sasrec
    items = pq.read_table(run_folder / "items.parquet")
    settings = json.loads((run_folder / "training.json").read_text(encoding="utf-8"))["settings"]

    assert items.column_names == ["item_id", "title", "text"]
    assert settings["semantic_ids_fingerprint"] is None
    assert not (run_folder / "quantizer").exists()


def test_run_is_tuned_on_another_log_over_its_items(sasrec, tmp_path):
    data, run_folder = sasrec
    tune = ["train", data, "--from", run_folder, "--output", tmp_path / "tuned", "--epochs", "1"]

    record = result_of(*tune, "--precision", "fp32")

    assert record["settings"]["model"]["model_type"] == "sasrec"
    assert record["settings"]["from"] == str(run_folder)


def test_finished_run_is_another_one_where_what_is_asked_for_differs(shop, sasrec, tmp_path):
    data, run_folder = sasrec
    words = [*SASREC, "--output", run_folder, "--resume"]
    log = ["--interactions", write_log(tmp_path / "log.csv", num_users=29), *COLUMNS]
    result_of("prepare", *log, "--items", shop / "items.jsonl", "--output", tmp_path / "data")

    assert result_of("train", data, *words)["folder"] == str(run_folder)
    assert result_of("train", data, *words, "--epochs", 12)["folder"] == str(run_folder)
    assert "num_train_epochs was 12.0, is 5.0. Repeat" in error_of("train", data, *words, "--epochs", 5)
    assert "d_model was 16, is 8. Repeat" in error_of("train", data, *words, "--d-model", 8)
    assert "weight_decay was " in error_of("train", data, *words, "--weight-decay", 0.75)
    assert "finished and is another one than asked for: seed was 42, is 7." in error_of(
        "train", data, *words, "--seed", 7
    )
    assert "data_fingerprint was " in error_of("train", tmp_path / "data", *words)
    assert "from was None, is base" in error_of("train", data, "--from", "base", *words[-3:])


def test_what_needs_codes_is_refused(sasrec, tmp_path):
    data, run_folder = sasrec
    train = ["train", data, "--output", tmp_path / "run"]

    assert "SASRec has no semantic IDs: leave out `--ids`" in error_of(
        *train, "--architecture", "sasrec", "--ids", tmp_path
    )
    assert "Give either `--ids`" in error_of(*train, "--architecture", "latte")
    assert "Give either `--ids`" in error_of(*train, "--architecture", "rpg")
    assert "does not go with `--architecture`" in error_of(*train, "--from", run_folder, "--architecture", "sasrec")
    assert "The architecture sasrec has no `--decoder-layers`" in error_of(
        *train, "--architecture", "sasrec", "--decoder-layers", "2"
    )
    assert "which knows no codes" in error_of("graph", run_folder)
    assert "`--decoding` must be 'exact'" in error_of("evaluate", run_folder, data, "--decoding", "beam")


def test_folder_of_ids_must_fit_the_architecture(sasrec):
    data, run_folder = sasrec
    prepared = PreparedDataset.load(data)

    with pytest.raises(ValueError, match="'latte' needs semantic IDs: name the tokenized folder"):
        start_fresh(prepared, None, shape={}, seed=0)
    with pytest.raises(ValueError, match="'sasrec' has no semantic IDs: leave out the tokenized folder"):
        start_fresh(prepared, "ids", shape={}, seed=0, architecture="sasrec")


def test_model_without_codes_is_not_saved_with_a_table_of_them(sasrec, tmp_path):
    data, run_folder = sasrec
    prepared = PreparedDataset.load(data)
    model = start_fresh(prepared, None, shape={"d_model": 8}, seed=0, architecture="sasrec").model
    semantic_ids = SemanticIds.from_codes(prepared.item_ids, [[n] for n in range(23)], codebook_size=23, policy="keep")

    with pytest.raises(ValueError, match="this is a 'sasrec' model, got a table"):
        save_recommender(tmp_path, model, semantic_ids, prepared.items)
