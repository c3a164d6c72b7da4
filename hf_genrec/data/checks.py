"""
Checks before a number is believed: splits that overlap, a run that was trained on other data.

Splits come in as tables with the columns `user_id`, `history` and `target`, records as the content of JSON files.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from hf_genrec.data.split_times import SplitTimes
from hf_genrec.data.splits import SPLITS, flat_sequences, flat_times
from hf_genrec.files import first_five


logger = logging.getLogger(__name__)


def check_splits(
    splits: Mapping[str, pa.Table], item_ids: Sequence[str], *, cold_item_ids: Sequence[str] = (), owner: str
) -> None:
    """
    Checks that no split holds a target of a later one.

    The history and target of a user in one split must be the beginning of the same user's history in every later
    split, apart from items held out of training: then no target of validation or test was trained on at its place.

    Args: the three splits by name, the catalog, the items held out of training, and whose they are, for the error.
    """
    catalog = pa.array(item_ids, pa.string())
    is_cold = pc.is_in(catalog, value_set=pa.array(cold_item_ids, pa.string())).to_numpy(zero_copy_only=False)
    rows = {}
    for name in SPLITS:
        items, offsets = flat_sequences(splits[name], item_ids)
        rows[name] = _Rows(splits[name]["user_id"], items, np.diff(offsets))
        _check_users(rows[name].users, f"the {name} split of {owner}")
    trained = np.unique(rows["train"].items[rows["train"].items >= 0])
    if is_cold[trained].any():
        shown = first_five(catalog.take(pa.array(trained[is_cold[trained]])))
        raise ValueError(
            f"In {owner} items that are held out of training occur in the train split ({shown}). "
            "Prepare the log again with `hf-genrec prepare`."
        )
    for earlier, later in (("train", "validation"), ("train", "test"), ("validation", "test")):
        wrong = _overlaps(rows[earlier], rows[later], is_cold if earlier == "train" else np.zeros_like(is_cold))
        if len(wrong):
            raise ValueError(
                f"In {owner} the {earlier} split reaches into the {later} split for {len(wrong)} users "
                f"({first_five(wrong)}): a user's sequence in the one must be the beginning of the history in the "
                "other, otherwise targets were trained on. Prepare the log again with `hf-genrec prepare`."
            )


def check_times(split: pa.Table, *, owner: str) -> None:
    """
    Checks that times do not go backwards: neither within a history nor from its last item to the target.

    Args: a table with `user_id`, `timestamp` (of the target) and `timestamps` (of the history's items), null where
    there are no times; whose it is, for the error.
    """
    split = split.filter(pc.is_valid(split["timestamps"]))
    num_null = pc.list_flatten(split["timestamps"]).null_count + split["timestamp"].null_count
    if num_null:
        raise ValueError(f"In {owner} {num_null} items have no time where others of that user have one.")
    times = flat_times(split)
    ends = np.cumsum(pc.list_value_length(split["timestamps"]).to_numpy() + 1)
    goes_back = np.diff(times) < 0
    goes_back[ends[:-1] - 1] = False  # from one user's target to the next user's first item
    wrong = np.unique(np.searchsorted(ends, np.flatnonzero(goes_back), side="right"))
    if len(wrong):
        raise ValueError(
            f"In {owner} times go backwards for {len(wrong)} users ({first_five(split['user_id'].take(wrong))}): a "
            "history is ordered from the oldest item to the target. Prepare the log again with `hf-genrec prepare`."
        )


def check_split_times(splits: Mapping[str, pa.Table], times: SplitTimes, *, owner: str) -> None:
    """
    Checks that every split keeps to its side of the times: nothing that was trained on, and no history, may come after
    the moment at which lists are made.

    Args: the splits by name, with the columns of [`check_times`]; the times, and whose they are, for the error.
    """
    test, far = times.test, np.iinfo(np.int64).max
    known = test if times.validation is None else times.validation
    first = np.iinfo(np.int64).min if times.validation is None else times.validation
    allowed = {"train": (known, first, known), "validation": (known, first, test), "test": (test, test, far)}
    for name, (end_of_history, first_target, end_of_targets) in allowed.items():
        history, target = pc.list_flatten(splits[name]["timestamps"]).to_numpy(), splits[name]["timestamp"].to_numpy()
        is_early = (target < first_target) & (name != "train")
        num_wrong = int((history >= end_of_history).sum() + (is_early | (target >= end_of_targets)).sum())
        if num_wrong:
            raise ValueError(
                f"In {owner} {num_wrong} items of the {name} split lie on the wrong side of the times of the splits, "
                f"{times.record()}. Prepare the log again with `hf-genrec prepare`."
            )


def check_trained_on(training: Mapping[str, Any], metadata: Mapping[str, Any], *, owner: str) -> None:
    """
    Checks that a run may be evaluated on a data set: what it was trained on must not hold the targets.

    A run is evaluated on the data it was trained on. A fine-tuned run, or a log that was prepared for a given catalog
    (`keep_all_items=True`), may differ, with a warning: that is how a model meets new data. A warning also comes where
    the checkpoint that a run was fine-tuned from has seen other data. With a cold-start split other data are always an
    error: the items held out may have been trained on there.

    Args: contents of `training.json` (empty where there is none) and of `dataset.json`; the run's name for messages.
    """
    settings, found = training.get("settings", {}), metadata["fingerprint"]
    others = [fingerprint for fingerprint in trained_on(training) if fingerprint != found]
    if not others:
        return
    story = f"{owner} was trained on the data {', '.join(others)}, these are the data {found}"
    if metadata.get("cold_items"):
        raise ValueError(
            f"{story}, which hold items out of training: they may have been trained on there. Train a new model on "
            "these data alone."
        )
    if settings.get("from") is None and not metadata.get("options", {}).get("keep_all_items"):
        raise ValueError(
            f"{story}: the items are the same, but targets of these may have been trained on there. Evaluate on the "
            "prepared folder of the training, or prepare another log over these items with `--keep-all-items`."
        )
    logger.warning("%s. Where users of these are among the users of those, the numbers may be too high.", story)


def trained_on(training: Mapping[str, Any]) -> list[str]:
    """
    Fingerprints of the data that a run's weights have seen: those of the checkpoint it began with, then its own.

    Args: the content of the run's `training.json`; empty where there is none.
    """
    settings = training.get("settings", {})
    own = [settings["data_fingerprint"]] if "data_fingerprint" in settings else []
    return list(settings.get("trained_on", own))


def check_learned_on(tokenized: Mapping[str, Any], metadata: Mapping[str, Any], *, owner: str) -> None:
    """
    Warns if codes were learned from the training items of another data set.

    Args: contents of `tokenizer.json` and of `dataset.json`, and the tokenized folder's name for the message.
    """
    learned = tokenized.get("data_fingerprint", metadata["fingerprint"])
    if tokenized.get("settings", {}).get("fit_on") == "train" and learned != metadata["fingerprint"]:
        logger.warning(
            "The codes of %s were learned from the training items of the data %s, these are the data %s. Run "
            "`hf-genrec tokenize` on these, or some codes know texts of items that are not trained on.",
            owner,
            learned,
            metadata["fingerprint"],
        )


class _Rows(NamedTuple):
    """Sequences (each history, then its target) one after the other, as item indices; -1 is no item."""

    users: pa.ChunkedArray
    items: np.ndarray
    lengths: np.ndarray


def _check_users(users: pa.ChunkedArray, where: str) -> None:
    counts = pc.value_counts(users)
    repeated = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")
    if len(repeated):
        raise ValueError(
            f"{len(repeated)} users have several rows in {where} ({first_five(repeated)}): each must have one. "
            "Prepare the log again with `hf-genrec prepare`."
        )


def _overlaps(earlier: _Rows, later: _Rows, is_cold: np.ndarray) -> pa.ChunkedArray:
    """Users whose sequence of the earlier split is not the beginning of their later history without cold items."""
    # The later histories without cold items, as one flat array, and where each user's begins in it.
    is_read = ~np.append(is_cold, False)[later.items]  # -1 reads the entry appended
    is_read[np.cumsum(later.lengths) - 1] = False  # a target is no history
    num_read = np.append(0, np.cumsum(is_read))
    later_ends = np.append(0, np.cumsum(later.lengths))
    later_starts, later_lengths = num_read[later_ends[:-1]], np.diff(num_read[later_ends])
    history = later.items[is_read]

    # Users of both splits; a sequence longer than the later history overlaps without a look at the items.
    match = pc.fill_null(pc.index_in(earlier.users, value_set=later.users), -1).to_numpy()
    compared = np.flatnonzero(match >= 0)
    too_long = earlier.lengths[compared] > later_lengths[match[compared]]
    fitting = compared[~too_long]

    # The others item by item: `row_of` numbers the compared users, `place` the items of each.
    sizes = earlier.lengths[fitting]
    row_of = np.repeat(np.arange(len(fitting)), sizes)
    place = np.arange(len(row_of)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    earlier_starts = np.cumsum(earlier.lengths) - earlier.lengths
    mine = earlier.items[earlier_starts[fitting][row_of] + place]
    theirs = history[later_starts[match[fitting]][row_of] + place]
    differs = np.bincount(row_of[mine != theirs], minlength=len(fitting)) > 0
    return earlier.users.take(pa.array(np.sort(np.append(compared[too_long], fitting[differs]))))
