"""Sessions of one answer, and the verdict of a filter on one."""

from __future__ import annotations

from distill.types import Message, Session, Verdict


def session(answer: str = "The Danube.", prompt: str = "Name a river.", **meta) -> Session:
    return Session("s", (Message("user", prompt), Message("assistant", answer)), meta)


def verdict(rule, of: Session) -> Verdict:
    return rule.decide(rule.measure(of))
