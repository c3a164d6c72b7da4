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
    preparation_notes,
    recommendation_entries,
    recommendations_table,
    rows_table,
    statistics_table,
    usage_table,
    weights_line,
)
from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sources.movielens import prepare_movielens
from hf_genrec.evaluation.compare import compare_evaluations, comparison_note, comparison_tables
from hf_genrec.evaluation.evaluate import EvaluationSettings, evaluate
from hf_genrec.evaluation.record import evaluation_run, is_finished, read_training
from hf_genrec.evaluation.systems import load_evaluation
from hf_genrec.modeling.configuration_latte import LatteConfig
from hf_genrec.serving.recommender import Recommender
from hf_genrec.tokenizers.folder import embed_items, embeddings_path, load_tokenized, read_embeddings, tokenize_items
from hf_genrec.training.arguments import CHECKPOINTS_NAME, training_arguments
from hf_genrec.training.closed_form import ensemble_run, fit_run
from hf_genrec.training.initial import start_fresh
from hf_genrec.training.runs import EVALUATION_NAME, run_settings, train_run, write_evaluation
from hf_genrec.training.threads import threads


ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
VECTORS: dict[str, Any] = {"behavior": "svd", "weight": 0.6}
TOKENIZER: dict[str, Any] = {
    "num_levels": 2, "codebook_size": 64, "policy": "widen", "num_whitened": 0, "fit_on": "train",
    "num_candidates": 5, "seed": 1234,
}  # fmt: skip
SHAPE: dict[str, Any] = LatteConfig.default_shape | {
    "num_latent_tokens": 0, "d_model": 64, "d_ff": 256, "d_kv": 32, "num_heads": 2, "max_history_length": 50,
    "dense_head": True, "dropout_rate": 0.3,
}  # fmt: skip
SCHEDULE: dict[str, Any] = LatteConfig.default_schedule | {
    "learning_rate": 3e-3, "per_device_train_batch_size": 512, "num_train_epochs": 16, "eval_strategy": "steps",
    "eval_steps": 0.25, "save_strategy": "steps", "save_steps": 0.25, "num_eval_users": -1,
    "per_device_eval_batch_size": 256, "seed": 1,
    # The last weights, not those with the best lists by themselves: on the validation users whose lists chose no
    # weights the sum has 0.1386 with the last and 0.1312 with the best alone (epoch 8 of 16).
    "load_best_model_at_end": False,
}  # fmt: skip
EXCLUDE_SEEN = True  # a film is rated once: for the model and the baselines alike
LINEAR = ("ridge", "item-knn")  # methods of `fit_run`
NUM_SHOWN_USERS = 3


@dataclass(frozen=True)
class DemoSettings:
    """What the quick start does; the defaults are the constants above. `matrix` stands for the encoder's vectors."""

    encoder: str = ENCODER
    matrix: str | None = None
    vectors: Mapping[str, Any] = field(default_factory=lambda: dict(VECTORS))
    tokenizer: Mapping[str, Any] = field(default_factory=lambda: dict(TOKENIZER))
    shape: Mapping[str, Any] = field(default_factory=lambda: dict(SHAPE))
    schedule: Mapping[str, Any] = field(default_factory=lambda: dict(SCHEDULE))


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

    Args: the folder for everything, and a console for the tables. `movielens` and `encoder` are looked for in that
    folder if `None`, as `ml-100k` and `all-MiniLM-L6-v2` (else on the Hub); `prepared` and `settings` replace its own.

    Returns `folder` of the model, `evaluation` (its record), `users` (recommendations) and `minutes`.
    """
    folder, start = Path(output_dir), time.perf_counter()
    if settings is None:
        fetched = folder / Path(ENCODER).name
        settings = DemoSettings(encoder=encoder or (str(fetched) if fetched.is_dir() else ENCODER))
    prepared = prepared or _prepared(folder / "data", movielens or folder / "ml-100k", console)
    console.print(statistics_table(prepared.metadata), *preparation_notes(prepared.metadata), sep="\n")
    walk = _Walk(folder, prepared, settings, console)
    walk.make_ids()
    walk.train()
    with threads(1):  # products of this size gain nothing from a second one
        walk.join()
        record = walk.evaluate()
        users = walk.show_users()
    minutes = (time.perf_counter() - start) / 60
    ids = " ".join(prepared.split("test")[0]["history"][-3:])
    console.print(f"Done in {minutes:.1f} minutes. Everything is in {folder}.")
    console.print(f"Go on with: hf-genrec recommend --model {folder / 'model'} --history {ids}", soft_wrap=True)
    return {"folder": str(folder / "model"), "evaluation": record, "users": users, "minutes": minutes}


def _prepared(folder: Path, movielens: str | os.PathLike[str], console: Console) -> PreparedDataset:
    is_there = (folder / "dataset.json").is_file()
    _heading(console, "1. MovieLens-100K", is_there)
    prepared = PreparedDataset.load(folder) if is_there else prepare_movielens(folder, movielens)
    if prepared.metadata["protocol"] != "movielens":
        raise ValueError(f"{folder} holds another data set than MovieLens-100K. Choose another `--output`.")
    return prepared


def _heading(console: Console, text: str, is_there: bool) -> None:
    console.rule(text + (" (done before)" if is_there else ""), align="left")


class _Walk:
    """The stages after the data set, each one done if it was not done before."""

    def __init__(self, folder: Path, prepared: PreparedDataset, settings: DemoSettings, console: Console) -> None:
        self.folder, self.prepared, self.settings, self.console = folder, prepared, settings, console
        self._ids, self._model, self._psid = folder / "semantic_ids", folder / "model", folder / "psid"

    def make_ids(self) -> None:
        """Vectors of texts and behaviour, and semantic IDs."""
        settings, prepared, path, ids = self.settings, self.prepared, embeddings_path(self.folder), self._ids
        is_there = path.is_file() and self._is_embedded(path)
        source = Path(settings.matrix or settings.encoder).name
        _heading(self.console, f"2. Texts ({source}) and the log to vectors", is_there)
        if not is_there:
            embed_items(prepared, path, model_name=settings.encoder, matrix=settings.matrix, **settings.vectors)
        vectors, _ = read_embeddings(path, prepared)
        self.console.print(f"{vectors.shape[0]:,} items, {vectors.shape[1]} dimensions")
        wanted = dict(settings.tokenizer) | {"embeddings": hashlib.sha256(vectors.tobytes()).hexdigest()[:16]}
        is_there = False
        if (ids / "tokenizer.json").is_file():
            made = load_tokenized(ids)[1]
            is_there = wanted.items() <= made["settings"].items() and made["data_fingerprint"] == prepared.fingerprint
        _heading(self.console, "3. Vectors to semantic IDs", is_there)
        if not is_there:
            tokenize_items(prepared, path, ids, **settings.tokenizer, overwrite=True)
        statistics = load_tokenized(ids)[1]["statistics"]
        self.console.print(collision_table(statistics), usage_table(statistics), sep="\n")

    def _is_embedded(self, path: Path) -> bool:
        try:
            _, made = read_embeddings(path, self.prepared)
        except ValueError:  # of other items
            return False
        is_same = all(made.get(name) == str(value) for name, value in self.settings.vectors.items())
        name = Path(self.settings.encoder).name
        return is_same and (self.settings.matrix is not None or Path(made.get("model", "")).name == name)

    def train(self) -> None:
        """The run folder; one that was made with other settings is refused."""
        folder = self._psid
        _heading(self.console, "4. Training", is_finished(folder))
        args = training_arguments(folder, settings=self.settings.schedule)
        starting = start_fresh(self.prepared, self._ids, shape=self.settings.shape, seed=args.seed)
        if is_finished(folder):
            made, wanted = read_training(folder)["settings"], run_settings(self.prepared, starting, args)
            differing = [name for name in wanted if json.loads(json.dumps(wanted[name])) != made.get(name)]
            if differing:
                raise ValueError(
                    f"{folder} holds a model trained with other settings ({', '.join(differing)}). "
                    "Choose another `--output`, or remove that folder."
                )
        else:
            shape = starting.model.config
            self.console.print(
                f"{shape.system_name}, {shape.num_layers}+{shape.num_decoder_layers} layers, width {shape.d_model}"
                f"{', two heads' if shape.dense_head else ''}, {starting.model.num_parameters():,} parameters, "
                f"{args.num_train_epochs:g} epochs; checkpoints in {folder / CHECKPOINTS_NAME}"
            )
            train_run(self.prepared, starting, folder, args, resume=True, command="hf-genrec demo")
        training = read_training(folder)
        validated = [entry["eval_ndcg@10"] for entry in training["log_history"] if "eval_ndcg@10" in entry]
        found = f", validation ndcg@10: {validated[-1]:.4f}" if validated else ""
        self.console.print(f"{training['minutes']:.1f} minutes{found}")

    def join(self) -> None:
        """Linear models, and the ensemble of all: what they know and what a network knows add up."""
        linear = {method: self.folder / method for method in LINEAR}
        is_there = is_finished(self._model)
        _heading(self.console, "5. Linear models beside it, and the sum of all", is_there)
        how: dict[str, Any] = {"exclude_seen": EXCLUDE_SEEN, "command": "hf-genrec demo"}
        if not is_there:
            for method, folder in linear.items():
                fit_run(self.prepared, folder, method=method, **how)
            ensemble_run(self.prepared, {"PSID": self._psid} | linear, self._model, max_users=None, **how)
        self.console.print(weights_line(read_training(self._model)["ensemble"]))

    def evaluate(self) -> dict[str, Any]:
        """The record of the ensemble on the test split, beside its network's; baselines are tuned on validation."""
        models = {folder: Recommender.from_pretrained(folder) for folder in (self._psid, self._model)}
        is_there = all(self._is_evaluated(folder, model) for folder, model in models.items())
        _heading(self.console, "6. Evaluation on the test split, films seen before excluded", is_there)
        how = EvaluationSettings(exclude_seen=EXCLUDE_SEEN, show_progress=self.console.is_terminal)
        for folder, model in ({} if is_there else models).items():
            beside: dict[str, Any] | None = None if folder == self._model else {}  # the same baselines for both
            record = evaluate(model, self.prepared, how, baselines=beside, run=_run_of(folder, model))
            write_evaluation(folder, model.model.config, record, users=record.users)
        named = {"PSID": self._psid, "sum of all": self._model}
        *_, comparison = compare_evaluations([load_evaluation(f"{name}={folder}") for name, folder in named.items()])
        table = comparison_tables(comparison)[0]
        self.console.print(rows_table(table.rows, title=table.title, caption=comparison_note(comparison)))
        record = json.loads((self._model / EVALUATION_NAME).read_text(encoding="utf-8"))
        self.console.print(f"invalid lists of the model: {100 * record['model']['invalid_rate']:.2f} %")
        return record

    def _is_evaluated(self, folder: Path, model: Recommender) -> bool:
        path = folder / EVALUATION_NAME
        record = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        return record.get("run") == _run_of(folder, model) and record["fingerprint"] == self.prepared.fingerprint

    def show_users(self) -> list[dict[str, Any]]:
        """Recommendations for the first users of the test split."""
        test, recommender = self.prepared.split("test"), Recommender.from_pretrained(self._model)
        rows = [test[row] for row in range(min(NUM_SHOWN_USERS, len(test)))]
        _heading(self.console, f"7. Recommendations for {len(rows)} users", False)
        histories = [row["history"] for row in rows]
        entries = recommendation_entries(recommender, histories, options={"exclude_seen": EXCLUDE_SEEN})
        for row, entry in zip(rows, entries, strict=True):
            title = f"User {row['user_id']}, whose next item was: {recommender.titles([row['target']])[0]}"
            self.console.print(recommendations_table(entry, title=title, shown_history=5))
        return entries


def _run_of(folder: Path, model: Recommender) -> dict[str, Any]:
    asked = model.config
    beams, sums = asked.num_beams, asked.latent_aggregation
    return evaluation_run(folder, num_beams=beams, latent_aggregation=sums, decoding=model.decoding)
