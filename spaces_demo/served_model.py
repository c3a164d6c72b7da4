"""
One recommender, loaded from a folder or a Hub repository and asked for items: histories as item indices in, ranked
item indices with log-probabilities out. Nothing in here knows of a page, and nothing changes after loading.
"""

import json
import os
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from huggingface_hub import hf_hub_download, metadata_load
from huggingface_hub.errors import EntryNotFoundError
from language_model import LANGUAGE_MODEL, package
from neighbors import NEIGHBORS_NAME, Neighbors, read_neighbors
from transformers import AutoConfig, pipeline
from transformers.utils.hub import extract_commit_hash


TASK = "next-item-recommendation"
README = Path(__file__).with_name("README.md")
MAX_HISTORY = 50
MAX_RESULTS = 50
MAX_BEAMS = 200
MAX_QUERY = 100  # characters
NUM_FOUND = 8
NUM_REASONS = 3
NUM_EXAMPLES = 4
EXAMPLE_LENGTH = 3
DIVERSE_POOL = 5  # items that a diverse list is picked from, per item of the list, where no beams say how many


@dataclass(frozen=True)
class Settings:
    """
    What a visitor may choose; every number is brought into its bounds, whoever sent it.

    Args:
        top_k (`int`): Length of the list, 1 to `MAX_RESULTS`.
        num_beams (`int`): Width of the search, 1 to `MAX_BEAMS`.
        latent_aggregation (`str`): `"max"` or `"sum"`; anything else is `"max"`.
        exclude_seen (`bool`): Whether items of the history are left out.
        diversity (`float`): 0 to 1.
    """

    top_k: int = 10
    num_beams: int = 50
    latent_aggregation: str = "max"
    exclude_seen: bool = False
    diversity: float = 0.0

    def __post_init__(self) -> None:
        bounded = {
            "top_k": int(_within(self.top_k, 1, MAX_RESULTS)),
            "num_beams": int(_within(self.num_beams, 1, MAX_BEAMS)),
            "latent_aggregation": "sum" if self.latent_aggregation == "sum" else "max",
            "exclude_seen": bool(self.exclude_seen),
            "diversity": float(_within(self.diversity, 0, 1)),
        }
        for name, value in bounded.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class Reason:
    """What an item has in common with one item of the history: codes, or the cosine where items have none."""

    item: int
    num_leading: int = 0
    num_shared: int = 0
    cosine: float | None = None


@dataclass(frozen=True)
class Answer:
    """Ranked items, how they were found and how long that took."""

    items: list[int]
    scores: list[float]
    seconds: float
    settings: Settings
    paths: list[Any] = field(default_factory=list)
    pruned: list[Any] = field(default_factory=list)
    reasons: list[list[Reason]] = field(default_factory=list)
    by_neighbors: list[int] | None = None  # what item-kNN recommends; `None` where the repository holds no neighbours
    num_unknown: int = 0  # items of the list that the page does not know


class ServedModel:
    """
    A model, its items, its evaluation and its neighbours.

    Args:
        name (`str`): What the page calls it.
        model: A model with `recommend()`.
        items (`pa.Table`): `item_id` in the order of the model's items, `title` where there is one.
        evaluation (`dict`, *optional*): The record of `evaluation.json`.
        neighbors ([`Neighbors`], *optional*): The similarities of `item_neighbors.parquet`.
        is_on_hub (`bool`, defaults to `False`): Whether `name` is a repository of the Hub.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        items: pa.Table,
        evaluation: dict[str, Any] | None = None,
        neighbors: Neighbors | None = None,
        *,
        is_on_hub: bool = False,
    ) -> None:
        self.model = model.eval()
        saved = getattr(model, "recommend_config", None)  # code published before has none
        self.describe(
            Source(name, model.config, is_on_hub=is_on_hub),
            items,
            evaluation,
            neighbors,
            saved=saved.changed() if saved is not None else {},
            has_beams=model.default_decoding == "beam",
            codes=model.item_codes.long() if model.config.has_codes else None,
        )

    def describe(
        self,
        source: "Source",
        items: pa.Table,
        evaluation: dict[str, Any] | None,
        neighbors: Neighbors | None,
        *,
        saved: dict[str, Any],
        has_beams: bool,
        codes: torch.Tensor | None,
    ) -> None:
        """Set what the page shows; `saved` is what `recommend_config.json` holds."""
        self.name, self.config, self.is_on_hub = source.name, source.config, source.is_on_hub
        self.kind: str = getattr(self.config, "display_name", self.config.model_type)
        self.summary: str = getattr(self.config, "summary", "")
        self.evaluation = evaluation
        self.neighbors = neighbors
        self.item_ids: list[str] = items["item_id"].to_pylist()
        titles = items["title"].to_pylist() if "title" in items.column_names else [None] * items.num_rows
        self.titles = [shown(title or "") or shown(key) for title, key in zip(titles, self.item_ids, strict=True)]
        self.index_of = {item_id: index for index, item_id in enumerate(self.item_ids)}
        self.folded_titles = pa.array([folded(title) for title in self.titles])
        self.has_beams = has_beams
        self.has_latents = has_beams and self.config.num_latent_tokens > 0
        self.defaults = default_settings(evaluation, saved, num_items=len(self.item_ids))
        self.codes = codes

    @cached_property
    def can_compare(self) -> bool:
        """Whether items have codes or vectors to be compared by; sums of earlier versions have neither."""
        return self.codes is not None or self.model.item_embeddings() is not None

    @property
    def facts(self) -> list[str]:
        """What is said of it beside its config."""
        return [f"{sum(parameter.numel() for parameter in self.model.parameters()):,} parameters"]

    def search(self, text: str) -> list[int]:
        """Items whose id is `text` or whose title holds all its words; titles that begin with it first."""
        text = text[:MAX_QUERY].strip()
        words = folded(text).split()
        if not words:
            return []
        holds = pc.match_substring(self.folded_titles, words[0])
        for word in words[1:]:
            holds = pc.and_(holds, pc.match_substring(self.folded_titles, word))
        found = pc.indices_nonzero(holds)
        place = pc.find_substring(self.folded_titles.take(found), words[0])
        ranked = pa.table({"item": found, "place": pc.equal(place, 0)}).sort_by(
            [("place", "descending"), ("item", "ascending")]
        )
        exact = [self.index_of[text]] if text in self.index_of else []
        return (exact + [item for item in ranked["item"].slice(0, NUM_FOUND).to_pylist() if item not in exact])[
            :NUM_FOUND
        ]

    @torch.no_grad()
    def recommend(self, history: Sequence[int], settings: Settings) -> Answer:
        """The best next items after a history, oldest first; the model reads its end, and an empty one is allowed."""
        config, first = self.config, self.config.first_item_token
        history = list(history)[-MAX_HISTORY:]
        read = history[-config.max_history_length :]
        tokens = torch.tensor([[first + item for item in read] or [config.pad_token_id]])
        options: dict[str, Any] = {"top_k": min(settings.top_k, config.num_items)}
        if self.can_compare:
            options["diversity"] = settings.diversity
        if self.has_beams:
            options["num_beams"] = settings.num_beams
            options["latent_aggregation"] = settings.latent_aggregation
            options["return_paths"] = True
        else:
            options["num_beams"] = DIVERSE_POOL * settings.top_k
        if settings.exclude_seen and history:
            options["exclude_items"] = torch.tensor([first + item for item in history])
        start = time.perf_counter()
        output = self.model.recommend(tokens, **options)
        seconds = time.perf_counter() - start
        is_item = output.item_tokens[0] != config.pad_token_id
        items = (output.item_tokens[0][is_item] - first).tolist()
        return Answer(
            items=items,
            scores=output.scores[0][is_item].tolist(),
            seconds=seconds,
            settings=settings,
            paths=output.paths[0] if output.get("paths") else [],
            pruned=output.pruned[0] if output.get("pruned") else [],
            reasons=self.reasons(items, read),
            by_neighbors=self.neighbors
            and self.neighbors.recommend(history, top_k=options["top_k"], exclude_seen=settings.exclude_seen),
        )

    def reasons(self, items: Sequence[int], history: Sequence[int]) -> list[list[Reason]]:
        """For each item the closest items of the history, the latest first where several are equally close."""
        if not items or not history or not self.can_compare:
            return [[] for _ in items]
        latest_first = torch.tensor(list(history)[::-1])
        wanted = torch.tensor(list(items))
        if self.codes is None:
            listed, read = (
                torch.nn.functional.normalize(self.vectors(rows), dim=1) for rows in (wanted, latest_first)
            )
            closeness = listed @ read.T  # (K, H)
            leading = shared = torch.zeros_like(closeness, dtype=torch.long)
        else:
            is_same = self.codes[wanted].unsqueeze(1) == self.codes[latest_first]  # (K, H, L)
            leading, shared = is_same.long().cumprod(2).sum(2), is_same.long().sum(2)
            closeness = leading if self.has_beams else shared
        order = closeness.sort(dim=1, descending=True, stable=True).indices[:, :NUM_REASONS]
        columns = (latest_first[order], leading.gather(1, order), shared.gather(1, order), closeness.gather(1, order))
        return [
            [
                Reason(item, num_leading, num_shared, cosine=value if self.codes is None else None)
                for item, num_leading, num_shared, value in zip(*row, strict=True)
                if self.codes is None or value > 0
            ]
            for row in zip(*(column.tolist() for column in columns), strict=True)
        ]

    def vectors(self, items: torch.Tensor) -> torch.Tensor:
        """Vectors of some items, of a model without codes."""
        return self.model.item_embeddings().float()[items]

    def examples(self) -> list[list[int]]:
        """
        Histories to begin with: a few items that the model expects of someone it knows nothing about, as unlike as it
        can pick them, each followed by what the model itself recommends next. No real user is shown.
        """
        settings = Settings(top_k=NUM_EXAMPLES, num_beams=50, diversity=0.7)
        histories = [[item] for item in self.recommend([], settings).items]
        one = Settings(top_k=1, num_beams=10, exclude_seen=True)
        for history in histories:
            while len(history) < min(EXAMPLE_LENGTH, len(self.item_ids)):
                history += self.recommend(history, one).items
        return histories


def repository(arguments: Sequence[str], *, readme: Path = README) -> str:
    """Whose page it is: the repository or folder named on the command line, by the variable, or in the card."""
    models = ((metadata_load(readme) if readme.is_file() else None) or {}).get("models") or []
    names = [*arguments[:1], os.environ.get("HF_GENREC_REPO", ""), *models]
    name = next((name for name in names if name), None)
    if name is None:
        raise ValueError(
            "Say which recommender to show: `python app.py NAME_OR_FOLDER`, the variable HF_GENREC_REPO, or `models` "
            "in the head of README.md."
        )
    return name


@dataclass(frozen=True)
class Source:
    """A repository or folder, all of one commit: what the page calls it, and its config."""

    name: str
    config: Any
    is_on_hub: bool
    location: str = ""
    revision: str | None = None

    def items(self) -> pa.Table:
        """`items.parquet`."""
        return pq.read_table(_file(self.location, "items.parquet", self.revision))

    def optional(self, name: str) -> Path | None:
        """A file that need not be there."""
        return _optional_file(self.location, name, self.revision)


def source_of(repo_or_folder: str | os.PathLike[str]) -> Source:
    """A folder, or a Hub repository, `name@revision` to pin the code that is run; only its config is loaded."""
    location, is_folder = os.fspath(repo_or_folder), Path(repo_or_folder).is_dir()
    location, revision = (location, None) if is_folder else pinned(location)
    of_language_model = _optional_file(location, "recommender.json", revision)
    if of_language_model is not None:
        revision = None if is_folder else extract_commit_hash(str(of_language_model), None)
        config = package().recommender_config(location, {"revision": revision})
    else:
        config = AutoConfig.from_pretrained(location, revision=revision, trust_remote_code=True)
        revision = None if is_folder else getattr(config, "_commit_hash", None)
    name = "/".join(Path(location).resolve().parts[-2:]) if is_folder else location
    return Source(name, config, is_on_hub=not is_folder, location=location, revision=revision)


def load_model(repo_or_folder: str | os.PathLike[str]) -> ServedModel:
    """
    Load what the page serves, all of it from one commit.

    Args:
        repo_or_folder (`str` or `Path`):
            Name of a Hub repository, `name@revision` to pin the code that is run, or a folder with the same files.

    Returns:
        [`ServedModel`]

    Raises:
        ValueError: If weights, item table and tokenizer do not belong together.
    """
    source = source_of(repo_or_folder)
    config = source.config
    # the pipeline refuses weights, code and tokenizer that are not of one recommender
    if config.model_type == LANGUAGE_MODEL:
        loaded = package().load_language_model(source.location, {"revision": source.revision})
    else:
        loaded = pipeline(TASK, model=source.location, revision=source.revision, trust_remote_code=True, device="cpu")
    if hasattr(loaded, "check_files"):  # code published before has none
        loaded.check_files("items.parquet")
    items = source.items()
    item_ids = items["item_id"].to_pylist()
    tokens = range(config.first_item_token, config.first_item_token + config.num_items)
    if config.model_type != LANGUAGE_MODEL and loaded.tokenizer.convert_ids_to_tokens(tokens) != item_ids:
        raise ValueError(
            f"items.parquet ({len(item_ids)} items) does not list the {config.num_items} items of tokenizer.json in "
            "their order. Use the files of one save."
        )
    evaluation, neighbors = (source.optional(name) for name in ("evaluation.json", NEIGHBORS_NAME))
    if hasattr(loaded, "check_files"):
        loaded.check_files(*(path.name for path in (evaluation, neighbors) if path is not None))
    return ServedModel(
        source.name,
        loaded if config.model_type == LANGUAGE_MODEL else loaded.model,
        items,
        evaluation and json.loads(evaluation.read_text(encoding="utf-8")),
        neighbors and read_neighbors(neighbors, item_ids),
        is_on_hub=source.is_on_hub,
    )


def pinned(name: str) -> tuple[str, str | None]:
    """A repository and the revision that it is pinned to, from `user/name` or `user/name@revision`."""
    repository, _, revision = name.partition("@")
    return repository, revision or None


def default_settings(
    evaluation: dict[str, Any] | None, saved: dict[str, Any] | None = None, *, num_items: int
) -> Settings:
    """
    The settings that the model was evaluated with, or those saved beside it where they are set, as far as a page
    allows them. The history is left out, whatever the evaluation did: what a visitor has just chosen is no
    recommendation.
    """
    run = ((evaluation or {}).get("run") or {}) | (saved or {})
    return Settings(
        top_k=min(run.get("top_k") or Settings.top_k, num_items),
        num_beams=run.get("num_beams") or Settings.num_beams,
        latent_aggregation=run.get("latent_aggregation") or "max",
        exclude_seen=True,
    )


def shown(text: str) -> str:
    """Text without what cannot be printed (control characters turn text around), spaces joined, at most 200 long."""
    text = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return text if len(text) <= 200 else text[:199] + "…"


def folded(text: str) -> str:
    """Text for comparing: neither case nor accents."""
    letters = unicodedata.normalize("NFKD", text.casefold())
    return "".join(letter for letter in letters if not unicodedata.combining(letter))


def _file(source: str, name: str, revision: str | None) -> Path:
    return Path(source) / name if Path(source).is_dir() else Path(hf_hub_download(source, name, revision=revision))


def _optional_file(source: str, name: str, revision: str | None) -> Path | None:
    try:
        path = _file(source, name, revision)
    except EntryNotFoundError:
        return None
    return path if path.is_file() else None


def _within(value: Any, low: float, high: float) -> float:
    """A number within bounds; the lower one where a browser sent none."""
    is_number = isinstance(value, int | float) and value == value
    return min(max(value, low), high) if is_number else low
