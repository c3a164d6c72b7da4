"""
Supervised fine-tuning: rows of all tasks in, a trained causal LM out, on the `Trainer` of all architectures.

Two stages in one run: first the rows of the new tokens alone, then they and the network, by LoRA or as a whole. The
rows of old tokens stay as they are.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import datasets
import numpy as np
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.utils.data import DataLoader
from transformers import get_scheduler

from hf_genrec.data.sequences import IGNORED_LABEL, SequenceCollator
from hf_genrec.llm.answers import delta_of
from hf_genrec.llm.prompts import DEFAULT_MIX, check_mix
from hf_genrec.llm.vocabulary import INITS, SidVocabulary
from hf_genrec.training.threads import WORK_PER_THREAD
from hf_genrec.training.trainer import GenRecTrainer


@dataclass(frozen=True)
class SftSettings:
    """
    What supervised fine-tuning of a language model asks for beyond the training arguments.

    Args:
        lora (`int`, defaults to 16): Rank of LoRA; 0 trains the whole network.
        init (`str`, defaults to `"words"`): How the rows of the new tokens start, see [`SidVocabulary.resize`].
        mix (`dict[str, float]`): Rows of each task for each row of the sequential one, see [`check_mix`].
        chat (`bool`, *optional*): Whether to use the tokenizer's chat template; `None` if it has one.
        loss_on (`str`, defaults to `"items"`):
            `"items"`: each item of a history is an answer to those before it, all in one pass; `"answer"`: one row per
            target.
        normalization (`str`, defaults to `"catalog"`): See [`AnswerLoss`].
        first_stage (`float`, defaults to 0.2): Share of the steps in which new rows alone are trained.
        rows_learning_rate (`float`, defaults to 0.01): Their peak learning rate, in both stages.
        max_history_length (`int`, defaults to 20): Latest items of a history that are read.

    Raises:
        ValueError: If a value is out of range.
    """

    lora: int = 16
    init: str = "words"
    mix: dict[str, float] = field(default_factory=lambda: dict(DEFAULT_MIX))
    chat: bool | None = None
    loss_on: Literal["items", "answer"] = "items"
    normalization: Literal["catalog", "vocabulary"] = "catalog"
    first_stage: float = 0.2
    rows_learning_rate: float = 0.01
    max_history_length: int = 20

    def __post_init__(self) -> None:
        for name, least in (("lora", 0), ("max_history_length", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"`{name}` must be a whole number from {least}, got {value!r}.")
        choices = {"init": INITS, "loss_on": ("items", "answer"), "normalization": ("catalog", "vocabulary")}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}.")
        if self.chat not in (None, True, False):
            raise ValueError(f"`chat` must be true, false or null, got {self.chat!r}.")
        if not 0 <= self.first_stage <= 1:
            raise ValueError(f"`first_stage` must lie between 0 and 1, got {self.first_stage!r}.")
        if not 0 < self.rows_learning_rate < float("inf"):
            raise ValueError(f"`rows_learning_rate` must be above 0, got {self.rows_learning_rate!r}.")
        if not isinstance(self.mix, dict):
            raise ValueError(f'`mix` must be tasks with weights, such as {{"title_to_id": 0.1}}, got {self.mix!r}.')
        object.__setattr__(self, "mix", check_mix(self.mix))


def with_adapter(causal_lm: Any, vocabulary: SidVocabulary, *, lora: int, seed: int = 0) -> Any:
    """
    A causal LM whose new rows are trained, and with them LoRA matrices in all linear layers or the whole network.

    Args:
        causal_lm: A causal LM of transformers, after [`SidVocabulary.resize`]; it is changed.
        vocabulary ([`SidVocabulary`]): The new tokens.
        lora (`int`): Rank of LoRA, with an alpha of twice as much; 0 for the whole network.
        seed (`int`, defaults to 0): Of the LoRA matrices.

    Returns:
        `peft.PeftModel`
    """
    from peft import LoraConfig, TrainableTokensConfig, get_peft_model

    indices = vocabulary.trainable_token_indices(causal_lm)
    names, tokens = list(indices), next(iter(indices.values()))
    torch.manual_seed(seed)
    config: Any = TrainableTokensConfig(token_indices=tokens, target_modules=names, task_type="CAUSAL_LM")
    if lora:
        config = LoraConfig(
            r=lora,
            lora_alpha=2 * lora,
            target_modules="all-linear",
            trainable_token_indices=indices,
            ensure_weight_tying=len(indices) == 1,
            task_type="CAUSAL_LM",
        )
    with warnings.catch_warnings():  # about tied embeddings, which it ties, and the layers of GPT-2
        warnings.simplefilter("ignore", UserWarning)
        model = get_peft_model(causal_lm, config)
    if lora:
        return model
    heads = (causal_lm.get_input_embeddings(), causal_lm.get_output_embeddings())
    old = {id(parameter) for head in heads for parameter in head.base_layer.parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("trainable_tokens_delta" in name or id(parameter) not in old)
    return model


class AnswerRows(torch.utils.data.Dataset[dict[str, np.ndarray]]):
    """
    Rows of [`training_mix`] for a trainer, with their lengths and the number of items that each asks for.

    Args: the rows, and tokens per item.
    """

    def __init__(self, rows: datasets.Dataset, num_levels: int) -> None:
        self.rows = rows.select_columns(["input_ids", "labels"]).with_format("numpy")
        self.lengths = [-(-len(row) // num_levels) for row in rows["input_ids"]]  # about the items that fit
        counts = [int((row != IGNORED_LABEL).sum()) for row in rows.with_format("numpy")["labels"]]
        self.targets_per_row = [-(-count // num_levels) for count in counts]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> dict[str, np.ndarray]:
        return self.rows[number]


class SftTrainer(GenRecTrainer):
    """
    [`GenRecTrainer`] of an [`AnswerLoss`]: rows are [`AnswerRows`], and validation recommends with the model that will
    be served. `settings` and `recommender` are set after it is made, see [`make_sft_trainer`].
    """

    settings: SftSettings
    recommender: Any  # a CausalLMForItemGeneration
    _trains_network = True
    is_shardable = True

    @property
    def num_threads(self) -> int:
        """Threads of a training on a CPU, by the largest product of a step, see [`num_threads_for`]."""
        available = torch.get_num_threads()
        if self.args.threads is not None or not self.args.use_cpu:
            return self.args.threads or available
        model: Any = self.accelerator.unwrap_model(self.model)
        matrices = [parameter for name, parameter in model.named_parameters() if ".h." in name or ".layers." in name]
        largest = max((parameter.numel() for parameter in matrices), default=1)
        tokens = self.args.per_device_train_batch_size * self.recommender.config.tokens_per_item
        return max(1, min(available, tokens * largest // WORK_PER_THREAD))

    def get_train_dataloader(self) -> DataLoader:
        """Rows of similar lengths in batches of equal numbers of targets."""
        return self._loader(self.train_dataset, padded)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Two groups: the new rows, with a learning rate of their own and no decay, and the network."""
        if self.optimizer is None:
            loss: Any = self.accelerator.unwrap_model(self.model if model is None else model)
            rows = [delta_of(layer) for layer in loss.layers.values()]
            is_row = {id(parameter) for parameter in rows}
            network = [p for p in loss.trained_parameters().values() if id(p) not in is_row]
            groups = [
                {"params": rows, "lr": self.settings.rows_learning_rate, "weight_decay": 0.0},
                {"params": network, "lr": self.args.learning_rate, "weight_decay": self.args.weight_decay},
            ]
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, loss)
            self.optimizer = optimizer_class(groups, **options)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """The schedule of the arguments for the rows; for the network the same over the second stage."""
        if self.lr_scheduler is None:
            optimizer_: Any = self.optimizer if optimizer is None else optimizer
            first = self._first_steps(num_training_steps)
            of_rows, of_network = (self._factor(steps) for steps in (num_training_steps, num_training_steps - first))
            factors = [of_rows, lambda step: of_network(step - first) if step >= first else 0.0]
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer_, factors)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _factor(self, num_steps: int) -> Any:
        """The learning rate at a step as a share of its peak."""
        unused = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        warmup = self.args.get_warmup_steps(num_steps)
        options = {"num_warmup_steps": warmup, "num_training_steps": num_steps}
        kwargs: Any = self.args.lr_scheduler_kwargs
        schedule = get_scheduler(self.args.lr_scheduler_type, unused, **options, scheduler_specific_kwargs=kwargs)
        return schedule.lr_lambdas[0]

    def _first_steps(self, num_training_steps: int) -> int:
        return round(self.settings.first_stage * num_training_steps)

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """As in [`GenRecTrainer`]; in the first stage the network gets no gradient."""
        loss: Any = self.accelerator.unwrap_model(model)
        trains = self.state.global_step >= self._first_steps(self.state.max_steps)
        rows = {id(delta_of(layer)) for layer in loss.layers.values()}
        network = [p for p in loss.trained_parameters().values() if id(p) not in rows]
        if trains != self._trains_network and self.accelerator.num_processes == 1:  # others' gradients are awaited
            self._trains_network = trains
            for parameter in network:
                parameter.requires_grad_(trains)
        output = super().training_step(model, inputs, *args, **kwargs)
        if not trains:
            for parameter in network:
                parameter.grad = None
        return output

    def _ranks(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return super()._ranks(self.recommender, batch)

    def _validation_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Of the codes of the targets, behind their users' prompts."""
        config = self.recommender.config
        prompts, mask = self.recommender.prompt_tokens(batch["input_ids"], batch["attention_mask"])
        items = batch["labels"].amax(dim=1) - config.first_item_token
        levels = torch.arange(config.num_levels, device=items.device)
        codes = self.recommender.code_token_ids[levels, self.recommender.item_codes[items].long()]
        tokens = functional.pad(prompts, (0, config.num_levels))
        places = mask.sum(1, keepdim=True) + levels
        labels = torch.full_like(tokens, IGNORED_LABEL).scatter(1, places, codes)
        return model(tokens.scatter(1, places, codes), labels)["loss"]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """
        As in [`GenRecTrainer`]; a network that was trained as a whole ends without an adapter. Of one that FSDP shards
        the main process ends with the whole, a copy of its own.
        """
        loss: Any = self.accelerator.unwrap_model(self.model)
        plain = copy.deepcopy(loss) if self.is_fsdp_enabled and self.is_world_process_zero() else loss
        output = super().train(*args, **kwargs)
        if self.is_fsdp_enabled:
            trained = whole_tensors(loss.trained_parameters())
            if plain is loss:
                return output
            plain.load_state_dict(trained)
            self.recommender.llm = plain.causal_lm
        plain.write_rows()
        if not self.settings.lora:
            self.recommender.llm = plain.causal_lm.merge_and_unload()
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        As in [`GenRecTrainer`]; the trained rows are written into the embeddings before, and a network that FSDP has
        sharded is whole meanwhile: processes may then have different numbers of batches.
        """
        loss: Any = self.accelerator.unwrap_model(self.model)
        shards = make_whole(loss)
        loss.write_rows()
        metrics = super().evaluate(*args, **kwargs)
        for shard in shards:
            shard.set_reshard_after_forward(True, recurse=False)
            shard.reshard()
        return metrics


def whole_tensors(parameters: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Sharded parameters gathered, all processes together. Args: parameters by name."""
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu()
        for name, value in parameters.items()
    }


def make_whole(model: torch.nn.Module) -> list[FSDPModule]:
    """
    Gather all parameters of a model that FSDP (version 2) has sharded, in every process. Returns the modules to shard
    again; none of a model that is not sharded. Args: the model.
    """
    shards: list[FSDPModule] = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    return shards


def padded(rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Rows as a batch, padded on the right, where causal attention needs no mask. Args: `input_ids` and `labels`."""
    batch = SequenceCollator()(rows)
    return {name: batch[name] for name in ("input_ids", "labels")}
