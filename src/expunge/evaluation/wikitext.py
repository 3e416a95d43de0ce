"""WikiText: its pages, and its text as one would write it. The numbers published for it are of such pages."""

from __future__ import annotations

import re
from collections.abc import Sequence

# In the order in which they apply; each undoes what the corpus's tokenizer did, as lm-evaluation-harness's
# task `wikitext` (0.4) does.
_JOINED = (
    ("s '", "s'"),
    (" @-@ ", "-"), (" @,@ ", ","), (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)  # fmt: skip
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_AFTER = (
    ("= = = =", "===="), ("= = =", "==="), ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"), ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)  # fmt: skip


def pages(texts: Sequence[str]) -> list[str]:
    """The pages of WikiText, given as the whole file or line by line: each from its title, ` = Title = `, to the line before the next.

    Args:
        texts: pieces of the corpus, in order.

    Returns:
        The pages as they are in the file, blank ones left out.
    """
    lines = (
        "".join(text if text.endswith("\n") else f"{text}\n" for text in texts).removesuffix("\n").split("\n")
    )
    found: list[list[str]] = [[]]
    for line in lines:
        if _is_title(line):
            found.append([])
        found[-1].append(line)
    return [page for page in map("\n".join, found) if page.strip()]


def detokenized(page: str) -> str:
    """The page with punctuation, numbers and brackets as they are written."""
    for old, new in _JOINED:
        page = page.replace(old, new)
    for opened, closed in _PAIRS:
        page = re.sub(
            rf"{re.escape(opened)}\s*([^{re.escape(closed)}]*?)\s*{re.escape(closed)}",
            rf"{opened}\1{closed}",
            page,
        )
    for old, new in _AFTER:
        page = page.replace(old, new)
    return page


def _is_title(line: str) -> bool:
    """One equals sign on either side; a section has two or more."""
    marked = line.replace("= = =", "===").replace("= =", "==").strip()
    return marked.startswith("= ") and marked.endswith(" =") and len(marked) > 3
