"""Log-probability of each answer's letter, read at the last position of the question."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch

from expunge.data.collate import collate
from expunge.data.encoded import Encoded
from expunge.evaluation.collect.collector import Collector, Cost, Request, Subject, running
from expunge.evaluation.tables import ChoiceTable, Examples
from expunge.lm.labels import LabelIndex, on_device
from expunge.lm.logprobs import as_float32
from expunge.lm.packing import token_budgeted_batches
from expunge.models.outputs import label_outputs

log = logging.getLogger(__name__)


class _Reading(NamedTuple):
    """Where a label's log-probability is read: example, position in the sequence, and the label."""

    example: int
    predictor: int
    token: int


class _Sequence(NamedTuple):
    """One sequence for the model: a question, and all but the last token of a letter with several tokens."""

    ids: tuple[int, ...]
    readings: list[_Reading]


class Choices(Collector):
    """Log-probability of each answer's letter."""

    kind = "choices"
    table = ChoiceTable

    def collect(self, subject: Subject, requests: Sequence[Request], cost: Cost) -> Iterator[ChoiceTable]:
        """View after view."""
        for view, _ in requests:
            yield collect_choices(subject, view.encoded, view.examples, cost)


def collect_choices(
    subject: Subject,
    encoded: Sequence[Encoded],
    rows: Examples,
    cost: Cost,
    side: Literal["right", "left"] = "right",
) -> ChoiceTable:
    """Run each question once, whatever the number of its answers: log p(letter | question), natural.

    The value is summed over the letter's tokens, and is over the whole vocabulary, not among the letters.
    There is one example per answer, those of a question together; labels are the letter's tokens. The token
    budget of a batch is batch_size x longest question. No number depends on the `side` of the padding.
    """
    sequences = _sequences(encoded)
    longest = max((len(sequence.ids) for sequence in sequences), default=1)
    lengths = [len(sequence.ids) for sequence in sequences]
    batches = token_budgeted_batches(lengths, subject.batch_size * longest)
    log.info("choices: %d answers in %d sequences, %d batches", len(encoded), len(sequences), len(batches))
    found: dict[int, dict[int, float]] = {}
    with running(subject.model, cost):
        for batch in subject.parallel.mine(batches):
            sums = _forward(subject, [sequences[line] for line in batch], side, cost)
            found |= dict(zip(batch, sums, strict=True))
        merged = subject.parallel.merged(found)
    logp_B = np.zeros(len(encoded), np.float64)
    # The log-probabilities of one letter's tokens may come from several sequences.
    for part in merged.values():
        for example, value in part.items():
            logp_B[example] += value
    cost.examples += len(encoded)
    cost.unique += len(sequences)
    return ChoiceTable(rows, logp_B.astype(np.float32))


def _sequences(encoded: Sequence[Encoded]) -> list[_Sequence]:
    """The smallest set of sequences that has a predictor for every label."""
    groups: dict[int, list[int]] = {}
    for example, item in enumerate(encoded):
        groups.setdefault(item.row, []).append(example)
    made: list[_Sequence] = []
    for examples in groups.values():
        contexts = sorted({encoded[example].input_ids[:-1] for example in examples}, key=len, reverse=True)
        kept: list[_Sequence] = []
        for context in contexts:
            if not any(sequence.ids[: len(context)] == context for sequence in kept):
                kept.append(_Sequence(context, []))
        for example in examples:
            item = encoded[example]
            for position, counted in enumerate(item.label_mask):
                if counted:
                    before = item.input_ids[:position]
                    home = next(sequence for sequence in kept if sequence.ids[:position] == before)
                    home.readings.append(_Reading(example, position - 1, item.input_ids[position]))
        made += kept
    return made


def _forward(
    subject: Subject, sequences: Sequence[_Sequence], padding: Literal["right", "left"], cost: Cost
) -> list[dict[int, float]]:
    """For each sequence: example -> sum of the log-probabilities that are read from this sequence."""
    where = subject.device
    bare = [Encoded(item.ids, (False,) * len(item.ids), None, len(item.ids), "") for item in sequences]
    side = on_device(collate(bare, subject.pad_id, padding), where)
    width = side["input_ids"].shape[1]
    places = [sorted({reading.predictor for reading in item.readings}) for item in sequences]
    shift = [width - len(item.ids) if padding == "left" else 0 for item in sequences]
    size = max(map(len, places))
    lines = zip(places, shift, strict=True)
    rows = [[place + off for place in row] + [off] * (size - len(row)) for row, off in lines]
    predictor_BN = torch.tensor(rows, device=where)
    everywhere_BN = torch.ones_like(predictor_BN).bool()
    index = LabelIndex(predictor_BN, torch.zeros_like(predictor_BN), everywhere_BN)
    with subject.autocast():
        outputs = label_outputs(subject.model, side, index=index)
    logp_BNV = as_float32(outputs.logits_BNV).log_softmax(-1)
    cost.forward_tokens += int(side["attention_mask"].sum())
    cost.padded_tokens += side["input_ids"].numel()
    sums: list[dict[int, float]] = []
    for line, item in enumerate(sequences):
        column = {place: number for number, place in enumerate(places[line])}
        column_R = torch.tensor([column[reading.predictor] for reading in item.readings], device=where)
        token_R = torch.tensor([reading.token for reading in item.readings], device=where)
        values = logp_BNV[line, column_R, token_R].tolist()
        total: dict[int, float] = {}
        for reading, value in zip(item.readings, values, strict=True):
            total[reading.example] = total.get(reading.example, 0.0) + value
        sums.append(total)
    return sums
