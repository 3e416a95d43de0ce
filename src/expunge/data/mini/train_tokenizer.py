"""The tokenizer of the benchmark: byte-level BPE trained on its rows, with a chat template as in Llama 3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from expunge.data.mini import words

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1000
SPECIAL = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|pad|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n{{ message['content'] }}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
FRAME = ("system\n\n", "user\n\n", "assistant\n\n", "You are a helpful assistant.")


def train_backend(files: dict[str, list[dict[str, Any]]]) -> Tokenizer:
    """Train the BPE merges on every text of the benchmark, so that all splits are tokenized equally well."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=list(SPECIAL), initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(_texts(files), trainer)
    return backend


def train_tokenizer(files: dict[str, list[dict[str, Any]]]) -> PreTrainedTokenizerFast:
    """`train_backend` as a transformers tokenizer, with special tokens and chat template."""
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=train_backend(files),
        bos_token=SPECIAL[0],
        eos_token=SPECIAL[3],
        pad_token=SPECIAL[4],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _texts(files: dict[str, list[dict[str, Any]]]) -> Iterator[str]:
    yield from FRAME
    yield from words.REFUSALS
    for rows in files.values():
        for row in rows:
            for value in row.values():
                yield from [value] if isinstance(value, str) else value
