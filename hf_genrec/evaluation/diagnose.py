"""
Trained models and a prepared data set in, one report of what their decoding trees do out, as a dict that goes to JSON.

The same users and the same pairs of items for all models over one tree. A model that scores items without a tree
(SASRec, RPG, ACERec) is a reference: its pairs are those of the first model's tree, so its numbers say how alike the
items would be treated if no tree tied them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import SequenceCollator, WindowDataset, make_examples
from hf_genrec.evaluation.baselines.base import sampled_users
from hf_genrec.evaluation.lists import item_indices
from hf_genrec.evaluation.prefixes import popular_prefixes, shared_codes_of_pairs, shared_codes_per_user
from hf_genrec.evaluation.record import evaluation_run, named_path
from hf_genrec.evaluation.tables import NONE, TextTable, number
from hf_genrec.evaluation.tree import (
    best_latent_differs,
    kendall_tau,
    latent_entropy,
    latent_information,
    num_neighbours,
    pair_correlations,
    reversal_rates,
    sample_pairs,
)
from hf_genrec.modeling.genrec_recommend_config import check_latent_aggregation
from hf_genrec.serving.recommender import Recommender
from hf_genrec.serving.times import has_times


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
LIST_LENGTH = 10
USERS_AT_A_TIME = 32


def diagnose(
    systems: Mapping[str, Recommender],
    prepared: PreparedDataset,
    *,
    num_users: int = 512,
    num_pairs: int = 1024,
    seed: int = 0,
    latent_aggregation: str = "sum",
    num_latent_users: int = 32,
    show_progress: bool = False,
) -> dict[str, Any]:
    """
    How the probabilities of models depend on the distance of items in the tree of semantic IDs.

    Scores are exact, those of a sample of users of the test split for the items of the sampled pairs. The same users
    get lists of ten items by the options of each model, whose popular prefixes are counted (see `prefixes.py`).

    Args: loaded models by name, of which the first must decode along a tree; their data set; users, and pairs of items
    per distance, as in the paper, with the seed of both; the aggregation over the latents of an item, `"sum"` or
    `"max"`; users for the entropy and information of the latent; and whether progress bars are shown.

    Returns:
        `dict`: what was measured, and by name in `models`: `tree_of` (whose tree), `tree`, `kendall_tau` with its
        `interval` (see [`~tree.KendallTau`]), `by_distance`, `lists` and, where there are latents, `latents`.
        Intervals are spreads over pairs of items, users fixed.

    Source: Hou et al. 2026, sections 3 and 5.3 (https://huggingface.co/papers/2605.06331).
    """
    check_latent_aggregation(latent_aggregation)
    least = {"num_users": (num_users, 2), "num_pairs": (num_pairs, 1), "num_latent_users": (num_latent_users, 1)}
    for name, (value, smallest) in least.items():
        if value < smallest:
            raise ValueError(f"`{name}` must be at least {smallest}, got {value}.")
    first = _check_systems(systems, prepared)
    test = prepared.split("test")
    split = sampled_users(test, max_users=num_users, seed=seed)
    targets = np.asarray(make_examples(test, prepared.item_ids, targets="last").targets)
    counts = prepared.train_item_counts()
    trees: dict[str, dict[str, Any]] = {}
    models = {}
    for name, recommender in systems.items():
        tree_of = name if _has_tree(recommender) else first
        codes = systems[tree_of].model.item_codes.cpu().numpy()
        if tree_of not in trees:
            trees[tree_of] = {"pairs": sample_pairs(codes, num_pairs=num_pairs, seed=seed), **_tree(codes, targets)}
        has_latents = bool(recommender.model.config.num_latent_tokens)
        total = len(split) + has_latents * min(num_latent_users, len(split))
        bar = tqdm(desc=f"Scoring {name}", total=total, unit=" users", disable=not show_progress)
        with bar, torch.no_grad():
            users = _Users(recommender.model, split, prepared.item_ids, progress=bar.update)
            measured = _measure(users, trees[tree_of]["pairs"], latent_aggregation, num_latent_users, seed)
        measured["lists"] = _lists(recommender, split, prepared.item_ids, systems[tree_of], counts)
        tree = {key: value for key, value in trees[tree_of].items() if key != "pairs"}
        models[name] = {"model_type": recommender.model.config.model_type, "tree_of": tree_of, "tree": tree} | measured
    return {
        "protocol": prepared.metadata["protocol"],
        "split": "test",
        "fingerprint": prepared.fingerprint,
        "num_items": len(prepared.item_ids),
        "num_users": len(split),
        "num_pairs": num_pairs,
        "seed": seed,
        "latent_aggregation": latent_aggregation,
        "models": models,
    }


def load_systems(
    words: Sequence[str], *, device: str | None = None
) -> tuple[dict[str, Recommender], dict[str, dict[str, Any]]]:
    """Load runs under names. Args: words such as `NAME=RUN`, or `RUN`; `device` is `None` for the GPU if any."""
    systems, runs = {}, {}
    for word in words:
        given, folder = named_path(word)
        name = given or Path(folder).name
        if name in systems:
            raise ValueError(f"Two runs are called {name!r}: give them names, as in `A={folder}`.")
        systems[name] = Recommender.from_pretrained(folder, device=device)
        run = evaluation_run(folder, num_beams=0, latent_aggregation="sum", decoding="exact")
        runs[name] = {key: value for key, value in run.items() if key not in ("latent_aggregation", "decoding")}
    return systems, runs


def diagnosis_tables(report: Mapping[str, Any]) -> list[TextTable]:
    """A report as tables. Args: what [`diagnose`] returned."""
    models = report["models"]
    distances = sorted({row["distance"] for model in models.values() for row in model["by_distance"]})
    measured = f"{report['num_users']} users, up to {report['num_pairs']} pairs of items per distance"
    tables = []
    for key, title in (("correlation", "correlation"), ("reversal_rate", "reversed orders")):
        rows = [["model", *(f"at {distance}" for distance in distances), *(["tau-b"] if key == "correlation" else [])]]
        for name, model in models.items():
            means = {row["distance"]: row[key]["mean"] for row in model["by_distance"]}
            tau = [number(model["kendall_tau"], ".3f")] if key == "correlation" else []
            rows.append([name, *(number(means.get(distance), ".3f") for distance in distances), *tau])
        tables.append(TextTable(f"{title} by distance", rows, measured))
    rows = [["tree of", "items at 2", "items at 4", "% targets with sibling"]]
    for name, model in models.items():
        if model["tree_of"] == name:
            near = [number(model["tree"]["num_neighbours"].get(distance), ".2f") for distance in ("2", "4")]
            share = model["tree"]["targets_with_sibling"]
            rows.append([name, *near, number(None if share is None else 100 * share, ".1f")])
    tables.append(TextTable("the trees", rows))
    tables += _list_tables(models)
    rows = [["model", "latents", "entropy", "nats on item", "differs at 2", "at most"]]
    for name, model in models.items():
        if "latents" in model:
            latents = model["latents"]
            differs = {row["distance"]: row["best_latent_differs"] for row in model["by_distance"]}
            entropy, nats = f"{latents['normalized_entropy']:.4f}", f"{latents['mutual_information']:.2g}"
            most = [number(value, ".3f") for value in (differs.get(2), max(differs.values()))]
            rows.append([name, str(latents["num_latents"]), entropy, nats, *most])
    return [*tables, *([TextTable("the latents", rows)] if len(rows) > 1 else [])]


def _list_tables(models: Mapping[str, Any]) -> list[TextTable]:
    """What lists begin with, level by level, and how much of their IDs they share."""
    depths = [row["num_codes"] for row in next(iter(models.values()))["lists"]["by_prefix"]]
    rows = [
        ["model", *(f"first {depth}" if depth > 1 else "first code" for depth in depths), "codes shared", "by targets"]
    ]
    for name, model in models.items():
        lists = model["lists"]
        cells = {row["num_codes"]: _percent_of(row) for row in lists["by_prefix"]}
        shared = [number(lists[key], ".3f") for key in ("shared_codes", "shared_by_targets")]
        rows.append([name, *(cells.get(depth, NONE) for depth in depths), *shared])
    note = (
        "Share of the targets, and of all places of lists, that begin with a popular prefix: one of the fewest that "
        "hold half of the training interactions. Codes shared: by two items of a list, and by two targets."
    )
    return [TextTable("popular prefixes, % of targets → of lists", rows, note)]


def _percent_of(row: Mapping[str, Any]) -> str:
    shares = [number(None if row[key] is None else 100 * row[key], ".0f") for key in ("in_targets", "in_lists")]
    return f"{shares[0]} → {shares[1]} ({number(row['amplification'], '.2f')}x)"


class _Users:
    """The histories of some users and the model that scores items for them."""

    def __init__(self, model: Any, split: Any, item_ids: list[str], *, progress: Callable[[int], Any]) -> None:
        self.model = model
        self.progress = progress
        config = model.config
        options: dict[str, Any] = {"max_history_length": config.max_history_length, "has_gaps": has_times(config)}
        examples = make_examples(split, item_ids, targets="last", **options)
        self._rows = WindowDataset(examples, first_item_token=config.first_item_token)
        self._collate = SequenceCollator(pad_token_id=config.pad_token_id)

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self, users: NDArray[np.integer], size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """`input_ids` and `attention_mask` of some users, on the model's device."""
        for start in range(0, len(users), size):
            rows: list[Any] = [self._rows[row] for row in users[start : start + size].tolist()]
            batch = self._collate(rows)
            yield batch["input_ids"].to(self.model.device), batch["attention_mask"].to(self.model.device)
            self.progress(len(batch["input_ids"]))

    def scores(self, items: NDArray[np.int64], aggregation: str) -> tuple[NDArray[np.float32], Any]:
        """Log-probabilities `(num_users, len(items))`, and the best latent of each or `None`."""
        columns = torch.from_numpy(items).to(self.model.device)
        scores = np.empty((len(self), len(items)), dtype=np.float32)
        latents = np.empty(scores.shape, dtype=np.int16) if self.model.config.num_latent_tokens else None
        start = 0
        for input_ids, mask in self.batches(np.arange(len(self)), USERS_AT_A_TIME):
            rows = slice(start, start + len(input_ids))
            start = rows.stop
            if hasattr(self.model, "score_paths"):
                paths = self.model.score_paths(input_ids, mask, items=columns)
                part = paths.logsumexp(1) if aggregation == "sum" else paths.amax(1)
                if latents is not None:
                    latents[rows] = paths.argmax(1).cpu().numpy()
            else:
                part = self.model.score_items(input_ids, mask)[:, columns]
            scores[rows] = part.float().cpu().numpy()
        return scores, latents


def _has_tree(recommender: Recommender) -> bool:
    return recommender.model.default_decoding == "beam"


def _check_systems(systems: Mapping[str, Recommender], prepared: PreparedDataset) -> str:
    """The name of the first model, whose tree serves those without one."""
    if not systems:
        raise ValueError("`systems` must hold at least one model.")
    for name, recommender in systems.items():
        if recommender.item_ids != prepared.item_ids:
            raise ValueError(
                f"The catalog of {name} ({len(recommender.item_ids)} items) is not that of {prepared.folder} "
                f"({len(prepared.item_ids)} items, in their order): use the data that the model was trained on."
            )
    first = next(iter(systems))
    if not _has_tree(systems[first]):
        raise ValueError(
            f"{first} ({systems[first].model.config.model_type}) decodes without a tree: name a TIGER, PSID or Latte "
            "model first and this one as a reference."
        )
    return first


def _tree(codes: NDArray[np.integer], targets: NDArray[np.integer]) -> dict[str, Any]:
    neighbours = num_neighbours(codes)
    return {
        "num_levels": codes.shape[1],
        "num_neighbours": {str(distance): float(counts.mean()) for distance, counts in neighbours.items()},
        "targets_with_sibling": float((neighbours[2][targets] > 0).mean()) if len(targets) else None,
    }


def _measure(
    users: _Users, pairs: Mapping[int, NDArray[np.int64]], aggregation: str, num_latent_users: int, seed: int
) -> dict[str, Any]:
    items = np.unique(np.concatenate([np.zeros((0, 2), np.int64), *pairs.values()]))
    scores, latents = users.scores(items, aggregation)
    probabilities = np.exp(scores.astype(np.float64))
    correlations, rows = {}, []
    for distance, pairs_there in pairs.items():
        columns = np.searchsorted(items, pairs_there)
        correlations[distance] = pair_correlations(probabilities, columns)
        reversals = reversal_rates(scores, columns)
        row: dict[str, Any] = {"distance": distance, "num_pairs": len(columns)}
        row |= {"correlation": _summary(correlations[distance]), "reversal_rate": _summary(reversals)}
        if latents is not None:
            row["best_latent_differs"] = float(best_latent_differs(latents, columns).mean())
        rows.append(row)
    tau = kendall_tau(correlations, seed=seed)
    measured: dict[str, Any] = {"kendall_tau": tau.tau, "interval": [tau.low, tau.high], "by_distance": rows}
    if latents is not None:
        size = min(num_latent_users, len(users))
        sample = np.random.default_rng([seed, 1]).choice(len(users), size, replace=False)
        measured["latents"] = _latents(users, np.sort(sample))
    return measured


def _lists(
    recommender: Recommender, split: Any, item_ids: list[str], owner: Recommender, counts: NDArray[np.int64]
) -> dict[str, Any]:
    """Popular prefixes of the lists of a model, and how alike the items of a list are, by the tree of `owner`."""
    codes = owner.model.item_codes.cpu().numpy()
    histories = list(split["history"])
    has_values = recommender.reads_times and "timestamps" in split.column_names
    times: dict[str, Any] = {"times": list(split["timestamps"])} if has_values else {}
    found = recommender.recommend(histories, top_k=min(LIST_LENGTH, len(item_ids)), show_progress=False, **times)
    lists = item_indices(found.item_ids, item_ids=item_ids)
    targets = item_indices([[target] for target in split["target"]], item_ids=item_ids)
    shared = shared_codes_per_user(lists, codes=codes)
    return {
        "length": lists.shape[1],
        "by_prefix": popular_prefixes(lists, targets, codes=codes, counts=counts),
        "shared_codes": float(np.nanmean(shared)) if not np.isnan(shared).all() else None,
        "shared_by_targets": shared_codes_of_pairs(targets, codes=codes),
    }


def _latents(users: _Users, sample: NDArray[np.integer]) -> dict[str, Any]:
    """How evenly the latents are used by a sample of the users, and what they say about the item."""
    shares, entropies, informations = [], [], []
    catalog = users.model.catalog
    items = catalog.item_at(torch.arange(catalog.num_ids, device=catalog.device))  # of items that share an id one
    for input_ids, mask in users.batches(sample, 1):
        joint = users.model.score_paths(input_ids, mask, items=items).double().cpu().numpy()
        weights = np.exp(joint - joint.max()).sum(axis=2)
        shares.append(weights / weights.sum())
        entropies.append(latent_entropy(joint) if joint.shape[1] > 1 else np.zeros(1))
        informations.append(latent_information(joint))
    return {
        "num_latents": joint.shape[1],
        "num_users": len(sample),
        "shares": np.concatenate(shares).mean(axis=0).tolist(),
        "normalized_entropy": float(np.concatenate(entropies).mean()),
        "mutual_information": float(np.concatenate(informations).mean()),
    }


def _summary(values: NDArray[np.float64]) -> dict[str, Any]:
    """Mean with its 95 % spread over pairs of items, users fixed, and quantiles, of what is no NaN."""
    known = values[~np.isnan(values)]
    if not len(known):
        return {"mean": None, "low": None, "high": None, "num_undefined": len(values), "quantiles": {}}
    margin = 1.96 * float(known.std(ddof=1)) / len(known) ** 0.5 if len(known) > 1 else 0.0
    mean = float(known.mean())
    return {
        "mean": mean,
        "low": mean - margin,
        "high": mean + margin,
        "num_undefined": len(values) - len(known),
        "quantiles": {str(q): float(value) for q, value in zip(QUANTILES, np.quantile(known, QUANTILES), strict=True)},
    }
