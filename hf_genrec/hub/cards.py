"""
A config and the records of a folder in, a card out: the pages are in `hub_cards/`, their values come from here.

Titles and ids come from strangers: they are made safe for Markdown before they enter a page. A card ends with a mark
by which an edited one is known, which is never replaced unless asked.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from huggingface_hub import DatasetCard, DatasetCardData, EvalResult, ModelCard, ModelCardData, RepoCard

from hf_genrec import __version__
from hf_genrec.data.protocols import PROTOCOLS
from hf_genrec.data.split_times import SUFFIX
from hf_genrec.evaluation.record import record_table, shown_cut
from hf_genrec.files import read_json, read_table
from hf_genrec.modeling.genrec_folder import TASK
from hf_genrec.modeling.genrec_lists import VERSIONS_FILE, read_versions
from hf_genrec.serving.language_model import recommender_config
from hf_genrec.tokenizers.collisions import group_by_codes
from hf_genrec.tokenizers.semantic_ids import code_rows


logger = logging.getLogger(__name__)

NUM_EXAMPLES = 5
MAX_TEXT = 80  # characters of a title that a table shows


def model_card(
    config: Any,
    evaluation: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    run: Mapping[str, Any] | None = None,
    quantizer: Mapping[str, Any] | None = None,
    items: pa.Table | None = None,
    catalog: Mapping[str, Any] | None = None,
    sample: str | None = None,
    license: str | None = None,
    space: str | None = None,
    adapter: str | None = None,
) -> str:
    """
    The `README.md` of a checkpoint: Markdown with the Hub's metadata in front and the mark of [`is_generated`].

    Args: the model's config. Of what is known of it: its evaluation record, the contents of `training.json` and
        `catalog/versions.json`, `quantizer_type` and `encoder` behind its ids, the item table, and what
        [`sample_output`] returned. The repository that the examples name, the licence as the Hub spells it, and the
        Space that shows the model. Of an adapter its base.
    """
    data = _data_of(evaluation, run)
    metadata = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=adapter,
        license=license,
        datasets=data.get("dataset"),
        tags=["recommendation", *_TAGS[config.has_codes], config.model_type],
        **_model_index(config, evaluation, repo_id),
    )
    return _written(
        ModelCard,
        metadata,
        "model_card.md",
        {
            "config": config,
            "adapter": adapter,
            "repo": repo_id or "REPO",
            "space": space,
            "history": code_of_ids(_first(items, "item_id")),
            "examples": _examples(items),
            "sample": sample,
            "collisions": _collisions(items),
            "quantizer": quantizer or {},
            "catalog": catalog,
            "data": data,
            "run": run or {},
            "evaluation": evaluation,
            **_measured(evaluation),
        },
    )


def folder_card(
    folder: str | os.PathLike[str],
    *,
    config: Any = None,
    repo_id: str | None = None,
    sample: str | None = None,
    license: str | None = None,
    space: str | None = None,
    published: str = "",
) -> str:
    """
    The [`model_card`] of a run folder, from its files; what only a card says is kept from the earlier one.

    Without `config` that of the folder is read; `None` for `sample`, `license` and `space` keeps what the folder's
    card says, or the one `published` on the Hub.

    Args: see [`model_card`].
    """
    folder = Path(folder)
    items, card = folder / "items.parquet", folder / "README.md"
    earlier = _facts_of(published) | _facts_of(card.read_text(encoding="utf-8") if card.is_file() else "")
    given = {"sample": sample, "license": license, "space": space}
    return model_card(
        recommender_config(folder) if config is None else config,
        _read(folder / "evaluation.json"),
        repo_id=repo_id,
        run=_read(folder / "training.json"),
        quantizer={
            "quantizer_type": (_read(folder / "quantizer/config.json") or {}).get("quantizer_type"),
            "encoder": (_read(folder / "quantizer/encoder.json") or {}).get("model"),
        },
        items=read_table(items) if items.is_file() else None,
        catalog=read_versions(folder / VERSIONS_FILE) if (folder / VERSIONS_FILE).is_file() else None,
        adapter=(_read(folder / "adapter_config.json") or {}).get("base_model_name_or_path"),
        **(earlier | {name: value for name, value in given.items() if value is not None}),
    )


def dataset_card(
    table: pa.Table,
    record: Mapping[str, Any] | None = None,
    *,
    repo_id: str | None = None,
    license: str | None = None,
    published: str = "",
) -> str:
    """
    The `README.md` of a data set repository that holds semantic IDs in `ids.parquet`, marked as [`model_card`]'s.

    `table` has `item_id`, `codes` and whatever else is published; `record` is what tokenizing left beside the ids.

    Args: the others: see [`folder_card`].
    """
    missing = [name for name in ("item_id", "codes") if name not in table.column_names]
    if missing:
        raise ValueError(f"`table` needs the columns `item_id` and `codes`, it lacks {missing}.")
    record = record or {}
    metadata = DatasetCardData(
        license=license or _facts_of(published).get("license"),
        tags=["recommendation", "semantic-ids"],
        configs=[{"config_name": "default", "data_files": "ids.parquet"}],
    )
    return _written(
        DatasetCard,
        metadata,
        "dataset_card.md",
        {
            "num_items": table.num_rows,
            "num_levels": len(table["codes"][0]) if table.num_rows else 0,
            "columns": ", ".join(map(code_text, table.column_names)),
            "collisions": _collisions(table),
            "repo": repo_id or "REPO",
            "examples": _examples(table),
            "statistics": record.get("statistics"),
            "settings": record.get("settings", {}),
            "fingerprint": record.get("data_fingerprint"),
        },
    )


def sample_output(history: Sequence[str], recommended: Sequence[tuple[str, str, float]]) -> str:
    """
    The part of a card that shows what the model does.

    Args: titles of a history, oldest first; title, item id and score of what is recommended, best first.
    """
    rows = [
        (str(rank), markdown_text(title), markdown_text(item_id), f"{score:.2f}")
        for rank, (title, item_id, score) in enumerate(recommended, start=1)
    ]
    titles = "\n".join(f"- {markdown_text(title)}" for title in history)
    table = _markdown_table([("rank", "title", "item_id", "score"), *rows])
    return (
        f"A history, oldest first:\n\n{titles}\n\nWhat the model puts next, without items of the history:\n\n{table}"
    )


def is_generated(card: str) -> bool:
    """
    Whether a card is generated and was not edited since: it is as it was [`marked`], but for line ends.

    Args: the text of a `README.md`.
    """
    body, found, digest = _plain_lines(card).rpartition(_MARK)
    return bool(found) and digest == f"{_digest(body)} -->"


def marked(card: str) -> str:
    """
    A card with a comment at the end by which [`is_generated`] knows it.

    Args: the text of a `README.md` that no person wrote.
    """
    body = _plain_lines(card)
    return f"{body}{_MARK}{_digest(body)} -->\n"


def check_written(card: str, *, license: str | None = None, space: str | None = None) -> None:
    """
    Warn if a card that was edited, and so is left alone, does not say what it was asked to.

    Args: the text of a `README.md`, the licence that its metadata should name, and the Space that it should link to.
    """
    if is_generated(card):
        return
    lacks, link = [], f"https://huggingface.co/spaces/{space}"
    if license not in (None, RepoCard(card, ignore_metadata_errors=True).data.get("license")):
        lacks.append(f"`license: {license}` in the block at its top")
    if space is not None and link not in card:
        lacks.append(link)
    if lacks:
        logger.warning(
            "README.md was edited, so it stays as it is, without %s. Write that into it; or delete it in the folder, "
            "and push with `replace_card` (`--replace-card`), for a generated one.",
            " and ".join(lacks),
        )


def markdown_text(text: object) -> str:
    """
    A string of somebody else as one line of a Markdown table: shown as it is, never read as markup, HTML or a link.

    Args: any word; control characters are dropped and what is too long is cut.
    """
    line = _one_line(text)
    if len(line) > MAX_TEXT:
        line = line[: MAX_TEXT - 1].rstrip() + "…"
    line = re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", html.escape(line, quote=False))
    line = re.sub(r"(?<=\w):(?=\S)", "&#58;", line.replace("@", "&#64;"))  # https:, javascript:, mailto:
    return re.sub(r"(?i)(www)\.", r"\1&#46;", line)


def code_text(text: object) -> str:
    """A word of somebody else as code, where only a backtick or a new line means anything. Args: the word."""
    return f"`{_one_line(text).replace('`', chr(39))[:MAX_TEXT] or ' '}`"


def code_of_ids(item_ids: Sequence[str]) -> str:
    """
    A history for an example, as a list in Python: the first two ids that can stand in a block of code, or names.

    Args: ids of the catalog.
    """
    fit = [item_id for item_id in item_ids if re.fullmatch(r"[\w.:/+-]{1,40}", item_id)][:2]
    return json.dumps(fit or ["AN_ITEM_ID", "ANOTHER_ITEM_ID"], ensure_ascii=False)


_TAGS = {True: ["generative-recommendation", "semantic-ids"], False: ["sequential-recommendation"]}
_MARK = "\n\n<!-- generated by hf_genrec; edit it and it will be left alone: "
_METRICS = ("recall@10", "ndcg@10", "invalid_rate")
_AMAZON = "published for research without a stated licence; ask its authors before any other use"
_GROUPLENS = "for research; no commercial use and no redistribution without permission of GroupLens"
_OWN = "not stated here; whoever publishes this model must have the right to use the log"
# per protocol: the data's name, its page, what may be done with it, and its data set on the Hub
_DATA: dict[str, tuple[str, str | None, str, str | None]] = {
    "amazon2014": ("Amazon reviews 2014", "https://jmcauley.ucsd.edu/data/amazon/", _AMAZON, None),
    "amazon2018": ("Amazon reviews 2018", "https://nijianmo.github.io/amazon/", _AMAZON, None),
    "amazon2023": (
        "Amazon reviews 2023", "https://amazon-reviews-2023.github.io/", _AMAZON, "McAuley-Lab/Amazon-Reviews-2023"
    ),
    "movielens": ("MovieLens", "https://grouplens.org/datasets/movielens/", _GROUPLENS, None),
    "custom": ("a log of its own", None, _OWN, None),
}  # fmt: skip


def _written(kind: type[RepoCard], metadata: Any, template: str, values: Mapping[str, Any]) -> str:
    """A page of `hub_cards/` with its values, marked; in it `text` and `code` make safe what strangers wrote."""
    page = resources.files("hf_genrec.hub_cards").joinpath(template).read_text(encoding="utf-8")
    more: dict[str, Any] = {"text": markdown_text, "code": code_text, "versions": _versions()}
    return marked(str(kind.from_template(metadata, template_str=page, **values, **more)))


def _one_line(text: object) -> str:
    return "".join(letter for letter in " ".join(str(text).split()) if letter.isprintable())


def _plain_lines(text: str) -> str:
    return "\n".join(text.splitlines()).rstrip()


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _read(path: Path) -> Any:
    return read_json(path) if path.is_file() else None


def _facts_of(card: str) -> dict[str, str]:
    """What a generated card says that no other file of the folder does."""
    if not is_generated(card):
        return {}
    sample = re.search(r"^## Sample output\n\n(.*?)\n\n## ", card, re.DOTALL | re.MULTILINE)
    space = re.search(r"^Try it in the browser: <https://huggingface\.co/spaces/(\S+)>$", card, re.MULTILINE)
    facts = {
        "license": RepoCard(card).data.get("license"),
        "sample": sample and sample[1],
        "space": space and space[1],
    }
    return {name: value for name, value in facts.items() if value}


def _versions() -> str:
    others = (f"{name} {version(name)}" for name in ("transformers", "torch"))
    return ", ".join([f"hf-genrec {__version__}", *others])  # of a checkout nothing is installed to look up


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
            dataset_name=_DATA.get(evaluation["protocol"].removesuffix(SUFFIX), _DATA["custom"])[0],
            dataset_split=evaluation["split"],
            dataset_args={name: value for name, value in about.items() if value is not None},
            metric_type=name,
            metric_name=name,
            metric_value=round(float(values[name]), 4),
            metric_args=values["intervals"].get(name)
            and {
                "confidence": evaluation.get("confidence", 0.95),
                "interval": [round(float(end), 4) for end in values["intervals"][name]],
            },
        )
        for name in _METRICS
        if name in values
    ]
    name = repo_id.rpartition("/")[2] if repo_id else f"{config.system_name} recommender"
    return {"model_name": name, "eval_results": results}


def _first(items: pa.Table | None, column: str) -> list[Any]:
    if items is None or column not in items.column_names:
        return []
    return items[column].slice(0, NUM_EXAMPLES).to_pylist()


def _examples(items: pa.Table | None) -> str:
    """A table of the first items."""
    columns = [name for name in ("item_id", "codes", "title") if _first(items, name)]
    if "item_id" not in columns:
        return ""
    cells = [[markdown_text("" if cell is None else cell) for cell in _first(items, name)] for name in columns]
    return _markdown_table([columns, *zip(*cells, strict=True)])


def _markdown_table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def _collisions(items: pa.Table | None) -> str:
    codes = None if items is None or "codes" not in items.column_names else code_rows(items["codes"])
    if codes is None or not len(codes):
        return ""
    _, sizes = group_by_codes(codes)
    shared = sizes[sizes > 1]
    if not len(shared):
        return "no two items share all their codes"
    return (
        f"{int(shared.sum()):,} of {len(codes):,} items ({shared.sum() / len(codes):.1%}) share all their "
        f"codes with another, in groups of up to {int(shared.max())}: the model cannot tell the items of a group apart"
    )


def _data_of(evaluation: Mapping[str, Any] | None, run: Mapping[str, Any] | None) -> dict[str, Any]:
    """Which log the model saw; never a command, which may hold paths of somebody's machine."""
    run, evaluation = run or {}, evaluation or {}
    settings = run.get("settings", {})
    protocol = evaluation.get("protocol") or settings.get("protocol")
    if protocol is None:
        return {}
    source = protocol.removesuffix(SUFFIX)
    facts = zip(("label", "page", "licence", "dataset"), _DATA.get(source, _DATA["custom"]), strict=True)
    return {
        **dict(facts),
        "protocol": protocol,
        "is_temporal": source != protocol,
        "k_core": PROTOCOLS[source].k_core if source in PROTOCOLS else 0,
        "fingerprint": settings.get("data_fingerprint") or evaluation.get("fingerprint"),
    }


def _measured(evaluation: Mapping[str, Any] | None) -> dict[str, Any]:
    """The table of metrics, and the ends of the popularity scale with a metric of theirs."""
    if evaluation is None:
        return {"metrics": "", "buckets": []}
    values = evaluation["model"]
    cut = shown_cut(values, metric="recall")
    rows = record_table(evaluation, metrics=[f"recall@{cut}", f"ndcg@{cut}", "invalid_rate"])
    buckets = [bucket for bucket in values.get("by_popularity", ()) if bucket["num_users"]]
    return {
        "metrics": _markdown_table([(markdown_text(system), *cells) for system, *cells in rows]),
        "buckets": [buckets[0], buckets[-1]] if len(buckets) > 1 else [],
        "of_buckets": next((name for bucket in buckets for name in bucket if re.match(r"recall@\d+$", name)), ""),
    }
