"""`hf-genrec train --architecture llm`: from prepared data to a run that the other verbs take."""

import json

import pytest
from cli_shop import error_of, result_of, run

from tests.tiny_llms import tiny_llm, tiny_tokenizer


QUICK = ["--epochs", "1", "--batch-size", "64", "--beams", "10", "--precision", "fp32", "--lora", "2"]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone") / "tiny"
    tiny_llm().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def words(shop, backbone):
    return ["train", shop / "data", "--ids", shop / "ids", "--architecture", "llm", "--backbone", backbone, *QUICK]


@pytest.fixture(scope="module")
def trained(words, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "llm"
    return folder, result_of(*words, "--set", 'mix={"title_to_id": 0.2}', "--set", "init=mean", "--output", folder)


def test_a_run_is_evaluated_and_recommends_as_any_other(shop, trained):
    folder, record = trained

    evaluation = result_of("evaluate", folder, shop / "data", "--max-users", "20")

    assert evaluation["model"]["invalid_rate"] == 0.0
    assert record["settings"]["llm"]["mix"] == {"sequential": 1.0, "title_to_id": 0.2}
    assert record["settings"]["llm"]["init"] == "mean"
    assert (folder / "adapter_model.safetensors").is_file()
    assert (folder / "README.md").is_file()


def test_a_finished_run_is_not_resumed_with_other_settings(words, trained):
    folder, _ = trained
    same = [*words, "--set", 'mix={"title_to_id": 0.2}', "--set", "init=mean", "--output", folder, "--resume"]

    assert "is finished; nothing to resume" in run(*same).stderr
    assert "init was mean, is codebook" in error_of(
        *same[:-3], "--set", "init=codebook", "--output", folder, "--resume"
    )


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (
            ["--d-model", "64", "--layers", "2"],
            "A language model keeps its network: leave out `--d-model`, `--layers`.",
        ),
        (["--paper"], "`--paper` would have no effect with `--architecture llm`"),
        (["--set", "intit=mean"], "not intit. Did you mean init?"),
        (["--set", "init=zeros"], "`init` must be one of mean, words, codebook"),
        (["--set", 'mix={"titles": 1}'], "no task 'titles'; there are sequential, title_to_id"),
    ],
)
def test_options_that_mean_nothing_for_a_language_model_are_refused(words, tmp_path, more, reason):
    assert reason in error_of(*words, *more, "--output", tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_backbone_is_needed_and_for_language_models_alone(shop, backbone, tmp_path):
    plain = ["train", shop / "data", "--ids", shop / "ids", "--output", tmp_path / "run"]

    assert "needs `--backbone`" in error_of(*plain, "--architecture", "llm")
    assert "`--lora` is for `--architecture llm`" in error_of(*plain, "--lora", "4")
    assert "needs `--ids`" in error_of(*plain[:2], *plain[4:], "--architecture", "llm", "--backbone", backbone)


def test_without_peft_the_error_names_the_extra(words, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    assert 'pip install "hf-genrec[llm]"' in error_of(*words, "--output", tmp_path / "run")


def test_training_json_says_how_the_run_was_made(trained):
    folder, record = trained

    assert json.loads((folder / "training.json").read_text(encoding="utf-8"))["command"] == record["command"]
    assert record["semantic_ids"]["num_levels"] == record["settings"]["model"]["num_levels"]
