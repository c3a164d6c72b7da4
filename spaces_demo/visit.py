"""What a visitor does to a history, and what the page shows then. Everything that comes from a browser is checked."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from page_parts import history_html, list_html, neighbors_html, tree_html
from served_model import MAX_HISTORY, ServedModel, Settings


MAX_LINK = 16_000  # characters of a link's ids


def shown(served: ServedModel, history: Sequence[int], *controls: Any, notice: str = "") -> tuple[Any, ...]:
    """What depends on history and controls: the history, and as HTML it, the list, item-kNN's list and the tree."""
    answer = served.recommend(history, Settings(*controls))
    return (
        tuple(history),
        history_html(served, history, notice=notice),
        list_html(served, history, answer),
        neighbors_html(served, history, answer),
        tree_html(served, answer),
    )


def changed(
    served: ServedModel, examples: Sequence[Sequence[int]], history: Sequence[int], action: Any, item: Any
) -> tuple[tuple[int, ...], str]:
    """
    A history after a button was pressed, and a sentence for the visitor, mostly empty. `action` and `item`, an item or
    the number of an example, come from a browser and may be anything.
    """
    old = list(history)
    if action == "clear":
        return (), ""
    is_number = isinstance(item, int) and not isinstance(item, bool)
    if action == "example" and is_number and 0 <= item < len(examples):
        return tuple(examples[item]), ""
    if not is_number or not 0 <= item < len(served.item_ids):
        return tuple(old), "That item is not in the catalog."
    rest = [other for other in old if other != item]
    if action == "remove":
        return tuple(rest), ""
    if action == "earlier" and item in old:
        rest.insert(max(0, old.index(item) - 1), item)
        return tuple(rest), ""
    if action != "add":
        return tuple(old), ""
    if len(rest) >= MAX_HISTORY:
        return tuple(old), f"A history holds {MAX_HISTORY} items at most. Remove one first."
    return (*rest, item), "It was in your history: now it is the latest." if item in old else ""


def linked(served: ServedModel, ids: str) -> tuple[tuple[int, ...], str]:
    """
    The history of a link that ends in `?items=id1,id2`, and a sentence about ids that are unknown. An id may be
    percent-encoded once more, since it may hold a comma.
    """
    named = [item_id.strip() for item_id in ids[:MAX_LINK].split(",") if item_id.strip()]
    named = [unquote(name) if unquote(name) in served.index_of else name for name in named]
    known = list(dict.fromkeys(served.index_of[item_id] for item_id in named if item_id in served.index_of))
    unknown = [item_id for item_id in named if item_id not in served.index_of]
    notice = ""
    if unknown:
        which = ", ".join(item_id[:40] for item_id in unknown[:3]) + (", …" if len(unknown) > 3 else "")
        notice = f"Not in the catalog and left out: {which}."
    return tuple(known[-MAX_HISTORY:]), notice
