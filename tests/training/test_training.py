"""Training: batches, the toy world, evaluation, resuming."""

import os
import signal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerState

from hf_genrec import (
    GenRecTrainingArguments,
    Recommender,
    SASRecConfig,
    SASRecForItemGeneration,
    SemanticIds,
    evaluate,
    make_trainer,
)
from hf_genrec.data.prepare import prepare
from hf_genrec.evaluation.evaluate import EvaluationSettings
from hf_genrec.training.runs import _is_whole
from hf_genrec.training.sampler import TargetBatchSampler
from hf_genrec.training.trainer import Stopwatch, validation_rows
from invariants.model import make_model, tiny_config


NUM_ITEMS = 11


@st.composite
def rows_of_targets(draw):
    """Lengths and numbers of targets of rows: between one and `length` targets each."""
    lengths = draw(st.lists(st.integers(1, 20), min_size=1, max_size=40))
    return lengths, [draw(st.integers(1, length)) for length in lengths]


@settings(max_examples=40, deadline=None)
@given(rows_of_targets(), st.integers(1, 64), st.integers(0, 5))
def test_every_row_comes_exactly_once_per_epoch_in_equally_many_batches(rows, targets_per_batch, seed):
    lengths, targets = rows
    sampler = TargetBatchSampler(lengths, targets, targets_per_batch=targets_per_batch, seed=seed)

    for epoch in range(3):
        sampler.set_epoch(epoch)
        batches = list(sampler)

        assert len(batches) == len(sampler)
        assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
        assert all(batches)
        assert batches == list(sampler)


@settings(max_examples=40, deadline=None)
@given(rows_of_targets(), st.integers(1, 64))
def test_batches_hold_about_their_number_of_targets(rows, targets_per_batch):
    lengths, targets = rows
    sampler = TargetBatchSampler(lengths, targets, targets_per_batch=targets_per_batch, seed=0)

    sizes = [sum(targets[row] for row in batch) for batch in sampler]

    assert max(sizes) < targets_per_batch + max(targets)
    assert len(sizes) <= -(-sum(targets) // targets_per_batch)


def test_long_rows_with_few_targets_end_a_batch_before_its_memory_explodes():
    sampler = TargetBatchSampler([50] * 37 + [3] * 5, [1] * 37 + [3] * 5, targets_per_batch=16, seed=0)

    batches = list(sampler)

    assert max(sum(50 for row in batch if row < 37) for batch in batches) < 16 * 20 + 50
    assert sorted(row for batch in batches for row in batch) == list(range(42))


def test_rows_of_a_batch_have_neighbouring_lengths():
    lengths = [7, 1, 3, 7, 1, 3, 7, 1]
    sampler = TargetBatchSampler(lengths, lengths, targets_per_batch=10, seed=3)

    spans = sorted((min(lengths[row] for row in batch), max(lengths[row] for row in batch)) for batch in sampler)

    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_order_depends_on_seed_and_epoch_alone():
    def batches(seed, epoch):
        sampler = TargetBatchSampler([2] * 20, [2] * 20, targets_per_batch=6, seed=seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert batches(0, 4) == batches(0, 4)
    assert batches(0, 4) != batches(0, 5)
    assert batches(0, 4) != batches(1, 4)


def test_no_rows_and_empty_batches_are_refused():
    with pytest.raises(ValueError, match="There are no training rows"):
        TargetBatchSampler([], [], targets_per_batch=3, seed=0)
    with pytest.raises(ValueError, match="`targets_per_batch` must be at least 1, got 0"):
        TargetBatchSampler([1], [1], targets_per_batch=0, seed=0)


@pytest.fixture(scope="module")
def circle(make_prepared):
    """A world with one rule: item i is followed by item i + 1, and the last one by the first."""
    random = np.random.default_rng(0)
    sequences = {}
    for user in range(31):
        start, length = random.integers(NUM_ITEMS), random.integers(5, 13)
        sequences[f"u{user}"] = [f"i{(start + step) % NUM_ITEMS:02d}" for step in range(length)]
    return make_prepared(sequences)


def arguments(folder, **changes):
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 48,
        "num_train_epochs": 12,
        "learning_rate": 1e-2,
        "precision": "fp32",
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "disable_tqdm": True,
        "num_eval_users": 17,
        "seed": 5,
    }
    return GenRecTrainingArguments(**(defaults | changes))


def circle_model(**changes):
    return make_model(tiny_config(num_items=NUM_ITEMS, num_levels=2, codebook_size=4, **changes))


@pytest.mark.parametrize(("mode", "num_latent_tokens"), [("causal", 2), ("bidirectional", 0)])
def test_toy_world_is_solved(circle, tmp_path, mode, num_latent_tokens):
    options = {"history_attention": mode, "num_latent_tokens": num_latent_tokens}
    model = circle_model(**options, max_history_length=3, d_model=32)

    steps = {"num_train_epochs": 12, "per_device_train_batch_size": 96, "learning_rate": 2e-2}
    make_trainer(model, circle, arguments(tmp_path, **steps)).train()

    recommender = Recommender(model.eval(), circle.items, num_beams=8)
    record = evaluate(recommender, circle, EvaluationSettings(split="test", ks=(1,)), baselines={})
    assert record["model"]["recall@1"] == 1.0


def test_evaluation_ranks_as_the_recommender_does(circle, tmp_path):
    model = circle_model(num_latent_tokens=2)
    trainer = make_trainer(model, circle, arguments(tmp_path, num_eval_users=-1, eval_num_beams=1000))

    metrics = trainer.evaluate()

    split = circle.split("validation")
    rows = [[*history, target] for history, target in zip(split["history"], split["target"], strict=True)]
    first, ranks, losses = model.config.first_item_token, [], []
    for length in {len(row) for row in rows}:
        tokens = torch.tensor(
            [[first + circle.item_ids.index(item) for item in row] for row in rows if len(row) == length]
        )
        targets = tokens[:, -1:] - first
        exact = model.eval().score_items(tokens[:, :-1])
        ranks += (exact > exact.gather(1, targets)).sum(1).tolist()
        total = model.score_items(tokens[:, :-1], latent_aggregation="sum")
        losses += (-total.gather(1, targets)[:, 0] / 2).tolist()
    assert metrics["eval_recall@10"] == pytest.approx(np.mean(np.array(ranks) < 10))
    gains = [1 / np.log2(rank + 2) if rank < 10 else 0 for rank in ranks]
    assert metrics["eval_ndcg@10"] == pytest.approx(np.mean(gains))
    assert metrics["eval_loss"] == pytest.approx(np.mean(losses), abs=1e-4)


def test_evaluation_leaves_the_training_mode_and_the_random_numbers_alone(circle, tmp_path):
    trainer = make_trainer(circle_model(num_latent_tokens=2), circle, arguments(tmp_path))
    trainer.model.train()
    state = torch.get_rng_state()

    trainer.evaluate()

    assert trainer.model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_sample_is_fixed_by_the_seed(circle):
    def sample(num_users, seed=0):
        rows = validation_rows(circle, first_item_token=4, max_history_length=3, num_users=num_users, seed=seed)
        return [(row["input_ids"].tolist(), row["labels"].tolist()) for row in (rows[i] for i in range(len(rows)))]

    assert sample(9) == sample(9)
    assert sample(9) != sample(9, seed=1)
    assert len(sample(None)) == len(sample(-1)) == len(sample(1000)) == 31
    assert all(len(ids) == 3 and labels[:-1] == [-100, -100] for ids, labels in sample(9))


def test_training_log_and_best_checkpoint_follow_ndcg(circle, tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr("transformers.trainer.logger.warning", lambda message, *_: warnings.append(message))
    changes = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    trainer = make_trainer(circle_model(), circle, arguments(tmp_path, num_train_epochs=3, **changes))

    trainer.train()

    values = [entry["eval_ndcg@10"] for entry in trainer.state.log_history if "eval_ndcg@10" in entry]
    assert len(values) == 3
    assert trainer.state.best_metric == max(values)
    best = load_file(os.path.join(trainer.state.best_model_checkpoint, "model.safetensors"))
    assert torch.equal(best["shared.weight"], trainer.model.shared.weight)
    assert [warning for warning in warnings if "missing keys" in warning] == []  # tied weights are stored once


def test_training_stops_early_when_nothing_gets_better(circle, tmp_path):
    changes = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    frozen = {"learning_rate": 0.0, "num_train_epochs": 9, "early_stopping_patience": 2}
    trainer = make_trainer(circle_model(), circle, arguments(tmp_path, **changes, **frozen))

    trainer.train()

    assert trainer.state.epoch == 3.0


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
def test_every_epoch_trains_every_target_in_another_order(circle, tmp_path, mode):
    trainer = make_trainer(circle_model(history_attention=mode), circle, arguments(tmp_path, num_train_epochs=2))
    seen, forward = [], trainer.model.forward

    def record(*args, **inputs):
        seen.append(sorted(tuple(row) for row in inputs["labels"].tolist()))
        return forward(*args, **inputs)

    trainer.model.forward = record
    trainer.train()

    train = circle.split("train")
    num_targets = sum(len(history) for history in train["history"])
    num_seen = [sum(label != -100 for rows in half for row in rows for label in row) for half in halves(seen)]
    assert num_seen == [num_targets, num_targets]
    first, second = halves(seen)
    assert first != second


def halves(rows):
    return rows[: len(rows) // 2], rows[len(rows) // 2 :]


def test_accumulated_steps_train_like_one_large_step(circle, tmp_path):
    weights = []
    for size, accumulation in ((10_000, 1), (60, 100)):
        model = circle_model()
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": accumulation, "max_steps": 1}
        args = arguments(tmp_path, warmup_steps=0, max_grad_norm=0.0, optim="sgd", **changes)
        make_trainer(model, circle, args).train()
        weights.append(model.shared.weight.detach().clone())

    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "int8"}, "`precision` must be auto, bf16, fp16 or fp32, got 'int8'"),
        ({"latent_aggregation": "mean"}, "`latent_aggregation` must be 'max' or 'sum', got 'mean'"),
        ({"eval_num_beams": 0}, "`eval_num_beams` must be at least 1, got 0"),
        ({"num_eval_users": 0}, "`num_eval_users` must be"),
        ({"threads": 0}, "`threads` must be at least 1, got 0"),
        ({"threads": 100_000}, "`threads` must be at most .* on this machine, got 100000"),
        ({"num_train_epochs": 0}, "`num_train_epochs` must be above 0, got 0"),
        ({"learning_rate": float("nan")}, "`learning_rate` must be a finite number, got nan"),
        ({"weight_decay": float("inf")}, "`weight_decay` must be a finite number, got inf"),
        ({"window_stride": 0}, "`window_stride` must be at least 1, got 0"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing` of the model's config"),
        ({"early_stopping_patience": 2}, "`early_stopping_patience` needs"),
    ],
)
def test_training_arguments_out_of_range_are_refused_before_anything_runs(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **changes)


def test_validation_needs_as_many_beams_as_its_lists_have_items(circle, tmp_path):
    looks = {"eval_strategy": "epoch", "eval_num_beams": 9}
    model = circle_model()

    with pytest.raises(ValueError, match="`eval_num_beams` must be at least 10, .* got 9"):
        make_trainer(model, circle, arguments(tmp_path, **looks))

    make_trainer(model, circle, arguments(tmp_path, **looks | {"eval_num_beams": 10}))
    make_trainer(model, circle, arguments(tmp_path, **looks | {"eval_strategy": "no"}))
    sasrec = make_model(SASRecConfig(num_items=NUM_ITEMS, d_model=8), model_class=SASRecForItemGeneration)
    make_trainer(sasrec, circle, arguments(tmp_path, **looks))  # which scores all items


def test_half_precision_asked_for_by_its_own_flag_is_not_overruled(monkeypatch, tmp_path):
    monkeypatch.setattr("hf_genrec.training.arguments.has_bfloat16", lambda: True)

    args = arguments(tmp_path, precision="auto", fp16=True)

    assert (args.fp16, args.bf16) == (True, False)
    assert arguments(tmp_path, precision="auto").bf16


def test_data_set_of_another_catalog_is_refused(circle, tmp_path):
    model = make_model(tiny_config(num_items=12))
    with pytest.raises(ValueError, match="The model's catalog has 12 items, the data set 11"):
        make_trainer(model, circle, arguments(tmp_path))

    model = circle_model()
    semantic_ids = SemanticIds([f"other {i}" for i in range(NUM_ITEMS)], model.item_codes.numpy(), 4, "keep")
    model.config.items_fingerprint = semantic_ids.items_fingerprint
    with pytest.raises(ValueError, match="items of the data set are not those of the model"):
        make_trainer(model, circle, arguments(tmp_path))


def test_data_set_without_validation_users_trains_only_without_evaluation(make_prepared, tmp_path):
    prepared = make_prepared({"u1": ["a", "b"], "u2": ["b", "c"]})
    model = make_model(tiny_config(num_items=3))

    make_trainer(model, prepared, arguments(tmp_path, num_train_epochs=1)).train()
    with pytest.raises(ValueError, match="no validation users"):
        make_trainer(model, prepared, arguments(tmp_path, eval_strategy="epoch"))


def test_more_threads_change_weights_by_rounding_alone(circle, tmp_path):
    weights = []
    for number in (1, 3):
        model = circle_model(num_latent_tokens=2, d_model=64)
        trainer = make_trainer(model, circle, arguments(tmp_path, threads=number, max_steps=5))
        trainer.train()
        assert trainer.num_threads == number
        weights.append(model.shared.weight.detach().clone())

    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-4)


def test_weights_that_are_no_numbers_are_neither_saved_nor_evaluated(circle, tmp_path):
    changes = {"eval_strategy": "steps", "eval_steps": 5, "save_strategy": "steps", "save_steps": 5}
    trainer = make_trainer(circle_model(), circle, arguments(tmp_path, **changes))

    class Spoiler(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 10:  # in a row that no later step would read
                trainer.model.shared.weight.data[-1, 0] = float("inf")

    trainer.add_callback(Spoiler())
    with pytest.raises(ValueError, match=r"shared.weight .* at step 10 of .*The last good checkpoint is .*point-5\."):
        trainer.train()

    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]


def test_checkpoint_with_damaged_weights_is_left_out_with_a_warning(tmp_path, caplog):
    (tmp_path / "trainer_state.json").write_text("{}", encoding="utf-8")
    save_file({"a": torch.zeros(3)}, tmp_path / "model.safetensors")
    before = _is_whole(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"12345")

    assert (before, _is_whole(tmp_path)) == (True, False)
    assert f"The weights of {tmp_path} are damaged" in caplog.text


def resumable_trainer(prepared, output):
    """A checkpoint every five steps, in the middle of an epoch; dropout and latents are drawn at random."""
    model = circle_model(history_attention="causal", num_latent_tokens=2, dropout_rate=0.2)
    every_five_steps = {"save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5}
    size = {"num_train_epochs": 3, "per_device_train_batch_size": 24}
    args = arguments(output, **size, save_total_limit=None, num_eval_users=5, **every_five_steps)
    return make_trainer(model, prepared, args)


class Killer(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 13:
            os.kill(os.getpid(), signal.SIGKILL)


def test_killed_run_resumes_and_ends_with_the_weights_of_an_uninterrupted_one(circle, tmp_path):
    whole = resumable_trainer(circle, tmp_path / "whole")
    whole.train()

    child = os.fork()
    if child == 0:
        try:
            trainer = resumable_trainer(circle, tmp_path / "run")
            trainer.add_callback(Killer())
            trainer.train()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoint-10", "checkpoint-5"]
    resumed = resumable_trainer(circle, tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)

    expected, found = whole.model.state_dict(), resumed.model.state_dict()
    assert [name for name, tensor in expected.items() if not torch.equal(tensor, found[name])] == []
    losses = [
        [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
        for trainer in (whole, resumed)
    ]
    assert losses[0] == losses[1]
    assert whole.state.global_step == resumed.state.global_step > 15


def test_tied_items_are_shuffled_anew_in_each_epoch_of_a_training(tmp_path):
    log = [{"user_id": f"u{u}", "item_id": f"i{i:02d}", "timestamp": 7} for u in range(5) for i in range(NUM_ITEMS)]
    items = [{"item_id": f"i{i:02d}", "title": str(i)} for i in range(NUM_ITEMS)]
    prepared = prepare(tmp_path / "data", interactions=log, items=items)
    changes = {"shuffled_ties": "time", "num_train_epochs": 3}
    trainer = make_trainer(circle_model(history_attention="causal"), prepared, arguments(tmp_path, **changes))
    seen = []

    class Recorder(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(tuple(trainer.train_dataset[0]["input_ids"]))

    trainer.add_callback(Recorder())
    trainer.train()

    assert len(set(seen)) == 3


def test_minutes_of_a_resumed_training_go_on_from_those_of_its_checkpoint(tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    (tmp_path / "checkpoint-7" / "time.json").write_text('{"minutes": 5.5, "cpu_minutes": 4.25}', encoding="utf-8")
    (tmp_path / "checkpoint-9").mkdir()
    state = TrainerState(global_step=9)

    stopwatch = Stopwatch(str(tmp_path / "checkpoint-7"))
    stopwatch.on_save(arguments(tmp_path), state, None)
    again = Stopwatch(str(tmp_path / "checkpoint-9")).read()

    assert 5.5 <= again["minutes"] < 6
    assert 4.25 <= again["cpu_minutes"] < 5
    assert Stopwatch().read()["minutes"] < 0.1
