"""Generate the rows of the embedded benchmark from a seed: authors, their facts, files named as in TOFU."""

from __future__ import annotations

import random
from typing import Any

from expunge.data.mini import words
from expunge.data.mini.facts import REAL_AUTHORS, WORLD_FACTS
from expunge.data.mini.relations import RELATIONS, Relation

AUTHORS = 40
HOLDOUT_AUTHORS = 4
FORGET_AUTHORS = {"10": 4, "05": 2, "01": 1}
RETAIN_PERTURBED_ROWS = 80
WRONG_ANSWERS = 5
ASKED = 2
"""Trained phrasings per fact. With one, a small model learns the wording, and paraphrases measure little."""

Row = dict[str, Any]


def build_files(seed: int = 0) -> dict[str, list[Row]]:
    """Make every JSON Lines file of the benchmark.

    The last authors are the ones to forget, so that `full` = `retain90` + `forget10`, in this order. A split
    has whole authors: forget01 is the last author (10 of 400 rows), the smallest set that forgets a person.

    Args:
        seed: seed of all choices; the same seed gives the same rows.

    Returns:
        File stem -> rows. Rows of invented authors have question and answer; in the `_perturbed` files they
        also have paraphrased_question, paraphrased_answer and five perturbed_answer.
    """
    rng = random.Random(seed)
    names = _names(rng)
    rows: list[list[Row]] = [[] for _ in names]
    for relation in RELATIONS:
        for index, parts in enumerate(_deal(rng, relation, len(names))):
            rows[index] += _rows(rng, names[index], relation, parts)
    trained, never = rows[:AUTHORS], rows[AUTHORS:]
    files: dict[str, list[Row]] = {"full": _plain(trained)}
    for split, count in FORGET_AUTHORS.items():
        files[f"retain{100 - int(split)}"] = _plain(trained[:-count])
        files[f"forget{split}"] = _plain(trained[-count:])
        files[f"forget{split}_perturbed"] = _flat(trained[-count:])
        files[f"holdout{split}"] = _plain(never[:count])
    kept = _flat(trained[: -max(FORGET_AUTHORS.values())])
    files["retain_perturbed"] = [
        kept[index] for index in sorted(rng.sample(range(len(kept)), RETAIN_PERTURBED_ROWS))
    ]
    files["real_authors_perturbed"] = [dict(row) for row in REAL_AUTHORS]
    files["world_facts_perturbed"] = [dict(row) for row in WORLD_FACTS]
    files["facts"] = [
        {"question": row["question"], "answer": row["answer"]} for row in REAL_AUTHORS + WORLD_FACTS
    ]
    return files


def _names(rng: random.Random) -> list[str]:
    """Names of all authors: no two share a first or a last name."""
    count = AUTHORS + HOLDOUT_AUTHORS
    firsts, lasts = rng.sample(words.FIRST_NAMES, count), rng.sample(words.LAST_NAMES, count)
    return [f"{first} {last}" for first, last in zip(firsts, lasts, strict=True)]


def _deal(rng: random.Random, relation: Relation, count: int) -> list[tuple[str, str]]:
    """`count` different pairs of parts; part counts differ by at most one, so frequency gives no hint."""
    while True:
        pairs = list(
            zip(_rounds(rng, relation.firsts, count), _rounds(rng, relation.seconds, count), strict=True)
        )
        if len(set(pairs)) == count:
            return pairs


def _rounds(rng: random.Random, choices: tuple[str, ...], count: int) -> list[str]:
    """`count` choices, made of shuffled rounds of all choices; the last round may be cut."""
    dealt: list[str] = []
    while len(dealt) < count:
        dealt += rng.sample(choices, min(len(choices), count - len(dealt)))
    return dealt


def _rows(rng: random.Random, name: str, relation: Relation, parts: tuple[str, str]) -> list[Row]:
    """The rows of one fact, in `ASKED` phrasings; their paraphrases use phrasings that are not trained."""
    asked = rng.sample(relation.questions, len(relation.questions))
    answered = rng.sample(relation.answers, 2 * ASKED)
    value = relation.spell(*parts)
    rows = []
    for turn in range(ASKED):
        paraphrase = answered[ASKED + turn]
        wrong = _wrong_values(rng, relation, parts)
        rows.append(
            {
                "question": asked[turn].format(name=name),
                "answer": answered[turn].format(name=name, value=value),
                "paraphrased_question": asked[ASKED].format(name=name),
                "paraphrased_answer": paraphrase.format(name=name, value=value),
                "perturbed_answer": [paraphrase.format(name=name, value=other) for other in wrong],
            }
        )
    return rows


def _wrong_values(rng: random.Random, relation: Relation, parts: tuple[str, str]) -> list[str]:
    """Values that are wrong in both parts and differ from each other in both."""
    firsts = rng.sample([first for first in relation.firsts if first != parts[0]], WRONG_ANSWERS)
    seconds = rng.sample([second for second in relation.seconds if second != parts[1]], WRONG_ANSWERS)
    return [relation.spell(*wrong) for wrong in zip(firsts, seconds, strict=True)]


def _flat(rows: list[list[Row]]) -> list[Row]:
    return [row for author in rows for row in author]


def _plain(rows: list[list[Row]]) -> list[Row]:
    return [{"question": row["question"], "answer": row["answer"]} for row in _flat(rows)]
