"""
A model, a prepared data set and training arguments in, a trained model out: thin over `transformers.Trainer`.

The loss lives in the model. What is added here: batches of equal numbers of targets and similar length, defaults that
fit small recommenders, and an evaluation that decodes a sample of validation users inside the catalog.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import platform
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import EarlyStoppingCallback, PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import SequenceCollator, WindowDataset, make_examples, training_dataset
from hf_genrec.evaluation.baselines.base import sampled_users
from hf_genrec.evaluation.metrics import ndcg_at_k, recall_at_k
from hf_genrec.modeling.genrec_folder import items_fingerprint
from hf_genrec.serving.times import has_times
from hf_genrec.training.arguments import GenRecTrainingArguments
from hf_genrec.training.processes import StepSeeds, batches_in_turn, keep_buffers, step_parts, train_loader
from hf_genrec.training.sampler import TargetBatchSampler
from hf_genrec.training.streaming import StreamedBatches, StreamedWindows, is_streamed, sampled_rows
from hf_genrec.training.teacher import Teacher, load_teacher
from hf_genrec.training.threads import num_threads_for, threads
from hf_genrec.training.two_heads import (
    DENSE_WEIGHTS,
    best_weight,
    figures_by_weight,
    ranks_by_weight,
    set_weight_decays,
)


logger = logging.getLogger(__name__)

TIME_NAME = "time.json"  # in a checkpoint: the minutes up to it


def keep_freed_memory() -> bool:
    """
    Asks the C library to keep freed memory for the next allocation; whether it understood (only glibc does).

    Every training step on a CPU allocates and frees the same large tensors. By default glibc returns them to the
    system each time and the system clears each page again at its first touch, which makes steps of changing shape
    several times slower. The memory goes back when the process ends.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # parameters of mallopt(3)
    mallopt = ctypes.CDLL(None).mallopt
    return all((mallopt(mmap_max, 0), mallopt(trim_threshold, 2**31 - 1), mallopt(top_pad, 2**28)))


class GenRecTrainer(Trainer):
    """
    `Trainer` whose batches hold equal numbers of targets and whose `evaluate()` recommends. `train_dataset` is a
    [`WindowDataset`], `eval_dataset` one with one row per user.
    """

    args: GenRecTrainingArguments
    one_target_per_row = False  # whether a row ends with its only target; else all of a window are trained at once
    leaves_out_seen = False  # in the lists of a model with two heads, as serving does where the data has no repeats
    teacher: Teacher | None = None
    is_shardable = False  # whether FSDP may divide the model
    part = 0  # which batch of its step is being trained, of all processes
    _seeds: StepSeeds

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in transformers; on a CPU the process keeps the memory it frees (see [`keep_freed_memory`]), and has as many
        threads as the size of the model asks for (see [`num_threads_for`]).
        """
        if self.is_fsdp_enabled and not self.is_shardable:
            raise ValueError("FSDP is for language models: this model is trained whole in each process. Leave it out.")
        plugin = self.accelerator.state.deepspeed_plugin if self.is_deepspeed_enabled else None
        if plugin is not None and plugin.zero_stage == 3:
            raise ValueError("DeepSpeed's `zero_stage` 3 is not supported: use stage 2, or for language models FSDP.")
        if self.args.use_cpu:
            keep_freed_memory()
        self._seeds = StepSeeds(self.args.seed, step_parts(self.args, self.accelerator))
        keep_buffers(self.model)
        with threads(self.num_threads):
            output = super().train(*args, **kwargs)
            self._check_weights()
            self._choose_dense_weight()
        return output

    @property
    def num_threads(self) -> int:
        """Threads of a training on a CPU."""
        available = torch.get_num_threads()
        if self.args.threads is not None or not self.args.use_cpu:
            return self.args.threads or available
        config: Any = self.accelerator.unwrap_model(self.model).config
        targets = self.args.per_device_train_batch_size
        return num_threads_for(config, targets_per_step=targets, available=available)

    @property
    def device_name(self) -> str:
        """The GPU that trains, such as `"NVIDIA H100 80GB HBM3"`, or the kind of device."""
        device = self.args.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        As in transformers; a loss that is no number ends the training (fp16 skips such steps by itself), and where
        there is a teacher some targets are drawn from its lists. Several processes draw different random numbers.
        """
        self.part = self._seeds.begin_batch(self.state.global_step)
        if self.teacher is not None:
            first = self.accelerator.unwrap_model(model).config.first_item_token
            share, places = self.args.teacher_share, inputs["places"]
            labels = self.teacher.replaced(inputs["labels"], places, share, first_item_token=first)
            inputs = {name: value for name, value in inputs.items() if name != "places"} | {"labels": labels}
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not self.args.fp16 and not torch.isfinite(loss):
            raise self._diverged(f"The loss is {loss.item()}")
        return loss

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self._check_weights()
        super()._save_checkpoint(*args, **kwargs)

    def _check_weights(self) -> None:
        for name, weight in self.accelerator.unwrap_model(self.model).named_parameters():
            if not torch.isfinite(weight).all():
                raise self._diverged(f"The weights {name} hold values that are no finite numbers")

    def _diverged(self, reason: str) -> ValueError:
        """What to do about a training that diverged; transformers itself would go on and show a loss of 0."""
        step = self.state.global_step
        kept = sorted(Path(self.args.output_dir or "").glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
        return ValueError(
            f"{reason} at step {step} of {self.state.max_steps}: training has diverged. Lower `learning_rate` (it is "
            f"{self.args.learning_rate:g}) or clip gradients with `max_grad_norm` (it is {self.args.max_grad_norm:g}) "
            "and train into another folder. "
            + (f"The last good checkpoint is {kept[-1]}." if kept else "There was no checkpoint yet.")
        )

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As in transformers; parameters with a weight decay of their own (see `weight_decays` of a model) keep it."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(*args, **kwargs)
        if is_new:
            set_weight_decays(optimizer, self.accelerator.unwrap_model(self.model))
        return optimizer

    def _choose_dense_weight(self) -> None:
        """Of a model with two heads: the weight of the dense one in lists, by the validation users."""
        model: Any = self.accelerator.unwrap_model(self.model)
        rows: Any = self.eval_dataset
        if not _has_two_heads(model) or not rows:
            return
        weigh = partial(
            ranks_by_weight,
            model,
            leaves_out=self.leaves_out_seen,
            num_beams=_WEIGHING_BEAMS,
            latent_aggregation=self.args.latent_aggregation,
        )
        figures = figures_by_weight(self._of_all_users(rows, "Weighing", weigh, width=len(DENSE_WEIGHTS)))
        model.recommend_config.dense_weight = best_weight(figures)
        self.log(
            {"dense_weight": best_weight(figures)} | {f"ndcg@10_of_{key:g}": value for key, value in figures.items()}
        )

    def _ranks(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Ranks of the targets `(B, num_lists)`: of a model with two heads by each weight of the dense one."""
        if not _has_two_heads(model):
            return _target_ranks(model, batch, self.args).unsqueeze(1)
        options = {"num_beams": self.args.eval_num_beams, "latent_aggregation": self.args.latent_aggregation}
        return ranks_by_weight(model, batch, leaves_out=self.leaves_out_seen, **options)  # type: ignore[arg-type]

    def _validation_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return model(**batch).loss

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Refused: what is published is a whole run folder, which a trainer alone does not have."""
        raise ValueError(
            "`push_to_hub` publishes a run folder: use `hf-genrec train`, or `push_recommender` on a folder."
        )

    def get_train_dataloader(self) -> DataLoader:
        """Rows packed by [`TargetBatchSampler`]."""
        rows = self.train_dataset
        if isinstance(rows, StreamedWindows):
            parts = step_parts(self.args, self.accelerator)
            size = self.args.per_device_train_batch_size
            batches = StreamedBatches(rows, targets_per_batch=size, parts=parts)
            return train_loader(rows, batches, self.data_collator, self.args, self.accelerator)
        if not isinstance(rows, WindowDataset):
            return super().get_train_dataloader()
        return self._loader(rows, self.data_collator)

    def _loader(self, rows: Any, collate: Any) -> DataLoader:
        """This process's batches of equal numbers of targets. Args: the rows, and what makes a batch of some."""
        sampler = TargetBatchSampler(
            rows.lengths,
            rows.targets_per_row,
            targets_per_batch=self.args.per_device_train_batch_size,
            seed=self.args.seed,
            **dataclasses.asdict(step_parts(self.args, self.accelerator)),
        )
        return train_loader(rows, sampler, collate, self.args, self.accelerator)

    @torch.no_grad()
    def evaluate(
        self,
        eval_dataset: Any = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """
        Recommends for every row of the validation sample and ranks its target among all items: `ndcg@10` and
        `recall@10` of the lists of `recommend()`, and `loss`, the negative log-likelihood per code with latents summed
        out. Of a model with two heads the lists are those that will be served: by the weight of the dense head that is
        best at this step, without items of the history where the data has (almost) no repeats.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        self._check_weights()
        model = self.accelerator.unwrap_model(self.model)
        was_training = model.training
        model.eval()

        def ranks_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
            ranks = self._ranks(model, batch)
            with self.compute_loss_context_manager():
                loss = self._validation_loss(model, batch)
            return torch.cat([ranks.float(), loss.float().expand(len(ranks), 1)], dim=1)

        num_lists = len(DENSE_WEIGHTS) if _has_two_heads(model) else 1
        table = self._of_all_users(rows, "Validating", ranks_of, width=num_lists + 1)
        model.train(was_training)
        columns = table[:, :-1].long().numpy().T
        best = max(columns, key=lambda column: ndcg_at_k(column, k=10))
        metrics = {
            f"{metric_key_prefix}_ndcg@10": ndcg_at_k(best, k=10),
            f"{metric_key_prefix}_recall@10": recall_at_k(best, k=10),
            f"{metric_key_prefix}_loss": float(table[:, -1].mean()),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _of_all_users(self, rows: Any, name: str, values_of: Any, *, width: int) -> torch.Tensor:
        """
        What a function of batches says of each row, `(num_rows, width)` in float64: processes take batches in turn,
        and each of them gets all values.
        """
        mine = batches_in_turn(len(rows), self.args.per_device_eval_batch_size, self.accelerator)
        loader = DataLoader(
            rows,
            batch_sampler=mine,  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            generator=torch.Generator(),  # evaluating must not change the random numbers of training
        )
        table = torch.zeros(len(rows), width, dtype=torch.float64)
        hidden = self.args.disable_tqdm or not self.is_world_process_zero()  # and, as `None` means, no terminal
        bar = tqdm(loader, desc=name, leave=False, disable=hidden or None)
        for numbers, batch in zip(mine, bar, strict=True):
            table[numbers.start : numbers.stop] = values_of(batch=self._prepare_inputs(batch)).cpu().double()
        if self.accelerator.num_processes > 1:  # the rows of others are zeros, so the sum is exact
            table = self.accelerator.reduce(table.to(self.accelerator.device), "sum").cpu()
        return table


_WEIGHING_BEAMS = 50


def _has_two_heads(model: Any) -> bool:
    return bool(getattr(model.config, "dense_head", False))


def _target_ranks(model: Any, batch: dict[str, torch.Tensor], args: GenRecTrainingArguments) -> torch.Tensor:
    """0-based rank of each row's target among the first ten recommendations, -1 where it is not there."""
    output = model.recommend(
        batch["input_ids"],
        batch["attention_mask"],
        top_k=min(10, model.config.num_items),
        num_beams=args.eval_num_beams,
        latent_aggregation=args.latent_aggregation,
    )
    hits = output.item_tokens == batch["labels"].amax(dim=1, keepdim=True)
    return torch.where(hits.any(1), hits.int().argmax(1), -1)


class Stopwatch(TrainerCallback):
    """
    Minutes of a training over all its resumptions: each checkpoint keeps what was spent up to it.

    Args: the checkpoint that training goes on from; `None` for a new training.
    """

    def __init__(self, checkpoint: str | None = None) -> None:
        self._earlier = {"minutes": 0.0, "cpu_minutes": 0.0}
        if checkpoint is not None and (Path(checkpoint) / TIME_NAME).is_file():
            self._earlier = json.loads((Path(checkpoint) / TIME_NAME).read_text(encoding="utf-8"))
        self._start, self._cpu_start = time.perf_counter(), time.process_time()

    def read(self, *, of_all: bool = False) -> dict[str, float]:
        """
        What was spent so far: `minutes` by the clock and `cpu_minutes`.

        Args:
            of_all (`bool`, *optional*): Add up the latter over the processes of the training, which all ask together.
        """
        spent = {"minutes": time.perf_counter() - self._start, "cpu_minutes": time.process_time() - self._cpu_start}
        if of_all and torch.distributed.is_initialized():
            seconds: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(seconds, spent["cpu_minutes"])
            spent["cpu_minutes"] = sum(seconds)
        return {name: round(self._earlier[name] + seconds / 60, 3) for name, seconds in spent.items()}

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Note the minutes in the checkpoint that was just written."""
        folder, spent = Path(args.output_dir) / f"checkpoint-{state.global_step}", self.read(of_all=True)
        if state.is_world_process_zero and folder.is_dir():
            (folder / TIME_NAME).write_text(json.dumps(spent) + "\n", encoding="utf-8")


def validation_rows(
    prepared: PreparedDataset,
    *,
    first_item_token: int,
    max_history_length: int,
    num_users: int | None,
    seed: int,
    has_gaps: bool = False,
) -> WindowDataset:
    """
    A fixed sample of validation users, one row each. Args: see [`training_dataset`]; `num_users` is `None` or negative
    for all.
    """
    max_users = None if num_users is None or num_users < 0 else num_users
    if prepared.is_large:
        split = sampled_rows(prepared, "validation", max_users=max_users, seed=seed)
    else:
        split = sampled_users(prepared.split("validation"), max_users=max_users, seed=seed)
    options: dict[str, Any] = {"max_history_length": max_history_length, "targets": "last", "has_gaps": has_gaps}
    examples = make_examples(split, prepared.item_ids, **options)
    return WindowDataset(examples, first_item_token=first_item_token)


def make_trainer(
    model: PreTrainedModel,
    prepared: PreparedDataset,
    args: GenRecTrainingArguments,
    *,
    targets: str = "all",
    trainer_class: type[GenRecTrainer] = GenRecTrainer,
) -> GenRecTrainer:
    """
    A trainer over the training part of a prepared data set; call its `train()`.

    Args:
        model ([`~transformers.PreTrainedModel`]): A model whose config has the token layout.
        prepared ([`PreparedDataset`]): The data set; its catalog is the model's.
        args ([`GenRecTrainingArguments`]): How to train.
        targets (`str`, *optional*, defaults to `"all"`): Train on every item of a sequence or the `"last"` only.
        trainer_class (`type`, *optional*): What to make; see also [`make_preference_trainer`].

    Returns:
        [`GenRecTrainer`]

    Raises:
        ValueError: If the model's catalog has another size than the data set, there is nothing to train on, or the
            beams of the validation are fewer than the items of its lists.
    """
    config: Any = model.config
    check_beams(model, args)
    _check_catalog(config, prepared)
    train_rows = _training_rows(config, prepared, args, targets, one_target_per_row=trainer_class.one_target_per_row)
    eval_rows = validation_rows(
        prepared,
        first_item_token=config.first_item_token,
        max_history_length=config.max_history_length,
        num_users=args.num_eval_users,
        seed=args.seed,
        has_gaps=has_times(config),
    )
    if args.eval_strategy != IntervalStrategy.NO and not len(eval_rows):
        raise ValueError(
            "There are no validation users, since none has three items: set `eval_strategy` "
            "and `save_strategy` to 'no' and `load_best_model_at_end` to `False`."
        )
    patience = args.early_stopping_patience
    callbacks = [] if patience is None else [EarlyStoppingCallback(early_stopping_patience=patience)]
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        data_collator=SequenceCollator(pad_token_id=config.pad_token_id),
        callbacks=callbacks,  # type: ignore[arg-type]
    )
    trainer.leaves_out_seen = not prepared.has_repeats
    if args.teacher is not None and isinstance(train_rows, WindowDataset):
        trainer.teacher = Teacher.of(
            load_teacher(args.teacher, config),
            train_rows.windows,
            leaves_out_seen=trainer.leaves_out_seen,
            show_progress=not args.disable_tqdm,
        )
        train_rows.names_places = True
    return trainer


def _training_rows(
    config: Any, prepared: PreparedDataset, args: GenRecTrainingArguments, targets: str, *, one_target_per_row: bool
) -> WindowDataset | StreamedWindows:
    options: dict[str, Any] = {
        "first_item_token": config.first_item_token,
        "history_attention": "bidirectional" if one_target_per_row else config.history_attention,
        "max_history_length": config.max_history_length,
        "stride": max(1, config.max_history_length // 2) if args.window_stride is None else args.window_stride,
        "targets": targets,
        "seed": args.seed,
        "has_gaps": has_times(config),
    }
    if is_streamed(prepared, args):
        return StreamedWindows(prepared, **options)
    ties: Any = args.shuffled_ties
    return training_dataset(prepared.split("train"), prepared.item_ids, shuffled_ties=ties, **options)


def _check_catalog(config: Any, prepared: PreparedDataset) -> None:
    if config.num_items != len(prepared.item_ids):
        raise ValueError(
            f"The model's catalog has {config.num_items} items, the data set {len(prepared.item_ids)}: "
            "prepare the log against the model's items."
        )
    if config.items_fingerprint not in (None, items_fingerprint(prepared.item_ids)):
        raise ValueError(
            "The items of the data set are not those of the model, or stand in another order (config.json records the "
            f"fingerprint {config.items_fingerprint}): prepare the log against the model's items."
        )


def check_beams(model: Any, args: GenRecTrainingArguments) -> None:
    """
    Refuses fewer beams than the ten items of a list: the search would widen, and measure another one.

    Args: the model and how it is trained.
    """
    least = min(10, model.config.num_items)
    is_searched = getattr(model, "default_decoding", "beam") == "beam" and args.eval_strategy != IntervalStrategy.NO
    if is_searched and args.eval_num_beams < least:
        raise ValueError(
            f"`eval_num_beams` must be at least {least}, the length of the lists, got {args.eval_num_beams}."
        )
