"""
The decoding tree as a picture: beams of `recommend(return_paths=True)` in, an inline SVG out.

Left is the history; each column is a choice that the model made (a latent first where it has them, then code after
code); right are the items. Lines are as thick as they are likely; dashed ones are the best choices that were dropped.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


MAX_LEAVES = 24
MAX_PRUNED = 3  # of a column
ROW, PRUNED_ROW = 26, 18  # pixels
LEFT, TOP, RIGHT = 20, 40, 320
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
) -> str:
    """
    Draw the beams that won.

    Args:
        paths (`Sequence[BeamPath]`): Beams that ended at recommended items.
        pruned (`Sequence[BeamPath]`): The best continuations that were dropped.
        ranks (`Mapping[int, int]`): Place in the list, from 1, of each item token.
        titles (`Mapping[int, str]`): Title of each item token; any text.
        num_levels (`int`): Codes of an item.

    Returns:
        `str`: HTML; a sentence instead of a picture where there is no path.
    """
    if not paths:
        return '<p class="quiet">No path was found: every item is excluded.</p>'
    drawn = sorted(paths, key=lambda path: -path.scores[-1])[:MAX_LEAVES]
    has_latents = drawn[0].latent is not None
    root = grown(drawn, pruned, has_latents=has_latents)
    num_steps = num_levels + has_latents
    height = placed(root, TOP) + 8
    best = [max(node.score for node in walked(root) if node.depth == depth) for depth in range(num_steps + 1)]
    gap = TREE_WIDTH / num_steps
    body = [_header(gap, has_latents=has_latents, num_steps=num_steps)]
    body += [_edges(node, gap, best) for node in walked(root)]
    seen: set[int] = set()
    for node in walked(root):
        body.append(_node(node, gap, ranks, titles, seen))
    note = "" if len(drawn) == len(paths) else f" The best {len(drawn)} of {len(paths)} paths are drawn."
    width = LEFT + TREE_WIDTH + RIGHT
    return (
        f'<div class="tree" tabindex="0"><svg viewBox="0 0 {width} {height:.0f}" role="img" aria-label="Decoding tree '
        f'with {len(drawn)} paths">{"".join(body)}</svg></div>'
        f'<p class="quiet">Thicker lines are likelier; dashed lines are choices that were dropped.{note}'
        '<span class="narrow"> Scroll the tree sideways for the items.</span></p>'
    )


def grown(paths: Sequence[Any], pruned: Sequence[Any], *, has_latents: bool) -> Node:
    """
    The tree of some paths.

    Args:
        paths (`Sequence[BeamPath]`): Beams to be drawn, best first.
        pruned (`Sequence[BeamPath]`): Continuations, of which the best ones beside drawn prefixes are drawn too.
        has_latents (`bool`): Whether the first step chooses a latent.

    Returns:
        [`Node`]: the root.
    """
    root = Node("", 0, 0.0)
    for path in paths:
        node = root
        for depth, (step, score) in enumerate(zip(_steps(path), path.scores, strict=True), start=1):
            if step not in node.children:
                branch = len(root.children) if depth == 1 else node.branch
                node.children[step] = Node(_label(step, depth, has_latents), depth, score, branch)
            node = node.children[step]
        node.children[f"item {path.item_token}"] = Node(
            "", node.depth + 1, node.score, node.branch, item=path.item_token
        )
    counts: dict[int, int] = {}
    for path in sorted(pruned, key=lambda path: -path.scores[-1]):
        *prefix, last = _steps(path)
        depth = len(prefix) + 1
        node: Node | None = root
        for step in prefix:
            node = node.children.get(step) if node else None
        if node and not node.is_pruned and last not in node.children and counts.get(depth, 0) < MAX_PRUNED:
            counts[depth] = counts.get(depth, 0) + 1
            label = _label(last, depth, has_latents)
            node.children[last] = Node(label, depth, path.scores[-1], node.branch, is_pruned=True)
    return root


def placed(node: Node, top: float) -> float:
    """
    Give every node its height on the page, the likeliest branches first.

    Args:
        node ([`Node`]): Root of what is placed.
        top (`float`): Where it begins.

    Returns:
        `float`: where it ends.
    """
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


def _steps(path: Any) -> list[tuple[str, int]]:
    latent = [] if path.latent is None else [("latent", path.latent)]
    return [*latent, *(("code", code) for code in path.codes)]


def _label(step: tuple[str, int], depth: int, has_latents: bool) -> str:
    return f"latent {step[1]}" if has_latents and depth == 1 else str(step[1])


def _header(gap: float, *, has_latents: bool, num_steps: int) -> str:
    names = ["history", *(["latent"] if has_latents else [])]
    names += [f"code {level + 1}" for level in range(num_steps - has_latents)]
    texts = []
    for depth, name in enumerate(names):
        anchor = "start" if depth == 0 else "middle"
        x = 4 if depth == 0 else LEFT + depth * gap
        texts.append(f'<text class="column" x="{x:.0f}" y="16" text-anchor="{anchor}">{name}</text>')
    x = LEFT + num_steps * gap + 44
    return "".join([*texts, f'<text class="column" x="{x:.0f}" y="16">items</text>'])


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


def _node(node: Node, gap: float, ranks: Mapping[int, int], titles: Mapping[int, str], seen: set[int]) -> str:
    x = LEFT + node.depth * gap
    if node.item is not None:
        rank, title = ranks.get(node.item, 0), titles.get(node.item, "")
        kind = "again" if node.item in seen else "title"
        seen.add(node.item)
        short = title if len(title) <= TITLE_LENGTH else title[: TITLE_LENGTH - 1] + "…"
        text = f"{rank}. {escaped(short)}"
        place = LEFT + (node.depth - 1) * gap + 24
        tip = f"<title>{escaped(title)}, log-probability {node.score:.2f}</title>"
        return f'<text class="{kind} grow step-{node.depth}" x="{place:.1f}" y="{node.y + 4:.1f}">{tip}{text}</text>'
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
