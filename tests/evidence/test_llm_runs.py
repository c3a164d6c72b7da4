"""The table of runs of language models."""

import copy

import pytest


@pytest.fixture(scope="module")
def script(load_script):
    return load_script("llm_runs")


LOG = [{"step": 3, "loss": 4.0}, {"step": 3, "eval_loss": 3.5, "eval_ndcg@10": 0.02}, {"step": 7, "loss": 3.0}]
LLM = {"backbone": "/models/cut6", "lora": 16, "init": "words", "mix": {"sequential": 1.0, "title_to_id": 0.5}}
TRAINING = {
    "settings": {"llm": LLM, "training": {"learning_rate": 0.001}, "seed": 5},
    "log_history": LOG,
    "num_train_targets": 12345,
    "cpu_minutes": 2.25,
}
METRICS = {"recall@10": 0.1, "ndcg@10": 0.05, "intervals": {"recall@10": [0.08, 0.12], "ndcg@10": [0.04, 0.06]}}
EVALUATION = {"split": "test", "model": METRICS | {"invalid_rate": 0.0, "seen_allowed": METRICS}}


def test_settings_that_differ_are_shown_and_test_columns_of_evaluated_runs(script):
    other = copy.deepcopy(TRAINING)
    other["settings"]["llm"] |= {"init": "mean", "mix": {"sequential": 1.0}}
    runs = [
        ("words", {"training": TRAINING, "evaluation": EVALUATION, "megabytes": 2.0}),
        ("mean", {"training": other, "megabytes": 2.0}),
    ]

    header, first, second = script.table(runs)

    assert len(header) == len(first) == len(second)
    assert first[:6] == ["words", "init words, mix title_to_id 0.5", "7", "12,345", "0.0200", "3.500"]
    assert first[6:] == [*["0.1000 [0.0800, 0.1200]", "0.0500 [0.0400, 0.0600]"] * 2, "0", "2.2", "2.0"]
    assert second[1] == "init mean, mix none"
    assert second[6:11] == ["–"] * 5
