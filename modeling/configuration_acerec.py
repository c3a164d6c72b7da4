"""Configuration of ACERec: RPG's heads and scorer behind another encoder."""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict

from .configuration_rpg import RPGConfig


@strict
class ACERecConfig(RPGConfig):
    """
    RPG whose items enter as a few merged tokens with an intent token behind them, and two more losses.

    The paper's ablation is a matter of these values. [`RPGConfig`] is its first row; here `anchor="last"`,
    `alignment_weight=0` and `reconstruction_weight=0` is RPG with a merger, `anchor="intent"` adds the intent token,
    and the two weights add a loss each. `merger="mean"`, `num_merged_tokens=1`, `anchor="last"` and both weights 0 is
    RPG itself.

    Args:
        merger (`str`, defaults to `"attentive"`):
            How the codes of an item become `num_merged_tokens` tokens: `"attentive"` (queries made from the item's
            vector attend to its codes), or the mean, an MLP or a strided convolution (`"mean"`, `"mlp"`, `"conv"`)
            over neighbouring codes.
        num_merged_tokens (`int`, defaults to 4): Merged tokens per item, at most `num_levels`.
        anchor (`str`, defaults to `"intent"`):
            Where a prediction is read: an `"intent"` token behind the tokens of each item, which starts as the item's
            vector (made of the `item_pooling` of its code embeddings); or, without such a token, the `"last"` merged
            token, the `"mean"` of them or an `"mlp"` over them.
        alignment_weight (`float`, defaults to 0.1):
            Weight of the item-level alignment: the state has to find the vector of the next item among those of the
            batch. 0 turns it off.
        alignment_temperature (`float`, defaults to 0.07): What its cosines are divided by.
        popularity_correction (`float`, defaults to 0.02):
            What its logits lose for the most popular item, others in proportion to the logarithm of their counts
            (`set_item_counts`).
        reconstruction_weight (`float`, defaults to 0.03):
            Weight of rebuilding an item's code embeddings from its merged tokens, for at most 256 random items of a
            batch. 0 turns it off; then the first version of the paper is left.

    Raises:
        ValueError: If an option is out of range.

    Source: ACERec (https://huggingface.co/papers/2602.13573). Its text leaves open: the inner form of the mergers,
        which positions carry the loss (here all), the kinds of position embedding (here one per item and one per
        place in its block), dropout (here RPG's) and the cosines of the alignment.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_acerec import ACERecConfig
    >>> ACERecConfig(num_items=12101).tokens_per_item, ACERecConfig(anchor="last").tokens_per_item
    (5, 4)

    ```
    """

    model_type = "acerec"
    display_name = "ACERec"
    papers = ("ACERec: 2026, https://huggingface.co/papers/2602.13573", *RPGConfig.papers)
    default_shape: ClassVar[dict[str, Any]] = {}  # not RPG's
    # One of the two learning rates that the paper searched; what it does not state is taken from RPG.
    paper_schedule: ClassVar[dict[str, Any]] = RPGConfig.paper_schedule | {"learning_rate": 3e-3}

    merger: str = "attentive"
    num_merged_tokens: int = 4
    anchor: str = "intent"
    alignment_weight: float | int = 0.1
    alignment_temperature: float | int = 0.07
    popularity_correction: float | int = 0.02
    reconstruction_weight: float | int = 0.03

    def __post_init__(self, **kwargs):
        self._check_choice("merger", "attentive", "mean", "mlp", "conv")
        self._check_choice("anchor", "intent", "last", "mean", "mlp")
        if not 1 <= self.num_merged_tokens <= self.num_levels:
            raise ValueError(
                f"`num_merged_tokens` must lie in [1, `num_levels` {self.num_levels}], got {self.num_merged_tokens}."
            )
        has_vector = self.merger == "attentive" or self.anchor == "intent" or self.alignment_weight
        if self.item_pooling != "mean" and not has_vector:
            raise ValueError(
                f"`item_pooling={self.item_pooling!r}` is for the vector of an item, which nothing reads here: it "
                "goes with `merger='attentive'`, `anchor='intent'` or an `alignment_weight`."
            )
        self._check_least(0, "alignment_weight", "popularity_correction", "reconstruction_weight")
        if not self.alignment_temperature > 0:
            raise ValueError(f"`alignment_temperature` must be positive, got {self.alignment_temperature}.")
        super().__post_init__(**kwargs)

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the network."""
        network, *others = super().description
        merger = f"{self.merger} merger to {self.num_merged_tokens} tokens an item, {self.anchor} anchor"
        return [f"{network}; {merger}", *others]

    @property
    def tokens_per_item(self) -> int:
        """`int`: tokens that an item takes in the encoder: the merged ones and the intent token if there is one."""
        return self.num_merged_tokens + (self.anchor == "intent")


__all__ = ["ACERecConfig"]
