r"""Turn question and answer into tokens, with the chat template of the tokenizer or with tags.

The labels are the assistant turn up to and including its end-of-turn token. The end of the turn is

* the first special token that the template writes after the answer (`<|eot_id|>`, `<|im_end|>`, `</s>`).
  Blanks after it, such as ChatML's newline, belong to the next turn and are left out;
* else the tokenizer's EOS, which is appended. Without it, a turn such as "Question: ... Answer: ...\n\n"
  would never teach the model to stop. A separator that is only blanks is then left out of the turn; other
  text stays in it.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from expunge.config.model_keys import TAGS, TEMPLATE_KEYS
from expunge.core.errors import UserError, unknown
from expunge.core.fingerprint import fingerprint
from expunge.data.encoded import Encoded
from expunge.data.tokenizer_traits import (
    Closing,
    field_pad_id,
    find_closing,
    plain_ids,
    special_prefix,
    tokenizer_identity,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

Shot = tuple[str, str]
"""A worked example before the question: (question, answer)."""

_PROBE = "expunge probe"


class Template(ABC):
    """Encodes a question and an answer as tokens of one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._asked: tuple[Any, str, list[int]] | None = None

    @classmethod
    def from_args(
        cls, template_args: Mapping[str, Any] | None, tokenizer: PreTrainedTokenizerBase
    ) -> Template:
        """The template that `model.template_args` describes.

        Args:
            template_args: `apply_chat_template` (default: true unless tags are given). If true, also
                `system_prompt`, `date_string` and `chat_template_kwargs` (passed to the chat template, such
                as `enable_thinking: false`). If false, the four tags and
                `system_prompt_with_special_tokens`.
            tokenizer: tokenizer of the model.

        Raises:
            UserError: a key is unknown, a tag is missing, or the tokenizer has no chat template.
        """
        args = {key: value for key, value in (template_args or {}).items() if value is not None}
        wrong = [key for key in args if key not in TEMPLATE_KEYS]
        if wrong:
            raise UserError.of([unknown("key of model.template_args", key, TEMPLATE_KEYS) for key in wrong])
        if args.get("apply_chat_template", "user_start_tag" not in args):
            kwargs = args.get("chat_template_kwargs") or {}
            return ChatTemplate(tokenizer, args.get("system_prompt"), args.get("date_string"), kwargs)
        missing = [tag for tag in TAGS if tag not in args]
        if missing:
            raise UserError(
                f"model.template_args has apply_chat_template=false but no {', '.join(missing)}",
                "give all four tags; a tag may be empty",
            )
        system = str(args.get("system_prompt_with_special_tokens", ""))
        return TagTemplate(tokenizer, {tag: str(args[tag]) for tag in TAGS}, system)

    @abstractmethod
    def prompt(self, question: str, few_shot: Sequence[Shot] = ()) -> str:
        """All text up to the answer."""

    @abstractmethod
    def body(self, prompt: str, question: str, answer: str, few_shot: Sequence[Shot] = ()) -> str:
        """The answer as the template writes it, between `prompt` (of the same question) and closing."""

    @property
    @abstractmethod
    def tail(self) -> str:
        """All text that the template writes after the last answer."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Everything the text depends on, except question and answer."""

    def encode(
        self,
        question: str,
        answer: str,
        few_shot: Sequence[Shot] = (),
        *,
        max_length: int | None = None,
        append_eos: bool = False,
        hide_pad: bool = False,
        row_id: str = "",
        row: int = 0,
        answer_index: int = 0,
    ) -> Encoded:
        """Tokens and labels of one question with one answer.

        Args:
            question: the user turn.
            answer: the assistant turn.
            few_shot: worked examples before the question; they have no labels.
            max_length: most tokens; the end is cut away. None = no limit.
            append_eos: the usual encoding of other frameworks (`compat`): all text that the chat template
                writes after the prompt is a label, the end tag of a tag template is left out, an EOS is
                appended if the last token is not EOS (also after a cut), and that last token is the end of
                the turn.
            hide_pad: the usual attention mask of other frameworks (`compat`): no position attends to the pad
                token, at any position. For a tokenizer without a pad token this is the EOS, so the ends of
                turns are hidden too.
            row_id: id of the row, stored in the example and used in errors.
            row: position of the row in its view.
            answer_index: number of the answer in its row.

        Returns:
            The example. Its `prompt_ids` are exactly the prompt of generation.

        Raises:
            UserError: no label is left.
        """
        prompt, prompt_ids = self._prompt_and_ids(question, few_shot)
        body = self.body(prompt, question, answer, few_shot)
        closing = self._field_closing() if append_eos else self.closing
        ids = self._ids(prompt + body + closing.text)
        if ids[: len(prompt_ids)] != prompt_ids:
            # A token spans the border between prompt and answer. Generation encodes the prompt alone, so
            # training does the same.
            ids = prompt_ids + plain_ids(self.tokenizer, body + closing.text)
        if closing.eos:
            ids = [*ids, self._eos()]
        turn_end = len(ids) - 1 if closing.ends and len(ids) > len(prompt_ids) else None
        size = len(ids)
        ids = ids[:max_length]
        if len(ids) <= max(1, len(prompt_ids)):
            raise _no_label(row_id, max_length, len(prompt_ids), size)
        if append_eos and ids[-1] != self._eos():
            ids = [*ids, self._eos()]
        if append_eos:
            turn_end = len(ids) - 1
        mask = tuple(position >= max(1, len(prompt_ids)) for position in range(len(ids)))
        kept = turn_end if turn_end is not None and turn_end < len(ids) else None
        hidden = field_pad_id(self.tokenizer) if hide_pad else None
        return Encoded(
            tuple(ids), mask, kept, len(prompt_ids), row_id, row, answer_index, answer, hidden=hidden
        )

    @cached_property
    def closing(self) -> Closing:
        """The end of the turn, see the top of this file."""
        return find_closing(self.tokenizer, self.tail)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the template and the tokenizer."""
        return fingerprint(
            [self.identity(), self.prompt(_PROBE), self.tail, tokenizer_identity(self.tokenizer)]
        )

    def _field_closing(self) -> Closing:
        return Closing(self.tail, eos=False, ends=True)

    def _eos(self) -> int:
        eos = self.tokenizer.eos_token_id
        if eos is None:
            raise UserError(
                "encode.append_eos needs an EOS token, but the tokenizer has none",
                "set compat.switches.encode.append_eos=false",
            )
        return int(eos)

    def _prompt_and_ids(self, question: str, few_shot: Sequence[Shot]) -> tuple[str, list[int]]:
        """The prompt and its tokens, cached, because the answers of one question follow each other."""
        asked = (question, tuple(few_shot))
        if self._asked is None or self._asked[0] != asked:
            prompt = self.prompt(question, few_shot)
            self._asked = (asked, prompt, self._ids(prompt))
        return self._asked[1:]

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text, with at most one BOS at the start."""
        ids = plain_ids(self.tokenizer, text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids


class ChatTemplate(Template):
    """The chat template of the tokenizer. The template decides whether there is a BOS, as in generation.

    Args:
        tokenizer: a tokenizer with a chat template.
        system_prompt: first message; None or empty = the default of the template.
        date_string: the date that templates such as Llama 3's write into the prompt.
        kwargs: further variables of the template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        system_prompt: str | None,
        date_string: str | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        super().__init__(tokenizer)
        if not tokenizer.chat_template:
            name = tokenizer.name_or_path or type(tokenizer).__name__
            raise UserError(
                f"the tokenizer {name!r} has no chat template, but apply_chat_template is true",
                f"set model.template_args.apply_chat_template=false and give {', '.join(TAGS)}, or use the "
                "tokenizer of a chat model",
            )
        self.system_prompt = system_prompt or None
        self.kwargs = dict(kwargs) | ({"date_string": date_string} if date_string is not None else {})
        if "date_string" not in self.kwargs and "strftime_now" in str(tokenizer.chat_template):
            log.warning(
                "this chat template writes today's date into every prompt, so results change every day; "
                "set model.template_args.date_string to a constant date"
            )
        _ = self.tail

    @cached_property
    def tail(self) -> str:
        """Text after the last answer; a `UserError` if the chat template does not write the answer."""
        before, probe, tail = self._render(self._messages("question", _PROBE, ())).rpartition(_PROBE)
        if not probe:
            raise UserError(
                f"the chat template does not write the assistant's answer; its output is {before + tail!r}",
                f"set model.template_args.apply_chat_template=false and give {', '.join(TAGS)}",
            )
        return tail

    def prompt(self, question: str, few_shot: Sequence[Shot] = ()) -> str:
        """The chat up to the answer, including the generation prompt."""
        return self._render(self._messages(question, None, few_shot))

    def body(self, prompt: str, question: str, answer: str, few_shot: Sequence[Shot] = ()) -> str:
        """The answer as the template writes it: perhaps trimmed, or after an empty thinking block."""
        full = self._render(self._messages(question, answer, few_shot))
        if full.startswith(prompt) and full.endswith(self.tail) and len(full) >= len(prompt) + len(self.tail):
            return full[len(prompt) : len(full) - len(self.tail)]
        # The chat does not begin with the generation prompt. Training uses the prompt of generation.
        return answer

    def identity(self) -> dict[str, Any]:
        """Template, system prompt and variables."""
        return {
            "chat_template": str(self.tokenizer.chat_template),
            "system_prompt": self.system_prompt,
            "kwargs": self.kwargs,
        }

    def _messages(self, question: str, answer: str | None, few_shot: Sequence[Shot]) -> list[dict[str, str]]:
        turns = [{"role": "system", "content": self.system_prompt}] if self.system_prompt else []
        for asked, answered in (*few_shot, (question, answer)):
            turns.append({"role": "user", "content": asked})
            if answered is not None:
                turns.append({"role": "assistant", "content": answered})
        return turns

    def _render(self, messages: list[dict[str, str]]) -> str:
        from jinja2 import TemplateError

        prompting = messages[-1]["role"] != "assistant"
        settings = {"tokenize": False, "add_generation_prompt": prompting, **self.kwargs}
        try:
            return str(self.tokenizer.apply_chat_template(messages, **settings))
        except TemplateError as error:
            hint = (
                "leave out model.template_args.system_prompt if this model takes no system message"
                if self.system_prompt
                else ""
            )
            raise UserError(f"the chat template rejects the messages: {error}", hint) from error


class TagTemplate(Template):
    """Tags around the turns, after the BOS of the tokenizer if it uses one.

    Args:
        tokenizer: tokenizer of the model.
        tags: the four tags by name.
        system: text before the first turn, with special tokens written as text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, tags: Mapping[str, str], system: str) -> None:
        super().__init__(tokenizer)
        self.tags = dict(tags)
        self.system = system
        self._prefix = special_prefix(tokenizer)

    @property
    def tail(self) -> str:
        """Text after the last answer."""
        return self.tags["asst_end_tag"]

    def prompt(self, question: str, few_shot: Sequence[Shot] = ()) -> str:
        """System text, worked examples, question, and the tag that opens the answer."""
        shots = [self._open(asked) + answered + self.tail for asked, answered in few_shot]
        return self.system + "".join(shots) + self._open(question)

    def body(self, prompt: str, question: str, answer: str, few_shot: Sequence[Shot] = ()) -> str:
        """The answer as it is."""
        return answer

    def identity(self) -> dict[str, Any]:
        """The tags and the system text."""
        return {"tags": self.tags, "system": self.system}

    def _open(self, question: str) -> str:
        return (
            self.tags["user_start_tag"] + question + self.tags["user_end_tag"] + self.tags["asst_start_tag"]
        )

    def _ids(self, text: str) -> list[int]:
        ids = super()._ids(text)
        return ids if ids[:1] == self._prefix else self._prefix + ids

    def _field_closing(self) -> Closing:
        return Closing("", eos=False, ends=True)


def _no_label(row_id: str, max_length: int | None, prompt_length: int, size: int) -> UserError:
    name = f"row {row_id}" if row_id else "a row"
    if size <= max(1, prompt_length):
        return UserError(
            f"{name}: the answer has no token that could be a label",
            "give an answer that is not empty, or use a tokenizer with an EOS token",
        )
    return UserError(
        f"{name}: max_length={max_length} cuts the whole answer away: the prompt has {prompt_length} tokens, "
        f"prompt and answer have {size}",
        f"raise max_length to {size}, shorten the prompt (few-shot examples, system prompt), or remove "
        "the row",
    )
