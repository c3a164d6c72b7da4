"""
Comparisons and diagnoses in, one PNG file out. Needs the extra `plot`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_genrec.evaluation.compare import Comparison
from hf_genrec.tokenizers.report_plot import DARK, GREY, LIGHT, new_figure, save_figure


def plot_comparisons(comparisons: Sequence[Comparison], path: str | os.PathLike[str]) -> Path:
    """Draw each system with its interval, a panel per comparison. Args: comparisons in one metric, the PNG file."""
    metric, heights = comparisons[0].metric, [1.1 + 0.34 * len(comparison.systems) for comparison in comparisons]
    figure = new_figure(7.6, sum(heights))
    panels = figure.subplots(len(comparisons), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for comparison, axes in zip(comparisons, panels, strict=True):
        for row, system in enumerate(comparison.systems):
            value, color = system.values[metric], GREY if system.is_baseline else DARK
            low, high = system.interval(metric) or [value, value]
            singles = [run[metric] for run in system.runs] if len(system.runs) > 1 else []
            axes.plot([low, high], [row, row], color=color, linewidth=2, solid_capstyle="butt")
            axes.plot(value, row, marker="o", markersize=6, color=color)
            axes.plot(singles, [row] * len(singles), "o", markersize=4, markerfacecolor="white", color=color, zorder=3)
            style = {"textcoords": "offset points", "va": "center", "size": 8, "color": color}
            style["bbox"] = {"facecolor": "white", "edgecolor": "none", "pad": 1}  # above the line of the reference
            axes.annotate(f"{value:.4f}", (max(high, value, *singles), row), (8, 0), **style)
        names = [system.name for system in comparison.systems]
        reference = comparison.systems[names.index(comparison.against)].values[metric]
        axes.axvline(reference, color=LIGHT, linestyle="--", linewidth=1.2, zorder=0)
        axes.set_title(f"dashed: {comparison.against}", loc="right", fontsize="small", color=LIGHT)
        axes.set_title(comparison.title, loc="left", fontsize="medium", fontweight="bold")
        axes.margins(x=0.08)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.7)  # the first on top
        axes.set_axisbelow(True)
        axes.grid(visible=True, axis="x", alpha=0.25)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    confidence = comparisons[0].conditions["confidence"]
    panels[-1].set_xlabel(f"{metric}, {100 * confidence:g} % interval over users")
    figure.get_layout_engine().set(h_pad=0.12)
    return save_figure(figure, path)


def plot_diagnosis(report: Mapping[str, Any], path: str | os.PathLike[str]) -> Path:
    """Correlation and reversal rate by distance, in one figure. Args: what [`diagnose`] returned; the PNG file."""
    figure = new_figure(9.6, 3.8)
    titles = {"correlation": "Correlation of two items over users", "reversal_rate": "Reversed orders"}
    for axes, (key, title) in zip(figure.subplots(1, 2), titles.items(), strict=True):
        for name, model in report["models"].items():
            tau = model["kendall_tau"]
            rows = [(row["distance"], row[key]) for row in model["by_distance"] if row[key]["mean"] is not None]
            distances, found = [distance for distance, _ in rows], [values for _, values in rows]
            (line,) = axes.plot(distances, [values["mean"] for values in found], marker="o")
            line.set_label(name if tau is None else f"{name} (τ {tau:.3f})")
            quarters = [[values["quantiles"][quantile] for values in found] for quantile in ("0.25", "0.75")]
            axes.fill_between(distances, *quarters, color=line.get_color(), alpha=0.12, linewidth=0)
        axes.set(title=title, xlabel="distance of the items in the tree")
        axes.set_xticks(
            sorted({row["distance"] for model in report["models"].values() for row in model["by_distance"]})
        )
        axes.grid(visible=True, alpha=0.25)
        axes.legend(fontsize="small")
    figure.axes[0].set_ylabel("mean and middle half of the pairs")
    return save_figure(figure, path)
