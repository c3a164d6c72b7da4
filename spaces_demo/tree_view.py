"""
The decoding tree as a picture: beams of `recommend(return_paths=True)` in, an inline SVG out.

Left is the history; each column is a choice that the model made, code after code; right are the items. Lines are as
thick as they are likely; dashed ones are the best choices that were dropped. Several latents mostly find the same
paths: each path is drawn once, as likely as its best latent has it, and a row of cells beside the item says which
latents found it.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


MAX_LEAVES = 24
MAX_PRUNED = 3  # of a column
ROW, PRUNED_ROW = 26, 22  # pixels
LEFT, TOP, RIGHT = 20, 40, 320
CELL, CELL_GAP = 9, 3  # a square per latent
MAX_CELLS = 12  # more latents are counted instead
TREE_WIDTH = 460
TITLE_LENGTH = 38
COLORS = ("#5b7cfa", "#e0730d", "#17a27d", "#c4459f", "#8d68d8", "#b0880a", "#d64545", "#1592aa")
ENTITIES = {"{": "&#123;", "}": "&#125;", "$": "&#36;", "`": "&#96;"}  # the page's templates would read these


@dataclass
class Node:
    """A prefix of the tree: the score it was reached with, where it is drawn, and what grows out of it."""

    label: str
    depth: int
    score: float
    branch: int = 0
    y: float = 0.0
    item: int | None = None
    latents: dict[int, float] = field(default_factory=dict)  # of an item: who found it, and with which score
    is_pruned: bool = False
    children: dict[Any, "Node"] = field(default_factory=dict)

    @property
    def best(self) -> float:
        """Score of the best path through it."""
        return max((child.best for child in self.children.values() if not child.is_pruned), default=self.score)


def escaped(text: str) -> str:
    """Any text as it is, in HTML and in the templates of the page."""
    return "".join(ENTITIES.get(letter, letter) for letter in html.escape(text))


def tree_svg(
    paths: Sequence[Any],
    pruned: Sequence[Any],
    *,
    ranks: Mapping[int, int],
    titles: Mapping[int, str],
    num_levels: int,
    num_latents: int = 0,
) -> str:
    """
    Draw the beams that won, and the best continuations that were dropped.

    `ranks` and `titles` are the place in the list, from 1, and the title of each item token; any text is safe.
    """
    if not paths:
        return '<p class="quiet">No path was found: every item is excluded.</p>'
    paths = sorted(paths, key=lambda path: -path.scores[-1])
    ends = list(dict.fromkeys(_end(path) for path in paths))
    kept = set(ends[:MAX_LEAVES])
    root = grown([path for path in paths if _end(path) in kept], pruned)
    height = placed(root, TOP) + 8
    nodes = walked(root)
    best = [max(node.score for node in nodes if node.depth == depth) for depth in range(num_levels + 1)]
    gap = TREE_WIDTH / num_levels
    cells = _cells_width(num_latents)
    body = [_header(gap, num_levels=num_levels, cells=cells)]
    body += [_edges(node, gap, best) for node in nodes]
    body += [_node(node, gap) if node.item is None else _leaf(node, gap, ranks, titles, num_latents) for node in nodes]
    note = "" if len(ends) <= MAX_LEAVES else f" The best {MAX_LEAVES} of {len(ends)} paths are drawn."
    agree = f" Filled squares: which of the {num_latents} latents found the item." if num_latents else ""
    width = LEFT + TREE_WIDTH + RIGHT + cells
    return (
        f'<div class="tree" tabindex="0"><svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="Decoding tree '
        f'with {len(kept)} paths">{"".join(body)}</svg></div>'
        f'<p class="quiet">Thicker lines are likelier; dashed lines are choices that were dropped.{agree}{note}'
        '<span class="narrow"> Scroll the tree sideways for the items.</span></p>'
    )


def grown(paths: Sequence[Any], pruned: Sequence[Any]) -> Node:
    """The tree of some paths; those that differ in their latent alone are one."""
    root = Node("", 0, 0.0)
    for path in paths:
        node = root
        for depth, (code, score) in enumerate(zip(path.codes, _code_scores(path), strict=True), start=1):
            if code not in node.children:
                node.children[code] = Node(str(code), depth, score, len(root.children) if depth == 1 else node.branch)
            node = node.children[code]
            node.score = max(node.score, score)
        end = f"item {path.item_token}"
        if end not in node.children:
            node.children[end] = Node("", node.depth + 1, path.scores[-1], node.branch, item=path.item_token)
        if path.latent is not None:
            node.children[end].latents[path.latent] = path.scores[-1]
    counts: dict[int, int] = {}
    for path in sorted(pruned, key=lambda path: -path.scores[-1]):
        if not path.codes:
            continue
        *prefix, last = path.codes
        depth = len(path.codes)
        node: Node | None = root
        for code in prefix:
            node = node.children.get(code) if node else None
        if node and not node.is_pruned and last not in node.children and counts.get(depth, 0) < MAX_PRUNED:
            counts[depth] = counts.get(depth, 0) + 1
            node.children[last] = Node(str(last), depth, path.scores[-1], node.branch, is_pruned=True)
    return root


def placed(node: Node, top: float) -> float:
    """Give every node its height on the page from `top` on, the likeliest branches first; the end of what it took."""
    if not node.children:
        row = PRUNED_ROW if node.is_pruned else ROW
        node.y = top + row / 2
        return top + row
    children = sorted(node.children.values(), key=lambda child: (child.is_pruned, -child.best))
    for child in children:
        top = placed(child, top)
    kept = [child for child in children if not child.is_pruned]
    node.y = (kept[0].y + kept[-1].y) / 2
    return top


def walked(node: Node) -> list[Node]:
    """A node and all below it, parents first."""
    return [node, *(below for child in node.children.values() for below in walked(child))]


def _end(path: Any) -> tuple[Any, ...]:
    return (*path.codes, path.item_token)


def _code_scores(path: Any) -> Sequence[float]:
    """Scores after each code; a path with a latent has one more, that of the latent."""
    return path.scores[-len(path.codes) :]


def _cells_width(num_latents: int) -> int:
    if num_latents > MAX_CELLS:
        return 46
    return num_latents * (CELL + CELL_GAP) + 8 if num_latents else 0


def _header(gap: float, *, num_levels: int, cells: int) -> str:
    texts = ['<text class="column" x="4" y="16" text-anchor="start">history</text>']
    for level in range(1, num_levels + 1):
        x = LEFT + level * gap
        texts.append(f'<text class="column" x="{x:.0f}" y="16" text-anchor="middle">code {level}</text>')
    x = LEFT + TREE_WIDTH + 24
    if cells:
        texts.append(f'<text class="column" x="{x}" y="16">latents</text>')
    texts.append(f'<text class="column" x="{x + (max(cells, 48) if cells else 20)}" y="16">items</text>')
    return "".join(texts)


def _edges(node: Node, gap: float, best: Sequence[float]) -> str:
    x, parts = LEFT + node.depth * gap, []
    for child in node.children.values():
        if child.item is not None:
            parts.append(f'<path class="leaf" d="M{x:.1f} {node.y:.1f}L{x + 18:.1f} {child.y:.1f}"/>')
            continue
        end, middle = x + gap, x + gap / 2
        width = 1.2 + 4.8 * math.exp((child.score - best[child.depth]) / 2)
        style = (
            "" if child.is_pruned else f' style="stroke:{COLORS[child.branch % len(COLORS)]};stroke-width:{width:.1f}"'
        )
        kind = "dropped" if child.is_pruned else "kept"
        curve = f"M{x:.1f} {node.y:.1f}C{middle:.1f} {node.y:.1f} {middle:.1f} {child.y:.1f} {end:.1f} {child.y:.1f}"
        parts.append(f'<path class="{kind} grow step-{child.depth}" d="{curve}"{style}/>')
    return "".join(parts)


def _leaf(node: Node, gap: float, ranks: Mapping[int, int], titles: Mapping[int, str], num_latents: int) -> str:
    rank, title = ranks.get(node.item or 0, 0), titles.get(node.item or 0, "")
    short = title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"
    x = LEFT + (node.depth - 1) * gap + 24
    tip = f"<title>{escaped(title)}, log-probability {node.score:.2f}</title>"
    cells = _cells(node, x, num_latents)
    place = f'x="{x + _cells_width(num_latents):.1f}" y="{node.y + 4:.1f}"'
    text = f'<text class="title" {place}>{tip}{rank}. {escaped(short)}</text>'
    return f'<g class="grow step-{node.depth}">{cells}{text}</g>'


def _cells(node: Node, x: float, num_latents: int) -> str:
    if not num_latents:
        return ""
    found = "; ".join(
        f"latent {latent}: log-probability {node.latents[latent]:.2f}" for latent in sorted(node.latents)
    )
    tip = f"<title>Found by {len(node.latents)} of {num_latents} latents. {found}</title>"
    if num_latents > MAX_CELLS:
        text = f"{len(node.latents)} of {num_latents}"
        return f'<text class="code" x="{x:.1f}" y="{node.y + 4:.1f}">{tip}{text}</text>'
    squares = [
        f'<rect class="{"agrees" if latent in node.latents else "differs"}" x="{x + latent * (CELL + CELL_GAP):.1f}" '
        f'y="{node.y - CELL / 2:.1f}" width="{CELL}" height="{CELL}" rx="2"/>'
        for latent in range(num_latents)
    ]
    return f"<g>{tip}{''.join(squares)}</g>"


def _node(node: Node, gap: float) -> str:
    x = LEFT + node.depth * gap
    color = f' style="fill:{COLORS[node.branch % len(COLORS)]}"'
    if node.depth == 0:
        return f'<circle class="root" cx="{x}" cy="{node.y:.1f}" r="6"/>'
    tip = f"<title>log-probability so far {node.score:.2f}, probability {math.exp(node.score):.2g}</title>"
    if node.is_pruned:
        place = f'x="{x + 4:.1f}" y="{node.y + 4:.1f}"'
        return f'<text class="code dropped grow step-{node.depth}" {place}>{tip}{node.label}</text>'
    return (
        f'<g class="grow step-{node.depth}">{tip}<circle cx="{x:.1f}" cy="{node.y:.1f}" r="4"{color}/>'
        f'<text class="code" x="{x:.1f}" y="{node.y - 8:.1f}" text-anchor="middle">{node.label}</text></g>'
    )
