"""WikiText: its pages, and their text without the corpus's tokenization, as published numbers use it."""

from __future__ import annotations

import re
from collections.abc import Sequence

# In the order of application. Each undoes a step of the corpus's tokenizer, as in lm-evaluation-harness's
# task `wikitext` (0.4).
_JOINED = (
    ("s '", "s'"),
    (" @-@ ", "-"),
    (" @,@ ", ","),
    (" @.@ ", "."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
)
_PAIRS = (("(", ")"), ("[", "]"), ("{", "}"), ('"', '"'), ("'", "'"))
_AFTER = (
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" \N{DEGREE SIGN} ", "\N{DEGREE SIGN}"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def pages(texts: Sequence[str]) -> list[str]:
    """The pages of WikiText; each begins with its title, ` = Title = `.

    Args:
        texts: pieces of the corpus, in order: the whole file, or its lines.

    Returns:
        The pages as in the file, without blank ones.
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
    """The page with normal spacing around punctuation, numbers and brackets."""
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
    """A title has one equals sign on either side; a section heading has two or more."""
    marked = line.replace("= = =", "===").replace("= =", "==").strip()
    return marked.startswith("= ") and marked.endswith(" =") and len(marked) > 3
