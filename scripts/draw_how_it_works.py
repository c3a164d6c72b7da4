"""
Draws the picture of the README, once for light and once for dark pages.

    python scripts/draw_how_it_works.py
    python scripts/draw_how_it_works.py --output scripts/pictures --format png
"""

import argparse
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch


THEMES = {
    "light": {"ink": "#1f2328", "soft": "#59636e", "line": "#8c959f", "fill": "#f6f8fa", "accent": "#0969da"},
    "dark": {"ink": "#e6edf3", "soft": "#9198a1", "line": "#6e7681", "fill": "#161b22", "accent": "#4493f8"},
}
# The walk of the data: a title and what stands below it.
STEPS = [
    ("log + items", "who took what,\ntitles, prices"),
    ("item vectors", "text encoder,\nwhitening"),
    ("semantic IDs", "one short tuple\nof codes per item"),
    ("model", "reads a history,\nwrites codes"),
    ("ranked items", "each one real,\nwith a log-probability"),
    ("Hub repository", "weights, ids, items,\nevaluation, card"),
]
# A tree of codes of which one path is taken: node -> (x, y, code), and the edges between them.
NODES = {
    "root": (5.55, 1.66, ""),
    "a": (4.55, 1.06, "0"),
    "b": (5.55, 1.06, "1"),
    "c": (6.55, 1.06, "2"),
    "ba": (5.05, 0.46, "0"),
    "bb": (5.55, 0.46, "1"),
    "bc": (6.05, 0.46, "3"),
    "ca": (6.55, 0.46, "2"),
    "aa": (4.55, 0.46, "1"),
}
EDGES = [("root", "a"), ("root", "b"), ("root", "c"), ("a", "aa"), ("b", "ba"), ("b", "bb"), ("b", "bc"), ("c", "ca")]
TAKEN = {("root", "b"), ("b", "bc")}
LEAVES = {"aa": "rye", "ba": "tea", "bb": "cup", "bc": "pot", "ca": "fig"}


def draw_steps(axes: Axes, theme: dict[str, str]) -> None:
    """The row of boxes with arrows between them."""
    width, gap = 1.62, 0.28
    for number, (title, text) in enumerate(STEPS):
        x = 0.1 + number * (width + gap)
        box = FancyBboxPatch((x, 2.35), width, 1.0, boxstyle="round,pad=0,rounding_size=0.08", lw=1.2)
        box.set(facecolor=theme["fill"], edgecolor=theme["line"])
        axes.add_patch(box)
        axes.text(x + width / 2, 3.1, title, color=theme["ink"], ha="center", va="center", fontsize=11, weight="bold")
        axes.text(x + width / 2, 2.68, text, color=theme["soft"], ha="center", va="center", fontsize=9)
        if number:
            ends = (x - gap + 0.02, 2.85), (x - 0.02, 2.85)
            arrow = FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=11, color=theme["line"], lw=1.2)
            axes.add_patch(arrow)


def draw_tree(axes: Axes, theme: dict[str, str]) -> None:
    """What the model does at one step: a history on the left, the tree of all semantic IDs with the path it takes."""
    axes.text(0.1, 1.66, "history", color=theme["soft"], fontsize=9, va="center")
    for number, item in enumerate(["tea", "cup"]):
        axes.text(0.35 + 0.75 * number, 1.2, item, color=theme["ink"], fontsize=11, ha="center", va="center")
        codes = {"tea": "(1, 0)", "cup": "(1, 1)"}[item]
        axes.text(0.35 + 0.75 * number, 0.9, codes, color=theme["soft"], fontsize=9, ha="center", va="center")
    arrow = FancyArrowPatch(
        (1.7, 1.05), (4.0, 1.05), arrowstyle="-|>", mutation_scale=11, color=theme["accent"], lw=1.6
    )
    axes.add_patch(arrow)
    axes.text(2.85, 1.22, "next code, level by level", color=theme["accent"], fontsize=9, ha="center")
    axes.text(2.85, 0.78, "only branches of the catalog's tree", color=theme["soft"], fontsize=9, ha="center")
    for edge in EDGES:
        (x1, y1, _), (x2, y2, _) = (NODES[name] for name in edge)
        is_taken = edge in TAKEN
        axes.plot(
            [x1, x2], [y1, y2], color=theme["accent" if is_taken else "line"], lw=2.4 if is_taken else 1, zorder=1
        )
    for name, (x, y, code) in NODES.items():
        is_taken = name == "root" or any(name == end for _, end in TAKEN)
        color = theme["accent" if is_taken else "line"]
        axes.scatter([x], [y], s=190, facecolor=theme["fill"], edgecolor=color, linewidth=1.4, zorder=2)
        axes.text(x, y, code, color=theme["ink"], fontsize=9, ha="center", va="center", zorder=3)
        if name in LEAVES:
            weight = "bold" if is_taken else "normal"
            axes.text(
                x, y - 0.33, LEAVES[name], color=theme["ink"], fontsize=10, ha="center", va="center", weight=weight
            )
    text = "Every path ends at an item,\nso nothing invented is recommended.\nThe history is read once for all beams."
    axes.text(7.3, 1.05, text, color=theme["soft"], fontsize=9.5, va="center", linespacing=1.5)


def draw(theme: dict[str, str]) -> Figure:
    """The whole picture on a transparent page."""
    figure = Figure(figsize=(11.6, 3.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 11.6), ylim=(-0.1, 3.5))
    axes.axis("off")
    draw_steps(axes, theme)
    draw_tree(axes, theme)
    return figure


def main() -> None:
    """Write one picture per theme."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("scripts/pictures"), help="folder of the pictures")
    parser.add_argument("--format", default="svg", choices=["svg", "png"], help="file format")
    arguments = parser.parse_args()
    # Text stays text, and the same run gives the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "how_it_works", "font.family": "sans-serif"})
    arguments.output.mkdir(parents=True, exist_ok=True)
    for name, theme in THEMES.items():
        path = arguments.output / f"how_it_works_{name}.{arguments.format}"
        metadata = {"Date": None} if arguments.format == "svg" else None
        draw(theme).savefig(path, transparent=True, metadata=metadata, dpi=100)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
