"""
What the page shows, as HTML: a history, items found, a ranked list, that of item-kNN, the facts about a model. Titles
are other people's text: all of it passes `escaped`. Buttons carry what they do in `data-action` and `data-item`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from served_model import MAX_HISTORY, Answer, Reason, ServedModel
from tree_view import escaped, tree_svg


TITLE = "<h1>What comes next?</h1>"
ROWS = {"popularity": "popularity", "item_knn": "item-kNN"}
METRICS = ("ndcg@10", "recall@10", "invalid_rate")
KEEP_IN_MIND = (
    "A probability is what this model predicts, relative to the catalog it knows; it says nothing about quality.",
    "Past behaviour is repeated, its gaps and its popular items too.",
    "Titles are those of the data set.",
    "A history built here lives as long as your visit; a copied link brings it back.",
)
LOG_P = "the natural logarithm of that probability"
LATENTS = "learnt starting points of the model, several of which may reach the same item"
BEAMS = "how many unfinished items the search keeps after each code"


def head_html(served: ServedModel) -> str:
    """What the page is, and whose lists it shows."""
    name = escaped(served.name)
    where = f"from the folder <b>{name}</b>"
    if served.is_on_hub:
        where = f'from <a href="https://huggingface.co/{name}" target="_blank" rel="noopener">{name}</a>'
    return (
        f"{TITLE}<p>Build a history; the <b>{escaped(served.kind)}</b> model {where} ranks "
        f"{len(served.item_ids):,} items after it.</p>"
    )


def loading_html(name: str) -> str:
    """What the page is while its model is loaded."""
    return f'{TITLE}<p role="status"><span class="spinner"></span>Loading <b>{escaped(name)}</b> …</p>'


def history_html(served: ServedModel, history: Sequence[int], *, notice: str = "") -> str:
    """The history, oldest first, with buttons to move and remove."""
    parts = ["<h2>Your history</h2>"]
    if notice:
        parts.append(f'<p class="notice" role="status">{escaped(notice)}</p>')
    if not history:
        parts.append('<p class="quiet">Nothing yet. Search for an item, or begin with an example.</p>')
        return "".join(parts)
    num_unread = max(0, len(history) - served.config.max_history_length)
    rows = []
    for place, item in enumerate(history):
        title = escaped(served.titles[item])
        kind = ' class="unread"' if place < num_unread else ""
        up = _button("earlier", item, "↑", f"Move up: {title}") if place else ""
        remove = _button("remove", item, "✕", f"Remove: {title}")
        rows.append(f'<li{kind}><span class="title">{title}</span><span class="tools">{up}{remove}</span></li>')
    parts.append(f'<ol class="history">{"".join(rows)}</ol>')
    foot = f"{len(history)} of at most {MAX_HISTORY}, the latest last."
    if num_unread:
        foot += f" The model reads the latest {served.config.max_history_length}."
    link = escaped("?items=" + quote(",".join(quote(served.item_ids[item], safe="") for item in history), safe=","))
    parts.append(
        f'<p class="quiet">{foot}</p><p><button type="button" class="link" data-action="clear">Clear</button>'
        f'<button type="button" class="link" data-link="{link}">Copy link to this history</button></p>'
    )
    return "".join(parts)


def found_html(served: ServedModel, text: str, found: Sequence[int]) -> str:
    """Items that a search found, with a button each."""
    if not text.strip():
        return ""
    if not found:
        asked = escaped(text.strip()[:60])
        return f'<p class="quiet" role="status">No title holds “{asked}”, and no item has that id.</p>'
    rows = []
    for item in found:
        title = escaped(served.titles[item])
        rows.append(f'<li><button type="button" data-action="add" data-item="{item}">+ {title}</button></li>')
    return f'<ul class="found">{"".join(rows)}</ul>'


def examples_html(served: ServedModel, examples: Sequence[Sequence[int]]) -> str:
    """A button for each example."""
    buttons = []
    for number, history in enumerate(examples):
        title = escaped(_short(served.titles[history[0]], 34))
        buttons.append(f'<button type="button" data-action="example" data-item="{number}">{title}</button>')
    return f'<div class="examples"><span class="quiet">Begin with</span>{"".join(buttons)}</div>'


def list_html(served: ServedModel, history: Sequence[int], answer: Answer) -> str:
    """The ranked list: title, probability, log-probability and why."""
    head = f'<h2>What comes next</h2><p class="status" role="status">{_how(served, history, answer)}</p>'
    if not answer.items:
        return head + '<p class="quiet">No item is left: every item of the catalog is in the history.</p>'
    length = served.config.num_levels if served.codes is not None and not served.has_beams else 1
    unit = " per code" if length > 1 else ""  # of all tuples of so many codes hardly any is an item
    most = max(answer.scores)
    rows = []
    for item, score, reasons in zip(answer.items, answer.scores, answer.reasons, strict=True):
        title = escaped(served.titles[item])
        codes = f" · codes {_codes(served, item)}" if served.has_beams else ""
        rows.append(
            f'<li data-id="{escaped(served.item_ids[item])}"><div class="row"><span class="title">{title}</span>'
            f"{_button('add', item, '+', f'Add to the history: {title}')}</div>"
            f'<div class="bar"><span style="width:{100 * math.exp((score - most) / length):.1f}%"></span></div>'
            f'<div class="quiet"><b>{percent(score / length)}</b>{unit} · '
            f'<abbr title="{LOG_P}">log p</abbr> {_signed(score)}{codes}</div>'
            f"<details><summary>Why this item?</summary>{_why(served, history, item, reasons)}</details></li>"
        )
    return f'{head}{_legend(served, per_code=length > 1)}<ol class="ranked">{"".join(rows)}</ol>'


def neighbors_html(served: ServedModel, history: Sequence[int], answer: Answer) -> str:
    """The list of item-kNN, with each item's place in the model's list; empty where the repository holds none."""
    if answer.by_neighbors is None:
        return ""
    how = "The most popular items, since there is no history."
    if history:
        how = "Items that the same people took; the latest item of the history counts most. No neural network."
    places = {item: place for place, item in enumerate(answer.items, start=1)}
    num_shared = sum(item in places for item in answer.by_neighbors)
    rows = []
    for item in answer.by_neighbors:
        also = f"also the model's number {places[item]}" if item in places else "not in the model's list"
        rows.append(
            f'<li data-neighbor="{escaped(served.item_ids[item])}"><span class="title">'
            f'{escaped(served.titles[item])}</span><div class="quiet">{also}</div></li>'
        )
    return (
        f'<h2>What item-kNN would say</h2><p class="quiet">{how} {num_shared} of {len(rows)} are in both lists.</p>'
        f'<ol class="ranked compact">{"".join(rows)}</ol>'
    )


def tree_html(served: ServedModel, answer: Answer) -> str:
    """How the list was found, for models that search in this process."""
    if not served.has_beams or not answer.paths:
        return ""
    first = served.config.first_item_token
    return "<h2>How it was found</h2>" + tree_svg(
        answer.paths,
        answer.pruned,
        ranks={first + item: place for place, item in enumerate(answer.items, start=1)},
        titles={first + item: served.titles[item] for item in answer.items},
        num_levels=served.config.num_levels,
        num_latents=served.config.num_latent_tokens if served.has_latents else 0,
    )


def about_html(served: ServedModel) -> str:
    """What the model is and what it reached."""
    config = served.config
    facts = [f"{config.num_items:,} items", *map(escaped, served.facts)]
    if served.codes is not None:
        facts.append(f"{config.num_levels} codes per item, each one of {config.codebook_size}")
    if served.has_latents:
        facts.append(f"{config.num_latent_tokens} latents ({LATENTS})")
    facts.append(f"reads the latest {config.max_history_length} items")
    points, notes = ("".join(f"<li>{point}</li>" for point in points) for points in (facts, KEEP_IN_MIND))
    summary = f" {escaped(served.summary)}." if served.summary else "."
    return (
        f"<h3>{escaped(served.name)}</h3><p>{escaped(served.kind)}{summary}</p>"
        f'<ul class="points">{points}</ul>{_metrics(served.evaluation)}'
        f'<h4>What to keep in mind</h4><ul class="points">{notes}</ul>'
    )


def percent(score: float) -> str:
    """A log-probability as a probability in per cent, with two digits that count."""
    value = 100 * math.exp(score)
    if value >= 1:
        return f"{value:.1f} %" if value < 10 else f"{value:.0f} %"
    return f"{value:.2g} %"


def _metrics(evaluation: Mapping[str, Any] | None) -> str:
    if not evaluation:
        return "<p>This model was not evaluated.</p>"
    names = [name for name in METRICS if name in evaluation["model"]]
    rows = []
    for label, values in [("this model", evaluation["model"]), *evaluation.get("baselines", {}).items()]:
        cells = "".join(f"<td>{_metric(values, name)}</td>" for name in names)
        rows.append(f'<tr><th scope="row">{escaped(ROWS.get(label, label))}</th>{cells}</tr>')
    head = "".join(f'<th scope="col">{name.replace("_", " ")}</th>' for name in names)
    seen = ", items seen before " + ("left out" if evaluation.get("exclude_seen") else "allowed")
    run = evaluation.get("run") or {}
    how = f", {run['num_beams']} beams" if run.get("num_beams") else ""
    return (
        f'<table class="metrics"><thead><tr><th></th>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table>'
        f'<p class="quiet">{escaped(str(evaluation["protocol"]))} protocol, {escaped(str(evaluation["split"]))} '
        f"split, {evaluation['num_users']:,} users, full ranking over {evaluation['num_items']:,} items{seen}{how}; "
        "in brackets 95 % bootstrap intervals over users.</p>"
    )


def _metric(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        return "–"
    low_high = values.get("intervals", {}).get(name)
    interval = "" if low_high is None else f' <span class="quiet">[{low_high[0]:.4f}, {low_high[1]:.4f}]</span>'
    return f"{value:.4f}{interval}"


def _legend(served: ServedModel, *, per_code: bool) -> str:
    """What the numbers of a row are."""
    share = "the model's probability of the item"
    if per_code:
        share = "how likely the model finds each of the item's codes, on average"
    meanings = {"%": share, "log p": LOG_P}
    if served.has_beams:
        meanings["codes"] = "the item's semantic ID; items that begin alike are similar"
    if served.has_latents:
        meanings["latents"] = LATENTS
    rows = "".join(f"<li><b>{name}</b> {meaning}</li>" for name, meaning in meanings.items())
    return f'<ul class="quiet legend">{rows}</ul>'


def _how(served: ServedModel, history: Sequence[int], answer: Answer) -> str:
    """One line: what was asked, and how long it took."""
    settings = answer.settings
    facts = [f"<b>{1000 * answer.seconds:.0f} ms</b> for {len(answer.items)} of {served.config.num_items:,} items"]
    if served.has_beams:
        facts.append(f'<abbr title="{BEAMS}">{settings.num_beams} beams</abbr>')
    if served.has_latents:
        which = "sum" if settings.latent_aggregation == "sum" else "best"
        facts.append(f'<abbr title="{LATENTS}">{which} of latents</abbr>')
    if settings.exclude_seen:
        facts.append("history left out")
    if settings.diversity:
        facts.append(f"diversity {settings.diversity:g}")
    if answer.num_unknown:
        facts.append(f"{answer.num_unknown} newer items that this page does not know are left out")
    if not history:
        facts.append("no history: what the model expects of anyone")
    return " · ".join(facts)


def _why(served: ServedModel, history: Sequence[int], item: int, reasons: Sequence[Reason]) -> str:
    if not history:
        return "<p>There is no history yet: this is what the model expects of anyone.</p>"
    if not reasons and served.codes is None:
        return "<p>The model does not say.</p>"
    if not reasons:
        which = "its first code" if served.has_beams else "any of its codes"
        return (
            f"<p>No item of the history shares {which}. The model learnt the link from what others took next, not "
            "from alike texts.</p>"
        )
    rows = []
    for reason in reasons:
        if reason.cosine is not None:
            fact = f"closeness {reason.cosine:.2f}"
        elif served.has_beams:
            prefix = "·".join(map(str, served.codes[item, : reason.num_leading].tolist()))
            fact = f"same first {reason.num_leading} of {served.config.num_levels} codes ({prefix})"
        else:
            fact = f"{reason.num_shared} of {served.config.num_levels} codes alike"
        again = " – it is in your history" if reason.item == item else ""
        rows.append(f"<li>{escaped(served.titles[reason.item])} <span>{fact}{again}</span></li>")
    return f"<p>Closest in the history:</p><ul>{''.join(rows)}</ul>"


def _codes(served: ServedModel, item: int) -> str:
    return "·".join(map(str, served.codes[item].tolist()))


def _button(action: str, item: int, text: str, label: str) -> str:
    return (
        f'<button type="button" class="tool" data-action="{action}" data-item="{item}" aria-label="{label}" '
        f'title="{label}">{text}</button>'
    )


def _signed(number: float) -> str:
    return f"{number:.2f}".replace("-", "−")


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
