"""
A causal LM with semantic-ID tokens in, the loss on answers out: only states at answer positions meet the head.

Codes are compared with those that the catalog allows at their place, titles with the whole vocabulary. This is what
makes training an LLM possible on a CPU: the head of SmolLM2-135M costs as much per position as eight of its layers.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch.nn import functional

from hf_genrec.data.sequences import IGNORED_LABEL
from hf_genrec.llm.vocabulary import SidVocabulary
from hf_genrec.modeling.genrec_catalog import Catalog


class AnswerLoss(torch.nn.Module):
    """
    A causal LM whose forward takes rows of tokens and labels and returns the mean loss of a labelled token.

    Args:
        causal_lm: A causal LM of transformers, or one with peft's adapters; its embeddings hold the tokens of codes.
        vocabulary ([`SidVocabulary`]): Which tokens these are.
        catalog ([`Catalog`]): Which codes may follow which.
        normalization (`str`, defaults to `"catalog"`):
            Softmax over the codes that the catalog allows, or as other trainers of LLMs over the whole `"vocabulary"`.
    """

    def __init__(
        self,
        causal_lm: Any,
        vocabulary: SidVocabulary,
        catalog: Catalog,
        *,
        normalization: Literal["catalog", "vocabulary"] = "catalog",
    ) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.catalog = catalog
        self.normalization = normalization
        self.code_tokens = vocabulary.code_token_ids
        self.layers = token_layers(causal_lm)
        size = int(self.code_tokens.max()) + 1
        self._level = torch.full((size,), -1)
        self._code = torch.full((size,), -1)
        for level, tokens in enumerate(self.code_tokens):
            self._level[tokens] = level
            self._code[tokens] = torch.arange(len(tokens))

        self._no_split_modules = list(getattr(self.plain, "_no_split_modules", None) or [])  # the pieces of FSDP
        self._trained = [name for name, parameter in self.named_parameters() if parameter.requires_grad]

    @property
    def config(self) -> Any:
        """The config of the causal LM."""
        return self.plain.config

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next(self.parameters()).device

    def activation_checkpointing_enable(self, **options: Any) -> None:
        """Keep only some activations and compute the others again. Args: those of `PreTrainedModel`."""
        self.plain.activation_checkpointing_enable(**options)

    def trained_parameters(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that are trained at any stage, by name: what a checkpoint of the trainer holds."""
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in self._trained}

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """The trained parameters alone; the others are those of the backbone."""
        return {name: parameter.detach() for name, parameter in self.trained_parameters().items()}

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """Takes what `state_dict` returned. Args: see `torch.nn.Module`."""
        parameters = self.trained_parameters()
        if set(parameters) != set(state_dict):
            names = sorted(set(parameters) ^ set(state_dict))
            raise ValueError(f"The checkpoint is that of another training: {names[0]} is on one side only.")
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(state_dict[name])
        return torch.nn.modules.module._IncompatibleKeys([], [])

    @property
    def plain(self) -> Any:
        """The causal LM itself, where peft wraps it."""
        return self.causal_lm.get_base_model() if hasattr(self.causal_lm, "peft_config") else self.causal_lm

    accepts_loss_kwargs = True  # so that the trainer counts the answers of all batches and processes of a step

    def forward(
        self, input_ids: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
    ) -> dict[str, torch.Tensor]:
        """
        The mean negative log-likelihood of the labels. Rows are padded on the right, so that causal attention needs no
        mask.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, T)`): Tokens.
            labels (`torch.LongTensor` of shape `(B, T)`): The same where a token is an answer, else -100.
            num_items_in_batch (`torch.Tensor` or `int`, *optional*):
                Answers that the sum is divided by; `None` for those of this batch.
        """
        embedded = self._embed(input_ids)
        hidden = self.plain.get_decoder()(inputs_embeds=embedded, use_cache=False).last_hidden_state
        rows, columns = (labels[:, 1:] != IGNORED_LABEL).nonzero(as_tuple=True)
        states, targets = hidden[rows, columns], labels[rows, columns + 1]
        levels = self._level.to(targets.device)[targets.clamp_max(len(self._level) - 1)]
        levels = levels.masked_fill(targets >= len(self._level), -1)
        if self.normalization == "vocabulary":
            levels = torch.full_like(levels, -1)
        losses = []
        for level in [-1, *range(len(self.code_tokens))]:
            at = (levels == level).nonzero()[:, 0]
            if not len(at):
                continue
            if level < 0:
                logits, wanted = self.plain.get_output_embeddings()(states[at]), targets[at]
            else:
                before = _before(input_ids, rows[at], columns[at], level)  # (n, level), tokens of the codes so far
                logits, wanted = (
                    self._code_logits(states[at], level, before),
                    self._code.to(targets.device)[targets[at]],
                )
            losses.append(functional.cross_entropy(logits.float(), wanted, reduction="sum"))
        losses = losses or [states.sum()]  # of no rows: 0, with gradients
        num_targets = max(1, len(targets)) if num_items_in_batch is None else num_items_in_batch
        return {"loss": torch.stack(losses).sum() / num_targets}

    def _embed(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings of tokens; of trained rows without a copy of the whole matrix, which peft's own forward makes."""
        layer = self.layers.get("input")
        if layer is None:
            return self.plain.get_input_embeddings()(input_ids)
        embedded = layer.base_layer(input_ids)
        places = self._places(layer, len(layer.base_layer.weight)).to(input_ids.device)[input_ids]
        trained = delta_of(layer)[places.clamp_min(0)].to(embedded)
        return torch.where((places >= 0).unsqueeze(-1), trained, embedded)

    def _code_logits(self, states: torch.Tensor, level: int, before: torch.Tensor) -> torch.Tensor:
        """Logits `(n, codebook_size)` of a level, minus infinity where the catalog has no such prefix."""
        tokens = self.code_tokens[level].to(states.device)
        head = self.plain.get_output_embeddings()
        layer = self.layers.get("output", self.layers.get("input"))
        if layer is None:
            weight = head.weight[tokens]
        else:
            weight = delta_of(layer)[self._places(layer, int(tokens.max()) + 1).to(tokens.device)[tokens]]
        bias = getattr(head, "bias", None)
        logits = functional.linear(states, weight.to(states.dtype), None if bias is None else bias[tokens])
        nodes = self.catalog.node_of(self._code.to(before.device)[before])
        return logits.masked_fill(~self.catalog.child_mask(level, nodes), -float("inf"))

    @staticmethod
    def _places(layer: Any, size: int) -> torch.Tensor:
        """Where a token's row stands among the trained ones, `(size,)`, -1 for the others."""
        places = torch.full((size,), -1)
        indices = torch.tensor(layer.token_indices[_active(layer)])
        is_inside = indices < size
        places[indices[is_inside]] = torch.arange(len(indices))[is_inside]
        return places

    @torch.no_grad()
    def write_rows(self) -> None:
        """Copy the trained rows into the embeddings below the adapter, for whoever reads these."""
        for layer in self.layers.values():
            layer.base_layer.weight[layer.token_indices[_active(layer)]] = delta_of(layer).to(layer.base_layer.weight)

    @torch.no_grad()
    def check(self) -> None:
        """Raises a `ValueError` where the LM computes its logits in a way of its own, which would be left out here."""
        was_training = self.training
        self.eval()
        tokens = self.code_tokens[:, :1].T.repeat(1, 2).to(self.device)  # (1, 2 * num_levels)
        expected = self.causal_lm(input_ids=tokens).logits.float()
        hidden = self.plain.get_decoder()(inputs_embeds=self._embed(tokens), use_cache=False).last_hidden_state
        found = self.plain.get_output_embeddings()(hidden).float()
        self.train(was_training)
        if not torch.allclose(found, expected, atol=1e-2, rtol=1e-2):
            name = type(self.plain).__name__
            raise ValueError(
                f"{name} scales its embeddings or logits, which training with the loss on answers leaves out. Choose "
                "a backbone of another kind, such as Qwen3, Llama or SmolLM2."
            )


def token_layers(causal_lm: Any) -> dict[str, Any]:
    """
    peft's layers that hold trained rows, `input` and, where the head is another matrix, `output`; empty without peft.

    Args: the causal LM.
    """
    plain = causal_lm.get_base_model() if hasattr(causal_lm, "peft_config") else causal_lm
    found = {}
    for name, module in (("input", plain.get_input_embeddings()), ("output", plain.get_output_embeddings())):
        layer = getattr(module, "token_adapter", module)
        if hasattr(layer, "trainable_tokens_delta") and not layer.tied_adapter:
            found[name] = layer
    return found


def delta_of(layer: Any) -> torch.Tensor:
    """The trained rows `(num_rows, width)`, in the order of `token_indices`. Args: a layer of [`token_layers`]."""
    return layer.trainable_tokens_delta[_active(layer)]


def _active(layer: Any) -> str:
    return layer.active_adapters[0]


def _before(input_ids: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor, number: int) -> torch.Tensor:
    """The last tokens up to some places, `(n, number)`, oldest first."""
    offsets = torch.arange(1 - number, 1, device=columns.device)
    return input_ids[rows.unsqueeze(1), columns.unsqueeze(1) + offsets]
