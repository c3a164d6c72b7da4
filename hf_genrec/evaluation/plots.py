"""
Named lines of points or values with intervals in, one PNG file out.

Needs the extra `plot`. No window and no global state of matplotlib is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_genrec.tokenizers.report_plot import DARK, GREY, LIGHT, new_figure, save_figure


@dataclass(frozen=True)
class IntervalPanel:
    """One pair of axes with a point and its interval for each system, from top to bottom."""

    title: str
    points: Mapping[str, tuple[float, float, float]]  # value, lower and upper end by the name of the system
    runs: Mapping[str, Sequence[float]] = field(default_factory=dict)  # values of single runs, drawn as small rings
    faded: Sequence[str] = ()  # systems that are drawn in grey
    reference: str | None = None  # the system whose value is drawn as a line across all of them


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
    x_ticks: Sequence[float] | None = None,
    num_columns: int | None = None,
    share_axes: bool = False,
) -> Path:
    """
    Draw panels side by side; a line of the same name looks the same in each, and panels of the same lines share a
    legend.

    Args: `path` is the PNG file; `x_ticks` are labelled with these very numbers; `num_columns` is `None` for one row;
    `share_axes` gives all panels the same limits, which suits curves of many points.
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
            axes.set_xticks(x_ticks, [f"{tick:g}" for tick in x_ticks])
            axes.set_xticks([], minor=True)
        axes.grid(visible=True, which="both", alpha=0.25)
        if not one_legend or place + 1 == len(panels):
            axes.legend(fontsize="small")
    return save_figure(figure, path)


def plot_intervals(panels: Sequence[IntervalPanel], path: str | os.PathLike[str], *, x_label: str) -> Path:
    """Draw values with their intervals below each other, panels one under another. Args: see [`plot_lines`]."""
    if not panels:
        raise ValueError("`panels` must hold at least one panel.")
    heights = [1.1 + 0.34 * len(panel.points) for panel in panels]
    figure = new_figure(7.6, sum(heights))
    rows = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for panel, axes in zip(panels, rows, strict=True):
        for row, (name, (value, low, high)) in enumerate(panel.points.items()):
            color = GREY if name in panel.faded else DARK
            axes.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(value, row, marker="o", markersize=6, color=color)
            singles = panel.runs.get(name, [])
            axes.plot(singles, [row] * len(singles), "o", markersize=4, markerfacecolor="white", color=color, zorder=3)
            end = max(high, value, *singles)
            style = {"textcoords": "offset points", "va": "center", "size": 8, "color": color}
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # above the line of the reference
            axes.annotate(f"{value:.4f}", (end, row), (8, 0), **style)
        if panel.reference is not None:
            line = panel.points[panel.reference][0]
            axes.axvline(line, color=LIGHT, linestyle="--", linewidth=1.2, zorder=0)
            axes.set_title(f"dashed: {panel.reference}", loc="right", fontsize="small", color=LIGHT)
        axes.margins(x=0.08)
        axes.set_yticks(range(len(panel.points)), list(panel.points))
        axes.set_ylim(len(panel.points) - 0.5, -0.7)  # the first on top
        axes.set_title(panel.title, loc="left", fontsize="medium", fontweight="bold")
        axes.set_axisbelow(True)
        axes.grid(visible=True, axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    rows[-1].set_xlabel(x_label)
    figure.get_layout_engine().set(h_pad=0.12)
    return save_figure(figure, path)
