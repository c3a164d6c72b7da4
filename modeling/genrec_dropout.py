"""Dropout whose random numbers are cheap on a CPU, where drawing them singly takes a quarter of a training step."""

import torch
from torch import nn


class ByteDropout(nn.Dropout):
    """
    Dropout that draws one random byte per element on a CPU; elsewhere it is `nn.Dropout`.

    torch draws a CPU mask number by number from one thread. Here each 64-bit draw serves eight elements, so the
    probability is rounded to a multiple of 1/256 (0.1 becomes 0.1016); kept elements are scaled by what was really
    kept, so the expectation is exact. The bytes come from torch's generator: a seed fixes them.

    Args:
        p (`float`, defaults to 0.5): Probability of an element to be zeroed, in [0, 1).

    Example:

    ```python
    >>> dropout = ByteDropout(0.25)
    >>> sorted(set(dropout(torch.ones(1000)).tolist()))
    [0.0, 1.3333333730697632]
    >>> dropout.eval()(torch.ones(3)).tolist()
    [1.0, 1.0, 1.0]

    ```
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """
        Args:
            input (`torch.Tensor`, any shape): What to drop from.

        Returns:
            `torch.Tensor`, same shape: in training with zeros at random places, else `input` itself.
        """
        threshold = min(255, round(self.p * 256))
        if not self.training:
            return input
        if threshold == 0 or input.device.type != "cpu" or torch.compiler.is_compiling():
            return super().forward(input)
        draws = torch.empty(-(-input.numel() // 8), dtype=torch.int64).random_(-(2**63), None)
        is_kept = (draws.view(torch.uint8)[: input.numel()] >= threshold).view(input.shape)
        return input * is_kept.to(input.dtype).mul_(256 / (256 - threshold))


def use_byte_dropout(module: nn.Module) -> None:
    """
    Replace every `nn.Dropout` below a module by [`ByteDropout`] of the same probability.

    Args:
        module (`nn.Module`): Changed in place.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if type(child) is nn.Dropout:
                setattr(parent, name, ByteDropout(child.p))


__all__ = ["ByteDropout", "use_byte_dropout"]
