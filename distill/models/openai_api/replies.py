"""Responses of OpenAI's API: whole ones, and the pieces of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from distill.models.openai_api.bodies import Body, ChatBody, PromptBody
from distill.models.token_bytes import Spelling, token_texts

if TYPE_CHECKING:
    from distill.models.continuous_batching import DecodedAnswer
    from distill.models.token_scores import TokenScore


class Texts:
    """The texts of tokens, and of answers as far as they are final."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._spelling = Spelling(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids)

    def decode(self, ids: Sequence[int], *, skips_special: bool = True) -> str:
        """The text of ids, without the names of special tokens if `skips_special`."""
        options = {"skip_special_tokens": skips_special, "clean_up_tokenization_spaces": False}
        return str(self._tokenizer.decode(list(ids), **options))

    def bytes_of(self, id_: int) -> bytes:
        """What a token spells."""
        return self._spelling.pieces([id_])[0]

    def name(self, id_: int) -> str:
        """A token as the API writes it: its text, or its bytes where they are no whole characters."""
        piece = self.bytes_of(id_)
        try:
            return piece.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)

    def starts(self, ids: Sequence[int], *, skips_special: bool = True) -> list[int]:
        """The place in the text at which each token begins."""
        places, place = [], 0
        for id_, text in zip(ids, token_texts(self._spelling.pieces(ids)), strict=True):
            places.append(place)
            place += 0 if skips_special and id_ in self._special else len(text)
        return places


class GrowingText:
    """The part of an answer in the making that later tokens cannot change."""

    def __init__(self, texts: Texts, stops: Sequence[str], *, strips: bool) -> None:
        self._texts, self._stops, self._strips = texts, tuple(stops), strips
        self._ids: list[int] = []
        self._text = ""
        self._shown = 0
        self.is_held = False
        """Whether the last characters are withheld."""
        self._window = self._read = 0

    def take(self, token: int) -> str:
        """The text that becomes final with one more token.

        The last characters are withheld while they may be part of a stop string, of a character in several tokens, or
        of the white space that ends the answer.
        """
        self._ids.append(token)
        old = self._texts.decode(self._ids[self._window : self._read])
        new = self._texts.decode(self._ids[self._window :])
        if new.endswith("\ufffd"):
            return ""
        self._text += new[len(old) :]
        self._window, self._read = self._read, len(self._ids)
        certain = self._certain()
        self.is_held = certain < len(self._text)
        return self._grown(self._text[:certain])

    def end(self, text: str) -> str:
        """The rest of the answer, whose whole `text` is known now."""
        return text[self._shown :]

    def _certain(self) -> int:
        cuts = [place for stop in self._stops if (place := self._text.find(stop)) >= 0]
        if cuts:
            return min(cuts)
        held = (size for stop in self._stops for size in range(1, len(stop)) if self._text.endswith(stop[:size]))
        return len(self._text) - max(held, default=0)

    def _grown(self, text: str) -> str:
        text = text.strip() if self._strips else text
        piece, self._shown = text[self._shown :], max(self._shown, len(text))
        return piece


class Replies:
    """The responses to one request."""

    def __init__(self, body: Body, model: str, texts: Texts, *, strips: bool) -> None:
        self._body, self._texts, self._strips = body, texts, strips
        self.is_chat = isinstance(body, ChatBody)
        self._about = {
            "id": f"{'chatcmpl' if self.is_chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self.is_chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }

    def whole(self, answers: Sequence[DecodedAnswer]) -> dict[str, Any]:
        """The response with all choices; the ids of the prompt are those of the first."""
        choices = [self._choice(index, answer) for index, answer in enumerate(answers)]
        usage = {"usage": self.usage(answers), "prompt_token_ids": answers[0].prompt_ids}
        return {**self._about, "choices": choices, **usage}

    def usage(self, answers: Sequence[DecodedAnswer]) -> dict[str, int]:
        """Tokens of all prompts and answers; a prompt counts once for its `n` answers."""
        prompt = sum(len(answer.prompt_ids) for answer in answers[:: self._body.n or 1])
        completion = sum(len(answer.token_ids) for answer in answers) if self._body.max_tokens != 0 else 0
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}

    def text(self, answer: DecodedAnswer) -> str:
        """The text of an answer. Our own templates trim answers in training, so white space around one is theirs."""
        if self._body.max_tokens == 0:
            return ""
        return answer.reply.text.strip() if self.is_chat and self._strips else answer.reply.text

    def finish(self, answer: DecodedAnswer) -> str | None:
        """Why an answer ended."""
        return "length" if self._body.max_tokens == 0 else answer.reply.finish

    def growing(self) -> GrowingText:
        """A text that grows with a stream."""
        return GrowingText(self._texts, self._body.stop or (), strips=self.is_chat and self._strips)

    def piece(
        self, index: int, text: str, scored: Sequence[tuple[int, TokenScore]], *, finish: str | None = None
    ) -> dict[str, Any]:
        """An event of a stream with a part of an answer, and the scores of its tokens."""
        about = {**self._about, **({"object": "chat.completion.chunk"} if self.is_chat else {})}
        part = {"delta": {"content": text} if text else {}} if self.is_chat else {"text": text}
        logprobs = self._logprobs(scored) if scored else None
        return {**about, "choices": [{"index": index, **part, "logprobs": logprobs, "finish_reason": finish}]}

    def opening(self, index: int) -> dict[str, Any] | None:
        """The first event of an answer: its role, or the prompt where it is repeated."""
        if not self.is_chat:
            return self.piece(index, prompt, ()) if (prompt := self._prompt(index)) else None
        event = self.piece(index, "", ())
        event["choices"][0]["delta"] = {"role": "assistant", "content": ""}
        return event

    def closing(self, answers: Sequence[DecodedAnswer]) -> dict[str, Any]:
        """The last event of a stream that counts tokens."""
        return {**self.piece(0, "", ()), "choices": [], "usage": self.usage(answers)}

    def _prompt(self, index: int) -> str:
        """The text of the prompt, where it is to be repeated."""
        if not isinstance(self._body, PromptBody) or not self._body.echo:
            return ""
        prompt = self._body.prompt[index // (self._body.n or 1)]
        return prompt if isinstance(prompt, str) else self._texts.decode(prompt, skips_special=False)

    def covered(self, answer: DecodedAnswer) -> int:
        """The number of sampled tokens that the text of an answer shows."""
        starts = self._texts.starts(answer.token_ids)
        count = sum(start < len(answer.reply.text) for start in starts)
        return 0 if self._body.max_tokens == 0 else count

    def _choice(self, index: int, answer: DecodedAnswer) -> dict[str, Any]:
        text, prompt = self.text(answer), self._prompt(index)
        part = {"message": {"role": "assistant", "content": text}} if self.is_chat else {"text": prompt + text}
        logprobs = None
        if self._body.top is not None:
            count = self.covered(answer)
            scored = list(zip(answer.token_ids[:count], answer.scores, strict=False))
            logprobs = self._logprobs([*zip(answer.prompt_ids, answer.prompt_scores, strict=False), *scored])
        return {
            "index": index,
            **part,
            "finish_reason": self.finish(answer),
            "logprobs": logprobs,
            "token_ids": [] if self._body.max_tokens == 0 else answer.token_ids,
        }

    def _logprobs(self, scored: Sequence[tuple[int, TokenScore | None]]) -> dict[str, Any]:
        if self.is_chat:
            return {"content": [self._entry(id_, score) for id_, score in scored if score is not None], "refusal": None}
        ids = [id_ for id_, _ in scored]
        return {
            "tokens": [self._texts.name(id_) for id_ in ids],
            "token_logprobs": [None if score is None else score.logprob for _, score in scored],
            "top_logprobs": [None if score is None else self._table(score) for _, score in scored],
            "text_offset": self._texts.starts(ids, skips_special=False),
            "token_ids": ids,
        }

    def _table(self, score: TokenScore) -> dict[str, float]:
        """Alternatives by their names; of those that are spelled alike, the most probable."""
        return {self._texts.name(id_): logprob for id_, logprob in reversed(score.top)}

    def _entry(self, id_: int, score: TokenScore) -> dict[str, Any]:
        top = [self._named(other, logprob) for other, logprob in score.top]
        return {**self._named(id_, score.logprob), "top_logprobs": top}

    def _named(self, id_: int, logprob: float) -> dict[str, Any]:
        bytes_ = list(self._texts.bytes_of(id_))
        return {"token": self._texts.name(id_), "logprob": logprob, "bytes": bytes_, "token_id": id_}
