"""
A language model that recommends in, trl's `GRPOTrainer` for it out: groups are constrained searches.

trl draws each completion of a group by itself and lets a model write what it likes. Here a group of `num_generations`
equal prompts is one search over the catalog, and the item of rank r goes to row r: distinct, valid, and hard negatives
of each other. Everything else (optimisation, logging, checkpoints, several devices) is trl's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
import torch
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer

from hf_genrec.data.prepared import PreparedDataset
from hf_genrec.data.sequences import WindowDataset, make_examples
from hf_genrec.modeling.genrec_recommend_config import RecommendConfig
from hf_genrec.modeling.modeling_causal_lm import CausalLMForItemGeneration
from hf_genrec.training.rewards import RewardSum, parse_weights


class CatalogGRPOTrainer(GRPOTrainer):
    """
    `GRPOTrainer` whose completions are semantic IDs; made by [`make_grpo_trainer`].

    With `renormalize_in_catalog` a token's probability is over the codes that the catalog allows at its place, as in
    the search that made the group, so that steps follow the reward of what is recommended; else, as trl has it, over
    the vocabulary.
    """

    recommender: CausalLMForItemGeneration
    reward: RewardSum
    rollouts: str
    leaves_out_seen: bool
    renormalize_in_catalog: bool
    histories: dict[str, list[int]]

    def groups(self, prompts: Sequence[str], number: int) -> dict[str, Any]:
        """
        What trl asks of a `rollout_func`: tokens of prompts and completions.

        Args: the prompts of all rows, each `number` times in a row.
        """
        firsts = list(prompts[::number])
        if list(prompts) != [prompt for prompt in firsts for _ in range(number)]:
            raise ValueError(
                "A group must lie in one process and one batch: `per_device_train_batch_size` times "
                f"`steps_per_generation` must be a multiple of `num_generations` {number}."
            )
        model: Any = self.recommender
        config = model.config
        input_ids = _padded([self.histories[prompt] for prompt in firsts], model)
        seed = self.args.seed + self.state.global_step if self.rollouts == "sample" else None
        output = model.recommend(
            input_ids,
            exclude_items=input_ids if self.leaves_out_seen else None,
            config=RecommendConfig(top_k=number, num_beams=max(number, 10), sample_seed=seed),
        )
        items = output.item_tokens - config.first_item_token
        items = torch.where(output.scores == -float("inf"), items[:, :1], items)  # fewer are left than a group has
        tokens, mask = model.prompt_tokens(input_ids)
        rows = [row[is_token].tolist() for row, is_token in zip(tokens, mask, strict=True)]
        levels = torch.arange(config.num_levels, device=items.device)
        written = model.code_token_ids[levels, model.item_codes[items.flatten()].long()]
        return {
            "prompt_ids": [row for row in rows for _ in range(number)],
            "completion_ids": written.tolist(),
            "logprobs": None,  # of engines beside the model, which there are none of
        }

    def group_rewards(self, completion_ids: Sequence[Sequence[int]], targets: Sequence[int], **kwargs: Any) -> Any:
        """
        What trl asks of a reward function: a number for each completion.

        Args: tokens of completions, and the item that came next for each row; `log_metric` takes the rewards' parts.
        """
        model: Any = self.recommender
        number = self.num_generations
        tokens = torch.tensor(list(completion_ids), device=model.item_codes.device)
        codes = (tokens.unsqueeze(-1) == model.code_token_ids).long().argmax(-1)  # (rows, num_levels)
        items = model.catalog.item_of(codes).view(-1, number)
        wanted = torch.tensor(list(targets), device=items.device)[::number]
        total, parts = self.reward(items, wanted)
        for name, part in parts.items():
            kwargs["log_metric"](f"reward_{name}", part.mean().item())
        kwargs["log_metric"]("groups_with_target", (items == wanted.unsqueeze(1)).any(1).float().mean().item())
        kwargs["log_metric"]("distinct_items", float(len(items.unique())))
        return total.flatten().tolist()

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if not self.renormalize_in_catalog:
            return super()._get_per_token_logps_and_entropies(
                model, input_ids, attention_mask, logits_to_keep, batch_size, compute_entropy, **kwargs
            )
        found = []
        size = batch_size or len(input_ids)
        for tokens, mask in zip(input_ids.split(size), attention_mask.split(size), strict=True):
            with self.accelerator.autocast():
                output = model(input_ids=tokens, attention_mask=mask, logits_to_keep=logits_to_keep + 1)
            logits = output.logits[:, -logits_to_keep - 1 : -1].float() / self.temperature
            found.append(_catalog_log_probs(self.recommender, logits, tokens[:, -logits_to_keep:]))
        log_probs, entropies = (torch.cat(parts) for parts in zip(*found, strict=True))
        return log_probs, entropies if compute_entropy else None, None


def make_grpo_trainer(
    model: CausalLMForItemGeneration,
    prepared: PreparedDataset,
    args: GRPOConfig,
    *,
    rewards: str = "hit=1,rank=1",
    rollouts: str = "beams",
    renormalize_in_catalog: bool = True,
    num_prompts: int | None = None,
) -> CatalogGRPOTrainer:
    """
    trl's GRPO for a language model that was fine-tuned on the histories; call its `train()`, then save the model as
    any other.

    Args:
        model ([`CausalLMForItemGeneration`]):
            The recommender of a run folder. Its adapter is trained where there is one, else the whole network.
        prepared ([`PreparedDataset`]): The data set; its catalog is the model's.
        args (`trl.GRPOConfig`): trl's settings; `num_generations` is the number of items of a group.
        rewards (`str`, defaults to `"hit=1,rank=1"`): Weights of `hit`, `rank`, `validity`, `diversity`, `novelty`.
        rollouts (`str`, defaults to `"beams"`): Groups are the best items (`"beams"`) or drawn (`"sample"`).
        renormalize_in_catalog (`bool`, defaults to `True`): See [`CatalogGRPOTrainer`].
        num_prompts (`int`, *optional*): Train on so many targets, drawn with the seed; `None` for all.

    Returns:
        [`CatalogGRPOTrainer`]

    Raises:
        ValueError: If the items are not the model's, or a group is larger than the catalog.

    Source: Shao et al. 2024 (https://huggingface.co/papers/2402.03300); constrained groups as in MiniOneRec, 2025
    (https://huggingface.co/papers/2510.24431).
    """
    config, number, codes = model.config, args.num_generations or 0, model.item_codes
    if config.num_items != len(prepared.item_ids):
        raise ValueError(f"`model` has {config.num_items} items, the data set {len(prepared.item_ids)}.")
    if rollouts not in ("beams", "sample"):
        raise ValueError(f"`rollouts` must be one of beams, sample, got {rollouts!r}.")
    if number > config.num_items:
        raise ValueError(f"`num_generations` must be at most {config.num_items}, got {number}.")
    args.max_completion_length = config.num_levels
    tokenizer: PreTrainedTokenizerBase = model.tokenizer
    rows = _rows(model, prepared, num_prompts, args.seed)
    counts = torch.from_numpy(prepared.train_item_counts())
    llm: Any = model.llm
    model.make_trainable()
    trainer: Any = None
    trainer = CatalogGRPOTrainer(
        model=llm,
        args=args,
        train_dataset=rows,
        processing_class=tokenizer,
        reward_funcs=lambda completion_ids, target, **kwargs: trainer.group_rewards(completion_ids, target, **kwargs),
        rollout_func=lambda prompts, _: trainer.groups(prompts, number),
    )
    _copy_rows_to_reference(llm)
    trainer.recommender, trainer.rollouts = model, rollouts
    trainer.reward = RewardSum(parse_weights(rewards), torch.as_tensor(codes), counts)
    trainer.leaves_out_seen, trainer.renormalize_in_catalog = not prepared.has_repeats, renormalize_in_catalog
    trainer.histories = dict(zip(rows["prompt"], rows["history"], strict=True))
    config.normalization = "catalog" if renormalize_in_catalog else "vocabulary"
    return trainer


def _rows(model: Any, prepared: PreparedDataset, num_prompts: int | None, seed: int) -> datasets.Dataset:
    """A row per target: the prompt as text, which trl groups by, the items of the history and the target."""
    first, length = model.config.first_item_token, model.config.max_history_length
    examples = make_examples(prepared.split("train"), prepared.item_ids, max_history_length=length, targets="all")
    windows = WindowDataset(examples, first_item_token=first)
    numbers: Any = np.arange(len(windows))
    if num_prompts is not None and num_prompts < len(windows):
        numbers = np.random.default_rng(seed).choice(len(windows), num_prompts, replace=False)
    rows = [windows[int(number)] for number in numbers]
    histories = [(row["input_ids"] - first).tolist() for row in rows]
    prompts = []
    for start in range(0, len(histories), 1024):
        tokens, mask = model.prompt_tokens(_padded(histories[start : start + 1024], model))
        prompts += [model.tokenizer.decode(row[is_token].tolist()) for row, is_token in zip(tokens, mask, strict=True)]
    targets = [int(row["labels"][-1]) - first for row in rows]
    return datasets.Dataset.from_dict({"prompt": prompts, "history": histories, "target": targets})


def _padded(histories: Sequence[Sequence[int]], model: Any) -> torch.Tensor:
    """Items of histories as item tokens, padded on the right."""
    rows = [torch.tensor(list(items)) + model.config.first_item_token for items in histories]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.config.pad_token_id)
    return padded.to(model.item_codes.device)


def _catalog_log_probs(model: Any, logits: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Log-probability of each token of completions `(rows, num_levels)` among the codes that the catalog allows behind
    those before it, and the entropy there; from logits `(rows, num_levels, vocabulary)`.
    """
    catalog, nodes = model.catalog, torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    log_probs, entropies = [], []
    for level in range(model.config.num_levels):
        of_level = model.code_token_ids[level]
        codes = (tokens[:, level, None] == of_level).long().argmax(1)
        is_legal = catalog.child_mask(level, nodes)
        among = logits[:, level, of_level].masked_fill(~is_legal, -float("inf")).log_softmax(-1)
        log_probs.append(among.gather(1, codes.unsqueeze(1))[:, 0])
        entropies.append(-(among.exp() * among.masked_fill(~is_legal, 0.0)).sum(1))
        nodes = catalog.child(level, nodes, codes)
    return torch.stack(log_probs, dim=1), torch.stack(entropies, dim=1)


@torch.no_grad()
def _copy_rows_to_reference(llm: Any) -> None:
    """trl copies an adapter to its reference, but not the trained rows of embeddings, whose names end otherwise."""
    parameters = dict(llm.named_parameters())
    for name, parameter in parameters.items():
        if name.endswith(".ref"):
            parameter.copy_(parameters[name.removesuffix("ref") + "default"])
