"""
What is computed once: the vectors of all items, for many requests until the model changes; an encoded history, for
the two heads that read it in one request.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn


class KeptVectorsMixin:
    """What a model keeps between requests; it supplies `item_vectors`, which computes them from weights and codes."""

    item_vectors: Callable[[], torch.Tensor]  # (num_items, d_model)
    _kept: tuple[list[tuple[torch.Tensor, torch.Tensor, int]], torch.Tensor] | None = None

    def all_item_vectors(self) -> torch.Tensor:
        """
        `item_vectors()` of all items, float32: computed once for many requests where nothing changes between them.

        They are kept in evaluation mode and without gradients, until a parameter or buffer of the model is another
        tensor, has been written to (`Tensor._version`), or the model is moved or trained. A write through `.data`,
        which leaves no trace, is seen after `train()`.
        """
        tensors = [*self.parameters(), *self.buffers()]
        # aliases keep the storages alive, so no other tensor can come to lie at their addresses
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling() or not _have_versions(tensors):
            return self.item_vectors().float()
        if self._kept is None or not _are_unchanged(tensors, self._kept[0]):
            versions = [(tensor, tensor.detach(), tensor._version) for tensor in tensors]
            self._kept = versions, self.item_vectors().float()
        return self._kept[1]

    @property
    def keeps_item_vectors(self) -> bool:
        """`bool`: whether a request has left the vectors of all items for the next one."""
        return self._kept is not None

    def train(self, mode: bool = True):
        """See `nn.Module.train`."""
        self._kept = None if mode else self._kept
        return super().train(mode)

    def _apply(self, *args, **kwargs):
        self._kept = None
        return super()._apply(*args, **kwargs)


def _have_versions(tensors: list[torch.Tensor]) -> bool:
    """Whether each is a plain tensor that counts what is written to it."""
    return all(type(tensor) in (torch.Tensor, nn.Parameter) and not tensor.is_inference() for tensor in tensors)


def _are_unchanged(tensors: list[torch.Tensor], known: list[tuple[torch.Tensor, torch.Tensor, int]]) -> bool:
    """Whether they are the known ones, at the same addresses and versions."""
    return len(tensors) == len(known) and all(
        tensor is old and tensor.data_ptr() == alias.data_ptr() and tensor._version == version
        for tensor, (old, alias, version) in zip(tensors, known, strict=True)
    )


def vectors_of(model: Any) -> torch.Tensor | None:
    """Vectors of all items: those that a model compares histories with, else those of their codes; `None` without."""
    if getattr(model.config, "dense_head", False):
        return model.all_item_vectors()
    if hasattr(model, "item_embeddings"):
        return model.item_embeddings()
    return model.code_vectors() if model.config.has_codes else None


_histories: ContextVar[dict[Any, tuple] | None] = ContextVar("histories", default=None)  # each thread has its own


@contextmanager
def histories_read_once() -> Iterator[None]:
    """Within it `read_history` remembers for each model what it read last."""
    token = _histories.set({})
    try:
        yield
    finally:
        _histories.reset(token)


def read_history(model: Any, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None) -> Any:
    """`model.encode_history(input_ids, attention_mask)`, or within `histories_read_once` what that just was."""
    known = _histories.get()
    if known is None:
        return model.encode_history(input_ids, attention_mask)
    before = known.get(model)
    if before is None or not all(map(_are_equal, before, (input_ids, attention_mask))):
        known[model] = before = (input_ids, attention_mask, model.encode_history(input_ids, attention_mask))
    return before[2]


def _are_equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    return first is second if first is None or second is None else torch.equal(first, second)
