import dataclasses
import os
import signal

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

from hf_genrec import Recommender
from hf_genrec.llm.runs import make_sft_trainer, start_llm, train_llm
from hf_genrec.llm.sft import AnswerRows, SftSettings
from hf_genrec.training.arguments import training_arguments
from hf_genrec.training.sampler import TargetBatchSampler


SETTINGS = SftSettings(lora=2, mix={"title_to_id": 0.3}, rows_learning_rate=0.05, max_history_length=7)
QUIET = {"disable_tqdm": True, "report_to": "none", "precision": "fp32", "eval_num_beams": 11}
QUIET |= {"per_device_train_batch_size": 24, "learning_rate": 0.02, "max_steps": 6, "logging_steps": 1}
QUIET |= {"eval_strategy": "steps", "save_strategy": "steps", "eval_steps": 3, "save_steps": 3}


def train(world, output, *, kind="llama", settings=SETTINGS, resume=False, **changes):
    data, folder = world
    args = training_arguments(output, settings=QUIET | changes)
    return train_llm(data, folder / "ids", output, args, backbone=folder / kind, settings=settings, resume=resume)


@pytest.mark.parametrize(("kind", "lora"), [("llama", 2), ("llama", 0), ("qwen3", 2), ("gpt2", 2), ("gpt2", 0)])
def test_a_run_learns_a_circle_and_is_served_as_it_was_validated(world, tmp_path, kind, lora):
    settings = dataclasses.replace(SETTINGS, lora=lora)

    record = train(world, tmp_path / "run", kind=kind, settings=settings, max_steps=24, eval_steps=12, save_steps=12)

    losses = [entry["eval_loss"] for entry in record["log_history"] if "eval_loss" in entry]
    assert losses[-1] < 1.3 < np.log(11)  # per code; without learning about half of log(11)
    shop = Recommender.from_pretrained(tmp_path / "run", device="cpu")
    validation = world[0].split("validation")
    found = shop.recommend(list(validation["history"]), top_k=10, exclude_seen=False, num_beams=11)
    ranks = [
        row.index(target) if target in row else -1
        for row, target in zip(found.item_ids, validation["target"], strict=True)
    ]
    ndcg = np.mean([1 / np.log2(rank + 2) if rank >= 0 else 0 for rank in ranks])
    assert ndcg == pytest.approx(record["best_metric"], abs=1e-5)
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file() == bool(lora)
    assert record["settings"]["llm"]["lora"] == lora


def test_a_reloaded_run_has_exactly_the_scores_of_the_trained_model(world, tmp_path):
    data, folder = world
    args = training_arguments(
        tmp_path / "run",
        settings=QUIET | {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False},
    )
    starting = start_llm(data, folder / "ids", folder / "qwen3", settings=SETTINGS, seed=3)
    make_sft_trainer(starting.model, data, args, settings=SETTINGS).train()
    trained = Recommender(starting.model.eval(), data.items)
    trained.save_pretrained(tmp_path / "saved")

    loaded = Recommender.from_pretrained(tmp_path / "saved", device="cpu")

    histories = [["tea"], ["cup", "pot", "jam"], []]
    assert np.array_equal(loaded.score_items(histories), trained.score_items(histories))


def test_in_the_first_stage_new_rows_alone_are_trained(world, tmp_path):
    data, folder = world
    settings = dataclasses.replace(SETTINGS, first_stage=0.5)
    args = training_arguments(tmp_path, settings=QUIET)
    starting = start_llm(data, folder / "ids", folder / "llama", settings=settings, seed=0)
    trainer = make_sft_trainer(starting.model, data, args, settings=settings)
    states = {}

    class Watch(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            states[state.global_step] = {name: value.clone() for name, value in trainer.model.state_dict().items()}

    trainer.add_callback(Watch())
    trainer.train()

    is_row = {name: "delta" in name for name in states[1]}
    assert all(torch.equal(states[1][name], states[3][name]) != is_row[name] for name in is_row)
    assert any(not torch.equal(states[3][name], states[6][name]) for name in is_row if "lora_B" in name)


def test_rows_with_one_answer_each_make_batches_of_bounded_length():
    labels = [[-100] * 96 + [7, 8, 9]] * 5 + [[-100, 7, 8, 9]] * 4
    rows = AnswerRows(
        datasets.Dataset.from_dict({"input_ids": [[1] * len(row) for row in labels], "labels": labels}), 3
    )

    batches = list(TargetBatchSampler(rows.lengths, rows.targets_per_row, targets_per_batch=4, seed=0))

    assert rows.targets_per_row == [1] * 9
    assert max(sum(len(labels[row]) for row in batch) for batch in batches) <= 3 * (4 * 20 + 33)


class Killed(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(world, tmp_path, monkeypatch):
    train(world, tmp_path / "whole")
    child = os.fork()
    if child == 0:
        import hf_genrec.llm.runs as runs

        make = runs.make_sft_trainer

        def killed(*args, **kwargs):
            trainer = make(*args, **kwargs)
            trainer.add_callback(Killed())
            return trainer

        runs.make_sft_trainer = killed
        try:
            train(world, tmp_path / "killed")
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    with pytest.raises(ValueError, match="holds an unfinished run"):
        train(world, tmp_path / "killed")
    with pytest.raises(ValueError, match="llm was"):
        train(world, tmp_path / "killed", settings=dataclasses.replace(SETTINGS, lora=3), resume=True)
    record = train(world, tmp_path / "killed", resume=True)

    assert record["resumed_from"] == "checkpoint-3"
    whole, resumed = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_activation_checkpointing_changes_nothing_but_memory(world, tmp_path):
    options = {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "max_steps": 2}
    plain = train(world, tmp_path / "plain", **options)
    checked = train(world, tmp_path / "checked", gradient_checkpointing=True, **options)

    losses = [[entry["loss"] for entry in record["log_history"] if "loss" in entry] for record in (plain, checked)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"lora": -1}, "`lora` must be a whole number from 0, got -1"),
        ({"init": "zeros"}, "`init` must be one of mean, words, codebook, got 'zeros'"),
        ({"loss_on": "all"}, "`loss_on` must be one of items, answer, got 'all'"),
        ({"first_stage": 1.5}, "`first_stage` must lie between 0 and 1, got 1.5"),
        ({"rows_learning_rate": 0}, "`rows_learning_rate` must be above 0, got 0"),
        ({"mix": "all"}, "`mix` must be tasks with weights"),
        ({"mix": {"titles": 1}}, "no task 'titles'"),
        ({"chat": "yes"}, "`chat` must be true, false or null, got 'yes'"),
    ],
)
def test_settings_out_of_range_are_refused(changes, reason):
    with pytest.raises(ValueError, match=reason):
        SftSettings(**changes)


def test_what_a_backbone_cannot_do_is_refused_before_training(world, tmp_path):
    data, folder = world

    with pytest.raises(ValueError, match="`chat` needs a tokenizer with a chat template"):
        train(world, tmp_path, settings=SftSettings(chat=True))
    with pytest.raises(FileNotFoundError, match="There is no run folder"):
        start_llm(data, folder / "ids", folder / "lama", settings=SETTINGS, seed=0)
    with pytest.raises(ValueError, match="makes prompts of 3.. tokens"):
        train(world, tmp_path, kind="gpt2", settings=SftSettings(max_history_length=100))
