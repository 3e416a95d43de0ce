"""Grouping rows of unlike lengths into batches that waste little."""

from __future__ import annotations

from collections.abc import Sequence


def token_budgeted_batches(
    lengths: Sequence[int], max_tokens: int, max_rows: int | None = None
) -> list[list[int]]:
    """Length-sorted batches whose padded size (rows x longest) stays within a budget.

    Args:
        lengths: tokens of each row.
        max_tokens: padded tokens of a batch; a single row longer than this is a batch of its own.
        max_rows: rows of a batch at most; None = as many as fit.

    Returns:
        Row indices, every row in exactly one batch, longest rows first, so that a lack of memory shows at
        once.
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
