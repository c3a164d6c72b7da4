"""
How fast training rows are read, and how much memory that takes: streamed from files, and held in memory.

    python scripts/evidence/benchmark_streaming.py --output scripts/evidence/records/streaming_speed.json
    python scripts/evidence/benchmark_streaming.py --sizes 1000000 10000000 100000000 --in-memory-up-to 10000000

Prepared folders of these many interactions are invented: users with 5 to 35 items of a power law over `--items`, in
shards of half a million users, and a hundredth of them as validation users. Each case has a process of its own, so
its peak memory is its own; `base` is a process that imports the library and reads the items only. `start` is the time
until the first batch, `epoch` that of all batches of an epoch without a training, `train` the targets per second of
some steps of a SASRec. Seconds are those of the processor, all threads, user and system.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.console import Console
from rich.table import Table

from hf_genrec import GenRecTrainingArguments, PreparedDataset, SASRecConfig, SASRecForItemGeneration, make_trainer
from hf_genrec.data.splits import ROWS_AT_ONCE, SPLIT_SCHEMA
from hf_genrec.files import write_json


USERS_PER_SHARD = 500_000
CASES = ("base", "memory", "streamed")


def main(words: Sequence[str] | None = None) -> None:
    arguments = parse_arguments(words)
    if arguments.case:
        print(json.dumps(measure(arguments.case, Path(arguments.work), arguments)))
        return
    rows = []
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory(dir=arguments.work) as folder:
            make_folder(Path(folder), size, num_items=arguments.items)
            for case in CASES:
                if case == "memory" and size > arguments.in_memory_up_to:
                    continue
                rows.append({"interactions": size, "case": case} | in_own_process(case, folder, arguments))
                print(json.dumps(rows[-1]), file=sys.stderr)
    record = {"rows": rows, "settings": {name: getattr(arguments, name) for name in ("items", "batch_size", "steps")}}
    record["machine"] = {"python": platform.python_version(), "torch": torch.__version__, "pyarrow": pa.__version__}
    print_table(rows)
    if arguments.output:
        write_json(record, arguments.output)


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**6, 10**7, 10**8], help="interactions")
    parser.add_argument("--in-memory-up-to", type=int, default=10**7, help="sizes that are held in memory, too")
    parser.add_argument("--items", type=int, default=100_000, help="size of the catalog (default 100,000)")
    parser.add_argument("--batch-size", type=int, default=1024, help="targets per step (default 1024)")
    parser.add_argument("--steps", type=int, default=40, help="steps of training (default 40)")
    parser.add_argument("--work", help="where the folders are made for the time being")
    parser.add_argument("--output", help="JSON file for the figures")
    parser.add_argument("--case", choices=CASES, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def make_folder(folder: Path, num_interactions: int, *, num_items: int, seed: int = 0) -> None:
    """A prepared folder with its training part in shards."""
    random = np.random.default_rng(seed)
    names = pa.array([f"B{number:09d}" for number in range(num_items)])
    pq.write_table(pa.table({"item_id": names, "title": names, "text": names}), folder / "items.parquet")
    num_users = num_interactions // 20
    num_targets = 0
    (folder / "train").mkdir()
    for number, first in enumerate(range(0, num_users, USERS_PER_SHARD)):
        with pq.ParquetWriter(
            folder / "train" / f"{number:05d}.parquet", SPLIT_SCHEMA, write_page_checksum=True
        ) as to:
            for start in range(first, min(first + USERS_PER_SHARD, num_users), ROWS_AT_ONCE):
                rows = make_rows(start, min(ROWS_AT_ONCE, num_users - start), names, random)
                num_targets += len(rows["history"].combine_chunks().flatten())
                to.write_table(rows)
    for split in ("validation", "test"):
        rows = make_rows(0, max(1, num_users // 100), names, random)
        pq.write_table(rows, folder / f"{split}.parquet", row_group_size=ROWS_AT_ONCE, write_page_checksum=True)
    metadata = {"format_version": 2, "fingerprint": "", "protocol": "custom", "repeat_rate": 0.5}
    write_json(metadata | {"num_train_targets": num_targets, "statistics": {}}, folder / "dataset.json")


def make_rows(start: int, number: int, names: pa.Array, random: np.random.Generator) -> pa.Table:
    lengths = random.integers(4, 35, size=number)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    items = (len(names) * random.random(offsets[-1] + number) ** 3).astype(np.int32)
    taken = names.take(pa.array(items))
    columns = [
        pa.array([f"user{user}" for user in range(start, start + number)]),
        pa.ListArray.from_arrays(offsets, taken.slice(0, offsets[-1])),
        taken.slice(offsets[-1]),
        pa.nulls(number, pa.int64()),
        pa.nulls(number, pa.list_(pa.int64())),
    ]
    return pa.table(columns, schema=SPLIT_SCHEMA)


def in_own_process(case: str, folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    options = [f"--{name.replace('_', '-')}={getattr(arguments, name)}" for name in ("batch_size", "steps")]
    command = [sys.executable, __file__, "--case", case, "--work", folder, *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{case}: {done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(case: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    data = PreparedDataset.load(folder)
    data.__dict__["is_checked"] = True  # the check of all files is the same for both, and not what is measured
    num_items = len(data.item_ids)
    found: dict[str, Any] = {}
    if case != "base":
        start = time.process_time()
        trainer = make_trainer(make_model(num_items), data, make_arguments(folder, case, arguments))
        loader = trainer.get_train_dataloader()
        batches = iter(loader)
        next(batches)
        found["start_seconds"] = round(time.process_time() - start, 2)
        start, num_batches, num_targets = time.process_time(), 1, 0
        for batch in batches:
            num_batches += 1
            num_targets += int((batch["labels"] != -100).sum())
        found["epoch_seconds"] = round(time.process_time() - start, 2)
        found |= {"num_targets": num_targets, "num_batches": num_batches}
        found["targets_per_second_read"] = round(num_targets / max(found["epoch_seconds"], 0.01))
        found["targets_per_second_trained"] = round(train(trainer, loader, arguments.steps))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found | {"peak_megabytes": round(peak / 1024)}


def make_model(num_items: int) -> SASRecForItemGeneration:
    torch.manual_seed(0)
    shape = {"d_model": 32, "num_heads": 1, "num_layers": 1, "max_history_length": 20}
    return SASRecForItemGeneration(SASRecConfig(num_items=num_items, **shape))


def make_arguments(folder: Path, case: str, arguments: argparse.Namespace) -> GenRecTrainingArguments:
    return GenRecTrainingArguments(
        str(folder / "run"),
        per_device_train_batch_size=arguments.batch_size,
        streaming=case == "streamed",
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        precision="fp32",
        num_eval_users=100,
        disable_tqdm=True,
        report_to="none",
    )


def train(trainer: Any, loader: Iterator[Any], num_steps: int) -> float:
    """Targets per second of some steps, reading included."""
    model = trainer.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    start, num_targets = time.process_time(), 0
    for _, batch in zip(range(num_steps), loader, strict=False):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        num_targets += int((batch["labels"] != -100).sum())
    return num_targets / (time.process_time() - start)


def print_table(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("interactions", "rows", "peak MB", "start s", "epoch s", "targets/s read", "targets/s trained")
    table = Table(*columns, title="Training rows")
    for row in rows:
        names = ("start_seconds", "epoch_seconds", "targets_per_second_read", "targets_per_second_trained")
        values = [f"{row[name]:,}" if name in row else "–" for name in names]
        table.add_row(f"{row['interactions']:,}", row["case"], f"{row['peak_megabytes']:,}", *values)
    Console().print(table)


if __name__ == "__main__":
    main()
