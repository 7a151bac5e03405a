"""Labels sessions by what their answers show: an unknown end, another model, the same text as many others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from distill.text.chat_replies import other_model, reason_in, shown_reason
from distill.types import Completion, Flow, Request, Session

ROLE = "teacher"
FINISH_UNKNOWN, OTHER_MODEL, SAME_ANSWER = "finish_unknown", "other_model", "same_answer"
LABELS = (FINISH_UNKNOWN, OTHER_MODEL, SAME_ANSWER)
MANY_PROMPTS = 5
"""Different prompts with one and the same answer from which it is labelled."""
LEAST_WORDS, LEAST_CHARACTERS = 3, 12
"""An answer below both, such as a class label, may well be the same for many prompts."""


@dataclass(slots=True)
class Witness:
    """Notes on a teacher's answers to one task, by their key."""

    model: str
    """The model asked; empty where distill serves it."""
    finishes: dict[str, str] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)

    def watch(self, flow: Flow[Any]) -> Flow[Any]:
        """The same flow, its sessions labelled `finish_unknown` and `other_model`, with the values in their meta."""
        try:
            asked = next(flow)
            while True:
                answers = yield asked
                self._note(asked, answers)
                asked = flow.send(answers)
        except StopIteration as end:
            results = end.value if isinstance(end.value, tuple) else (end.value,)
            labelled = tuple(self._labelled(one) if isinstance(one, Session) else one for one in results)
            return labelled if isinstance(end.value, tuple) else labelled[0]

    def _note(self, asked: Any, answers: Any) -> None:
        pairs = [(asked, answers)] if isinstance(asked, Request) else zip(asked, answers, strict=True)
        for request, answer in pairs:
            if request.role != ROLE or not isinstance(answer, Completion):
                continue
            if answer.finish == "unknown":
                self.finishes[answer.key] = shown_reason(reason_in(answer.raw))
            if other := other_model(answer.raw, self.model):
                self.models[answer.key] = other

    def _labelled(self, session: Session) -> Session:
        if not (self.finishes or self.models):
            return session
        losers = {other.get("key") for other in session.meta.get("others", ()) if isinstance(other, Mapping)}
        keys = session.meta.get("keys") or (*self.finishes, *self.models)
        for label, name, values in ((FINISH_UNKNOWN, "finish", self.finishes), (OTHER_MODEL, "model", self.models)):
            if value := next((values[key] for key in keys if key in values and key not in losers), None):
                session = labelled(replace(session, meta={**session.meta, name: value}), [label])
        return session


def labelled(session: Session, labels: Sequence[str]) -> Session:
    """The session with more labels."""
    if not labels:
        return session
    return replace(session, meta={**session.meta, "labels": [*session.meta.get("labels", ()), *labels]})


def with_same_answers(sessions: Sequence[Session], teacher_of: Callable[[Session], str]) -> tuple[list[Session], str]:
    """The sessions, `same_answer` on those whose last answer a teacher gave to many prompts; and the commonest of them.

    The second is empty where there is none.
    """
    texts = [(teacher_of(one), one.messages[-1].content if one.messages else "") for one in sessions]
    prompts = {(text, session.messages[-2:-1]) for text, session in zip(texts, sessions, strict=True)}
    counts = Counter(text for text, _ in prompts)
    same = {text: count for text, count in counts.items() if count >= MANY_PROMPTS and _is_telling(text[1])}
    marked = [
        labelled(session, [SAME_ANSWER] if text in same else []) for text, session in zip(texts, sessions, strict=True)
    ]
    return marked, max(same, key=lambda text: same[text])[1] if same else ""


def _is_telling(text: str) -> bool:
    return len(text.split()) >= LEAST_WORDS or len(text) >= LEAST_CHARACTERS
