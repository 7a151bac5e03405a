"""Secrets in environment variables that a recipe or an option names: read, and registered for redaction.

In `base_url` and in `extra_body`, `$NAME` or `${NAME}` stands for a variable's value, which is filled in when a request
is sent. Recipes, journal keys and run folders contain only the name.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from distill.core import console
from distill.core.redaction import SHORTEST, STRUCK, learn
from distill.errors import RecipeError

_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_USUAL_NAME = re.compile(r"[A-Z][A-Z0-9]{0,15}(_[A-Z0-9]{1,15})+|[A-Z]{1,12}", re.ASCII)
"""The usual form of variable names; anything else may be the secret itself in the wrong place and is not shown."""
_VARIABLE = re.compile(r"\$(?:\{([A-Za-z_]\w*)\}|([A-Za-z_]\w*))", re.ASCII)
_SECRET = r"(key|token|secret|sig|signature|pwd|pass|passwd|password|code|auth|authorization|credentials?)"
_IN_QUERY = re.compile(rf"(.*[._-])?\w*{_SECRET}", re.IGNORECASE)
"""Query parameters that usually hold a secret."""
_IN_BODY = re.compile(
    rf"(.*[._-])?api[._-]?key|((access|auth|bearer|client|private|secret|session|subscription)[._-]?)?{_SECRET}", re.I
)
"""The same for body fields, where `stop_token` and `language_code` are no secrets."""
_warned: set[str] = set()


def check_name(value: Any) -> Any:
    """The value, if it can be a variable's name. Raises a `ValueError` that does not show it."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    raise ValueError(
        "found something that is no variable's name, and is not shown, since it may be the secret itself; expected the "
        "name of an environment variable that holds it, such as OPENAI_API_KEY"
    )


def shown(variable: str) -> str:
    """The variable's name, or a description where it may be a secret."""
    return variable if _USUAL_NAME.fullmatch(variable) else "that it names (not shown: it may be the secret itself)"


def secret(variable: str | None, option: str) -> str | None:
    """The value of an environment variable that `option` names; None for no variable.

    It is struck from now on; a warning says where it is too short for that. Raises `RecipeError` where it is not set.
    """
    if variable is None:
        return None
    try:
        value = os.environ.get(check_name(variable), "")
    except ValueError as error:
        raise RecipeError(f"{option}: {error}") from None
    if not value.strip():
        advice = f"; type: export {variable}=…" if shown(variable) == variable else "; name one that is"
        raise RecipeError(f"{option}: the variable {shown(variable)} is not set{advice}")
    if not learn(value) and variable not in _warned:
        _warned.add(variable)
        console.warn(
            f"{option}: the value of {shown(variable)} has fewer than {SHORTEST} characters, so it is not struck out "
            "of what an endpoint says; it might be a word of an answer"
        )
    return value


def learn_proxies() -> None:
    """Have the user names and passwords in proxy variables struck out (`HTTPS_PROXY=http://user:password@host`)."""
    for name, url in os.environ.items():
        userinfo = (url.partition("://")[2] or url).rpartition("@")[0]
        if name.lower().endswith("_proxy") and userinfo:
            for text in {userinfo, unquote(userinfo)}:
                learn(text)
                learn(base64.b64encode(text.encode()).decode())  # as in a header; learns the password alone, too


def variables(base_url: str | None, body: Any) -> list[str]:
    """Names of the variables in an address, and of those that are whole texts in an extra body (a JSON value)."""
    matches = [*_VARIABLE.finditer(base_url or ""), *(_VARIABLE.fullmatch(text) for _, text in _texts(body))]
    return [match[1] or match[2] for match in matches if match]


def _texts(body: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a JSON value, after the name of its field."""
    if isinstance(body, str):
        yield name, body
    elif isinstance(body, Mapping):
        for key, value in body.items():
            yield from _texts(value, str(key))
    elif isinstance(body, (list, tuple)):
        for value in body:
            yield from _texts(value, name)


def filled_url(url: str) -> str:
    """The address with its variables filled in, percent-encoded. Raises `RecipeError` for one that is not set."""
    return _VARIABLE.sub(lambda match: quote(_value(match, "base_url"), safe=""), url)


def filled(value: Any) -> Any:
    """A body's value with every text that is exactly one variable filled in. Raises `RecipeError`."""
    if isinstance(value, str):
        match = _VARIABLE.fullmatch(value) if value.startswith("$") else None
        return _value(match, "extra_body") if match else value
    if isinstance(value, Mapping):
        return {name: filled(each) for name, each in value.items()}
    return [filled(each) for each in value] if isinstance(value, (list, tuple)) else value


def _value(match: re.Match[str], option: str) -> str:
    return secret(match[1] or match[2], option) or ""


# Literal secrets


def literals(base_url: str | None, body: Any) -> list[tuple[str, str]]:
    """Name and value of each literal secret in an address or an extra body."""
    query, texts = parse_qsl(urlsplit(base_url or "").query), _texts(body)
    secrets = [(name, value) for name, value in query if _is_literal(name, value, _IN_QUERY)]
    return secrets + [(name, value) for name, value in texts if _is_literal(name, value, _IN_BODY)]


def _is_literal(name: str, value: str, names: re.Pattern[str]) -> bool:
    return bool(value and names.fullmatch(name)) and not _VARIABLE.fullmatch(value)


def without_literals(value: Any, name: str = "", *, is_body: bool = False) -> Any:
    """A recipe's document with `***` in place of each literal secret in an address or an extra body."""
    if isinstance(value, Mapping):
        within = is_body or name == "extra_body"
        return {key: without_literals(each, str(key), is_body=within) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_literals(each, name, is_body=is_body) for each in value]
    if isinstance(value, str) and name == "base_url":
        return _url_without(value)
    return STRUCK if is_body and isinstance(value, str) and _is_literal(name, value, _IN_BODY) else value


def _url_without(url: str) -> str:
    parts = urlsplit(url)
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    struck = [(name, STRUCK if _is_literal(name, value, _IN_QUERY) else value) for name, value in pairs]
    return url if struck == pairs else parts._replace(query=urlencode(struck, safe="*${}")).geturl()
