"""
The quick start: MovieLens-100K from the log to recommendations with titles, in minutes on two CPU cores.

Every stage is skipped where its output exists and was made with the same settings, so a killed run goes on there.
The settings below were compared on the validation split; the test split is read by the evaluation at the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from hf_genrec.cli.tables import (
    collision_table,
    metrics_table,
    preparation_notes,
    recommendation_entries,
    recommendations_table,
    statistics_table,
    usage_table,
)
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sources.movielens import prepare_movielens
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.evaluation.record import evaluation_run
from hf_genrec.modeling.configuration_latte import LatteConfig
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import embed_items, embeddings_path, load_tokenized, read_embeddings, tokenize_items
from hf_genrec.training.arguments import CHECKPOINTS_NAME, training_arguments
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.runs import (
    EVALUATION_NAME,
    is_finished,
    read_training,
    run_settings,
    train_run,
    write_evaluation,
)


ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
TOKENIZER: dict[str, Any] = {
    "num_levels": 2,
    "codebook_size": 64,
    "policy": "widen",
    "num_whitened": 64,
    "fit_on": "train",
    "num_candidates": 5,
    "seed": 1234,
}
LATENT_AGGREGATION = "sum"
SHAPE: dict[str, Any] = LatteConfig.default_shape | {
    "num_latent_tokens": 2,
    "d_model": 64,
    "d_ff": 256,
    "d_kv": 32,
    "num_heads": 2,
    "max_history_length": 50,
}
SCHEDULE: dict[str, Any] = LatteConfig.default_schedule | {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 512,
    "num_train_epochs": 36,
    "eval_strategy": "steps",
    "eval_steps": 0.125,
    "save_strategy": "steps",
    "save_steps": 0.125,
    "num_eval_users": -1,
    "latent_aggregation": LATENT_AGGREGATION,
    "seed": 1,
}
TEST_BEAMS = 50
EXCLUDE_SEEN = True  # a film is rated once: for the model and the baselines alike
NUM_SHOWN_USERS = 3


@dataclass(frozen=True)
class DemoSettings:
    """
    What the quick start does; the defaults are the constants above.

    Attributes:
        encoder (`str`): sentence-transformers model.
        matrix (`str` or `None`): a ready embedding matrix instead.
        tokenizer (`dict`): arguments of [`~tokenized.tokenize_items`].
        shape (`dict`): fields of [`LatteConfig`].
        schedule (`dict`): fields of [`GenRecTrainingArguments`].
        test_beams (`int`): beams of the evaluation.
        num_shown_users (`int`): users whose recommendations are shown.
    """

    encoder: str = ENCODER
    matrix: str | None = None
    tokenizer: Mapping[str, Any] = field(default_factory=lambda: dict(TOKENIZER))
    shape: Mapping[str, Any] = field(default_factory=lambda: dict(SHAPE))
    schedule: Mapping[str, Any] = field(default_factory=lambda: dict(SCHEDULE))
    test_beams: int = TEST_BEAMS
    num_shown_users: int = NUM_SHOWN_USERS


def run_demo(
    output_dir: str | os.PathLike[str],
    *,
    console: Console,
    movielens: str | os.PathLike[str] | None = None,
    encoder: str | None = None,
    prepared: PreparedDataset | None = None,
    settings: DemoSettings | None = None,
) -> dict[str, Any]:
    """
    All stages, each with its table.

    Args:
        output_dir (`str` or `Path`): The folder for everything.
        console (`rich.console.Console`): Where tables go.
        movielens (`str` or `Path`, *optional*): MovieLens-100K; see [`prepare_movielens`]. `None` looks for
            `ml-100k` in the output folder.
        encoder (`str`, *optional*): sentence-transformers model. `None` is `all-MiniLM-L6-v2` in the output folder,
            or where there is none that of the Hub.
        prepared ([`PreparedDataset`], *optional*): A data set; `None` prepares MovieLens-100K.
        settings ([`DemoSettings`], *optional*): Other settings than the quick start's.

    Returns:
        `dict`: `folder` of the model, `evaluation` (the record), `users` (recommendations) and `minutes`.

    Raises:
        FileNotFoundError: If the data set is not there.
    """
    folder = Path(output_dir)
    if settings is None:
        fetched = folder / Path(ENCODER).name
        settings = DemoSettings(encoder=encoder or (str(fetched) if fetched.is_dir() else ENCODER))
    start = time.perf_counter()
    prepared = prepared or _prepared(folder / "data", movielens or folder / "ml-100k", console)
    console.print(statistics_table(prepared.metadata), *preparation_notes(prepared.metadata), sep="\n")
    _tokenized(folder, prepared, settings, console)
    _trained(folder, prepared, settings, console)
    recommender = Recommender.from_pretrained(
        folder / "model", num_beams=settings.test_beams, latent_aggregation=LATENT_AGGREGATION
    )
    record = _evaluated(folder / "model", recommender, prepared, settings, console)
    console.print(metrics_table(record))
    users = _shown_users(recommender, prepared, settings, console)
    minutes = (time.perf_counter() - start) / 60
    ids = " ".join(prepared.split("test")[0]["history"][-3:])
    console.print(f"Done in {minutes:.1f} minutes. Everything is in {folder}.")
    console.print(f"Go on with: hf-genrec recommend --model {folder / 'model'} --history {ids}", soft_wrap=True)
    return {"folder": str(folder / "model"), "evaluation": record, "users": users, "minutes": minutes}


def _prepared(folder: Path, movielens: str | os.PathLike[str], console: Console) -> PreparedDataset:
    _heading(console, "1. MovieLens-100K", (folder / "dataset.json").is_file())
    if not (folder / "dataset.json").is_file():
        return prepare_movielens(folder, movielens)
    prepared = PreparedDataset.load(folder)
    if prepared.metadata["protocol"] != "movielens":
        raise ValueError(f"{folder} holds another data set than MovieLens-100K. Choose another `--output`.")
    return prepared


def _tokenized(folder: Path, prepared: PreparedDataset, settings: DemoSettings, console: Console) -> None:
    """Embeddings and semantic IDs."""
    path = embeddings_path(folder)
    is_there = path.is_file() and _is_embedded(path, prepared, settings)
    _heading(
        console,
        f"2. Item texts to embeddings: {Path(settings.matrix).name if settings.matrix else settings.encoder}",
        is_there,
    )
    if not is_there:
        embed_items(prepared, path, model_name=settings.encoder, matrix=settings.matrix)
    embeddings, _ = read_embeddings(path, prepared)
    console.print(f"{embeddings.shape[0]:,} items, {embeddings.shape[1]} dimensions")
    target = folder / "semantic_ids"
    digest = hashlib.sha256(embeddings.tobytes()).hexdigest()[:16]
    wanted = dict(settings.tokenizer) | {"embeddings": digest}
    is_there = False
    if (target / "tokenizer.json").is_file():
        made = load_tokenized(target)[1]
        is_there = wanted.items() <= made["settings"].items() and made["data_fingerprint"] == prepared.fingerprint
    _heading(console, "3. Embeddings to semantic IDs", is_there)
    if not is_there:
        tokenize_items(prepared, path, target, **settings.tokenizer, overwrite=True)
    statistics = load_tokenized(target)[1]["statistics"]
    console.print(collision_table(statistics), usage_table(statistics), sep="\n")


def _is_embedded(path: Path, prepared: PreparedDataset, settings: DemoSettings) -> bool:
    try:
        _, encoder = read_embeddings(path, prepared)
    except ValueError:  # of other items
        return False
    return settings.matrix is not None or Path(encoder.get("model", "")).name == Path(settings.encoder).name


def _trained(folder: Path, prepared: PreparedDataset, settings: DemoSettings, console: Console) -> None:
    target = folder / "model"
    _heading(console, "4. Training", is_finished(target))
    args = training_arguments(target, settings=settings.schedule)
    starting = start_fresh(prepared, folder / "semantic_ids", shape=settings.shape, seed=args.seed)
    if is_finished(target):
        made, wanted = read_training(target)["settings"], run_settings(prepared, starting, args)
        differing = [name for name in wanted if json.loads(json.dumps(wanted[name])) != made.get(name)]
        if differing:
            raise ValueError(
                f"{target} holds a model trained with other settings ({', '.join(differing)}). "
                "Choose another `--output`, or remove that folder."
            )
    else:
        shape = starting.model.config
        console.print(
            f"Latte, {shape.num_layers}+{shape.num_decoder_layers} layers, width {shape.d_model}, "
            f"{shape.num_latent_tokens} latents, {starting.model.num_parameters():,} parameters, "
            f"{args.num_train_epochs:g} epochs; "
            f"checkpoints in {target / CHECKPOINTS_NAME}"
        )
        train_run(prepared, starting, target, args, resume=True, command="hf-genrec demo")
    training = read_training(target)
    best = training["best_metric"]
    console.print(
        f"{training['minutes']:.1f} minutes" + ("" if best is None else f", best validation ndcg@10: {best:.4f}")
    )


def _evaluated(
    target: Path, recommender: Recommender, prepared: PreparedDataset, settings: DemoSettings, console: Console
) -> dict[str, Any]:
    path = target / EVALUATION_NAME
    run = evaluation_run(target, num_beams=settings.test_beams, latent_aggregation=LATENT_AGGREGATION)
    record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    is_there = record.get("run") == run and record.get("fingerprint") == prepared.fingerprint
    _heading(console, "5. Evaluation on the test split, films seen before excluded", is_there)
    if not is_there:
        how = EvaluationSettings(exclude_seen=EXCLUDE_SEEN, show_progress=console.is_terminal)
        record = evaluate(recommender, prepared, how, run=run)
        write_evaluation(target, recommender.model.config, record, users=record.users)
    return record


def _shown_users(
    recommender: Recommender, prepared: PreparedDataset, settings: DemoSettings, console: Console
) -> list[dict[str, Any]]:
    test = prepared.split("test")
    rows = [test[row] for row in range(min(settings.num_shown_users, len(test)))]
    _heading(console, f"6. Recommendations for {len(rows)} users", False)
    histories = [row["history"] for row in rows]
    entries = recommendation_entries(recommender, histories, options={"exclude_seen": EXCLUDE_SEEN})
    for row, entry in zip(rows, entries, strict=True):
        target = recommender.titles([row["target"]])[0]
        title = f"User {row['user_id']}, whose next item was: {target}"
        console.print(recommendations_table(entry, title=title, shown_history=5))
    return entries


def _heading(console: Console, text: str, is_there: bool) -> None:
    console.rule(text + (" (done before)" if is_there else ""), align="left")
