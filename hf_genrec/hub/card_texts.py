"""
The sentences of a card that depend on the model or its data, and strings of strangers made safe for Markdown.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from typing import Any


MAX_TEXT = 80  # characters of a title that a table shows


def system_name(config: Any) -> str:
    """
    What the literature calls a model with this config.

    Args:
        config: The model's config.

    Returns:
        `str`: `"RPG"`, `"ACERec"`, `"SASRec"`, `"Latte"` with latents, else `"TIGER/PSID"`: these two differ in their
            ids, not in the network.
    """
    if config.model_type in _SYSTEMS:
        return _SYSTEMS[config.model_type]
    return "Latte" if config.num_latent_tokens else "TIGER/PSID"


def description_of(config: Any) -> list[str]:
    """
    What is worth knowing about a network.

    Args:
        config: The model's config.

    Returns:
        `list[str]`: lines of Markdown.
    """
    history = f"histories are cut to the latest {config.max_history_length} items"
    if config.model_type == "latte":
        return [
            f"{config.num_latent_tokens or 'no'} latent tokens before a semantic ID, {config.history_attention} "
            f"history attention over {config.history_unit}s",
            history,
        ]
    network = f"{config.num_layers} GPT-2 layers of width {config.d_model}, "
    if config.model_type == "sasrec":
        return [network + "one item table for input and output", history]
    network += f"{config.projection} projection heads"
    if config.model_type == "acerec":
        network += f"; {config.merger} merger to {config.num_merged_tokens} tokens an item, {config.anchor} anchor"
    return [network, history]


def method_lines(config: Any) -> list[str]:
    """
    The papers to cite for a model.

    Args:
        config: The model's config.

    Returns:
        `list[str]`: lines of Markdown with links.
    """
    return [_PAPERS[name] for name in _METHODS[system_name(config)]]


def dataset_of(protocol: str) -> tuple[str, str | None, str]:
    """
    What the data of a protocol is, and what may be done with it.

    Args:
        protocol (`str`): Name of the protocol.

    Returns:
        `tuple[str, str, str]`: name for people, its page (`None` where there is none), a sentence about the licence.
    """
    return _DATA.get(protocol, _DATA["custom"])


def markdown_text(text: str) -> str:
    """
    A string of somebody else as text of a Markdown table: shown as it is, never read as markup, HTML or a link.

    Args:
        text (`str`): Any string; control characters are dropped and what is too long is cut.

    Returns:
        `str`: one line.

    Example:

    ```python
    >>> markdown_text("a|b <script>\\n*c*")
    'a\\\\|b &lt;script&gt; \\\\*c\\\\*'

    ```
    """
    line = "".join(letter for letter in " ".join(text.split()) if letter.isprintable())
    if len(line) > MAX_TEXT:
        line = line[: MAX_TEXT - 1].rstrip() + "…"
    line = re.sub(r"([\\`*_{}\[\]#|~!$])", r"\\\1", html.escape(line, quote=False))
    return line.replace("://", "&#58;//").replace("www.", "www&#46;").replace("@", "&#64;")


def code_of_ids(item_ids: Sequence[str]) -> str:
    """
    A history for an example: the first two ids that can stand in a block of code.

    Args:
        item_ids (`list[str]`): Ids of the catalog.

    Returns:
        `str`: a list in Python; with names that stand for ids where there are none.

    Example:

    ```python
    >>> code_of_ids(["B001", "```", "B002"])
    '["B001", "B002"]'

    ```
    """
    fit = [item_id for item_id in item_ids if re.fullmatch(r"[\w.:/+-]{1,40}", item_id)][:2]
    return json.dumps(fit or ["AN_ITEM_ID", "ANOTHER_ITEM_ID"], ensure_ascii=False)


_SYSTEMS = {"rpg": "RPG", "acerec": "ACERec", "sasrec": "SASRec"}
_PAPERS = {
    "TIGER": "TIGER: Rajput et al. 2023, https://huggingface.co/papers/2305.05065",
    "PSID": "PSID, ids without collisions: 2025, https://huggingface.co/papers/2509.16446",
    "Latte": "Latte: Hou et al. 2026, https://huggingface.co/papers/2605.06331",
    "RPG": "RPG: Hou et al. 2025, https://huggingface.co/papers/2506.05781",
    "ACERec": "ACERec: 2026, https://huggingface.co/papers/2602.13573",
    "SASRec": "SASRec: Kang and McAuley 2018, https://arxiv.org/abs/1808.09781",
    "cross-entropy": "the full cross-entropy for it: Klenitskiy and Vasilev 2023, https://arxiv.org/abs/2309.07602",
}
_METHODS = {
    "TIGER/PSID": ("TIGER", "PSID"),
    "Latte": ("Latte", "TIGER", "PSID"),
    "RPG": ("RPG",),
    "ACERec": ("ACERec", "RPG"),
    "SASRec": ("SASRec", "cross-entropy"),
}
_AMAZON = "published for research without a stated licence; ask its authors before any other use"
_DATA: dict[str, tuple[str, str | None, str]] = {
    "amazon2014": ("Amazon reviews 2014", "https://jmcauley.ucsd.edu/data/amazon/", _AMAZON),
    "amazon2018": ("Amazon reviews 2018", "https://nijianmo.github.io/amazon/", _AMAZON),
    "amazon2023": ("Amazon reviews 2023", "https://amazon-reviews-2023.github.io/", _AMAZON),
    "movielens": (
        "MovieLens",
        "https://grouplens.org/datasets/movielens/",
        "for research; no commercial use and no redistribution without permission of GroupLens",
    ),
    "custom": (
        "a log of its own",
        None,
        "not stated here; whoever publishes this model must have the right to use the log",
    ),
}
