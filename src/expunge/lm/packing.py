"""Grouping rows of different lengths into batches with little padding."""

from __future__ import annotations

from collections.abc import Sequence


def token_budgeted_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Length-sorted batches whose padded size (rows x longest) stays within a budget.

    Args:
        lengths: tokens of each row.
        max_tokens: most padded tokens in a batch; a row longer than this forms a batch alone.
        max_rows: most rows in a batch; None = as many as fit.

    Returns:
        Row indices. Every row is in exactly one batch. The longest rows come first, so that a lack of memory
        shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda row: (-lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        last = batches[-1] if batches else None
        # Rows come longest first: the first row of a batch is its width.
        if (
            last is None
            or (len(last) + 1) * lengths[last[0]] > max_tokens
            or (max_rows is not None and len(last) >= max_rows)
        ):
            batches.append([row])
        else:
            last.append(row)
    return batches
