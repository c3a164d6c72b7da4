"""
What a call of `recommend()` may be asked for, every option with its default, in one place; and what it answers.

A model keeps its options in `model.recommend_config`; `save_pretrained` writes them to `recommend_config.json` and
`from_pretrained` reads them. A keyword of a call overrides them for that call.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from numbers import Integral, Real
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import torch
from transformers.utils import ModelOutput

from .genrec_folder import MANIFEST_FILE, optional_file, write_manifest


RECOMMEND_CONFIG_FILE = "recommend_config.json"
LATENT_AGGREGATIONS = ("max", "sum")
NO_EFFECT = "it improved the lists on none of the measured data sets. Leave it out"
REMOVED = {
    "beams_per_latent": NO_EFFECT,
    "latents_per_prefix": NO_EFFECT,
    "level_temperature": f"{NO_EFFECT}; `prior_correction` works against popular prefixes",
    "graph_start": "walks start at random items, as published. Leave it out",
    "table_dtype": "rounded tables took more time than exact ones. Leave it out",
}
# Pairs that contradict each other: an option, the options that it excludes, and why.
EXCLUSIVE = (
    (
        "sample_seed",
        ("num_groups", "diversity", "prior_correction", "num_rescored"),
        "a sample comes in the order drawn, from the model as it is",
    ),
    (
        "dense_weight",
        ("sample_seed", "num_groups", "num_rescored"),
        "a list by both heads ranks their best items; `dense_weight=0` is the generator alone",
    ),
    (
        "num_groups",
        ("prior_correction", "num_rescored"),
        "groups divide the beams among themselves and take turns in the list",
    ),
)
# Options that mean something for one way of decoding only, and those that mean nothing without beams.
GRAPH_OPTIONS = ("num_propagations", "num_neighbors", "start_seed")
BEAM_OPTIONS = ("sample_seed", "num_groups", "num_rescored")


@dataclass
class RecommendConfig:
    """
    The options of `recommend()`, like `GenerationConfig` for `generate()`.

    Which of them a model knows is listed by `model.recommend_options`: a SASRec has no beams to group, for example.
    Options with their defaults change nothing.

    Args:
        top_k (`int`, defaults to 10): Length of the lists, at most `num_items`.
        exclude_seen (`bool`, defaults to `True`):
            Whether the recommender and the pipeline leave out items of the history. Training sets it to `False` where
            users of its log often take an item again. `recommend()` of the model itself leaves nothing out.
        num_beams (`int`, defaults to 50):
            Width of a search with beams or along a graph; widened for users who would get fewer than `top_k` items.
            Also the number of items that `diversity` picks from, if that is more than `top_k`.
        latent_aggregation (`str`, defaults to `"max"`):
            Score of an item reached through several latents: that of its best path, or the `"sum"` of the
            probabilities of its paths among the beams. Without latents both are the same.
        decoding (`str`, *optional*):
            How items are found; `None` for the default of the model. `"exact"` finds the best of all items: it scores
            them all, or, with a dense head beside a generator, drafts lists by that head until no item that is left
            can come in. `"beam"` searches the trie of semantic IDs, `"graph"` walks along a graph of similar items
            that `hf_genrec.serving.item_graph` builds after training, `"dense"` is the dense head alone.
        dense_weight (`float`, defaults to 0.0):
            Weight of the dense head's log-probability beside that of the generator, for models with both: the beams'
            items are united with as many of the dense head's best, whose semantic IDs are scored exactly, and ranked
            by the sum, which is also the score returned. 0 is the generator alone. Training chooses it on validation.
        num_rescored (`int`, defaults to 0):
            Score so many of the best distinct items again, exactly and over all latents: 0, or at least `top_k`.
        prior_correction (`float`, defaults to 0.0):
            Share of the log-prior of an item (or prefix) that is subtracted in ranking, so that what is unusually
            likely for *this* user comes up. Needs `item_prior`. The scores returned are free of it.
        num_groups (`int`, defaults to 1): Groups of beams that take turns in the list, at most `num_beams`.
        group_penalty (`float`, defaults to 0.0):
            Nats that a prefix costs a group for every beam of an earlier group that took it at the same step.
        diversity (`float`, defaults to 0.0):
            From 0, the best items in their order, to 1, the best one and then the least similar ones; see `mmr`.
            Give several times `top_k` beams with it.
        num_new_items (`int`, *optional*):
            So many items at least that came after training, see [`LiveCatalog`], in the last places if they earn no
            better one. `None` for a tenth of `top_k`, rounded. Samples and groups rank all items together.
        new_item_margin (`float`, defaults to 1.5):
            Nats by which the score of such an item must exceed that of another one to stand before it: models are
            too sure of items that they know by texts alone. Of a sum of two heads the same of each. 0 for none.
        sample_seed (`int`, *optional*):
            Draw items at random, in proportion to their probabilities and without replacement, in the order drawn,
            instead of taking the best. With beams a list depends on the other users of the batch; else only on the
            seed and the user's place.
        num_propagations (`int`, defaults to 3): Steps along the graph.
        num_neighbors (`int`, *optional*): Neighbours of an item that are followed; `None` for all of the graph's.
        start_seed (`int`, defaults to 0): Of the random start of a walk, which depends on it and the history alone.
        memory_budget (`int`, defaults to 2 GiB):
            Bytes beside the model that a call may take by its own estimate; users are computed in chunks under it.

    Example:

    ```python
    >>> RecommendConfig(num_beams=100).updated(top_k=5).num_beams
    100

    ```
    """

    top_k: int = 10
    exclude_seen: bool = True
    num_beams: int = 50
    latent_aggregation: str = "max"
    decoding: str | None = None
    dense_weight: float = 0.0
    num_rescored: int = 0
    prior_correction: float = 0.0
    num_groups: int = 1
    group_penalty: float = 0.0
    diversity: float = 0.0
    num_new_items: int | None = None
    new_item_margin: float = 1.5
    sample_seed: int | None = None
    num_propagations: int = 3
    num_neighbors: int | None = None
    start_seed: int = 0
    memory_budget: int = 2 << 30

    @property
    def new_places(self) -> int:
        """`int`: places that new items have in any case."""
        return min(self.top_k, (self.top_k + 5) // 10 if self.num_new_items is None else self.num_new_items)

    def updated(self, **options: Any) -> "RecommendConfig":
        """The same with some options changed. Raises `TypeError` if there is no such option."""
        check_names(options, known=DEFAULTS, owner=type(self).__name__)
        return replace(self, **options)

    def changed(self) -> dict[str, Any]:
        """`dict[str, Any]`: the options that differ from their defaults."""
        return {name: value for name, value in vars(self).items() if value != DEFAULTS[name]}

    def check(self, *, num_items: int, known: Iterable[str], decodings: tuple[str, ...], owner: str) -> None:
        """
        Whether a model with these options and `decodings` can do this: a `ValueError` if an option is out of range,
        unknown to the model, or contradicts another one.
        """
        self._check_types()
        if self.decoding is not None and self.decoding not in decodings:
            one_of = "one of " if len(decodings) > 1 else ""
            raise ValueError(
                f"`decoding` must be {one_of}{', '.join(map(repr, decodings))}, got {self.decoding!r}: a {owner} "
                "finds items in no other way."
            )
        unknown = sorted(set(self.changed()) - {*known, "exclude_seen"})
        if unknown:
            raise ValueError(
                f"The config sets {', '.join(f'`{name}`' for name in unknown)}, which a {owner} does not have: its "
                f"options are {', '.join(sorted(known))}."
            )
        if not 1 <= self.top_k <= num_items:
            raise ValueError(f"`top_k` must lie in [1, {num_items}] (the catalog's size), got {self.top_k}.")
        for name in ("num_beams", "num_groups", "memory_budget"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        check_latent_aggregation(self.latent_aggregation)
        self._check_lists()
        self._check_graph(self.decoding or decodings[0])
        self._check_dense(self.decoding or decodings[0], decodings)
        if self.sample_seed is not None and (self.decoding or "exact") != "exact" and decodings[0] == "exact":
            raise ValueError(
                f"`sample_seed` is for `decoding='exact'`; this is `decoding={self.decoding!r}`, whose search would "
                "decide what can be drawn."
            )

    def _check_types(self) -> None:
        for field in fields(self):
            value, types = getattr(self, field.name), get_args(field.type) or (field.type,)
            kind, words = next(KINDS[entry] for entry in types if entry in KINDS)
            is_right = isinstance(value, kind) and isinstance(value, bool) == (kind is bool)  # True is an int too
            if not is_right and not (value is None and NoneType in types):
                words += " or None" if NoneType in types else ""
                raise WrongOption(f"`{field.name}` must be {words}, got {value!r}.")

    def _check_lists(self) -> None:
        """The part of `check` about corrections, groups, samples and re-ranking."""
        changed = self.changed()
        for name, others, reason in EXCLUSIVE:
            for other in others:
                if name in changed and other in changed:
                    raise ValueError(f"`{name}` and `{other}` cannot be combined: {reason}.")
        if self.num_rescored and self.num_rescored < self.top_k:
            raise ValueError(
                f"`num_rescored` must be 0 or at least `top_k`, got {self.num_rescored} and {self.top_k}: scores of "
                "items that were re-scored and of others cannot be ranked together."
            )
        if not math.isfinite(self.prior_correction):
            raise ValueError(f"`prior_correction` must be a finite number, got {self.prior_correction}.")
        if self.num_groups > self.num_beams:
            raise ValueError(f"`num_groups` must be at most `num_beams`, got {self.num_groups} and {self.num_beams}.")
        if not 0 <= self.group_penalty < math.inf:
            raise ValueError(f"`group_penalty` must be a finite number of at least 0, got {self.group_penalty}.")
        if self.group_penalty and self.num_groups == 1:
            raise ValueError("`group_penalty` is between groups: give `num_groups` of at least 2 with it.")
        if not 0 <= self.diversity <= 1:
            raise ValueError(f"`diversity` must lie in [0, 1], got {self.diversity}.")
        if self.num_new_items is not None and self.num_new_items < 0:
            raise ValueError(f"`num_new_items` must be at least 0, got {self.num_new_items}.")
        if not 0 <= self.new_item_margin < math.inf:
            raise ValueError(f"`new_item_margin` must be a finite number of at least 0, got {self.new_item_margin}.")
        if self.num_new_items and (self.sample_seed is not None or self.num_groups > 1):
            raise ValueError(
                "`num_new_items` cannot be combined with `sample_seed` or `num_groups`, which say where items stand."
            )
        if self.sample_seed is not None:
            check_seed("sample_seed", self.sample_seed)

    def _check_dense(self, decoding: str, decodings: tuple[str, ...]) -> None:
        if not 0 <= self.dense_weight < math.inf:
            raise ValueError(f"`dense_weight` must be a finite number of at least 0, got {self.dense_weight}.")
        if self.dense_weight and decodings[0] == "exact" and decoding not in ("exact", "dense"):
            raise ValueError(
                f"`dense_weight` is for `decoding='exact'`; this is `decoding={decoding!r}`. `dense_weight=0` is the "
                "first head alone."
            )
        is_drafted = decoding == "exact" and decodings[0] == "beam"
        if is_drafted and not self.dense_weight:
            raise ValueError("`decoding='exact'` needs a `dense_weight` above 0: the dense head drafts the lists.")
        for name in BEAM_OPTIONS:
            if (decoding == "dense" or is_drafted) and name in self.changed():
                raise ValueError(f"`{name}` is about beams, which `decoding={decoding!r}` does without.")

    def _check_graph(self, decoding: str) -> None:
        for name in GRAPH_OPTIONS:
            if decoding != "graph" and name in self.changed():
                raise ValueError(f"`{name}` is for `decoding='graph'`; this is `decoding={decoding!r}`.")
        if self.num_propagations < 0:
            raise ValueError(f"`num_propagations` must be at least 0, got {self.num_propagations}.")
        if self.num_neighbors is not None and self.num_neighbors < 1:
            raise ValueError(f"`num_neighbors` must be at least 1, got {self.num_neighbors}.")
        check_seed("start_seed", self.start_seed)

    def save(self, folder: str | Path, *, known: Iterable[str] | None = None) -> Path:
        """Write `recommend_config.json`."""
        kept = {name: value for name, value in vars(self).items() if known is None or name in (*known, "exclude_seen")}
        path = Path(folder) / RECOMMEND_CONFIG_FILE
        path.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
        if path.with_name(MANIFEST_FILE).is_file():
            write_manifest(folder, [RECOMMEND_CONFIG_FILE])
        return path

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **where: Any) -> "RecommendConfig":
        """Read the options of a folder or repository, see `optional_file`; without the file they are the defaults."""
        path = optional_file(folder_or_repo, RECOMMEND_CONFIG_FILE, **where)
        if path is None:
            return cls()
        try:
            options = json.loads(Path(path).read_text(encoding="utf-8"))
            return cls().updated(**options)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} must be a JSON object of options of `recommend()`: {error}") from error


@dataclass
class BeamPath:
    """One way through the decoding tree, or a prefix that was pruned."""

    latent: int | None  # chosen first; `None` for models without
    codes: list[int]  # so far
    scores: list[float]  # cumulative log-probability after the latent (if any) and after each code
    item_token: int | None  # of the item that the path ends at; `None` for a pruned prefix


@dataclass
class RecommendOutput(ModelOutput):
    """
    Ranked items.

    Args:
        item_tokens (`torch.LongTensor` of shape `(batch_size, top_k)`):
            Distinct items, best first, those that share a semantic ID by popularity or else ascending; with groups,
            samples or `diversity` in the order that these say. The pad token fills up where fewer than `top_k` items
            were allowed.
        scores (`torch.FloatTensor` of shape `(batch_size, top_k)`): Log-probabilities; `-inf` at the filling.
        paths (`list[list[BeamPath]]`, *optional*): Per user the paths of the items in `item_tokens`.
        pruned (`list[list[BeamPath]]`, *optional*): Per user the best continuations at each step that were not kept.
        num_distinct (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            How many distinct items the beams of each user ended at: of each semantic ID all items that share it.
        num_visited (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Number of distinct items that were scored for each user.
    """

    item_tokens: torch.LongTensor | None = None
    scores: torch.FloatTensor | None = None
    paths: list[list[BeamPath]] | None = None
    pruned: list[list[BeamPath]] | None = None
    num_distinct: torch.LongTensor | None = None
    num_visited: torch.LongTensor | None = None


KINDS: dict[Any, tuple[type, str]] = {
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a string"),
    bool: (bool, "True or False"),
}
DEFAULTS: Mapping[str, Any] = {field.name: field.default for field in fields(RecommendConfig)}


class WrongOption(TypeError, ValueError):
    """An option does not exist or is of another type. Also a `ValueError`: options come from files and shells too."""


def check_names(names: Iterable[str], *, known: Iterable[str], owner: str) -> None:
    """Whether all options exist: the error has the nearest name and all names, or says why one was removed."""
    known = sorted(known)
    for name in names:
        if name in REMOVED:
            raise WrongOption(f"The option `{name}` was removed: {REMOVED[name]}.")
    wrong = sorted(set(names) - set(known))
    if wrong:
        near = [match for name in wrong for match in get_close_matches(name, known, n=1)]
        hint = f" Did you mean {' and '.join(f'`{name}`' for name in near)}?" if near else ""
        shown = ", ".join(f"`{name}`" for name in wrong)
        raise WrongOption(f"There is no option {shown}: those of a {owner} are {', '.join(known)}.{hint}")


def check_latent_aggregation(latent_aggregation: str) -> None:
    """Whether it is a known one."""
    if latent_aggregation not in LATENT_AGGREGATIONS:
        raise ValueError(f"`latent_aggregation` must be 'max' or 'sum', got {latent_aggregation!r}.")


def check_seed(name: str, seed: Any) -> None:
    """Whether a number can be a seed."""
    if not isinstance(seed, int) or not 0 <= seed < 1 << 63:
        raise ValueError(f"`{name}` must be an integer in [0, 2**63), got {seed!r}.")
