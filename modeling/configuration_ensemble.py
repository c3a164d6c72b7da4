"""Configuration of an ensemble: the configs of its members, and how their scores are added up."""

from typing import Any

from huggingface_hub.dataclasses import strict

from .configuration_acerec import ACERecConfig
from .configuration_bert4rec import BERT4RecConfig
from .configuration_decoder import DecoderConfig
from .configuration_genrec import GenRecConfig
from .configuration_gru4rec import GRU4RecConfig
from .configuration_hstu import HSTUConfig
from .configuration_item_to_item import ItemToItemConfig
from .configuration_latte import LatteConfig
from .configuration_rpg import RPGConfig
from .configuration_sasrec import SASRecConfig
from .configuration_vqrec import VQRecConfig


MEMBER_CONFIGS = {
    kind.model_type: kind
    for kind in (
        LatteConfig,
        DecoderConfig,
        RPGConfig,
        ACERecConfig,
        SASRecConfig,
        HSTUConfig,
        VQRecConfig,
        GRU4RecConfig,
        BERT4RecConfig,
        ItemToItemConfig,
    )
}
COMBINATIONS = ("standardised", "log_probability", "reciprocal_rank")
# What a saved config holds beside its settings: of a member it says nothing in an ensemble.
NO_SETTINGS = ("architectures", "auto_map", "custom_pipelines", "transformers_version", "_name_or_path")


@strict
class EnsembleConfig(GenRecConfig):
    """
    Members over one catalog, each with one or two scores of its own, and a weight for each score.

    Args:
        members (`list[dict]`): The members' configs, as `to_diff_dict()` gives them.
        weights (`list[float]`, *optional*): A weight of at least 0 for each of `scores`; `None` for 1 each.
        combination (`str`, defaults to `"standardised"`):
            What is added up, times the weights. `"standardised"`: a member's log-probabilities, divided by their
            standard deviation for the user at hand. `"log_probability"`: these as they are. `"reciprocal_rank"`:
            `1 / (60 + rank)` of a member's first `num_candidates` items.
        num_candidates (`int`, defaults to 50):
            Items that a member with beams lists, and number of its beams.
        listing_floor (`float`, defaults to 0.7):
            Nats under the last one listed at which a member with beams is taken to have all items that it lacks.

    Raises:
        ValueError: If there is no member, one is of no kind that is known or has another catalog, or the number of
            weights is wrong.

    Source: standardised scores as in Fox and Shaw 1994 (CombSUM); reciprocal ranks: Cormack et al. 2009
    (https://doi.org/10.1145/1571941.1572114).

    Example:

    ```python
    >>> from hf_genrec.modeling.configuration_ensemble import EnsembleConfig
    >>> members = [{"model_type": "sasrec", "num_items": 12}, {"model_type": "item_to_item", "num_items": 12}]
    >>> EnsembleConfig(num_items=12, members=members).scores
    ['SASRec', 'Sequential ridge']

    ```
    """

    model_type = "ensemble"
    has_codes = False
    display_name = "Weighted ensemble"
    summary = "adds up what its members say about every item"

    members: list[dict[str, Any]] | None = None
    weights: list[float] | None = None
    weights_with_seen: list[float] | None = None
    combination: str = "standardised"
    num_candidates: int = 50
    listing_floor: float | int = 0.7
    num_levels: int = 0
    codebook_size: int = 0

    def __post_init__(self, **kwargs):
        kwargs.pop("max_history_length", None)
        self._check_choice("combination", *COMBINATIONS)
        self._check_least(1, "num_candidates")
        self._check_least(0, "listing_floor")
        self.members = [
            {name: value for name, value in member.items() if name not in NO_SETTINGS} for member in self.members or []
        ]
        for member in self.members:
            if member.get("model_type") not in MEMBER_CONFIGS:
                raise ValueError(
                    f"`members` must be configs of {', '.join(MEMBER_CONFIGS)}, got {member.get('model_type')!r}."
                )
            if member.get("history_gap_buckets"):
                raise ValueError(
                    f"`members` must read no times, and a {member['model_type']} has `history_gap_buckets`: "
                    "an ensemble chooses its weights without times. Train that member with `history_gap_buckets=0`."
                )
            if member.get("num_items", 1) != self.num_items:
                raise ValueError(
                    f"`members` must have the {self.num_items} items of the ensemble, a {member['model_type']} has "
                    f"{member.get('num_items')}."
                )
        if self.members and self.weights is None:
            self.weights = [1.0] * len(self.scores)
        for name in ("weights", "weights_with_seen"):
            found = getattr(self, name)
            if self.members and found is not None and (len(found) != len(self.scores) or min(found) < 0):
                raise ValueError(
                    f"`{name}` must be {len(self.scores)} numbers of at least 0, one for each of "
                    f"{', '.join(self.scores)}, got {found}."
                )
        super().__post_init__(**kwargs)

    def member_configs(self) -> list[GenRecConfig]:
        """The members' configs, made anew."""
        return [
            MEMBER_CONFIGS[member["model_type"]](**{name: member[name] for name in member if name != "model_type"})
            for member in self.members
        ]

    @property
    def scores(self) -> list[str]:
        """`list[str]`: the scores that are added up, a member's dense head beside its beams as one of its own."""
        names = []
        for config in self.member_configs():
            names.append(config.system_name)
            if getattr(config, "dense_head", False):
                names.append(f"{config.system_name}, dense head")
        return names

    @property
    def max_history_length(self) -> int:
        """`int`: that of the member that reads the most."""
        kinds = [(member, MEMBER_CONFIGS[member["model_type"]]) for member in self.members]  # read for every request
        return max((member.get("max_history_length", kind.max_history_length) for member, kind in kinds), default=1)

    @property
    def cited_papers(self) -> tuple[str, ...]:
        """`tuple[str, ...]`: those of the members, each once."""
        return tuple(dict.fromkeys(paper for config in self.member_configs() for paper in config.cited_papers))

    @property
    def description(self) -> list[str]:
        """`list[str]`: the members and their weights."""
        members = ", ".join(
            f"{name} x {weight:.3g}" for name, weight in zip(self.scores, self.weights or [], strict=True)
        )
        return [f"{self.combination.replace('_', ' ')} scores of {members}", *super().description]


__all__ = ["COMBINATIONS", "EnsembleConfig"]
