r"""From question and answer to tokens: the tokenizer's chat template, or tags written into the configuration.

What is a label: the assistant turn up to and including its end-of-turn token, and nothing after. The end of the turn is

* the first special token that the template writes after the answer (`<|eot_id|>`, `<|im_end|>`, `</s>`); blanks that follow it, such as
  ChatML's newline, belong to the next turn and are left out;
* else the tokenizer's EOS, appended: a turn that does not close itself (tags such as "Question: ... Answer: ...\n\n") would never teach
  the model to stop. A separator of blanks alone is then left out of the turn, other text stays in it.
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
    """How a question and an answer become tokens, for one tokenizer."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self._asked: tuple[Any, str, list[int]] | None = None

    @classmethod
    def from_args(
        cls, template_args: Mapping[str, Any] | None, tokenizer: PreTrainedTokenizerBase
    ) -> Template:
        """The template that `model.template_args` describes.

        Args:
            template_args: `apply_chat_template` (default: true unless tags are given); with it
                `system_prompt`, `date_string` and `chat_template_kwargs` (handed to the chat template, such
                as `enable_thinking: false`); without it the four tags and
                `system_prompt_with_special_tokens`.
            tokenizer: the model's.

        Raises:
            UserError: an unknown key, a tag that is missing, or a chat template asked of a tokenizer that has
                none.
        """
        args = {key: value for key, value in (template_args or {}).items() if value is not None}
        faults = [
            unknown("key of model.template_args", key, TEMPLATE_KEYS)
            for key in args
            if key not in TEMPLATE_KEYS
        ]
        if faults:
            raise UserError.of(faults)
        if args.get("apply_chat_template", "user_start_tag" not in args):
            return ChatTemplate(
                tokenizer,
                args.get("system_prompt"),
                args.get("date_string"),
                args.get("chat_template_kwargs") or {},
            )
        missing = [tag for tag in TAGS if tag not in args]
        if missing:
            told = ", ".join(missing)
            raise UserError(
                f"model.template_args has apply_chat_template=false but no {told}",
                "give all four tags; a tag may be empty",
            )
        return TagTemplate(
            tokenizer,
            {tag: str(args[tag]) for tag in TAGS},
            str(args.get("system_prompt_with_special_tokens", "")),
        )

    @abstractmethod
    def prompt(self, question: str, few_shot: Sequence[Shot] = ()) -> str:
        """All text up to the answer."""

    @abstractmethod
    def body(self, prompt: str, question: str, answer: str, few_shot: Sequence[Shot] = ()) -> str:
        """The answer as the template writes it between `prompt` (of the same question) and closing."""

    @property
    @abstractmethod
    def tail(self) -> str:
        """All text that the template writes after the last answer."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """What the text depends on, apart from question and answer."""

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
            few_shot: worked examples before the question; no labels among them.
            max_length: tokens at most; the end is cut away. None = no limit.
            append_eos: the field's encoding (`compat`): the labels run over everything that the chat template
                writes after the prompt, a tag template's end tag is left out, an EOS is appended where the
                last token is none (also after a cut), and that last token counts as the end of the turn.
            hide_pad: the field's attention mask (`compat`): no position attends to the token that pads,
                wherever it stands. Where the tokenizer came without one, that is the EOS, and with it ends of
                turns are hidden.
            row_id: id of the row, for the record and for errors.
            row: position of the row in its view.
            answer_index: which of the row's answers this is.

        Returns:
            The example. `prompt_ids` of it are exactly what generation gets.

        Raises:
            UserError: no label is left.
        """
        prompt, prompt_ids = self._prompt_and_ids(question, few_shot)
        body = self.body(prompt, question, answer, few_shot)
        closing = self._field_closing() if append_eos else self.closing
        ids = self._ids(prompt + body + closing.text)
        if ids[: len(prompt_ids)] != prompt_ids:
            # A token spans the border. The model will read the prompt alone when it generates, so it is
            # trained on that as well.
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
        """What ends the turn, see the head of this file."""
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
                "the tokenizer has no EOS token, which encode.append_eos appends",
                "leave compat.switches.encode.append_eos off",
            )
        return int(eos)

    def _prompt_and_ids(self, question: str, few_shot: Sequence[Shot]) -> tuple[str, list[int]]:
        """The prompt and its tokens; the answers of one question, which come one after the other, share them."""
        asked = (question, tuple(few_shot))
        if self._asked is None or self._asked[0] != asked:
            prompt = self.prompt(question, few_shot)
            self._asked = (asked, prompt, self._ids(prompt))
        return self._asked[1:]

    def _ids(self, text: str) -> list[int]:
        """Tokens of a text from its start, with the BOS in front at most once."""
        ids = plain_ids(self.tokenizer, text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == [bos, bos]:
            ids = ids[1:]
        return ids


class ChatTemplate(Template):
    """The tokenizer's own chat template. It decides on the BOS, as it does when a chat is generated.

    Args:
        tokenizer: with a chat template.
        system_prompt: first message, None or empty = the template's own habit.
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
                f"set model.template_args.apply_chat_template=false and give {', '.join(TAGS)}, or use the tokenizer of a chat model",
            )
        self.system_prompt = system_prompt or None
        self.kwargs = dict(kwargs) | ({"date_string": date_string} if date_string is not None else {})
        if "date_string" not in self.kwargs and "strftime_now" in str(tokenizer.chat_template):
            log.warning(
                "this chat template writes today's date into every prompt; set model.template_args.date_string to fix it"
            )
        self._tail = self._find_tail()

    @property
    def tail(self) -> str:
        """Text after the last answer."""
        return self._tail

    def prompt(self, question: str, few_shot: Sequence[Shot] = ()) -> str:
        """The chat up to the answer, with the generation prompt."""
        return self._render(self._messages(question, None, few_shot))

    def body(self, prompt: str, question: str, answer: str, few_shot: Sequence[Shot] = ()) -> str:
        """The answer as the template writes it: trimmed, or after an empty thinking block, if that is its habit."""
        full = self._render(self._messages(question, answer, few_shot))
        if full.startswith(prompt) and full.endswith(self.tail) and len(full) >= len(prompt) + len(self.tail):
            return full[len(prompt) : len(full) - len(self.tail)]
        # The generation prompt is no beginning of the chat. What is generated from is what is trained on.
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
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=prompting, **self.kwargs
                )
            )
        except TemplateError as error:
            hint = (
                "leave out model.template_args.system_prompt if this model takes no system message"
                if self.system_prompt
                else ""
            )
            raise UserError(f"the chat template refused the messages: {error}", hint) from error

    def _find_tail(self) -> str:
        before, probe, tail = self._render(self._messages("question", _PROBE, ())).rpartition(_PROBE)
        if not probe:
            raise UserError(
                f"the chat template does not write the assistant's answer; it gave {before + tail!r}",
                "use apply_chat_template=false with tags",
            )
        return tail


class TagTemplate(Template):
    """Tags around the turns; the tokenizer's BOS in front unless the tags begin with it.

    Args:
        tokenizer: the model's.
        tags: the four tags by name.
        system: text before the first turn, special tokens written out.
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
            "give a longer answer, or a tokenizer with an EOS token",
        )
    return UserError(
        f"{name}: max_length={max_length} cuts the whole answer away: {prompt_length} tokens of prompt, {size} with the answer",
        f"raise max_length to {size}, shorten the prompt (few-shot examples, system prompt), or leave the row out",
    )
