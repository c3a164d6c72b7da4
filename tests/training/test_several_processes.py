"""Training and validation in two processes against one."""

import os

import numpy as np
import pytest
from accelerate import Accelerator

from hf_genrec import GenRecTrainingArguments, Recommender, evaluate, make_trainer
from hf_genrec.evaluation.evaluate import EvaluationSettings
from hf_genrec.training.preference import PreferenceTrainingArguments, make_preference_trainer
from invariants.model import make_decoder, make_model, make_rpg, make_sasrec, tiny_config, tiny_decoder_config
from processes import in_processes


pytestmark = pytest.mark.slow

NUM_ITEMS, NUM_USERS = 11, 31
LATTE = {"num_items": NUM_ITEMS, "num_levels": 2, "codebook_size": 4, "history_attention": "causal"}
HEADS = {"history_unit": "item", "normalization": "catalog", "dense_head": True}
KINDS = {  # without random numbers in a step
    "psid": lambda **more: make_model(tiny_config(**LATTE, **({"num_latent_tokens": 0} | more))),
    "two heads": lambda: make_model(tiny_config(**LATTE, **HEADS, num_latent_tokens=0, dense_row_dropout=0.0)),
    "decoder": lambda: make_decoder(
        tiny_decoder_config(num_items=NUM_ITEMS, num_levels=2, codebook_size=4, num_latent_tokens=0)
    ),
    "rpg": lambda: make_rpg(num_items=NUM_ITEMS),
    "sasrec": lambda: make_sasrec(num_items=NUM_ITEMS),
}


@pytest.fixture(scope="module")
def circle(make_prepared):
    """A world with one rule: item i is followed by item i + 1, and the last one by the first."""
    random, sequences = np.random.default_rng(0), {}
    for user in range(NUM_USERS):
        start, length = random.integers(NUM_ITEMS), random.integers(5, 13)
        sequences[f"u{user}"] = [f"i{(start + step) % NUM_ITEMS:02d}" for step in range(length)]
    return make_prepared(sequences)


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder), "per_device_train_batch_size": 24, "num_train_epochs": 3, "learning_rate": 1e-2,
        "precision": "fp32", "eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": False,
        "disable_tqdm": True, "logging_steps": 1, "per_device_eval_batch_size": 4, "seed": 5, "report_to": "none",
    }  # fmt: skip
    return GenRecTrainingArguments(**(defaults | changes))


def trained(kind, options, circle, folder, changes, checkpoint=None):
    """Loss and metrics by step, the weights, and the targets of each batch of this process."""
    model = KINDS[kind](**options)
    trainer = make_trainer(model, circle, arguments(folder, **changes))
    seen, step = [], type(trainer).training_step

    def counted(self, network, inputs, *args, **kwargs):
        seen.append(inputs["labels"][inputs["labels"] != -100].tolist())
        return step(self, network, inputs, *args, **kwargs)

    trainer.training_step = counted.__get__(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    logs = [
        {name: line[name] for name in line if name in ("loss", "grad_norm") or "eval" in name and "@" in name}
        for line in trainer.state.log_history
    ]
    return logs, {name: weight.numpy() for name, weight in model.state_dict().items()}, seen


def validated(folder, circle, changes):
    trainer = make_trainer(KINDS["two heads"](), circle, arguments(folder, **changes))
    metrics = trainer.evaluate()
    trainer._choose_dense_weight()
    return metrics, trainer.state.log_history


def assert_same_training(alone, others):
    for logs, weights, _ in others:
        for mine, theirs in zip(alone[0], logs, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-4, rel=1e-4)
        for name, weight in alone[1].items():
            np.testing.assert_allclose(weights[name], weight, atol=1e-3, err_msg=name)


def targets_of(runs):
    return sorted(item for _, _, seen in runs for batch in seen for item in batch)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_like_one_with_twice_the_targets_per_batch(kind, circle, tmp_path):
    alone = trained(kind, {}, circle, tmp_path / "one", {"per_device_train_batch_size": 48})

    two = in_processes(trained, kind, {}, circle, tmp_path / "two", {})

    assert_same_training(alone, two)
    assert targets_of(two) == targets_of([alone])
    assert len(targets_of(two)) == 3 * circle.metadata["num_train_targets"]


def test_two_processes_train_streamed_rows_like_one_and_none_comes_twice(circle, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_genrec.training.streaming.BUFFER_ITEMS", 60)
    streamed = {"streaming": True}
    alone = trained("sasrec", {}, circle, tmp_path / "one", streamed | {"per_device_train_batch_size": 48})

    two = in_processes(trained, "sasrec", {}, circle, tmp_path / "two", streamed)

    assert_same_training(alone, two)
    assert targets_of(two) == targets_of([alone])
    assert len(targets_of(two)) == 3 * circle.metadata["num_train_targets"]


def test_dropout_and_latents_of_two_processes_are_those_of_one_that_accumulates_two_batches(circle, tmp_path):
    random = {"num_latent_tokens": 3, "dropout_rate": 0.4}
    alone = trained("psid", random, circle, tmp_path / "one", {"gradient_accumulation_steps": 2})

    two = in_processes(trained, "psid", random, circle, tmp_path / "two", {})

    assert_same_training(alone, two)


def test_three_processes_share_steps_that_have_too_few_rows_for_them(circle, tmp_path):
    few = {"per_device_train_batch_size": 1, "num_train_epochs": 1, "learning_rate": 1e-3}

    three = in_processes(trained, "psid", {}, circle, tmp_path / "three", few, number=3)

    assert any(not batch for _, _, seen in three for batch in seen)
    assert len(targets_of(three)) == circle.metadata["num_train_targets"]
    assert_same_training(
        trained("psid", {}, circle, tmp_path / "one", few | {"per_device_train_batch_size": 3}), three
    )


def test_validation_in_two_processes_has_the_figures_of_one_to_the_last_digit(circle, tmp_path):
    alone = validated(tmp_path, circle, {})

    assert in_processes(validated, tmp_path, circle, {}) == [alone, alone]


@pytest.mark.parametrize("processes", [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(processes, circle, tmp_path):
    def run(number, folder, **changes):
        changes = {
            "per_device_train_batch_size": 48 // number,
            "save_strategy": "steps",
            "save_steps": 5,
            "save_total_limit": None,
        } | changes
        return in_processes(
            trained, "psid", {}, circle, folder, changes, changes.pop("checkpoint", None), number=number
        )

    whole = run(1, tmp_path / "whole")
    first = run(processes[0], tmp_path / "parts")
    second = run(processes[1], tmp_path / "parts", checkpoint=str(tmp_path / "parts" / "checkpoint-5"))

    assert_same_training(whole[0], first)
    assert_same_training(whole[0], second)
    before = [([], {}, seen[:5]) for _, _, seen in first]
    assert sorted(targets_of(before) + targets_of(second)) == targets_of(whole)


@pytest.mark.parametrize("objective", ["grpo", "sdpo"])
def test_preferences_are_trained_in_two_processes_as_in_one(objective, circle, tmp_path):
    def run(batch_size, folder):
        args = PreferenceTrainingArguments(
            output_dir=str(folder), per_device_train_batch_size=batch_size, objective=objective, num_generations=4,
            precision="fp32", eval_strategy="no", save_strategy="no", load_best_model_at_end=False, max_steps=4,
            logging_steps=1, disable_tqdm=True, report_to="none", rollouts="beams", learning_rate=1e-3,
        )  # fmt: skip
        model = KINDS["psid"]()
        trainer = make_preference_trainer(model, circle, args)
        trainer.train()
        kept = ("loss", "grad_norm", "reward", "kl", "distinct_items")
        logs = [{name: line[name] for name in kept} for line in trainer.state.log_history if "loss" in line]
        return logs, {name: weight.numpy() for name, weight in model.state_dict().items()}, []

    alone = run(18, tmp_path / "one")

    assert_same_training(alone, in_processes(run, 9, tmp_path / "two"))


@pytest.mark.parametrize("kind", ["psid", "sasrec"])
def test_evaluation_in_two_processes_has_the_record_of_one_to_the_last_digit(kind, circle, tmp_path):
    def record(several):
        recommender = Recommender(KINDS[kind](), circle.items, batch_size=4)
        settings = EvaluationSettings(batch_size=4, ks=(1, 5))
        found = evaluate(recommender, circle, settings, accelerator=Accelerator(cpu=True) if several else None)
        return without_seconds(found), found.users.to_pydict()

    alone = record(several=False)

    assert in_processes(record, True) == [alone, alone]


def test_a_recommender_that_fails_in_one_process_fails_in_all(circle):
    class Failing(Recommender):
        def recommend(self, histories, **options):
            if os.environ["RANK"] == "1":
                raise ValueError("no memory left")
            return super().recommend(histories, **options)

    def fails():
        few, failing = EvaluationSettings(batch_size=4), Failing(KINDS["sasrec"](), circle.items)
        with pytest.raises(ValueError, match="no memory left"):
            evaluate(failing, circle, few, accelerator=Accelerator(cpu=True), baselines={})
        return True

    assert in_processes(fails) == [True, True]


def without_seconds(record):
    if isinstance(record, dict):
        return {name: without_seconds(value) for name, value in record.items() if name != "seconds_per_user"}
    return record
