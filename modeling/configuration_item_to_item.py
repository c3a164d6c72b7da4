"""Configuration of the item-to-item models: what a history item says about the next one, solved for or counted."""

from huggingface_hub.dataclasses import strict

from .configuration_genrec import GenRecConfig


METHODS = {
    "ridge": (
        "Sequential ridge",
        "EASE, its unordered relative: Steck 2019, https://arxiv.org/abs/1905.03375",
        "SLIST, its sequential relative: Choi et al. 2021, https://arxiv.org/abs/2103.16104",
    ),
    "item-knn": ("item-kNN", "Item-based neighbours: Sarwar et al. 2001, https://doi.org/10.1145/371920.372071"),
    "text": ("Text similarity",),
}


@strict
class ItemToItemConfig(GenRecConfig):
    """
    A table of weights from history items to next items, and the share that each history item has by its age.

    There are no codes, and nothing is trained: the table is fitted to the log in closed form, or is the similarity of
    the items' texts.

    Args:
        method (`str`, defaults to `"ridge"`):
            Where the table comes from: `"ridge"`, `"item-knn"` or `"text"`, see [`fit_item_to_item`].
        decay (`float`, defaults to 0.5): Weight of a history item relative to the one after it, in (0, 1].
        num_weights (`int`, defaults to 0): Entries of the table that are kept, those of all items together.
        vector_dim (`int`, defaults to 0):
            Width of the items' text vectors, whose inner products are weights too; 0 for none.
        self_similarity (`bool`, defaults to `True`):
            Whether the vector of a history item speaks for that item itself, or for the others alone.
        max_history_length (`int`, defaults to 50): Number of most recent items that are read.

    Raises:
        ValueError: If an option is out of range, or one is set that only models with codes have.

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_item_to_item import ItemToItemConfig
    >>> config = ItemToItemConfig(num_items=12, num_weights=40)
    >>> config.system_name, config.first_item_token
    ('Sequential ridge', 4)

    ```
    """

    model_type = "item_to_item"
    has_codes = False
    display_name = "Item-to-item"
    summary = "scores every item by weights from the history items"

    method: str = "ridge"
    decay: float | int = 0.5
    num_weights: int = 0
    vector_dim: int = 0
    self_similarity: bool = True
    max_history_length: int = 50
    num_levels: int = 0
    codebook_size: int = 0

    def __post_init__(self, **kwargs):
        self._check_choice("method", *METHODS)
        if not 0 < self.decay <= 1:
            raise ValueError(f"`decay` must be in (0, 1], got {self.decay}.")
        self._check_least(0, "num_weights", "vector_dim")
        self._check_least(1, "max_history_length")
        super().__post_init__(**kwargs)

    @property
    def system_name(self) -> str:
        """`str`: what the literature calls a model with this config."""
        return METHODS[self.method][0]

    @property
    def cited_papers(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: the papers behind the method."""
        return METHODS[self.method][1:]

    @property
    def description(self) -> list[str]:
        """`list[str]`: what is worth knowing about the table."""
        table = f"{self.num_weights:,} weights between items" if self.num_weights else "no weights between items"
        vectors = [f"text vectors of {self.vector_dim} dimensions"] if self.vector_dim else []
        return [table, *vectors, f"a history item counts {self.decay} of the one after it", *super().description]


__all__ = ["ItemToItemConfig"]
