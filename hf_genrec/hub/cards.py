"""A config and an evaluation record in, a card out: the pages are in `hub_cards/`, their values come from here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData
from transformers import AutoConfig

from hf_genrec.data.protocols import PROTOCOLS
from hf_genrec.evaluation.record import record_table, shown_cut
from hf_genrec.hub.card_texts import code_of_ids, dataset_of, description_of, markdown_text, method_lines, system_name
from hf_genrec.modeling.genrec_folder import TASK


__all__ = ["dataset_card", "folder_card", "is_generated", "marked", "model_card", "system_name"]

NUM_EXAMPLES = 5


def model_card(
    config: Any,
    evaluation: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    run: Mapping[str, Any] | None = None,
    quantizer: Mapping[str, Any] | None = None,
    items: pa.Table | None = None,
) -> str:
    """
    The `README.md` of a checkpoint.

    Args:
        config: The model's config.
        evaluation (`dict`, *optional*): Its evaluation record; `None` says that it was not evaluated.
        repo_id (`str`, *optional*): The repository that the examples name; `None` for `REPO`.
        run (`dict`, *optional*): How it was trained, as `training.json` of a run folder tells it.
        quantizer (`dict`, *optional*): `quantizer_type` and `encoder` behind the semantic IDs.
        items (`pa.Table`, *optional*): The item table, for collisions and examples.

    Returns:
        `str`: Markdown with the Hub's metadata in front and a mark at the end by which [`is_generated`] knows it.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_latte import LatteConfig
    >>> print(model_card(LatteConfig(num_items=12)).splitlines()[1])
    library_name: transformers

    ```
    """
    tags = ["recommendation", *_TAGS[config.has_codes], config.model_type]
    data = ModelCardData(library_name="transformers", tags=tags, **_model_index(config, evaluation, repo_id))
    card = ModelCard.from_template(
        data,
        template_str=_template("model_card.md"),
        system=system_name(config),
        num_items=f"{config.num_items:,}",
        num_levels=config.num_levels,
        codebook_size=config.codebook_size,
        decoding=_DECODING[config.model_type],
        repo=repo_id or "REPO",
        history=code_of_ids(_first(items, "item_id")),
        examples=_examples(items),
        description=_bullets([*description_of(config), *_collisions(items), *_ids_made_by(quantizer)]),
        data=_data_section(evaluation, run),
        evaluation=_evaluation_section(evaluation),
        limits=_bullets(_limits(evaluation)),
        methods=_bullets(method_lines(config)),
        versions=_versions(),
    )
    return marked(str(card))


def folder_card(folder: str | os.PathLike[str], *, config: Any = None, repo_id: str | None = None) -> str:
    """
    The card of a run folder, with all that its files tell.

    Args:
        folder (`str` or `Path`): What training or [`save_recommender`] wrote.
        config (*optional*): The model's config; `None` for the one of the folder.
        repo_id (`str`, *optional*): The repository that the examples name; `None` for `REPO`.

    Returns:
        `str`: see [`model_card`].

    Raises:
        OSError: If there is no config.
    """
    folder = Path(folder)
    items = folder / "items.parquet"
    return model_card(
        AutoConfig.from_pretrained(folder) if config is None else config,
        _read(folder / "evaluation.json"),
        repo_id=repo_id,
        run=_read(folder / "training.json"),
        quantizer=_quantizer_of(folder / "quantizer"),
        items=pq.read_table(items) if items.is_file() else None,
    )


def dataset_card(
    table: pa.Table, record: Mapping[str, Any] | None = None, *, repo_id: str | None = None, file: str = "ids.parquet"
) -> str:
    """
    The `README.md` of a data set repository that holds semantic IDs.

    Args:
        table (`pa.Table`): `item_id`, `codes` and whatever else is published.
        record (`dict`, *optional*): The record that tokenizing left beside the ids.
        repo_id (`str`, *optional*): The repository that the example names; `None` for `REPO`.
        file (`str`, *optional*, defaults to `"ids.parquet"`): Name of the table in the repository.

    Returns:
        `str`: Markdown with the Hub's metadata in front and a mark at the end by which [`is_generated`] knows it.

    Raises:
        ValueError: If a column is missing.

    Example:

    ```python
    >>> table = pa.table({"item_id": ["soap", "brush"], "codes": [[0, 1], [0, 2]]})
    >>> "2 codes per item" in dataset_card(table)
    True

    ```
    """
    missing = [name for name in ("item_id", "codes") if name not in table.column_names]
    if missing:
        raise ValueError(f"`table` needs the columns `item_id` and `codes`, it lacks {missing}.")
    data = DatasetCardData(
        tags=["recommendation", "semantic-ids"],
        configs=[{"config_name": "default", "data_files": file}],
    )
    codes = table["codes"].to_pylist()
    shape = [f"{len(codes[0]) if codes else 0} codes per item, from 0", *_collisions(table)]
    card = DatasetCard.from_template(
        data,
        template_str=_template("dataset_card.md"),
        num_items=f"{table.num_rows:,}",
        columns=", ".join(f"`{name}`" for name in table.column_names),
        shape="; ".join(shape) + ".",
        repo=repo_id or "REPO",
        examples=_examples(table),
        making=_bullets(_making(record)),
        versions=_versions(),
    )
    return marked(str(card))


def is_generated(card: str) -> bool:
    """
    Whether a card is one of ours that nobody has edited.

    Args:
        card (`str`): The text of a `README.md`.

    Returns:
        `bool`: `False` without our mark, or where text or metadata differ from what was marked. Line ends and blank
            lines at the end do not count.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_latte import LatteConfig
    >>> card = model_card(LatteConfig(num_items=12))
    >>> is_generated(card), is_generated(card.replace("recommender", "toy"))
    (True, False)

    ```
    """
    body, found, digest = _plain_lines(card).rpartition(_MARK)
    return bool(found) and digest == f"{_digest(body)} -->"


def marked(card: str) -> str:
    """
    A card with the mark by which [`is_generated`] knows it.

    Args:
        card (`str`): The text of a `README.md` that no person wrote.

    Returns:
        `str`: the same with a comment at the end.

    Example:

    ```python
    >>> is_generated(marked("# A page"))
    True

    ```
    """
    body = _plain_lines(card)
    return f"{body}{_MARK}{_digest(body)} -->\n"


_TAGS = {True: ["generative-recommendation", "semantic-ids"], False: ["sequential-recommendation"]}
_MARK = "\n\n<!-- generated by hf_genrec; edit it and it will be left alone: "
_DECODING = {
    "latte": "writes the next item's\ntuple, kept inside the catalog at every step",
    "rpg": "predicts all codes of the\nnext item at once, with which every item of the catalog is scored",
    "acerec": "predicts all codes of the\nnext item at once, with which every item of the catalog is scored",
    "sasrec": "scores every item of\nthe catalog",
}
_METRICS = ("recall@10", "ndcg@10", "invalid_rate")


def _template(name: str) -> str:
    return resources.files("hf_genrec.hub_cards").joinpath(name).read_text(encoding="utf-8")


def _plain_lines(text: str) -> str:
    return "\n".join(text.splitlines()).rstrip()


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _bullets(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _quantizer_of(folder: Path) -> dict[str, Any] | None:
    """What the files that tokenizing wrote say about the ids."""
    config, encoder = _read(folder / "config.json") or {}, _read(folder / "encoder.json") or {}
    told = {"quantizer_type": config.get("quantizer_type"), "encoder": encoder.get("model")}
    return {name: value for name, value in told.items() if value} or None


def _versions() -> str:
    from hf_genrec import __version__

    return ", ".join([f"hf_genrec {__version__}", *(f"{name} {version(name)}" for name in ("transformers", "torch"))])


def _model_index(config: Any, evaluation: Mapping[str, Any] | None, repo_id: str | None) -> dict[str, Any]:
    """Metrics as the Hub shows them beside the card."""
    if evaluation is None:
        return {}
    values = evaluation["model"]
    about = {"num_users": evaluation["num_users"], "fingerprint": evaluation.get("fingerprint")}
    results = [
        EvalResult(
            task_type=TASK,
            task_name="Next-item recommendation",
            dataset_type=evaluation["protocol"],
            dataset_name=dataset_of(evaluation["protocol"])[0],
            dataset_split=evaluation["split"],
            dataset_args={name: value for name, value in about.items() if value is not None},
            metric_type=name,
            metric_name=name,
            metric_value=round(float(values[name]), 4),
            metric_args=_interval(evaluation, name),
        )
        for name in _METRICS
        if name in values
    ]
    name = repo_id.rpartition("/")[2] if repo_id else f"{system_name(config)} recommender"
    return {"model_name": name, "eval_results": results}


def _interval(evaluation: Mapping[str, Any], metric: str) -> dict[str, Any] | None:
    interval = evaluation["model"]["intervals"].get(metric)
    if interval is None:
        return None
    confidence = evaluation.get("confidence", 0.95)
    return {"confidence": confidence, "interval": [round(float(end), 4) for end in interval]}


def _first(items: pa.Table | None, column: str) -> list[Any]:
    if items is None or column not in items.column_names:
        return []
    return items[column].slice(0, NUM_EXAMPLES).to_pylist()


def _examples(items: pa.Table | None) -> str:
    """A table of the first items; ids and titles come from anybody, so they are escaped."""
    columns = [name for name in ("item_id", "codes", "title") if _first(items, name)]
    if "item_id" not in columns:
        return ""
    cells = [[markdown_text(str(cell)) for cell in _first(items, name)] for name in columns]
    rows = [f"| {' | '.join(row)} |" for row in zip(*cells, strict=True)]
    return "\n".join([f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns), *rows])


def _collisions(items: pa.Table | None) -> list[str]:
    if items is None or "codes" not in items.column_names or not items.num_rows:
        return []
    _, sizes = np.unique(np.asarray(items["codes"].to_pylist()), axis=0, return_counts=True)
    shared = sizes[sizes > 1]
    if not len(shared):
        return ["no two items share all their codes"]
    return [
        f"{int(shared.sum()):,} of {items.num_rows:,} items ({shared.sum() / items.num_rows:.1%}) share all their "
        f"codes with another, in groups of up to {int(shared.max())}: the model cannot tell the items of a group apart"
    ]


def _ids_made_by(quantizer: Mapping[str, Any] | None) -> list[str]:
    if not quantizer:
        return []
    parts = [f"semantic IDs by `{quantizer['quantizer_type']}`"] if quantizer.get("quantizer_type") else []
    if quantizer.get("encoder"):
        parts.append(f"from texts read by {markdown_text(Path(quantizer['encoder']).name)}")
    return [" ".join(parts)]


def _making(record: Mapping[str, Any] | None) -> list[str]:
    """How semantic IDs were made, by the record of tokenizing."""
    if not record or "statistics" not in record:
        return ["not recorded"]
    statistics, settings = record["statistics"], record.get("settings", {})
    before, after = (statistics[name]["collision_rate"] for name in ("before", "after"))
    lines = [
        f"collision policy `{statistics['policy']}`: items that share all their codes before it {before:.1%}, after "
        f"it {after:.1%}",
        f"codes in use per level: {', '.join(str(level['num_used']) for level in statistics['levels'])} of "
        f"{statistics['codebook_size']}",
    ]
    known = ("quantizer", "num_whitened", "fit_on", "seed")
    told = [f"{name} {markdown_text(str(settings[name]))}" for name in known if settings.get(name) is not None]
    return lines + ([", ".join(told)] if told else []) + [f"data fingerprint `{record.get('data_fingerprint')}`"]


def _data_section(evaluation: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> str:
    """Which log the model saw and how; never a command, which may hold paths of somebody's machine."""
    settings = (run or {}).get("settings", {})
    name = (evaluation or {}).get("protocol") or settings.get("protocol")
    if name is None:
        return "Not recorded."
    label, page, licence = dataset_of(name)
    protocol = PROTOCOLS.get(name)
    lines = [f"data: {label}{f' ({page})' if page else ''}; protocol `{name}`"]
    if protocol is not None and protocol.k_core:
        lines.append(f"users and items with fewer than {protocol.k_core} interactions were taken out, repeatedly")
    lines.append("per user in the order of time: the last item is for test, the one before it for validation")
    if run:
        known = (("num_train_targets", "training targets"), ("num_parameters", "parameters"))
        told = [f"{run[key]:,} {what}" for key, what in known if run.get(key) is not None]
        told += [f"{run['minutes']:.0f} minutes"] if run.get("minutes") is not None else []
        told += [f"seed {settings['seed']}"] if settings.get("seed") is not None else []
        lines.append(", ".join(told))
    fingerprint = settings.get("data_fingerprint") or (evaluation or {}).get("fingerprint")
    if fingerprint:
        lines.append(f"data fingerprint `{markdown_text(str(fingerprint))}`")
    return _bullets([*(line for line in lines if line), f"licence: {licence}"])


def _evaluation_section(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return "This checkpoint was not evaluated."
    cut = shown_cut(evaluation["model"], metric="recall")
    confidence = f"{100 * evaluation['confidence']:g} % " if "confidence" in evaluation else ""
    header, *rows = record_table(evaluation, metrics=[f"recall@{cut}", f"ndcg@{cut}", "invalid_rate"])
    seen = "left out of the lists" if evaluation.get("exclude_seen") else "not filtered"
    lines = [
        f"Protocol {evaluation['protocol']}, {evaluation['split']} split, {evaluation['num_users']:,} users, full "
        f"ranking over {evaluation['num_items']:,} items; items of the history are {seen}. In brackets "
        f"{confidence}bootstrap intervals over users. Baselines first, the model last.",
        "",
        "| " + " | ".join(header) + " |",
        "|" + " --- |" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
    return "\n".join(lines)


def _limits(evaluation: Mapping[str, Any] | None) -> list[str]:
    lines = [
        "It knows only the items of its table, and of a person only the history that it is given.",
        "It repeats the habits of the log it was trained on, popular items most of all, with what is unfair in it.",
        "It says nothing about why a person might want an item. A high score is no sign of quality.",
    ]
    values = (evaluation or {}).get("model", {})
    buckets = [bucket for bucket in values.get("by_popularity", ()) if bucket["num_users"]]
    if len(buckets) > 1:
        rare, popular = buckets[0], buckets[-1]
        metric = next(name for name in rare if re.match(r"recall@\d+$", name))
        lines.append(
            f"{metric} is {rare[metric]:.4f} for items with {rare['bucket']} interactions in training and "
            f"{popular[metric]:.4f} for those with {popular['bucket']}."
        )
    if "coverage@10" in values:
        lines.append(f"The lists of ten of all test users together show {values['coverage@10']:.1%} of the catalog.")
    return lines
