"""
Named lines of points in, one PNG file out: the plots of the results page and of the benchmarks.

Needs the extra `plot`. No window and no global state of matplotlib is touched.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Panel:
    """
    One pair of axes with lines on them.

    Args:
        title (`str`):
            What stands above the axes.
        lines (`dict[str, list[tuple[float, float]]]`):
            Points `(x, y)` by the name of their line, drawn in the order of `x`. A line without points is left out.
        intervals (`dict[str, list[tuple[float, float]]]`, *optional*):
            For some or all lines the lower and upper end at each point, in the order of the points.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float]]]
    intervals: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)


def plot_lines(
    panels: Sequence[Panel],
    path: str | os.PathLike[str],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
) -> Path:
    """
    Draw panels side by side; a line of the same name looks the same in each.

    Args:
        panels (`list[Panel]`):
            At least one.
        path (`str` or `Path`):
            The PNG file; its folder is created where it is missing.
        x_label (`str`):
            What is measured along x, with its unit.
        y_label (`str`):
            What is measured along y, with its unit.
        log_x (`bool`, *optional*, defaults to `False`):
            Whether the x axes are logarithmic.
        log_y (`bool`, *optional*, defaults to `False`):
            Whether the y axes are logarithmic.

    Returns:
        `Path`: the file.

    Raises:
        ImportError: If matplotlib is missing.
        ValueError: If there is no panel.
    """
    if not panels:
        raise ValueError("`panels` must hold at least one panel.")
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('Plots need matplotlib: pip install "hf-genrec[plot]".') from error
    names = list(dict.fromkeys(name for panel in panels for name in panel.lines))
    figure = Figure(figsize=(1.2 + 4.2 * len(panels), 3.8), layout="constrained")
    for column, (panel, axes) in enumerate(
        zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True)
    ):
        for name, points in panel.lines.items():
            if not points:
                continue
            order = sorted(range(len(points)), key=lambda index: points[index][0])
            xs, ys = [points[index][0] for index in order], [points[index][1] for index in order]
            color = f"C{names.index(name) % 10}"
            axes.plot(xs, ys, marker="o", color=color, label=name)
            if name in panel.intervals:
                lows, highs = zip(*(panel.intervals[name][index] for index in order), strict=True)
                axes.fill_between(xs, lows, highs, color=color, alpha=0.12, linewidth=0)
        axes.set(title=panel.title, xlabel=x_label, ylabel=y_label if column == 0 else "")
        axes.set_xscale("log" if log_x else "linear")
        axes.set_yscale("log" if log_y else "linear")
        axes.grid(visible=True, which="both", alpha=0.25)
        axes.legend(fontsize="small")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150, format="png", metadata={"Software": None})  # the same bytes for the same points
    return path
