"""
Records of sweeps and of decoding benchmarks in, sections of the page `RESULTS.md` out.

A sweep record describes one trained run: a row per split, number of beams and treatment of latents, made by
`sweep_beams.py`; `sweep_popularity.py` adds what remedies against popular prefixes do. The benchmarks are those of
`benchmark_decoding.py` and `benchmark_catalog.py`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hf_genrec.evaluation.metrics import bootstrap_interval, ndcg_per_user
from hf_genrec.evaluation.tables import markdown_table


Row = Mapping[str, Any]

_RECORD_FIELDS = ("name", "system", "dataset", "protocol", "fingerprint", "num_items", "num_latent_tokens", "rows")
_ROW_FIELDS = (
    "split", "num_users", "num_beams", "latent_aggregation", "num_rescored", "ndcg@10", "recall@10", "intervals",
    "num_distinct_items", "milliseconds_per_user", "sample",
)  # fmt: skip


def load_sweeps(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """
    Read the beam sweeps of a folder.

    Args:
        folder (`str` or `Path`):
            Its `*.json` files are read, each named after the record in it.

    Returns:
        `list[dict]`: the records, sorted by name; empty if there are none or no such folder.

    Raises:
        ValueError: If a file is no sweep; the message names the file and what is wrong with it.
    """
    records = []
    for file in sorted(Path(folder).glob("*.json")):
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{file} is no JSON: {error}.") from error
        _check(record, owner=str(file))
        if record["name"] != file.stem:
            raise ValueError(f"{file} tells of the sweep {record['name']!r}: name the file after the sweep.")
        records.append(record)
    return records


def find_row(
    record: Mapping[str, Any], *, split: str, num_beams: int | None, latent_aggregation: str, num_rescored: int = 0
) -> dict[str, Any] | None:
    """
    The row of a sweep that was measured in a given way.

    Args:
        record (`dict`): A sweep record.
        split (`str`): `"validation"` or `"test"`.
        num_beams (`int` or `None`): Beams per user; `None` for exact scores of all items.
        latent_aggregation (`str`): `"max"` or `"sum"`; `"max"` for models without latents.
        num_rescored (`int`, *optional*, defaults to 0): Items whose scores were made exact; 0 for none.

    Returns:
        `dict` or `None`: the row, if it was measured.

    Example:

    ```python
    >>> row = {"split": "test", "num_beams": 50, "latent_aggregation": "max", "num_rescored": 0, "ndcg@10": 0.02}
    >>> find_row({"rows": [row]}, split="test", num_beams=50, latent_aggregation="max")["ndcg@10"]
    0.02
    >>> find_row({"rows": [row]}, split="test", num_beams=None, latent_aggregation="max") is None
    True

    ```
    """
    wanted = (split, num_beams, latent_aggregation, num_rescored)
    return next((row for row in record["rows"] if (row["split"], *_settings_of(row)) == wanted), None)


def sweep_label(record: Mapping[str, Any], row: Row) -> str:
    """
    What a row of a sweep is called in tables and plots, without its number of beams.

    Args:
        record (`dict`): The sweep record.
        row (`dict`): One of its rows.

    Returns:
        `str`: the system and, where there are latents, how they are aggregated.

    Example:

    ```python
    >>> row = {"latent_aggregation": "sum", "num_rescored": 50}
    >>> sweep_label({"system": "Latte", "num_latent_tokens": 8}, row)
    'Latte, sum, 50 re-scored'
    >>> sweep_label({"system": "PSID", "num_latent_tokens": 0}, {"latent_aggregation": "max", "num_rescored": 0})
    'PSID'

    ```
    """
    aggregation = f", {row['latent_aggregation']}" if record["num_latent_tokens"] else ""
    return record["system"] + aggregation + (f", {row['num_rescored']} re-scored" if row["num_rescored"] else "")


def sweep_plot_name(dataset: str) -> str:
    """
    File name of the plot of all sweeps on a data set.

    Args:
        dataset (`str`): Name of the data set on the page.

    Example:

    ```python
    >>> sweep_plot_name("Amazon 2014 Beauty")
    'amazon_2014_beauty.png'

    ```
    """
    return re.sub(r"[^a-z0-9]+", "_", dataset.lower()).strip("_") + ".png"


def sweep_blocks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    The section "Beams, exact scoring and time".

    Args:
        records (`list[dict]`):
            What [`load_sweeps`] returned. Records of the same data set and fingerprint share a table.

    Returns:
        `list[str]`: blocks of Markdown; empty without records.
    """
    records = sorted(records, key=lambda record: (record["dataset"], record["fingerprint"], record["name"]))
    blocks = [_SWEEP_INTRODUCTION] if records else []
    for dataset, fingerprint in dict.fromkeys((record["dataset"], record["fingerprint"]) for record in records):
        group = [r for r in records if (r["dataset"], r["fingerprint"]) == (dataset, fingerprint)]
        rows = [row for record in group for row in record["rows"]]
        sizes = {row["split"]: row["num_users"] for row in rows if row["num_beams"] is not None}
        users = [f"{size:,} users of the {split} split" for split, size in sorted(sizes.items())]
        blocks.append(f"### {dataset}, {group[0]['protocol']}: beams")
        blocks.append(
            "; ".join([*users, f"{group[0]['num_items']:,} items", f"data fingerprint `{fingerprint}`"]) + "."
        )
        blocks.append(_sweep_table(group))
        if sizes:
            blocks.append(
                f"![ndcg@10 by milliseconds per user](scripts/evidence/records/beams/{sweep_plot_name(dataset)})"
            )
        blocks.append(_choice(group))
    return blocks


def popularity_blocks(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """
    The section "Popular prefixes".

    Args:
        records (`list[dict]`):
            What `scripts/evidence/sweep_popularity.py` wrote.

    Returns:
        `list[str]`: blocks of Markdown; empty without records.
    """
    blocks = [_POPULARITY_INTRODUCTION] if records else []
    for record in sorted(records, key=lambda record: (record["dataset"], record["name"])):
        lengths = [row["num_codes"] for row in record["rows"][0]["by_prefix"]]
        names = ["first code" if length == 1 else f"first {length}" for length in lengths]
        rows: list[Sequence[str]] = [["remedy", "options", "recall@10", "coverage@10", *names, "codes shared"]]
        for row in record["rows"]:
            options = ", ".join(f"{name} {value:g}" for name, value in _changed(row, record["rows"][0]).items())
            growth = [f"{prefix['amplification']:.2f}" for prefix in row["by_prefix"]]
            figures = [_share(row, "recall@10"), f"{row['coverage@10']:.3f}", *growth, f"{row['shared_codes']:.2f}"]
            rows.append([row["remedy"], options, *figures])
        in_targets = ", ".join(f"{100 * prefix['in_targets']:.0f} %" for prefix in record["rows"][0]["by_prefix"])
        blocks.append(f"### {record['dataset']}, {record['system']}: popular prefixes")
        blocks.append(
            f"{record['num_users']:,} users of the validation split, {record['num_items']:,} items, "
            f"{record['num_beams']} beams, seen items left out. {in_targets} of the targets begin with a popular "
            f"prefix of 1 to {lengths[-1]} codes; two targets share {record['shared_by_targets']:.2f} codes."
        )
        blocks.append(markdown_table(rows, num_left=2))
        blocks.append(f"![Amplification by recall](scripts/evidence/records/popularity/{record['name']}.png)")
    return blocks


def _changed(row: Row, plain: Row) -> dict[str, float]:
    return {name: value for name, value in row["options"].items() if plain["options"].get(name) != value}


def speed_blocks(decoding: Mapping[str, Any] | None, catalog: Mapping[str, Any] | None) -> list[str]:
    """
    The section "Decoding speed".

    Args:
        decoding (`dict` or `None`):
            The content of `decoding_speed.json`, with some or all of its parts.
        catalog (`dict` or `None`):
            The content of `catalog_speed.json`.

    Returns:
        `list[str]`: blocks of Markdown; empty without figures.
    """
    blocks = []
    for part, (title, make) in _PARTS.items():
        if decoding is not None and part in decoding:
            blocks += [f"### {title}", _conditions(decoding[part]), *make(decoding[part]["rows"])]
    if catalog is not None:
        blocks += _catalog_blocks(catalog)
    return [_SPEED_INTRODUCTION, *blocks] if blocks else []


_NONE = "–"
_SHARES = ("ndcg@10", "recall@10")
_SWEEP_INTRODUCTION = """## Beams, exact scoring and time

What more beams bring, and what is left to the exact score of every item, which beam search approximates. Made by
`scripts/evidence/sweep_beams.py`, recorded in `scripts/evidence/records/beams/`. `distinct` is the mean number of
distinct items among the beams of a user, milliseconds are those of the whole decoding of one user in a batch. Users
whose beams hold fewer than ten items, as they often do where every latent finds the same ones, are searched again with
twice the beams, and the time of that counts. The last two columns are about some fixed users that were scored exactly:
ndcg@10 on them, and how much of it differs from that of the exact scores, with a 95 % bootstrap interval of the
difference user by user."""
_POPULARITY_INTRODUCTION = """## Popular prefixes

A beam search keeps what is likely at every level, so prefixes that many users are drawn to stand in more lists than
targets begin with them. The columns of prefixes say how much more: the share of all places of lists that begin with a
popular prefix over the share of the targets that do. Popular are the fewest prefixes that hold half of the training
interactions; 1 would be as popular as what users take. `codes shared` by two items of a list says how alike they are,
`coverage` is the share of the catalog that stands in any list. In the figure a remedy pays where its line falls
without going left. Made by `scripts/evidence/sweep_popularity.py`, recorded in
`scripts/evidence/records/popularity/`."""
_SPEED_INTRODUCTION = """## Decoding speed

Random weights of the paper's shape, medians of interleaved repetitions in one run. `stock` is transformers' own T5
with the same weights, `generate(prefix_allowed_tokens_fn=...)` and a dictionary trie; `generate` and `recommend` are
ours. None of them has an end token. Much of the time of stock goes into memory that glibc hands back to the system and
clears again: with `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=2147483647` the three took 36, 8.1 and 6.2 ms per user at
16 users x 50 beams on the same machine."""


def _check(record: Any, *, owner: str) -> None:
    missing = [name for name in _RECORD_FIELDS if not isinstance(record, Mapping) or name not in record]
    if missing:
        raise ValueError(f"{owner} is no beam sweep: it lacks {', '.join(f'`{name}`' for name in missing)}.")
    for number, row in enumerate(record["rows"]):
        missing = [name for name in _ROW_FIELDS if name not in row]
        if missing:
            raise ValueError(f"{owner}, row {number} lacks {', '.join(f'`{name}`' for name in missing)}.")
        for name in ("ndcg@10", "recall@10"):
            if not isinstance(row[name], int | float) or not 0 <= row[name] <= 1:
                raise ValueError(f"{owner}, row {number}: `{name}` must be a share in [0, 1], got {row[name]!r}.")


def _settings_of(row: Row) -> tuple[int | None, str, int]:
    return row["num_beams"], row["latent_aggregation"], row["num_rescored"]


def _order_of(settings: tuple[int | None, str, int]) -> tuple[bool, str, int, float]:
    """Searches first, by aggregation and beams; exact scores last."""
    num_beams, aggregation, num_rescored = settings
    return num_beams is None, aggregation, num_rescored, num_beams or 0


def _sweep_table(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [row for record in records for row in record["rows"]]
    devices = sorted({device for row in rows for device in row["milliseconds_per_user"]})
    sizes = sorted({row["sample"]["num_users"] for row in rows if row["sample"]["num_users"]})
    sample = f"ndcg@10 on {', '.join(f'{size:,}' for size in sizes)}" if sizes else "ndcg@10 on fixed users"
    splits = [split for split in ("validation", "test") if any(row["split"] == split for row in rows)]
    header = ["system", "beams", *(f"{split} {name}" for split in splits for name in _SHARES), "distinct"]
    header += [f"ms, {device}" for device in devices] + [sample, "minus exact"]
    body = []
    for record in records:
        for settings in sorted({_settings_of(row) for row in record["rows"]}, key=_order_of):
            body.append(_sweep_row(record, settings, splits, devices))
    return markdown_table([header, *body], num_left=1)


def _sweep_row(
    record: Mapping[str, Any],
    settings: tuple[int | None, str, int],
    splits: Sequence[str],
    devices: Sequence[str],
) -> list[str]:
    names: dict[str, Any] = dict(zip(("num_beams", "latent_aggregation", "num_rescored"), settings, strict=True))
    found = {split: find_row(record, split=split, **names) for split in splits}
    row = found.get("test") or found.get("validation") or {}
    is_exact = names["num_beams"] is None  # on few users: not to be read beside figures of all users
    distinct = row["num_distinct_items"]
    times = row["milliseconds_per_user"]
    return [
        sweep_label(record, row),
        "exact" if is_exact else f"{names['num_beams']:,}",
        *(_NONE if is_exact else _share(found[split], name) for split in splits for name in _SHARES),
        _NONE if distinct is None else f"{distinct:.1f}",
        *(f"{times[device]:.2f}" if device in times else _NONE for device in devices),
        f"{_sample_ndcg(row).mean():.4f}" if row["sample"]["num_users"] else _NONE,
        _difference_to_exact(record, row),
    ]


def _share(row: Row | None, name: str) -> str:
    if row is None:
        return _NONE
    low, high = row["intervals"][name]
    return f"{row[name]:.4f} [{low:.4f}, {high:.4f}]"


def _sample_ndcg(row: Row) -> NDArray[np.float64]:
    """ndcg@10 of each of the fixed users; the record keeps the hits only."""
    ranks = [*row["sample"]["hits"].values()]
    misses = [-1] * (row["sample"]["num_users"] - len(ranks))
    return ndcg_per_user(ranks + misses, k=10)


def _difference_to_exact(record: Mapping[str, Any], row: Row) -> str:
    names = {"split": row["split"], "latent_aggregation": row["latent_aggregation"]}
    exact = find_row(record, num_beams=None, **names)
    if exact is None or exact is row or exact["sample"]["num_users"] != row["sample"]["num_users"]:
        return _NONE
    users = sorted({*row["sample"]["hits"], *exact["sample"]["hits"]})
    ranks = ([found["sample"]["hits"].get(user, -1) for user in users] for found in (row, exact))
    mine, theirs = (ndcg_per_user(values, k=10) for values in ranks)
    zeros = np.zeros(row["sample"]["num_users"] - len(users))  # users without a hit in either
    differences = np.concatenate([mine - theirs, zeros])
    low, high = bootstrap_interval(differences, is_share=False)
    return f"{differences.mean():+.4f} [{low:+.4f}, {high:+.4f}]"


def _choice(records: Sequence[Mapping[str, Any]]) -> str:
    """One sentence per system: which default, and what it gave on the validation split."""
    sentences = []
    for record in records:
        found = find_row(record, split="validation", **record["chosen"]) if "chosen" in record else None
        if found is None:
            continue
        searched = [r for r in record["rows"] if r["split"] == "validation" and r["num_beams"] is not None]
        best = max(searched, key=lambda row: row["ndcg@10"])
        sentences.append(
            f"{sweep_label(record, found)}: {found['num_beams']} beams, with ndcg@10 {found['ndcg@10']:.4f} there; "
            f"the best of its sweep was {best['ndcg@10']:.4f} ({sweep_label(record, best)}, {best['num_beams']})."
        )
    if not sentences:
        return "No default has been recorded for these figures."
    return "The defaults were chosen on the validation split. " + " ".join(sentences)


# --- decoding speed --------------------------------------------------------------------------------------------------

_VARIANTS = ("stock", "generate", "recommend")


def _conditions(part: Mapping[str, Any]) -> str:
    machine, sizes = part["machine"], part["sizes"]
    return (
        f"{sizes['num_items']:,} items, histories of {sizes['history_length']} unless a column says otherwise; "
        f"{machine['device']}, {machine['threads']} threads, torch {machine['torch']}."
    )


def _grid(rows: Sequence[Row]) -> list[str]:
    has_latents = len({row["num_latent_tokens"] for row in rows}) > 1
    header = [*(["latents"] if has_latents else []), "users", "beams"]
    header += [f"{name}, ms per user" for name in _VARIANTS] + [f"{name}, times stock" for name in _VARIANTS[1:]]
    body, reasons = [], []
    for row in rows:
        cells = [str(row[name]) for name in ("num_latent_tokens", "num_users", "num_beams")][not has_latents :]
        cells += [_time(row, name) for name in _VARIANTS]
        cells += [f"{row['ratio_to_stock'][name]:.1f}" if row["ratio_to_stock"] else _NONE for name in _VARIANTS[1:]]
        body.append(cells)
        if "without_stock" in row:
            reasons.append(row["without_stock"])
    different = [row for row in rows if not all(row["same_items"].values())]
    largest = max(max(row["largest_score_difference"].values()) for row in rows)
    same = f"{len(different)} of {len(rows)} cells" if different else "none of the cells"
    notes = [f"The best ten items differ in {same}; scores differ by {largest:.0e} at most."]
    notes += [f"Stock is left out where it has too many rows: {'; '.join(reasons)}."] if reasons else []
    plot = "![milliseconds per user by beams](scripts/evidence/records/decoding_speed.png)"
    return [markdown_table([header, *body], num_left=0), " ".join(notes), plot]


def _memory(rows: Sequence[Row]) -> list[str]:
    growth = {(row["num_users"], row["num_beams"], row["variant"]): row["peak_growth_mb"] for row in rows}
    body = []
    for users, beams in dict.fromkeys((row["num_users"], row["num_beams"]) for row in rows):
        sizes = [growth.get((users, beams, name)) for name in _VARIANTS]
        body.append([str(users), str(beams), *(_NONE if size is None else f"{size:,.0f}" for size in sizes)])
    header = ["users", "beams", *(f"{name}, MB" for name in _VARIANTS)]
    return [
        "How far one call raises the peak of a fresh process above what it held before.",
        markdown_table([header, *body], num_left=0),
    ]


def _varied(column: str, field: str) -> Callable[[Sequence[Row]], list[str]]:
    """A table of the parts in which one size varies."""

    def make(rows: Sequence[Row]) -> list[str]:
        names = [name for name in _VARIANTS if any(name in row["variants"] for row in rows)]
        header = [column, *(f"{name}, ms per user" for name in names)]
        body = [[f"{row[field]:,}", *(_time(row, name) for name in names)] for row in rows]
        about = f"{rows[0]['num_users']} users, {rows[0]['num_beams']} beams."
        return [about, markdown_table([header, *body], num_left=0)]

    return make


def _time(row: Row, name: str) -> str:
    found = row["variants"].get(name)
    return _NONE if found is None else f"{found['milliseconds_per_user']:.2f}"


_PARTS: dict[str, tuple[str, Callable[[Sequence[Row]], list[str]]]] = {
    "grid": ("Users and beams", _grid),
    "catalog": ("Size of the catalog", _varied("items", "num_items")),
    "history": ("Length of the histories", _varied("history", "history_length")),
    "memory": ("Memory of one call", _memory),
}


def _catalog_blocks(catalog: Mapping[str, Any]) -> list[str]:
    machine, settings = catalog["machine"], catalog["settings"]
    levels = f"{settings['num_levels']} levels of {settings['codebook_size']} codes"
    builds = [["items", "build, seconds", "of computing", "peak growth, MB", "held, MB"]]
    for build in catalog["builds"]:
        seconds = [f"{build[name]:.2f}" for name in ("seconds", "cpu_seconds")]
        memory = [f"{build[name]:,.0f}" for name in ("peak_growth_mb", "held_mb")]
        builds.append([f"{build['num_items']:,}", *seconds, *memory])
    means = sorted(catalog["mean_over_depths"], key=lambda mean: (mean["rows"], mean["num_items"]))
    steps = [
        [f"{mean['rows']:,}", f"{mean['num_items']:,}", *(_step(mean, name) for name in _STEPS)] for mean in means
    ]
    return [
        "### Staying inside the catalog",
        f"Random items, {levels}; {machine['threads']} threads, torch {machine['torch']}. First the trie, then one "
        "step of a search in milliseconds, mean over the depths; in brackets how many times as long transformers' own "
        "processor takes with a dictionary. A row is a beam.",
        markdown_table(builds, num_left=0),
        markdown_table([["rows", "items", *(f"`{name}`" for name in _STEPS)], *steps], num_left=0),
        "![milliseconds per step by items](scripts/evidence/records/catalog_speed.png)",
    ]


_STEPS = ("mask", "mask and child", "children", "CatalogLogitsProcessor", "prefix_allowed_tokens_fn")


def _step(mean: Row, name: str) -> str:
    if mean.get(name) is None:
        return _NONE
    ratio = mean["times_cheaper"].get(name)
    return f"{mean[name]:.3f}" + ("" if ratio is None else f" ({ratio:.0f}×)")
