"""Renders a chat template in a process with little time and memory; a script for `third_party.is_bounded`.

Jinja's sandbox bounds neither nested loops nor the size of texts, and an operation that runs for hours ends only with
its process. Imports neither distill nor transformers, which would take seconds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

SECONDS = 1
"""CPU time, of which starting takes 0.2; templates of known models take milliseconds."""
BYTES = 400_000_000
LONG = 1 << 16
"""Characters in a long message; two nested loops over them exceed the time."""
OVER = 3
"""Exit status where the template takes too much memory; one that takes too long is killed."""


def render(source: str) -> None:
    """Render conversations of several shapes as transformers does; errors of the template are ignored."""
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """The tag {% generation %} of transformers, which marks answers."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            """The nodes in the block."""
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals["strftime_now"] = lambda _: ""
    template = environment.from_string(source)
    for messages in conversations():
        try:
            template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>")
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - a template that refuses a conversation may still render the next
            continue


def conversations() -> Iterator[list[dict[str, str]]]:
    """Conversations of 1 to 5 turns, with and without a system turn, and one long message."""
    for length in (1, 2, 3, 5):
        turns = [{"role": ("user", "assistant")[index % 2], "content": f"text {index}"} for index in range(length)]
        yield turns
        yield [{"role": "system", "content": "text"}, *turns]
    yield [{"role": "user", "content": "a" * LONG}]


if __name__ == "__main__":
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        render(json.load(sys.stdin))
    except MemoryError:
        sys.exit(OVER)
