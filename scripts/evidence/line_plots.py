"""
Named lines of points in, one PNG file out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_genrec.tokenizers.report_plot import new_figure, save_figure


@dataclass(frozen=True)
class Panel:
    """One pair of axes with lines on them."""

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]  # points `(x, y)` by the name of their line, in any order
    intervals: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)  # lower and upper ends


def plot_lines(
    panels: Sequence[Panel],
    path: str | os.PathLike[str],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    x_ticks: Sequence[float] | Mapping[float, str] | None = None,
    num_columns: int | None = None,
    share_axes: bool = False,
) -> Path:
    """
    Draw panels side by side; a line of the same name looks the same in each, and panels of the same lines share a
    legend.

    Args: `path` is the PNG file; `x_ticks` are labelled with these very numbers, or with the words of a dict;
    `num_columns` is `None` for one row; `share_axes` gives all panels the same limits, for curves of many points.
    """
    if not panels:
        raise ValueError("`panels` must hold at least one panel.")
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    one_legend = all({name for name, points in panel.lines.items() if points} == set(names) for panel in panels)
    num_columns = min(num_columns or len(panels), len(panels))
    num_rows = -(-len(panels) // num_columns)
    figure = new_figure(1.2 + 4.2 * num_columns, 3.8 * num_rows)
    grid = figure.subplots(num_rows, num_columns, squeeze=False, sharex=share_axes, sharey=share_axes).ravel()
    for unused in grid[len(panels) :]:
        unused.set_visible(False)
    for place, (panel, axes) in enumerate(zip(panels, grid, strict=False)):
        for name, points in panel.lines.items():
            if not points:
                continue
            order = sorted(range(len(points)), key=lambda index: points[index][0])
            xs, ys = [points[index][0] for index in order], [points[index][1] for index in order]
            color = f"C{names.index(name) % 10}"
            axes.plot(xs, ys, marker="." if share_axes else "o", color=color, label=name)
            if name in panel.intervals:
                lows, highs = zip(*(panel.intervals[name][index] for index in order), strict=True)
                axes.fill_between(xs, lows, highs, color=color, alpha=0.12, linewidth=0)
        is_lowest = not share_axes or place + num_columns >= len(panels)
        axes.set(title=panel.title, xlabel=x_label if is_lowest else "")
        axes.tick_params(labelbottom=is_lowest)
        axes.set_ylabel(y_label if place % num_columns == 0 else "")
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        if x_ticks is not None:
            labels = [*x_ticks.values()] if isinstance(x_ticks, Mapping) else [f"{tick:g}" for tick in x_ticks]
            axes.set_xticks([*x_ticks], labels)
            axes.set_xticks([], minor=True)
        axes.grid(visible=True, which="both", alpha=0.25)
        if not one_legend or place + 1 == len(panels):
            axes.legend(fontsize="small")
    return save_figure(figure, path)
