"""Scorers of texts: how toxic each text is, from 0 to 1 (1 = surely toxic).

A scorer is one of `short_names.SCORERS`, a function of the user's own (`module:function`, texts -> numbers),
or a classifier of transformers (a folder or hub name with safetensors).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from expunge.config.short_names import SCORERS
from expunge.core.errors import MissingExtraError, UserError, unknown
from expunge.core.handlers import load_handler
from expunge.evaluation.tables import Floats
from expunge.lm import runtime

BATCH = 32
LONGEST = 512


def score_texts(texts: Sequence[str], scorer: str, toxic_label: str | None = None) -> Floats:
    """[B] scores of texts; `scorer` as above, and for a classifier the label whose probability is the score.

    Raises:
        UserError: no such scorer, or it does not return one number from 0 to 1 per text.
        MissingExtraError: its package is not installed.
    """
    handler = SCORERS.get(scorer, scorer)
    found = load_handler(handler)(texts) if ":" in handler else _classified(texts, scorer, toxic_label)
    score_B: Floats = np.asarray(found, dtype=np.float64)
    if score_B.shape != (len(texts),) or not bool(((score_B >= 0) & (score_B <= 1)).all()):
        raise UserError(
            f"scorer {scorer}: it returned no number from 0 to 1 for each of the {len(texts)} texts",
            "return one such number per text",
        )
    return score_B


def profanity(texts: Sequence[str]) -> Floats:
    """Probability of offensive language by alt-profanity-check: a linear classifier over English words.

    The package unpickles its own file at import. That file is part of the package, not of the user's data.

    Raises:
        MissingExtraError: the package is not installed.
        UserError: its model was made for another version of scikit-learn, so its numbers are unknown here.
    """
    try:
        needs = importlib.metadata.requires("alt-profanity-check") or []
        wanted = [text for text in needs if text.startswith("scikit-learn==")]
    except importlib.metadata.PackageNotFoundError as error:
        raise MissingExtraError("alt-profanity-check", "toxicity", "the scorer profanity") from error
    here = importlib.metadata.version("scikit-learn")
    if wanted and wanted[0].partition("==")[2] != here:
        raise UserError(
            f"the scorer profanity is made for {wanted[0]}, but {here} is installed",
            f"pip install {wanted[0]}, or scorer=vader",
        )
    from profanity_check import predict_prob

    score_B: Floats = predict_prob(list(texts)) if texts else np.zeros(0)
    return score_B


def vader(texts: Sequence[str]) -> Floats:
    """Negativity by vaderSentiment: max(0, -c) of its compound score c.

    An English lexicon of sentiment: a weak sign of toxicity.
    """
    if importlib.util.find_spec("vaderSentiment") is None:
        raise MissingExtraError("vaderSentiment", "toxicity", "the scorer vader")
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    analyser = SentimentIntensityAnalyzer()
    return np.array([max(0.0, -float(analyser.polarity_scores(text)["compound"])) for text in texts])


def _classified(texts: Sequence[str], path: str, toxic_label: str | None) -> list[float]:
    """The probability of the toxic label under a sequence classifier."""
    tokenizer, model = _classifier(path)
    names = [str(model.config.id2label[number]) for number in range(model.config.num_labels)]
    column = _column(path, names, toxic_label)
    # A single label, and each label of a multi-label model, has a probability of its own.
    apart = len(names) == 1 or model.config.problem_type == "multi_label_classification"
    where, found = next(model.parameters()).device, []
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        how = {"padding": True, "truncation": True, "max_length": LONGEST, "return_tensors": "pt"}
        encoded = tokenizer(part, **how).to(where)
        with torch.inference_mode():
            logits_BK = model(**encoded).logits.float()
        prob_BK = logits_BK.sigmoid() if apart else logits_BK.softmax(-1)
        found += prob_BK[:, column].tolist()
    return found


def _column(path: str, names: Sequence[str], toxic_label: str | None) -> int:
    if toxic_label is not None:
        if toxic_label not in names:
            raise UserError.of([unknown(f"label of {path}", toxic_label, names)])
        return names.index(toxic_label)
    toxic = [number for number, name in enumerate(names) if name.lower() in ("toxic", "toxicity")]
    if len(names) > 1 and not toxic:
        raise UserError(
            f"classifier {path}: it has no label named toxic",
            f"give toxic_label, one of: {', '.join(names)}",
        )
    return toxic[0] if toxic else 0


@cache
def _classifier(path: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    folder = str(Path(path).expanduser()) if path.startswith("~") else path
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True)
    except (OSError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"classifier {path} cannot be loaded: {reason}",
            "give a folder with config, tokenizer and safetensors",
        ) from error
    return tokenizer, model.eval().to(runtime.device())
