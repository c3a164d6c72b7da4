"""Rows of cells in, a table of Markdown out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(rows: Iterable[Sequence[str]], *, num_left: int = 1, num_right: int | None = None) -> str:
    """
    Rows as a table of Markdown.

    Args:
        rows (`list[list[str]]`):
            The header first.
        num_left (`int`, *optional*, defaults to 1):
            Columns of words at the left.
        num_right (`int`, *optional*):
            Columns of numbers after them, which stand on the right; `None` for all. The others hold words again.

    Returns:
        `str`

    Example:

    ```python
    >>> print(markdown_table([["system", "ndcg@10"], ["A|B", "0.0375"]]))
    | system | ndcg@10 |
    | --- | ---: |
    | A\\|B | 0.0375 |

    ```
    """
    header, *body = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    num_right = len(header) - num_left if num_right is None else num_right
    rule = ["---"] * num_left + ["---:"] * num_right + ["---"] * (len(header) - num_left - num_right)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, rule, *body])
