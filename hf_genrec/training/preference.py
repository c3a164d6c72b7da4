"""
A trained model in, the same model after preference or reward training out: `GenRecTrainer` with another loss.

A step asks the model for a group of recommendations for each history, as it would be asked in service, scores the
group exactly, and moves the probabilities of its members: by rewards (GRPO), or towards the item that came next among
them (listwise) and relative to the model it began with (S-DPO).
"""

from __future__ import annotations

import copy
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import IGNORED_LABEL
from hf_genrec.modeling.genrec_recommend import evaluation_mode
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.tokenizers.report_plot import DARK, GREY, new_figure, save_figure
from hf_genrec.training.arguments import GenRecTrainingArguments
from hf_genrec.training.objectives import (
    OBJECTIVES,
    group_advantages,
    grpo_loss,
    kl_divergence,
    listwise_loss,
    sdpo_loss,
    with_target,
)
from hf_genrec.training.processes import seed_of, sum_gradients
from hf_genrec.training.rewards import RewardSum, parse_weights
from hf_genrec.training.trainer import GenRecTrainer, make_trainer


DEFAULT_BETA = {"grpo": 1e-3, "listwise": 0.0, "sdpo": 1.0}


@dataclass
class PreferenceTrainingArguments(GenRecTrainingArguments):
    """
    [`GenRecTrainingArguments`] for preference and reward training; `per_device_train_batch_size` counts groups.

    Example:

    ```python
    >>> args = PreferenceTrainingArguments(output_dir="run", precision="fp32", report_to="none", objective="sdpo")
    >>> args.num_generations, args.beta
    (16, 1.0)

    ```
    """

    learning_rate: float = field(default=3e-4, metadata={"help": "Peak learning rate of AdamW."})
    weight_decay: float = field(default=0.0, metadata={"help": "Weight decay of AdamW."})
    num_train_epochs: float = field(default=1, metadata={"help": "Passes over all training targets."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Histories, a group each, per step."})
    eval_strategy: str = field(default="steps", metadata={"help": "When to evaluate: no, steps or epoch."})
    save_strategy: str = field(default="steps", metadata={"help": "When to save a checkpoint; as `eval_strategy`."})
    eval_steps: float | None = field(default=0.25, metadata={"help": "Steps (below 1: share of all) between two."})
    save_steps: float = field(default=0.25, metadata={"help": "As `eval_steps`."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between two lines of the log."})
    objective: str = field(default="grpo", metadata={"help": "grpo (rewards), listwise or sdpo (the next item)."})
    rewards: str = field(
        default="hit=1,rank=1",
        metadata={"help": "Weights of hit, rank, validity, diversity and novelty, for grpo; the others log them."},
    )
    num_generations: int = field(default=16, metadata={"help": "Distinct items of a group."})
    rollouts: str = field(default="beams", metadata={"help": "Groups are the best items (beams) or drawn (sample)."})
    beta: float | None = field(
        default=None,
        metadata={"help": "Weight of the KL to the first model (0.001 for grpo, 0 for listwise); S-DPO's own (1)."},
    )
    scale_rewards: bool = field(default=False, metadata={"help": "Divide advantages by the group's deviation."})
    renormalize_in_catalog: bool = field(
        default=True,
        metadata={
            "help": "Probabilities over the tokens the catalog allows, in training and after it; else over all."
        },
    )
    likelihood_weight: float = field(
        default=0.0, metadata={"help": "Weight of the model's ordinary loss beside the objective."}
    )

    def __post_init__(self) -> None:
        for name, choices in (("objective", OBJECTIVES), ("rollouts", ("beams", "sample"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}.")
        if self.num_generations < 2:
            raise ValueError(f"`num_generations` must be at least 2, got {self.num_generations}.")
        if self.beta is None:
            self.beta = DEFAULT_BETA[self.objective]
        for name in ("beta", "likelihood_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be at least 0, got {getattr(self, name)}.")
        parse_weights(self.rewards)
        super().__post_init__()


class PreferenceTrainer(GenRecTrainer):
    """
    `GenRecTrainer` whose loss is one of groups that the model itself proposes; made by [`make_preference_trainer`].

    Groups are made and scored without dropout, so the divergence from the first model begins at exactly 0. The log has
    the mean reward, its parts, the share of groups that hold their target, the number of different items among all
    groups since the last line, and the divergence.
    """

    args: PreferenceTrainingArguments
    one_target_per_row = True
    reference: Any = None
    reward: RewardSum
    _seen: dict[str, list[float]]
    _items: set[int]

    def prepare(self, prepared: PreparedDataset) -> None:
        """
        Keep the model as it is as the reference, and take from the data what rewards need.

        Args: the data set of the training.
        """
        model: Any = self.model
        if not hasattr(model, "score_candidates"):
            raise ValueError(
                f"`objective` is for models that write semantic IDs code by code; a {type(model).__name__} does not."
            )
        if self.args.num_generations > model.config.num_items:
            raise ValueError(
                f"`num_generations` must be at most the {model.config.num_items} items of the catalog, got "
                f"{self.args.num_generations}."
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError("`objective` needs the whole model in each process: train without FSDP and DeepSpeed.")
        if hasattr(model, "make_trainable"):
            model.make_trainable()
        model.config.normalization = "catalog" if self.args.renormalize_in_catalog else "vocabulary"
        self.reference = copy.deepcopy(model).eval().requires_grad_(False)
        counts = torch.from_numpy(prepared.train_item_counts())
        self.reward = RewardSum(parse_weights(self.args.rewards), model.item_codes, counts)
        self._seen, self._items = defaultdict(list), set()

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """
        As in [`GenRecTrainer`]. Groups are scored past the wrapper of several processes, so gradients are added up
        here, and a process whose part of a step is empty waits for the others.
        """
        if bool((inputs["labels"] != IGNORED_LABEL).any()):
            loss = super().training_step(model, inputs, *args, **kwargs)
        else:
            self._seeds.begin_batch(self.state.global_step)
            loss = torch.zeros((), device=self.args.device)
        if self.accelerator.num_processes > 1 and self.accelerator.sync_gradients:
            sum_gradients(self.accelerator.unwrap_model(model).parameters())
        return loss * self.accelerator.num_processes  # the log has the mean over processes

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """As in transformers: the mean over groups."""
        network = self.accelerator.unwrap_model(model)
        targets = inputs["labels"].amax(1) - network.config.first_item_token
        with evaluation_mode(network):
            items = self.rollout(network, inputs)
            if self.args.objective != "grpo":
                items = with_target(items, targets)
            losses = self._losses(network, inputs, items, targets)
        num_groups = len(losses) if num_items_in_batch is None else num_items_in_batch
        loss = losses.sum() / num_groups
        if self.args.likelihood_weight:
            ordinary = network(**inputs, num_items_in_batch=num_items_in_batch).loss
            loss = loss + self.args.likelihood_weight * ordinary
        return (loss, {}) if return_outputs else loss

    @torch.no_grad()
    def rollout(self, network: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """
        A group for each history, items `(B, num_generations)`, best or first drawn first, -1 where there are fewer.

        Args: the model, and a batch with `input_ids` and `attention_mask`.
        """
        number = self.args.num_generations
        seed = None
        if self.args.rollouts == "sample":
            seed = self.args.seed + self.state.global_step
            seed = seed_of(seed, self.part) if self.part else seed
        output = network.recommend(
            inputs["input_ids"],
            inputs["attention_mask"],
            exclude_items=inputs["input_ids"] if self.leaves_out_seen else None,
            config=RecommendConfig(top_k=number, num_beams=max(number, 10), sample_seed=seed),
        )
        items = output.item_tokens - network.config.first_item_token
        return items.masked_fill(output.scores == -float("inf"), -1)

    def _losses(self, network: Any, inputs: Mapping[str, Any], items: torch.Tensor, targets: torch.Tensor) -> Any:
        args, is_path = self.args, items >= 0
        log_probs = _log_probs(network, inputs, items)
        with torch.no_grad():
            reference = _log_probs(self.reference, inputs, items)
            rewards, parts = self.reward(items, targets)
        divergence = kl_divergence(log_probs, reference, is_path)
        is_target = items == targets.unsqueeze(1)
        self._note(items, rewards, parts, is_target, divergence)
        beta = args.beta or 0.0
        if args.objective == "sdpo":
            return sdpo_loss(log_probs, reference, is_target, is_path, beta=beta)
        if args.objective == "listwise":
            losses = listwise_loss(log_probs, is_target, is_path)
        else:
            losses = grpo_loss(log_probs, group_advantages(rewards, is_path, scale=args.scale_rewards), is_path)
        return losses + beta * divergence if beta else losses

    def _note(
        self,
        items: torch.Tensor,
        rewards: torch.Tensor,
        parts: Mapping[str, torch.Tensor],
        is_target: torch.Tensor,
        divergence: torch.Tensor,
    ) -> None:
        """What the next line of the log is the mean of."""
        self._items |= set(items[items >= 0].tolist())
        values = {"reward": rewards, "kl": divergence, "groups_with_target": is_target.any(1).float()}
        values |= {f"reward_{name}": part for name, part in parts.items()}
        for name, value in values.items():
            self._seen[name].append(value.detach().float().mean().item())

    def _validation_loss(self, model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        targets = batch["labels"].amax(1, keepdim=True) - model.config.first_item_token
        return -_log_probs(model, batch, targets).mean() / model.config.num_levels

    # Checkpoints of a language model hold what is trained, by its names; the base it stands on is where it was.

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        model: Any = self.accelerator.unwrap_model(self.model)
        if not isinstance(model, PreTrainedModel):
            state_dict = {name: parameter.detach() for name, parameter in _trained(model).items()}
        super()._save(output_dir, state_dict)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        network: Any = self.accelerator.unwrap_model(self.model if model is None else model)
        if isinstance(network, PreTrainedModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = load_file(Path(resume_from_checkpoint) / SAFE_WEIGHTS_NAME)
        with torch.no_grad():
            for name, parameter in _trained(network).items():
                parameter.copy_(saved[name])

    def _load_best_model(self) -> None:
        if isinstance(self.accelerator.unwrap_model(self.model), PreTrainedModel):
            super()._load_best_model()
        else:
            self._load_from_checkpoint(str(self.state.best_model_checkpoint))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in transformers; lines with a loss have the means since the last one."""
        if "loss" in logs:
            found: Any = gather_object([(dict(self._seen), self._items)])  # of all processes
            for name in found[0][0]:
                values = [value for seen, _ in found for value in seen.get(name, ())]
                logs = logs | {name: sum(values) / len(values)}
            logs["distinct_items"] = len(set().union(*(items for _, items in found)))
            self._seen.clear()
            self._items.clear()
        super().log(logs, *args, **kwargs)


def make_preference_trainer(
    model: Any, prepared: PreparedDataset, args: PreferenceTrainingArguments, *, targets: str = "all"
) -> PreferenceTrainer:
    """
    A trainer for a model that was trained before; call its `train()`.

    Args:
        model: A model that writes semantic IDs, such as [`LatteForConditionalGeneration`], one of language models too.
        prepared ([`PreparedDataset`]): The data set; its catalog is the model's.
        args ([`PreferenceTrainingArguments`]): How to train.
        targets (`str`, *optional*, defaults to `"all"`): Groups for every item of a sequence or the `"last"` only.

    Raises:
        ValueError: If the model finds items in another way, or groups are larger than the catalog.
    """
    trainer: Any = make_trainer(model, prepared, args, targets=targets, trainer_class=PreferenceTrainer)
    trainer.prepare(prepared)
    return trainer


def _trained(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _log_probs(network: Any, inputs: Mapping[str, Any], items: torch.Tensor) -> torch.Tensor:
    """Exact log-probabilities of items `(B, n)`, summed over latents; those of places without an item mean nothing."""
    history = network.encode_history(inputs["input_ids"], inputs["attention_mask"])
    return network.score_candidates(history, items.clamp_min(0), latent_aggregation="sum")


def plot_reward_log(log_history: Sequence[Mapping[str, Any]], path: str | os.PathLike[str]) -> Path:
    """
    Draw the mean reward, the number of distinct items, the divergence and validation ndcg@10 over the steps.

    Args: the `log_history` of `training.json` or of a trainer's state, and the PNG file.
    """
    figure = new_figure(9.6, 5.2)
    panels = {
        "reward": "Mean reward of a recommendation",
        "distinct_items": "Distinct items between two lines of the log",
        "kl": "Divergence from the first model",
        "eval_ndcg@10": "Validation ndcg@10",
    }
    for axes, (key, title) in zip(figure.subplots(2, 2).flatten(), panels.items(), strict=True):
        rows = [(line["step"], line[key]) for line in log_history if key in line]
        axes.plot(*zip(*rows, strict=True) if rows else ([], []), color=DARK, marker="o", markersize=3)
        axes.set_title(title, loc="left", fontsize="medium", fontweight="bold")
        axes.set_xlabel("step", color=GREY)
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return save_figure(figure, path)
