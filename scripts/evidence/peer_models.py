"""
cornac's TIGER and RPG and ours behind one interface: `benchmark_peers.py` trains both and asks both for lists.

cornac is imported when a model of it is made, so that this file can be read where it is not installed. Its models get
their semantic IDs from outside, as ours do; all else is its own: the batches, the loop of its `fit`, its search.
"""

from __future__ import annotations

import contextlib
import importlib
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, TrainerCallback

from hf_genrec import LatteConfig, LatteForConditionalGeneration, PreparedDataset, RPGConfig, RPGForItemGeneration
from hf_genrec.training.arguments import GenRecTrainingArguments
from hf_genrec.training.trainer import make_trainer


TOP_K = 10


class StepTime(NamedTuple):
    """Targets of one optimizer step and what it took, its batch included."""

    targets: int
    seconds: float
    cpu_seconds: float


class Side(Protocol):
    """What is compared."""

    def train(self, num_steps: int) -> list[StepTime]:
        """Some steps of a new training."""

    def recommend(self, histories: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        """The best items of each history, item numbers in and out."""


# --- ours ------------------------------------------------------------------------------------------------------------


class Ours:
    """
    A model of this library, trained by [`GenRecTrainer`].

    Args:
        prepared (`PreparedDataset`): What it is trained on.
        model (`PreTrainedModel`): With its catalog.
        batch_size (`int`): Targets per step.
        precision (`str`, defaults to `"fp32"`): As in [`GenRecTrainingArguments`].
    """

    def __init__(self, prepared: PreparedDataset, model: PreTrainedModel, batch_size: int, precision: str = "fp32"):
        self.prepared, self.model = prepared, model
        self.batch_size, self.precision = batch_size, precision

    def train(self, num_steps: int) -> list[StepTime]:
        with tempfile.TemporaryDirectory() as folder:
            arguments = GenRecTrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=self.batch_size,
                max_steps=num_steps,
                precision=self.precision,
                threads=torch.get_num_threads(),
                use_cpu=True,
                eval_strategy="no",
                save_strategy="no",
                load_best_model_at_end=False,
                report_to="none",
                disable_tqdm=True,
            )
            trainer = make_trainer(self.model, self.prepared, arguments)
            clock = StepClock(trainer.data_collator)
            trainer.data_collator = clock.collate
            trainer.add_callback(clock)
            trainer.train()
        return clock.steps

    def recommend(self, histories: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        self.model.eval()
        first = self.model.config.first_item_token
        kept = [list(history)[-self.model.config.max_history_length :] for history in histories]
        tokens = torch.zeros(len(kept), max(map(len, kept)), dtype=torch.long)
        for row, history in enumerate(kept):
            tokens[row, : len(history)] = torch.tensor(history) + first
        found = self.model.recommend(tokens, (tokens > 0).long(), top_k=TOP_K, **options)
        return (found.item_tokens - first).tolist()


class StepClock(TrainerCallback):
    """Times of a trainer's steps, from batch to batch, and the targets of each."""

    def __init__(self, collate: Callable[[Any], dict[str, torch.Tensor]]):
        self._collate = collate
        self._targets: list[int] = []
        self._start = (0.0, 0.0)
        self.steps: list[StepTime] = []

    def collate(self, rows: Any) -> dict[str, torch.Tensor]:
        """The trainer's collator, with its targets counted."""
        batch = self._collate(rows)
        self._targets.append(int((batch["labels"] != -100).sum()))
        return batch

    def on_train_begin(self, *arguments: Any, **keywords: Any) -> None:
        """The clock starts."""
        self._start = clocks()

    def on_step_end(self, *arguments: Any, **keywords: Any) -> None:
        """A step ended; batches come one ahead, so its targets are those of the batch with its number."""
        end = clocks()
        self.steps.append(step_time(self._targets[len(self.steps)], self._start, end))
        self._start = end


def our_tiger(prepared: PreparedDataset, codes: np.ndarray, codebook_size: int, **options: Any) -> PreTrainedModel:
    """The T5 of TIGER's paper, Latte without latents. Args: data, ids, their codebook size, more of the config."""
    config = LatteConfig(
        num_items=len(prepared.item_ids),
        num_levels=codes.shape[1],
        codebook_size=codebook_size,
        num_latent_tokens=0,
        **options,
    )
    model = LatteForConditionalGeneration(config)
    model.set_catalog(codes)
    return model


def our_rpg(prepared: PreparedDataset, codes: np.ndarray, **options: Any) -> PreTrainedModel:
    """RPG. Args: data, ids, more of the config."""
    model = RPGForItemGeneration(RPGConfig(num_items=len(prepared.item_ids), num_levels=codes.shape[1], **options))
    model.set_catalog(codes)
    return model


# --- cornac ----------------------------------------------------------------------------------------------------------


class EnoughSteps(Exception):
    """Ends cornac's `fit` after the steps that are timed."""


class Cornac:
    """
    A model of cornac with ids from outside.

    Args:
        prepared (`PreparedDataset`): What it is trained on.
        make (`Callable`): Makes the model.
        module (`str`): Where its `fit` looks the iterator over its batches up.
        iterator (`str`): The name of that.
    """

    def __init__(self, prepared: PreparedDataset, make: Callable[[], Any], module: str, iterator: str):
        self.dataset = sequential_dataset(sequences_of(prepared), prepared.item_ids)
        self.make, self.model = make, None
        self.module, self.iterator = importlib.import_module(module), iterator

    def train(self, num_steps: int) -> list[StepTime]:
        steps: list[StepTime] = []
        original = getattr(self.module, self.iterator)

        def timed(*arguments: Any, **keywords: Any) -> Iterator[Any]:
            source = original(*arguments, **keywords)
            while len(steps) < num_steps:
                start = clocks()
                batch = next(source)
                yield batch
                targets = int((np.asarray(batch[2]) != -100).sum())
                steps.append(step_time(targets, start, clocks()))
            raise EnoughSteps

        self.model = self.make()
        setattr(self.module, self.iterator, timed)
        try:
            with contextlib.suppress(EnoughSteps):
                self.model.fit(self.dataset)
        finally:
            setattr(self.module, self.iterator, original)
        return steps

    def recommend(self, histories: Sequence[Sequence[int]], **options: Any) -> list[list[int]]:
        vars(self.model).update(options)
        items = np.arange(self.model.total_items)
        return [
            self.model.rank(0, items, k=TOP_K, history_items=list(history))[0][:TOP_K].tolist()
            for history in histories
        ]


def sequential_dataset(sequences: Sequence[Sequence[str]], item_ids: Sequence[str]) -> Any:
    """cornac's data set of one session per user. Args: items of each user in order, all items."""
    from cornac.data import SequentialDataset

    rows = [
        (user, user, item, place) for user, sequence in enumerate(sequences) for place, item in enumerate(sequence)
    ]
    numbers = OrderedDict((item, number) for number, item in enumerate(item_ids))
    return SequentialDataset.build(rows, fmt="USIT", global_iid_map=numbers)


def sequences_of(prepared: PreparedDataset) -> list[list[str]]:
    """The training items of all users in order. Args: the data."""
    split = prepared.split("train")
    return [[*history, target] for history, target in zip(split["history"], split["target"], strict=True)]


def cornac_tiger(codes: np.ndarray, codebook_size: int, **options: Any) -> Any:
    """cornac's TIGER, whose last level it makes itself. Args: ids before that, their codebook size, more options."""
    from cornac.models import TIGER

    class GivenTIGER(TIGER):
        """Takes its codes from outside."""

        def _get_item_features(self) -> np.ndarray:
            return np.zeros((len(codes), 1), dtype=np.float32)

        def _tokenize(self, *arguments: Any) -> np.ndarray:
            return codes.astype(np.int64)

    levels = codes.shape[1]
    return GivenTIGER(rqvae_num_levels=levels, rqvae_codebook_size=codebook_size, device="cpu", **options)


def tuples_of_cornac(codes: np.ndarray, codebook_size: int) -> np.ndarray:
    """Its tuples of all items: the codes and a number among the items that share them. Args: as [`cornac_tiger`]."""
    model = cornac_tiger(codes, codebook_size)
    model._build_semantic_ids(codes.astype(np.int64))
    return model.sid_table


def cornac_rpg(codes: np.ndarray, **options: Any) -> Any:
    """cornac's RPG. Args: ids, more options."""
    from cornac.models import RPG

    class GivenRPG(RPG):
        """Takes its codes from outside."""

        def _get_item_features(self) -> np.ndarray:
            return np.zeros((len(codes), 1), dtype=np.float32)

        def _opq_tokenize(self, *arguments: Any) -> np.ndarray:
            return codes.astype(np.int64)

    return GivenRPG(n_codebook=codes.shape[1], device="cpu", **options)


def take_over(theirs: Any, ours: RPGForItemGeneration) -> None:
    """The weights of our RPG in cornac's, after which both score alike. Args: cornac's model, ours."""
    network, config = theirs.model, ours.config
    names = network.gpt2.load_state_dict(ours.encoder.state_dict(), strict=False)
    if names.unexpected_keys:
        raise ValueError(f"cornac's RPG has no weights {names.unexpected_keys}: it is another network than ours.")
    with torch.no_grad():
        rows = ours.token_embeddings.weight[config.first_code_token :][: config.num_levels * config.codebook_size]
        network.gpt2.wte.weight[1:-1] = rows
        for head, weight, bias in zip(network.pred_heads, ours.heads.weight, ours.heads.bias, strict=True):
            head.linear.weight.copy_(weight)
            head.linear.bias.copy_(bias)


def clocks() -> tuple[float, float]:
    """Now, and seconds of computing so far."""
    return time.perf_counter(), time.process_time()


def step_time(targets: int, start: tuple[float, float], end: tuple[float, float]) -> StepTime:
    """Args: targets of the step, [`clocks`] before and after it."""
    return StepTime(targets, end[0] - start[0], end[1] - start[1])


__all__ = [
    "TOP_K", "Cornac", "Ours", "Side", "StepTime", "cornac_rpg", "cornac_tiger", "our_rpg", "our_tiger",
    "sequences_of", "take_over", "tuples_of_cornac",
]  # fmt: skip
