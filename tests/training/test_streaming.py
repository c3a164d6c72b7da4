"""Streaming: the rows of an epoch, their order and their steps, from files in pieces."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import IterableDataset, config
from datasets.distributed import split_dataset_by_node

from hf_genrec import GenRecTrainingArguments, make_trainer
from hf_genrec.data.prepare import prepare
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import training_dataset
from hf_genrec.evaluation.baselines.base import sampled_users
from hf_genrec.training import streaming
from hf_genrec.training.sampler import StepParts
from hf_genrec.training.streaming import StreamedBatches, StreamedWindows, sampled_rows
from invariants.model import make_sasrec


NUM_ITEMS, NUM_USERS = 11, 47
SHAPE = {"first_item_token": 5, "max_history_length": 4, "stride": 2}


@pytest.fixture(scope="module")
def shards(make_prepared):
    """A data set whose training part lies in three files of row groups of 5 users, one of them without any."""
    random, sequences = np.random.default_rng(0), {}
    for user in range(NUM_USERS):
        start, length = random.integers(NUM_ITEMS), random.integers(1, 14)
        sequences[f"u{user}"] = [f"i{(start + step) % NUM_ITEMS:02d}" for step in range(length)]
    folder = make_prepared(sequences).folder
    (folder / "train").mkdir()
    table = pq.read_table(folder / "train.parquet")
    for number, (start, end) in enumerate([(0, 23), (23, 23), (23, NUM_USERS)]):
        rows = table.slice(start, end - start)
        pq.write_table(rows, folder / "train" / f"{number:05d}.parquet", row_group_size=5, write_page_checksum=True)
    (folder / "train.parquet").unlink()
    return PreparedDataset.load(folder)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER_ITEMS", 60)
    monkeypatch.setattr(streaming, "_USERS_AT_ONCE", 3)


def plain(row):
    return tuple(row["input_ids"].tolist()), tuple(row["labels"].tolist())


def steps_of(data, epoch=0, *, processes=1, accumulated=1, size=24, seed=3, **options):
    """The rows of each step, of all processes together."""
    found = []
    for index in range(processes):
        rows = StreamedWindows(data, seed=seed, **(SHAPE | options))
        parts = StepParts(processes, index, accumulated)
        batches = StreamedBatches(rows, targets_per_batch=size // parts.number, parts=parts)
        batches.set_epoch(epoch)
        own = [[plain(row) for row in batch] for batch in batches]
        assert len(own) == len(batches)
        found.append([sum(own[at : at + accumulated], []) for at in range(0, len(own), accumulated)])
    return [sorted(sum(step, [])) for step in zip(*found, strict=True)]


@pytest.mark.parametrize("mode", ["causal", "bidirectional"])
@pytest.mark.parametrize("targets", ["all", "last"])
def test_a_streamed_epoch_has_exactly_the_rows_of_one_in_memory(mode, targets, shards):
    options = {"history_attention": mode, "targets": targets}
    memory = training_dataset(shards.split("train"), shards.item_ids, **SHAPE, **options)

    steps = steps_of(shards, **options)

    assert sorted(row for step in steps for row in step) == sorted(plain(row) for row in memory)
    assert len(steps) == -(-sum(memory.targets_per_row) // 24)
    assert max(sum(label > 0 for _, labels in step for label in labels) for step in steps) < 24 + 4


def test_order_depends_on_seed_and_epoch_alone(shards):
    assert steps_of(shards, 4) == steps_of(shards, 4)
    assert steps_of(shards, 4) != steps_of(shards, 5)
    assert steps_of(shards, 4) != steps_of(shards, 4, seed=8)


@pytest.mark.parametrize(("processes", "accumulated"), [(2, 1), (1, 2), (3, 2)])
def test_processes_share_the_steps_of_one(processes, accumulated, shards):
    assert steps_of(shards, 1, processes=processes, accumulated=accumulated) == steps_of(shards, 1)


def test_windows_of_a_step_have_neighbouring_lengths_within_a_buffer(shards, monkeypatch):
    monkeypatch.setattr(streaming, "BUFFER_ITEMS", 10_000)

    spans = sorted((min(sizes), max(sizes)) for sizes in ([len(row[0]) for row in step] for step in steps_of(shards)))

    assert all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))


def test_a_sample_of_users_is_that_of_the_whole_table(shards):
    expected = sampled_users(shards.split("train"), max_users=13, seed=5).to_list()

    assert sampled_rows(shards, "train", max_users=13, seed=5).to_list() == expected
    assert sampled_rows(shards, "train", max_users=None, seed=5).to_list() == shards.split("train").to_list()


def test_shards_stream_into_datasets_without_a_row_twice_or_lost(shards, monkeypatch):
    monkeypatch.setattr(config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.1)  # 5 s for each part otherwise
    rows = IterableDataset.from_parquet(str(shards.folder / "train" / "*.parquet"), batch_size=3).reshard()
    rows = rows.shuffle(seed=5, buffer_size=4, max_buffer_input_shards=2)

    parts = [[row["user_id"] for row in split_dataset_by_node(rows, rank, 3)] for rank in range(3)]

    assert sorted(sum(parts, [])) == sorted(shards.split("train")["user_id"])


def test_items_are_counted_over_all_files(shards):
    table = shards.split("train").to_pandas()
    items = [item for row in table["history"] for item in row] + table["target"].tolist()

    assert shards.train_item_counts().tolist() == [items.count(item) for item in shards.item_ids]


def arguments(folder, **changes):
    return GenRecTrainingArguments(
        **{
            "output_dir": str(folder), "per_device_train_batch_size": 40, "num_train_epochs": 3, "precision": "fp32",
            "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": False, "disable_tqdm": True,
            "report_to": "none", "learning_rate": 1e-2, "logging_steps": 1, "streaming": True,
        } | changes
    )  # fmt: skip


def test_a_streamed_training_resumes_within_an_epoch_to_the_same_weights(shards, tmp_path):
    whole, part = make_sasrec(num_items=NUM_ITEMS), make_sasrec(num_items=NUM_ITEMS)
    trainer = make_trainer(
        whole, shards, arguments(tmp_path, save_strategy="steps", save_steps=5, save_total_limit=None)
    )
    trainer.train()

    make_trainer(part, shards, arguments(tmp_path)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))

    assert trainer.state.max_steps == 3 * -(-shards.metadata["num_train_targets"] // 40)
    assert all((weight == part.state_dict()[name]).all() for name, weight in whole.state_dict().items())


def test_large_data_sets_are_streamed_unless_memory_is_asked_for(shards, tmp_path, monkeypatch):
    def rows(**changes):
        trainer = make_trainer(make_sasrec(num_items=NUM_ITEMS), shards, arguments(tmp_path, **changes))
        return type(trainer.train_dataset).__name__

    assert rows(streaming=None) == "WindowDataset"
    monkeypatch.setattr("hf_genrec.data.prepared.LARGE", 50)
    assert [rows(streaming=None), rows(streaming=False)] == ["StreamedWindows", "WindowDataset"]
    with pytest.raises(ValueError, match="`streaming` does not go with `teacher`"):
        rows(teacher="run")
    with pytest.raises(ValueError, match="needs steps of at least 11 targets, .* got 5"):
        make_trainer(
            make_sasrec(num_items=NUM_ITEMS), shards, arguments(tmp_path, per_device_train_batch_size=5)
        ).train()


def test_files_with_other_targets_than_recorded_are_refused(shards, tmp_path):
    shutil.copytree(shards.folder, tmp_path / "data")
    path = tmp_path / "data" / "dataset.json"
    metadata = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(metadata | {"num_train_targets": 3}), encoding="utf-8")

    with pytest.raises(ValueError, match="hold .* targets, dataset.json says 3"):
        steps_of(PreparedDataset.load(tmp_path / "data"))


def test_unknown_items_are_named(shards, tmp_path):
    shutil.copytree(shards.folder, tmp_path / "data")
    table = pq.read_table(tmp_path / "data" / "train" / "00002.parquet")
    table = table.set_column(2, "target", pa.array(["i99"] * len(table)))
    pq.write_table(table, tmp_path / "data" / "train" / "00002.parquet")

    with pytest.raises(ValueError, match="1 item ids are not in the catalog: 'i99'"):
        steps_of(PreparedDataset.load(tmp_path / "data"))


def test_streamed_rows_have_the_times_of_those_in_memory(tmp_path):
    log = [
        {"user_id": f"u{u}", "item_id": f"i{(u + i) % 7}", "timestamp": 1000 * i**u}
        for u in range(9)
        for i in range(8)
    ]
    items = [{"item_id": f"i{i}", "title": f"{i}"} for i in range(7)]
    data = prepare(tmp_path / "data", interactions=log, items=items)
    memory = training_dataset(data.split("train"), data.item_ids, **SHAPE, has_gaps=True)
    streamed = StreamedWindows(data, seed=3, **SHAPE, has_gaps=True)

    found = [
        row for batch in StreamedBatches(streamed, targets_per_batch=12, parts=StepParts(1, 0, 1)) for row in batch
    ]

    def timed(row):
        return plain(row), tuple(row["gaps"].tolist())

    assert sorted(map(timed, found)) == sorted(timed(memory[number]) for number in range(len(memory)))
