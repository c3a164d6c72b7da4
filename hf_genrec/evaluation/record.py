"""
Evaluation records: where they and the results of their users lie (`FILE.json` and `FILE_users.parquet`), what they say
about the run they belong to, and records as rows of text.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_genrec.data.checks import trained_on
from hf_genrec.files import replaced
from hf_genrec.tokenizers.folder import QUANTIZER_NAME


if TYPE_CHECKING:
    import torch

TRAINING_NAME = "training.json"
# Names of what is measured in the other column of a record, by whether seen items are excluded there.
COLUMNS = {False: "seen_allowed", True: "seen_excluded"}
PERSONAL_COLUMNS = ("user_id", "target")


def named_path(word: str | os.PathLike[str]) -> tuple[str | None, str]:
    """
    `NAME=PATH` or `PATH` of a command line as name and path; what exists as it stands is a path.

    Args: the word.

    >>> named_path("A=runs/lr=1e-3"), named_path("runs/psid")
    (('A', 'runs/lr=1e-3'), (None, 'runs/psid'))
    """
    text = os.fspath(word)
    name, equals, path = text.partition("=")
    return (name or None, path) if equals and not Path(text).exists() else (None, text)


def users_path(path: str | os.PathLike[str]) -> Path:
    """Where the per-user results of a record are, `FILE_users.parquet` beside `FILE.json`. Args: the latter."""
    return Path(path).with_name(f"{Path(path).stem}_users.parquet")


def write_users(users: pa.Table, path: str | os.PathLike[str], *, keep_names: bool = False) -> None:
    """
    Write per-user results as Parquet; without `user_id` and `target` (`keep_names`) they are ranks and counts in the
    order of the split, and may be published with the record.

    Args: one row per user, see [`EvaluationRecord`]; the file; and whether the names are kept.
    """
    if not keep_names:
        users = users.drop_columns([name for name in PERSONAL_COLUMNS if name in users.column_names])
    with replaced(path) as partial:
        pq.write_table(users, partial, compression="zstd")


def record_table(record: Mapping[str, Any], *, metrics: Sequence[str] | None = None) -> list[list[str]]:
    """
    A record as a table of strings: the header, the baselines, and the model last; both columns where it has them.

    Args: what [`evaluate`] returned, and the metrics.
    """
    metrics = [*record["model"]["intervals"], "invalid_rate"] if metrics is None else list(metrics)
    systems = {**record["baselines"], "model": record["model"]}
    rows = [[name, *(_cell(values, metric) for metric in metrics)] for name, values in systems.items()]
    header = ["system", *metrics]
    for column in COLUMNS.values():
        if column in record["model"]:
            others = [metric for metric in metrics if metric in record["model"][column]["intervals"]]
            header += [f"{metric}, {column.replace('_', ' ')}" for metric in others]
            for row, values in zip(rows, systems.values(), strict=True):
                row += [_cell(values[column], metric) if column in values else "–" for metric in others]
    return [header, *rows]


def shown_cut(names: Iterable[str], *, metric: str) -> int:
    """
    Which of the cut-offs of a metric is shown where there is room for one: the largest up to 10.

    Args: names of a record, such as `"recall@5"`, others are passed over; and what stands before the `@`.
    """
    cuts = [int(name.partition("@")[2]) for name in names if name.startswith(f"{metric}@")]
    return max((cut for cut in cuts if cut <= 10), default=min(cuts, default=10))


def is_finished(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a finished run. Args: a run folder, existing or not."""
    return (Path(folder) / TRAINING_NAME).is_file()


def read_training(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a finished run, its `training.json`; empty if the folder has none. Args: a run folder."""
    return json.loads((Path(folder) / TRAINING_NAME).read_text(encoding="utf-8")) if is_finished(folder) else {}


def evaluation_run(
    folder: str | os.PathLike[str],
    *,
    num_beams: int,
    latent_aggregation: str,
    decoding: str = "beam",
    dtype: torch.dtype | None = None,
) -> dict[str, Any]:
    """
    What a record says about its run.

    Args: its folder or Hub repository, options of [`RecommendConfig`], and the dtype of the measured weights,
    `None` for not said, which readers take for float32.
    """
    training = read_training(folder)
    weights = Path(folder) / "model.safetensors"
    run: dict[str, Any] = {"model": Path(folder).name if weights.is_file() else os.fspath(folder)}
    run |= {"num_beams": num_beams} if decoding != "exact" else {}
    run |= {"latent_aggregation": latent_aggregation, "decoding": decoding}
    run |= {} if dtype is None else {"dtype": str(dtype).removeprefix("torch.")}
    kept = ("command", "minutes", "cpu_minutes", "num_threads", "device", "num_parameters")
    run |= {name: training[name] for name in kept if name in training}
    if training:
        run["seed"] = training["settings"]["seed"]
        run["trained_on"] = trained_on(training)
        run |= training.get("semantic_ids") or {}
    encoder = Path(folder) / QUANTIZER_NAME / "encoder.json"
    if encoder.is_file():
        run["encoder"] = json.loads(encoder.read_text(encoding="utf-8"))["model"]
    if weights.is_file():
        with weights.open("rb") as file:
            run["weights"] = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    return run


def interval_text(interval: Sequence[float] | None, form: str = ".4f") -> str:
    """
    An interval behind its number, such as `" [0.0354, 0.0393]"`; nothing where there is none.

    Args: lower and upper end, and how `format` writes them.
    """
    return "" if interval is None else f" [{interval[0]:{form}}, {interval[1]:{form}}]"


def _cell(values: Mapping[str, Any], column: str) -> str:
    return f"{values[column]:.4f}{interval_text(values['intervals'].get(column))}"
