"""Personal data: found, counted and masked."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from distill.curate.filters.format import Format
from distill.curate.filters.pii import PersonalData
from distill.curate.filters.repetition import Repetition
from tests.support.row_filters import session, verdict

PERSONAL = [
    ("Write to anna.smith+x@mail.co.uk today", "email", "anna.smith+x@mail.co.uk"),
    ("from 8.8.4.4, port 53", "ip", "8.8.4.4"),
    ("see 2a00:1450:4001:81b::200e", "ip", "2a00:1450:4001:81b::200e"),
    ("call +49 30 901820 now", "phone", "+49 30 901820"),
    ("call (415) 555-2671.", "phone", "(415) 555-2671"),
    ("call 212-736-5000.", "phone", "212-736-5000"),
    ("card 4111 1111 1111 1111, please", "credit_card", "4111 1111 1111 1111"),
    ("card 378282246310005", "credit_card", "378282246310005"),
    ("to DE89 3704 0044 0532 0130 00 BY FRIDAY", "iban", "DE89 3704 0044 0532 0130 00"),
    ("to GB82WEST12345698765432.", "iban", "GB82WEST12345698765432"),
    ("SSN 078-05-1120", "us_ssn", "078-05-1120"),
    ("key sk-abcdef1ghijklmnopqrstuvwx", "secret", "sk-abcdef1ghijklmnopqrstuvwx"),
    ("id AKIAIOSFODNN7EXAMPLE", "secret", "AKIAIOSFODNN7EXAMPLE"),
    ("ghp_" + "a1B2" * 9, "secret", "ghp_" + "a1B2" * 9),
    ("-----BEGIN RSA PRIVATE KEY-----", "secret", "-----BEGIN RSA PRIVATE KEY-----"),
    ("-----BEGIN PGP PRIVATE KEY BLOCK-----", "secret", "-----BEGIN PGP PRIVATE KEY BLOCK-----"),
    *(
        (f"key {start}{'a1B2' * 9}.", "secret", f"{start}{'a1B2' * 9}")
        for start in (
            "sk_" + "live_",
            "glpat-",
            "npm_",
            f"SG.{'a1B2' * 5}.",
            "hooks.slack.com/services/T0A1B2C3/B0A1B2C3/",
        )
    ),
    ("key ASIAIOSFODNN7EXAMPLE", "secret", "ASIAIOSFODNN7EXAMPLE"),
    ("call 0049 30 901820 now", "phone", "0049 30 901820"),
]


@pytest.mark.parametrize(("text", "kind", "piece"), PERSONAL)
def test_personal_data_are_found_counted_and_masked(text, kind, piece):
    rule = PersonalData(PersonalData.Options(action="mask"))
    given = session(text)
    found = rule.measure(given)
    assert found == {kind: 1}
    assert rule.mend(given, found).messages[1].content == text.replace(piece, f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "anna@example.com and bob@test.invalid",
        "name@domain.com, you@yourcompany.com, git@github.com:org/repo",
        "+1 (555) 234-5678 or 555-234-5678",
        "Section 1.2.3.4, chapter 2.1.3.4, version 5.6.7.8",
        "at 192.168.1.1, 127.0.0.1 and 10.0.0.7",
        "version 1.2.3.4.5, at 12:30:45, on 2021-03-04",
        "std::vector<a::b> and a::b::c",
        "555-0100 or 212-555-0123",
        "4111 1111 1111 1112",
        "1612345678901234",
        "ISBN 978-3-16-148410-0",
        "DE89 3704 0044 0532 0130 01",
        "000-12-3456, 666-12-3456, 123-00-4567",
        "12 + 34567890123 = x",
        "a sk-short key, sk-learn-without-any-digit, @handle, user@host",
        "the regex [a-z.+-]+@[a-z-]+\\.[a-z]{2,}",
    ],
)
def test_examples_private_addresses_and_wrong_sums_are_left_alone(text):
    assert PersonalData(PersonalData.Options()).measure(session(text)) == {}


@pytest.mark.parametrize(("action", "keep"), [("label", True), ("drop", False), ("mask", True)])
def test_the_action_decides_and_the_verdict_names_kinds_only(action, keep):
    found = verdict(PersonalData(PersonalData.Options(action=action)), session("to anna@mail.net and bob@mail.net"))
    assert (found.keep, found.reason, found.value) == (keep, "pii", "email:2")


def test_kinds_may_be_chosen():
    rule = PersonalData(PersonalData.Options(kinds=["phone"]))
    assert rule.measure(session("to anna@mail.net, 212-736-5000")) == {"phone": 1}


@pytest.mark.parametrize("action", ["label", "drop"])
def test_only_masking_changes_a_session(action):
    rule = PersonalData(PersonalData.Options(action=action))
    given = session("to anna@mail.net")
    assert rule.mend(given, rule.measure(given)) is given


PIECES = st.one_of(st.sampled_from([piece for _, _, piece in PERSONAL]), st.text("0123 4-.@:+abAB", max_size=20))


@given(st.lists(PIECES, max_size=6), st.sampled_from(["", " ", "-", "."]))
@example(["4111 1111 1111 1111", "4111 1111 1111 1111"], "")
def test_a_mask_leaves_no_match(pieces, between):
    rule = PersonalData(PersonalData.Options(action="mask"))
    given = session(between.join(pieces), prompt=" ".join(pieces))
    mended = rule.mend(given, rule.measure(given))
    assert rule.measure(mended) == {}
    assert rule.mend(mended, rule.measure(mended)) is mended


@pytest.mark.parametrize(
    "text", ["a" * 50_000, "1 " * 25_000, "a." * 25_000 + "@", "+1" * 25_000, "::" * 25_000, "eyJ" * 9_000]
)
def test_no_text_takes_long(text):
    started = time.perf_counter()
    for rule in (PersonalData(PersonalData.Options()), Format(Format.Options()), Repetition(Repetition.Options())):
        rule.measure(session(text))
    assert time.perf_counter() - started < 10
