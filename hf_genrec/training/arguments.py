"""
Settings and words of a command line in, [`GenRecTrainingArguments`] out.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import IntervalStrategy


CHECKPOINTS_NAME = "checkpoints"  # the folder below a run folder


@dataclass
class GenRecTrainingArguments(TrainingArguments):
    """
    `TrainingArguments` with defaults for generative recommenders.

    Differs from the parent in its defaults (cosine schedule, evaluation and checkpoint per epoch, best checkpoint by
    ndcg@10, bfloat16 where the CPU has it) and in one meaning: `per_device_train_batch_size` counts targets.

    Example:

    ```python
    >>> args = GenRecTrainingArguments(output_dir="run", precision="fp32", report_to="none")
    >>> args.lr_scheduler_type.value, args.metric_for_best_model, args.bf16
    ('cosine', 'ndcg@10', False)

    ```
    """

    per_device_train_batch_size: int = field(
        default=256, metadata={"help": "Targets (next items to predict) per device and step; rows are packed to it."}
    )
    per_device_eval_batch_size: int = field(default=64, metadata={"help": "Users decoded at a time."})
    learning_rate: float = field(default=3e-3, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.05, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: float = field(default=20, metadata={"help": "Passes over all training targets."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Learning-rate schedule."})
    warmup_steps: float = field(default=0.05, metadata={"help": "Warm-up steps, or below 1 the share of all steps."})
    eval_strategy: str = field(default="epoch", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to save a checkpoint; as `eval_strategy`."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept."})
    logging_steps: float = field(default=100, metadata={"help": "Steps between two lines of the log."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint's weights."})
    metric_for_best_model: str | None = field(default="ndcg@10", metadata={"help": "What best means."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Rows hold only what models read."})
    dataloader_pin_memory: bool = field(default=False, metadata={"help": "Pin memory for faster copies to a GPU."})
    precision: str = field(default="auto", metadata={"help": "auto (bf16 where the CPU has it), bf16, fp16 or fp32."})
    num_eval_users: int | None = field(
        default=2000, metadata={"help": "Validation users decoded per evaluation, a fixed sample; -1 for all."}
    )
    threads: int | None = field(
        default=None, metadata={"help": "Threads of a training on a CPU; by the size of the model if not given."}
    )
    window_stride: int | None = field(
        default=None, metadata={"help": "Items between two windows of a long history; half the history if not given."}
    )
    shuffled_ties: str = field(
        default="none",
        metadata={"help": "Items of a user shuffled anew each epoch: none, those of equal time, or those of one day."},
    )
    streaming: bool | None = field(
        default=None,
        metadata={"help": "Read the training rows anew in each epoch; if not given, of more than 20 million targets."},
    )
    eval_num_beams: int = field(
        default=20,
        metadata={"help": "Beams of the evaluations during training, at least the 10 items of their lists."},
    )
    latent_aggregation: str = field(default="max", metadata={"help": "Score of an item over latents: max or sum."})
    teacher: str | None = field(
        default=None,
        metadata={"help": "A finished run or repository over the same items whose lists some targets are drawn from."},
    )
    teacher_share: float = field(default=0.3, metadata={"help": "How many targets are drawn from them, below 1."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Evaluations without a better metric before training stops; None for never."}
    )

    def __post_init__(self) -> None:
        if self.precision not in ("auto", "bf16", "fp16", "fp32"):
            raise ValueError(f"`precision` must be auto, bf16, fp16 or fp32, got {self.precision!r}.")
        for field_ in dataclasses.fields(self):
            value = getattr(self, field_.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"`{field_.name}` must be a finite number, got {value}.")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise ValueError(f"`num_train_epochs` must be above 0, got {self.num_train_epochs}.")
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            self.use_cpu = True
        if self.precision == "auto":
            self.bf16 = self.bf16 or (has_bfloat16() and not self.fp16)
        else:
            self.bf16, self.fp16 = self.precision == "bf16", self.precision == "fp16"
        super().__post_init__()
        self._check_evaluation()

    def _check_evaluation(self) -> None:
        if self.latent_aggregation not in ("max", "sum"):
            raise ValueError(f"`latent_aggregation` must be 'max' or 'sum', got {self.latent_aggregation!r}.")
        for name in ("threads", "window_stride", "eval_num_beams"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        most = max(64, 4 * (os.cpu_count() or 1))
        if self.threads is not None and self.threads > most:  # a process that cannot make so many ends at once
            raise ValueError(f"`threads` must be at most {most} on this machine, got {self.threads}.")
        if self.shuffled_ties not in ("none", "time", "day"):
            raise ValueError(f"`shuffled_ties` must be 'none', 'time' or 'day', got {self.shuffled_ties!r}.")
        if not 0 < self.teacher_share <= 1:
            raise ValueError(f"`teacher_share` must be above 0 and at most 1, got {self.teacher_share}.")
        if self.num_eval_users == 0:
            raise ValueError("`num_eval_users` must be at least 1, or -1 for all users; got 0.")
        if self.early_stopping_patience is not None and (
            self.early_stopping_patience < 1 or self.eval_strategy == IntervalStrategy.NO
        ):
            raise ValueError(
                "`early_stopping_patience` needs to be at least 1 and `eval_strategy` to be 'steps' or 'epoch', got "
                f"{self.early_stopping_patience} and '{IntervalStrategy(self.eval_strategy).value}'."
            )
        if self.label_smoothing_factor:
            raise ValueError(
                "`label_smoothing_factor` is not supported: the loss lives in the model. Set `label_smoothing` of the "
                "model's config."
            )


class _Parser(HfArgumentParser):
    def error(self, message: str) -> Any:
        raise ValueError(f"Training options: {message}.")


def training_arguments(
    output_dir: str | os.PathLike[str],
    *,
    settings: Mapping[str, Any],
    options: Sequence[str] = (),
    more: Iterable[str] = (),
    kind: type[GenRecTrainingArguments] | None = None,
) -> GenRecTrainingArguments:
    """
    Training arguments from settings and from words of a command line.

    Args:
        output_dir (`str` or `Path`): The run folder; checkpoints go below it.
        settings (`dict`): Fields of [`GenRecTrainingArguments`].
        options (`Sequence[str]`, *optional*): Words such as `["--weight-decay", "0.1"]`; they win over `settings`.
        more (`Iterable[str]`, *optional*): Other options of the command line, to suggest what was meant.
        kind (`type`, *optional*): [`GenRecTrainingArguments`] or a class of its kind.

    Raises:
        ValueError: If a field or an option is unknown or has a wrong value.
    """
    kind = kind or GenRecTrainingArguments
    known = {field.name: field.default for field in dataclasses.fields(kind)}
    if set(settings) - set(known):
        raise ValueError(f"No training arguments: {', '.join(sorted(set(settings) - set(known)))}.")
    parser = _Parser(kind, allow_abbrev=False)  # type: ignore[arg-type]
    parser.set_defaults(report_to=known["report_to"], output_dir=str(Path(output_dir) / CHECKPOINTS_NAME))
    parser.set_defaults(disable_tqdm=False)  # its own default is to hide it where transformers is silenced
    parser.set_defaults(**settings)  # the parser itself forgets the default of a field that takes a list
    args, left = parser.parse_args_into_dataclasses(
        list(options), return_remaining_strings=True, look_for_args_file=False
    )
    if left:
        options_of_fields = [f"--{name.replace('_', '-')}" for name in known]
        raise ValueError(
            f"Unknown options: {' '.join(left)}.{did_you_mean(left, [*more, *options_of_fields])} The options of "
            "`hf-genrec train --help` and the fields of transformers.TrainingArguments are known."
        )
    if Path(args.output_dir) != Path(output_dir) / CHECKPOINTS_NAME:
        raise ValueError("`--output-dir` cannot be given: checkpoints go below the run folder, `--output`.")
    return args


def did_you_mean(words: Iterable[str], known: Iterable[str]) -> str:
    """
    A question to those who mistyped a name. Args: the words that are not known, and those that could have been meant.
    """
    names = list(known)
    found = [close[0] for word in words if (close := difflib.get_close_matches(word, names, n=1))]
    return f" Did you mean {', '.join(found)}?" if found else ""


def has_bfloat16() -> bool:
    """Whether the GPU, or without one the CPU (AVX-512 BF16 or AMX), computes in bfloat16 in hardware."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
