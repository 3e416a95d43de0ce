"""The tables that collectors write and metrics read.

There is no torch here, so metrics can be computed again without it.

Shape suffixes: R rows of the view, B examples (a row with several answers is several examples), M label
tokens of all examples, concatenated, A largest number of answers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Examples:
    """The examples of a table.

    Attributes:
        row_ids: [R] ids of the view's rows.
        row_B: [B] position of each example's row in the view.
        answer_B: [B] which of the row's answers it is.
        target_text: [B] the answer's own text.
    """

    row_ids: tuple[str, ...]
    row_B: Ints
    answer_B: Ints
    target_text: tuple[str, ...]

    def by_row(self, value_B: Floats) -> Floats:
        """Arrange one value per example as [R, A]; NaN where a row has fewer answers."""
        width = int(self.answer_B.max(initial=0)) + 1
        value_RA = np.full((len(self.row_ids), width), np.nan)
        value_RA[self.row_B, self.answer_B] = value_B
        return value_RA


@dataclass(frozen=True)
class Table:
    """What a collector writes about the examples of a view; a metric asks for one by its type.

    Attributes:
        ARRAYS: names of the fields that are arrays.
        TEXTS: names of the fields that are texts, one per example.
        examples: rows, answers, texts.
    """

    ARRAYS: ClassVar[tuple[str, ...]] = ()
    TEXTS: ClassVar[tuple[str, ...]] = ()

    examples: Examples


@dataclass(frozen=True)
class TokenTable(Table):
    """One teacher-forced pass: statistics of each label token.

    Attributes:
        examples: rows, answers, texts.
        offset_B1: [B + 1] the label tokens of example b are offset[b] to offset[b + 1].
        logp_M: natural log-probability of the label, float32.
        hit_M: whether the label is the most likely token.
        mu_M: mean of log p over the vocabulary under p, float32.
        var_M: variance of log p over the vocabulary under p, float32.
        turn_end_M: whether the label is the token that ends the turn.
        nll_M: cross entropy of the label, float32: -logp_M, up to the rounding of published numbers.
    """

    ARRAYS = ("offset_B1", "logp_M", "hit_M", "mu_M", "var_M", "turn_end_M", "nll_M")

    offset_B1: Ints
    logp_M: Floats
    hit_M: Bools
    mu_M: Floats
    var_M: Floats
    turn_end_M: Bools
    nll_M: Floats

    @cached_property
    def example_M(self) -> Ints:  # noqa: N802 - ends in its shape
        """[M] the example of each label token."""
        return np.repeat(np.arange(len(self.offset_B1) - 1), np.diff(self.offset_B1))

    def mean(self, value_M: Floats | Bools, keep_M: Bools | None = None) -> Floats:
        """[B] float64: mean over the label tokens that `keep_M` counts (None = all); NaN without any."""
        example_M = self.example_M if keep_M is None else self.example_M[keep_M]
        kept = value_M if keep_M is None else value_M[keep_M]
        size = len(self.offset_B1) - 1
        sum_B = np.bincount(example_M, weights=kept.astype(np.float64), minlength=size)
        count_B = np.bincount(example_M, minlength=size)
        mean_B: Floats = np.divide(sum_B, count_B, out=np.full(size, np.nan), where=count_B > 0)
        return mean_B

    def pieces(self, value_M: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
        """One array per example, without the token that ends the turn."""
        return [
            value_M[start:stop][~self.turn_end_M[start:stop]]
            for start, stop in zip(self.offset_B1[:-1], self.offset_B1[1:], strict=True)
        ]

    @cached_property
    def avg_nll_B(self) -> Floats:  # noqa: N802 - ends in its shape
        """[B] mean cross entropy over the label tokens, end of turn included: the field's `avg_loss`."""
        return self.mean(self.nll_M)


@dataclass(frozen=True)
class GenerationTable(Table):
    """What the model wrote.

    Attributes:
        examples: rows; `target_text` is the expected text.
        prompt: [B] the prompt without special tokens.
        generation: [B] the continuation without special tokens.
    """

    TEXTS = ("prompt", "generation")

    prompt: tuple[str, ...]
    generation: tuple[str, ...]


@dataclass(frozen=True)
class GradNormTable(Table):
    """Norms of the gradient of each row's mean nll, without the end of turn.

    Attributes:
        examples: rows.
        global_B: [B] p-norm of the whole gradient.
        tensor_mean_B: [B] mean of the p-norms of the parameter tensors.
    """

    ARRAYS = ("global_B", "tensor_mean_B")

    global_B: Floats
    tensor_mean_B: Floats


@dataclass(frozen=True)
class ChoiceTable(Table):
    """Log-probability of each offered answer, given the question.

    Attributes:
        examples: a row is a question, an example is an answer; `target_text` is the letter of the right one.
        logp_B: [B] log-probability of the answer's letter: of its one token, or the sum over them, float32.
    """

    ARRAYS = ("logp_B",)

    logp_B: Floats


@dataclass(frozen=True)
class HarnessTable(Table):
    """Scores of lm-evaluation-harness, one per document.

    Attributes:
        examples: rows are the harness's documents, named by their position.
        acc_B: [B] accuracy of each document, as the harness defines it.
    """

    ARRAYS = ("acc_B",)

    acc_B: Floats


def row_mean(value_RA: Floats) -> Floats:
    """Mean over a row's answers, [R]; NaN if none of them has a value."""
    count_R = (~np.isnan(value_RA)).sum(1)
    mean_R: Floats = np.divide(
        np.nansum(value_RA, axis=1), count_R, out=np.full(len(value_RA), np.nan), where=count_R > 0
    )
    return mean_R


def column(value_RA: Floats) -> Floats:
    """[R] if every row has one answer, else [R, A] unchanged."""
    return value_RA[:, 0] if value_RA.shape[1] == 1 else value_RA


def as_ints(values: Sequence[int]) -> Ints:
    """An int64 array."""
    return np.asarray(values, dtype=np.int64)
