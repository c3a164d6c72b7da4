"""
A report of semantic IDs in, one PNG file out: similarity by shared codes, usage of the codes, sizes of the groups.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


DARK, LIGHT, GREY = "#1f5a94", "#e08a2e", "#777777"
_MOST_NAMED = 8  # lines of a panel that a legend can name
_WIDE = 10  # largest over smallest value of a logarithmic axis
_MANY_POWERS = 5  # powers of ten of which only the powers themselves are labelled
_FEW_PAIRS = 30  # a mean of fewer is drawn hollow
_GROUP_SIZES = [(1, 1), (2, 2), (3, 5), (6, 20), (21, 100), (101, None)]


def plot_id_report(report: Mapping[str, Any], path: str | os.PathLike[str], *, title: str = "") -> Path:
    """Draw what [`id_report`] returned and return the file. Args: the report, the PNG file, and a title above all."""
    labels = {"text": "similarity of the texts", "lift": "similarity of the users"}
    similarities = [name for name in labels if name in report["measures"]]
    num_rows, num_columns = {0: (1, 2), 1: (1, 3), 2: (2, 2)}[len(similarities)]
    figure = new_figure(5.2 * num_columns, 3.9 * num_rows)
    grid = figure.add_gridspec(num_rows, num_columns)
    cells = [grid[row, column] for row in range(num_rows) for column in range(num_columns)]
    for cell, name in zip(cells, similarities, strict=False):
        pair = cell.subgridspec(1, 2, width_ratios=(3, 2), wspace=0).subplots(sharey=True)
        _draw_similarity(pair, report, name)
        pair[0].set_title(labels[name], loc="left")
    usage, groups = figure.add_subplot(cells[-2]), figure.add_subplot(cells[-1])
    _draw_usage(usage, report)
    _draw_groups(groups, report)
    for axes in figure.axes:
        axes.set_axisbelow(True)
        axes.grid(visible=True, alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in {figure.axes[0], usage} if similarities else {usage}:  # all similarities have the same lines
        axes.legend(fontsize="small", frameon=False)
    if title:
        figure.suptitle(title, fontweight="bold")
    return save_figure(figure, path)


def new_figure(width: float, height: float) -> Any:
    """An empty `matplotlib.figure.Figure` without any global state of matplotlib. Args: both in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "hf-genrec[plot]".') from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, path: str | os.PathLike[str]) -> Path:
    """Write a figure as PNG, the same bytes for the same points. Args: what [`new_figure`] gave, and the file."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})
    return path


def _draw_similarity(pair: Sequence[Any], report: Mapping[str, Any], name: str) -> None:
    prefix_axes, level_axes = pair
    prefixes = report["prefixes"]
    chance = prefixes[0][name]["at_least"]
    if chance is not None:
        for axes in (prefix_axes, level_axes):
            axes.axhline(chance, color=GREY, linestyle="--", linewidth=1.2, label="any two items")
    deeper = [*(entry["num_pairs"] for entry in prefixes[1:]), 0]
    counts = [entry["num_pairs"] - more for entry, more in zip(prefixes, deeper, strict=True)]
    rows = [(entry["length"], entry[name]["exactly"], count) for entry, count in zip(prefixes, counts, strict=True)]
    points = [(x, y) for x, y, count in rows if y is not None and count >= _FEW_PAIRS]
    hollow = [(x, y) for x, y, count in rows if y is not None and count < _FEW_PAIRS]
    prefix_axes.plot(*_columns(points), marker="o", color=DARK, label="exactly so many")
    if hollow:
        style = {"marker": "o", "linestyle": "none", "markerfacecolor": "white", "color": DARK, "clip_on": False}
        prefix_axes.plot(*_columns(hollow), **style, label=f"fewer than {_FEW_PAIRS} pairs")
    alone = [(place, entry[name]) for place, entry in enumerate(report["positions"], start=1)]
    alone = [(place, value) for place, value in alone if value is not None]
    level_axes.plot(*_columns(alone), marker="D", markersize=4, linestyle="none", color=LIGHT)
    _label_whole_numbers(prefix_axes, "first codes shared", (0, prefixes[-1]["length"]))
    _label_whole_numbers(level_axes, "level shared", (1, len(report["positions"])))
    level_axes.tick_params(labelleft=False)
    if name == "lift":
        known = [value for _, value in (*points, *hollow, *alone)]
        _scale_positive(prefix_axes, [*known, 1.0])
        prefix_axes.set_ylabel("users shared / expected")
    else:
        prefix_axes.set_ylabel("mean cosine")


def _label_whole_numbers(axes: Any, label: str, ends: tuple[float, float]) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set(xlabel=label, xlim=(ends[0] - 0.4, ends[1] + 0.4))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))


def _scale_positive(axes: Any, values: Sequence[float], *, whole: bool = False) -> None:
    """Logarithmic for values of several magnitudes, else from 0; at least three plain numbers as labels."""
    from matplotlib.ticker import MaxNLocator

    low, high = min(value for value in values if value > 0), max(values)
    if high < _WIDE * low:
        axes.set_ylim(0, 1.1 * high)
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, integer=whole))
    else:
        least, most = 0.8 * low, 1.25 * high
        powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)))
        ticks = [step * 10.0**power for power in powers for step in (1, 2, 5)]
        ticks = [tick for tick in (ticks if len(powers) < _MANY_POWERS else ticks[::3]) if least <= tick <= most]
        if min(values) > 0:
            axes.set_yscale("log")
            axes.set_ylim(least, most)
        else:  # 0 has its place below the others
            axes.set_yscale("symlog", linthresh=low, linscale=0.3)
            axes.set_ylim(0, most)
            ticks = [0.0, *ticks]
        axes.set_yticks(ticks)
        axes.set_yticks([], minor=True)
    axes.yaxis.set_major_formatter("{x:,.10g}")


def _draw_usage(axes: Any, report: Mapping[str, Any]) -> None:
    positions, size = report["positions"], report["statistics"]["codebook_size"]
    for level, (entry, color) in enumerate(zip(positions, _shades(len(positions)), strict=True), start=1):
        counts = entry["code_counts"]
        label = f"level {level}: {100 * entry['usage']:.0f} % used, perplexity {entry['perplexity']:.1f}"
        edges = [rank + 0.5 for rank in range(len(counts) + 1)]
        shown = label if _is_named(level - 1, len(positions)) else None
        axes.stairs(counts, edges, baseline=None, color=color, linewidth=1.4, label=shown)
    mean = report["statistics"]["num_items"] / size
    axes.axhline(mean, color=GREY, linestyle="--", linewidth=1.2, label="all equally often")
    axes.set(title="use of the codes", ylabel="items with the code")
    _label_whole_numbers(axes, "codes, the most frequent first", (1, size))
    counts = [count for entry in positions for count in entry["code_counts"]]
    _scale_positive(axes, [mean, *counts], whole=True)


def _draw_groups(axes: Any, report: Mapping[str, Any]) -> None:
    lengths = report["prefixes"][1:]
    names = [str(entry["length"]) for entry in lengths]
    starts = [0.0] * len(lengths)
    for (low, high), color in zip(_GROUP_SIZES, _shades(len(_GROUP_SIZES))[::-1], strict=True):
        widths = [_percent_in_groups(entry, low, high) for entry in lengths]
        label = "alone" if high == 1 else f"{low}" if low == high else f"{low} to {high}" if high else f"{low} or more"
        axes.barh(names, widths, left=starts, color=color, height=0.75, label=label)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    axes.invert_yaxis()
    axes.set(
        title="items with the same first codes", xlabel="% of the items, by the size of their group", xlim=(0, 100)
    )
    axes.set_ylabel("first codes shared")
    below: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14), "ncols": len(_GROUP_SIZES)}
    axes.legend(fontsize="small", frameon=False, columnspacing=1.0, handlelength=1.0, **below)


def _percent_in_groups(entry: Mapping[str, Any], low: int, high: int | None) -> float:
    items = {int(size): int(size) * count for size, count in entry["group_sizes"].items()}
    wanted = sum(count for size, count in items.items() if size >= low and (high is None or size <= high))
    return 100 * wanted / sum(items.values())


def _is_named(place: int, num_lines: int) -> bool:
    return num_lines <= _MOST_NAMED or place in (0, num_lines - 1)


def _shades(num_colors: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * place / max(num_colors - 1, 1)) for place in range(num_colors)]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]
