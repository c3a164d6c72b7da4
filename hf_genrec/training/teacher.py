"""
A finished model and training rows in, what that model would recommend in place of each target out: distillation.

A log names one next item; a linear model names what else would have fitted. Training now and then on such an item
teaches a network which items are alike, most of all those that occur rarely.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_genrec.data.sequences import IGNORED_LABEL, Windows
from hf_genrec.serving.language_model import load_model
from hf_genrec.serving.recommender import check_model_name


NUM_BEST = 50  # items that a draw is from
_USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Teacher:
    """
    A model's best items at each place of the flat array of sequences, see [`Windows`].

    Args:
        rows (`np.ndarray` of shape `(num_places,)`): The row of each place in the two tables, -1 for no target.
        items (`torch.Tensor` of shape `(num_targets, n)`): Item indices, int32.
        shares (`torch.Tensor`, same shape): How likely each of them is, float16; 0 where there are fewer.

    Source: ours; distillation is Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), with draws in place of sums so
    that any loss takes them.
    """

    rows: NDArray[np.int32]
    items: torch.Tensor
    shares: torch.Tensor

    @classmethod
    def of(cls, model: Any, windows: Windows, *, leaves_out_seen: bool, show_progress: bool = False) -> Teacher:
        """
        Ask a model about the history before each target.

        Args:
            model: Any model of the library over the same items.
            windows ([`Windows`]): The training rows.
            leaves_out_seen (`bool`): Whether it may not name items of the history.
            show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar.
        """
        starts, places = _targets_of(windows)
        rows = np.full(len(windows.values), -1, dtype=np.int32)
        rows[places] = np.arange(len(places))
        config, items, shares = model.config, [], []
        for begin in tqdm(range(0, len(places), _USERS_AT_ONCE), desc="teacher", disable=not show_progress):
            some = slice(begin, begin + _USERS_AT_ONCE)
            histories = _histories(windows.values, starts[some], places[some])
            tokens = torch.from_numpy(
                np.where(histories < 0, config.pad_token_id, histories + config.first_item_token)
            )
            found = model.recommend(
                tokens, top_k=min(NUM_BEST, config.num_items), exclude_items=tokens if leaves_out_seen else None
            )
            is_none = found.scores == -float("inf")
            items.append((found.item_tokens - config.first_item_token).masked_fill(is_none, 0).to(torch.int32))
            shares.append(found.scores.float().softmax(1).nan_to_num().half())
        return cls(rows, torch.cat(items), torch.cat(shares))

    def replaced(
        self, labels: torch.Tensor, places: torch.Tensor, share: float, *, first_item_token: int
    ) -> torch.Tensor:
        """
        Labels of which a share is drawn from the teacher's lists.

        Args:
            labels: Item tokens `(batch_size, length)`, -100 where there is no target.
            places: Where each label stands in the flat array, same shape.
            share (`float`): How many of the targets are drawn, from 0 to 1.
            first_item_token (`int`): Token of item 0.
        """
        is_drawn = (torch.rand(labels.shape) < share).to(labels.device) & (labels != IGNORED_LABEL)
        rows = torch.from_numpy(self.rows[places[is_drawn].cpu().numpy()]).long()
        shares = self.shares[rows].float()
        kept = shares.sum(1) > 0  # a history that excludes all items teaches nothing
        drawn = torch.multinomial(torch.where(kept.unsqueeze(1), shares, 1.0), 1)
        tokens = self.items[rows].gather(1, drawn)[:, 0].long() + first_item_token
        labels = labels.clone()
        labels[is_drawn] = torch.where(kept, tokens, labels[is_drawn].cpu()).to(labels)
        return labels


def load_teacher(path: str | os.PathLike[str], config: Any) -> Any:
    """
    The model to learn from, in evaluation mode.

    Args: a run folder or Hub repository, and the config of the model that learns.
    """
    check_model_name(os.fspath(path))
    model: Any = load_model(os.fspath(path)).eval()
    own, found = config.items_fingerprint, model.config.items_fingerprint
    if model.config.num_items != config.num_items or (None not in (own, found) and own != found):
        raise ValueError(
            f"The teacher {path} recommends other items, or the same in another order: it has "
            f"{model.config.num_items} items, fingerprint {found}, the model {config.num_items}, fingerprint {own}. "
            "Train or fit one on this data set."
        )
    return model


def _targets_of(windows: Windows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where the sequence of each target begins, and where the target itself stands."""
    lengths = windows.ends - windows.first_targets
    is_first = np.diff(windows.user_rows, prepend=-1) != 0
    begins = windows.starts[is_first][np.cumsum(is_first) - 1]  # of the sequence: its first window begins there
    offsets = np.cumsum(lengths) - lengths
    numbers = np.arange(lengths.sum()) - np.repeat(offsets, lengths)
    return np.repeat(begins, lengths), np.repeat(windows.first_targets, lengths) + numbers


def _histories(values: NDArray[np.int32], starts: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """Items before each place, `(n, longest)`, -1 behind them."""
    lengths = places - starts
    columns = np.arange(lengths.max())
    index = np.minimum(starts[:, None] + columns, len(values) - 1)
    return np.where(columns < lengths[:, None], values[index], -1).astype(np.int64)
