"""`distill serve` asked by OpenAI's SDK: streams, several answers, log-probabilities, prompts by ids."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest

from distill.core.jsonl import write_rows
from distill.types import Message, Session
from tests.support.models.student_server import Server, serving
from tests.support.run_folder import write_run
from tests.support.tiny import save_tiny_model

pytestmark = pytest.mark.model

SYSTEM = Message("system", "Be brief.")
TURNS: Any = [{"role": "user", "content": "Name a colour."}]
PROMPT = "Paris \u4e2d\u6587."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture(scope="module")
def run(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run named `tiny` whose student is that model, trained under a system message."""
    folder = write_run(tmp_path_factory.mktemp("run") / "tiny", prompts=2)
    rows = [Session("s1", (SYSTEM, Message("user", "Hi"), Message("assistant", "Ho")))]
    write_rows(folder / "kept.jsonl", rows)
    shutil.rmtree(folder / "student")
    shutil.copytree(tiny, folder / "student")
    base = {"model": "tiny", "fingerprint": "", "template": "own", "quantised": False, "layers": None, "method": "full"}
    (folder / "student/base.json").write_text(json.dumps(base))
    return folder


@pytest.fixture(scope="module")
def server(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(run, tmp_path_factory.mktemp("logs") / "log") as one:
        yield one


@pytest.fixture(scope="module")
def openai(server: Server) -> Iterator[Any]:
    from openai import OpenAI

    with OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def loaded(tiny: Path) -> tuple[Any, Any]:
    from distill.models.in_process import load_whole

    whole = load_whole(str(tiny), "own", say=print)
    return whole.model, whole.tokenizer


def _joined(chunks: Any, count: int) -> tuple[list[dict[str, Any]], Any]:
    """The choices of a stream put together, and its usage."""
    choices = [{"text": "", "finish": None, "logprobs": []} for _ in range(count)]
    usage = None
    for chunk in chunks:
        usage = chunk.usage or usage
        for part in chunk.choices:
            choice = choices[part.index]
            choice["text"] += part.text if hasattr(part, "text") else part.delta.content or ""
            choice["finish"] = part.finish_reason or choice["finish"]
            if part.logprobs is not None:
                choice["logprobs"] += part.logprobs.tokens if hasattr(part, "text") else part.logprobs.content
    return choices, usage


def _whole(answer: Any) -> tuple[list[dict[str, Any]], Any]:
    return (
        _joined([answer], len(answer.choices))
        if hasattr(answer.choices[0], "text")
        else (
            [
                {
                    "text": one.message.content,
                    "finish": one.finish_reason,
                    "logprobs": one.logprobs.content if one.logprobs else [],
                }
                for one in answer.choices
            ],
            answer.usage,
        )
    )


@pytest.mark.parametrize(
    "options",
    [
        {"seed": 1},
        {"seed": 2, "stop": ["a", "e"], "logprobs": True},
        {"seed": 3, "n": 3},
        {"seed": 4, "logprobs": True, "top_logprobs": 2, "temperature": 0.5},
        {"seed": 5, "stop": " the"},
    ],
    ids=str,
)
def test_a_streamed_answer_is_the_whole_one_in_pieces(openai: Any, options: dict[str, Any]):
    chat = {"model": "tiny", "messages": TURNS, "max_tokens": 24, **options}
    stream = openai.chat.completions.create(**chat, stream=True, stream_options={"include_usage": True})
    assert _joined(stream, options.get("n", 1)) == _whole(openai.chat.completions.create(**chat))
    text = {**chat, "prompt": [PROMPT, "b"], **({"logprobs": 1} if "logprobs" in options else {})}
    text = {name: value for name, value in text.items() if name not in ("messages", "top_logprobs")}
    stream = openai.completions.create(**text, stream=True, stream_options={"include_usage": True})
    assert _joined(stream, 2 * options.get("n", 1)) == _whole(openai.completions.create(**text))


@pytest.mark.parametrize("stops", [(), ("a",), (" the", "e ")])
def test_a_text_grows_to_the_answer_that_a_students_template_trims(loaded: tuple[Any, Any], stops: tuple[str, ...]):
    from distill.models.openai_api.replies import GrowingText, Texts

    texts, random = Texts(loaded[1]), Random(1)
    for _ in range(100):
        ids = random.sample(range(300), 12) if random.random() < 0.5 else random.choices(range(49_152), k=12)
        whole = texts.decode(ids)
        text = whole[: min((at for stop in stops if (at := whole.find(stop)) >= 0), default=len(whole))].strip()
        growing = GrowingText(texts, stops, strips=True)
        pieces = [growing.take(id_) for id_ in ids]
        assert "".join([*pieces, growing.end(text)]) == text


def test_async_streams_grow_side_by_side_and_may_be_left(server: Server):
    from openai import AsyncOpenAI

    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="none") as client:

            async def one(seed: int, most: int) -> str:
                stream = await client.completions.create(
                    model="tiny", prompt="a", max_tokens=16, stream=True, seed=seed
                )
                pieces = []
                async with stream:
                    async for chunk in stream:
                        pieces.append(chunk.choices[0].text)
                        if len(pieces) == most:
                            break
                return "".join(pieces)

            left = await asyncio.gather(*(one(1, 2) for _ in range(80)))
            return [*left, await one(1, 99)]

    *left, whole = asyncio.run(ask())
    assert len(whole) > len(left[0])
    assert all(whole.startswith(text) for text in left)


def test_n_answers_differ_and_the_first_is_that_of_one(openai: Any):
    def ask(n: int) -> list[str]:
        answer = openai.chat.completions.create(model="tiny", messages=TURNS, max_tokens=12, seed=3, n=n)
        assert answer.usage.completion_tokens <= 12 * n
        return [one.message.content for one in answer.choices]

    assert ask(3)[:1] == ask(1)
    assert len(set(ask(3))) == 3


def test_log_probabilities_are_the_models_before_temperature_and_top_p(openai: Any, loaded: tuple[Any, Any]):
    import torch

    options = {"max_tokens": 6, "temperature": 2.0, "top_p": 0.5, "seed": 1, "logprobs": True, "top_logprobs": 3}
    answer = openai.chat.completions.create(model="tiny", messages=TURNS, **options)
    choice, model = answer.choices[0], loaded[0]
    ids = [*answer.prompt_token_ids, *choice.token_ids]
    with torch.inference_mode():
        logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
    for place, entry in enumerate(choice.logprobs.content, start=len(answer.prompt_token_ids)):
        best = logs[place - 1].topk(3)
        assert entry.token_id == ids[place]
        assert entry.logprob == pytest.approx(logs[place - 1, ids[place]].item(), abs=1e-4)
        assert [one.token_id for one in entry.top_logprobs] == best.indices.tolist()
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(best.values.tolist(), abs=1e-4)
    assert bytes(byte for entry in choice.logprobs.content for byte in entry.bytes).decode() == choice.message.content


def test_an_echoed_prompt_is_scored_as_the_harness_reads_it(openai: Any, loaded: tuple[Any, Any]):
    """The request of the lm-evaluation-harness's `local-completions`: ids, `echo`, `logprobs: 1`, one token."""
    import torch

    model, tokenizer = loaded
    prompts = [tokenizer.encode(PROMPT), tokenizer.encode("a b " * 150)]
    answer = openai.completions.create(model="tiny", prompt=prompts, max_tokens=1, temperature=0, logprobs=1, echo=True)
    for choice, ids in zip(answer.choices, prompts, strict=True):
        with torch.inference_mode():
            logs = torch.log_softmax(model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
        scores = [logs[place, id_].item() for place, id_ in enumerate(ids[1:])]
        assert choice.logprobs.token_logprobs[0] is None
        assert choice.logprobs.token_logprobs[1 : len(ids)] == pytest.approx(scores, abs=1e-4)
        assert all(len(top) == 1 for top in choice.logprobs.top_logprobs[1:])
        assert choice.text.startswith(tokenizer.decode(ids))
    alone = openai.completions.create(model="tiny", prompt=PROMPT, max_tokens=0, logprobs=0, echo=True).choices[0]
    assert (alone.text, alone.finish_reason) == (PROMPT, "length")
    assert alone.logprobs.token_logprobs == answer.choices[0].logprobs.token_logprobs[: len(prompts[0])]
    assert "".join(alone.logprobs.tokens) == PROMPT


def test_a_prompt_by_ids_is_the_prompt_of_their_text(openai: Any, loaded: tuple[Any, Any]):
    ids = loaded[1].encode(PROMPT)
    by_ids, by_text = (
        openai.completions.create(model="tiny", prompt=prompt, max_tokens=8, temperature=0) for prompt in (ids, PROMPT)
    )
    assert (by_ids.choices[0].text, by_ids.usage) == (by_text.choices[0].text, by_text.usage)


def test_roles_and_contents_that_clients_send_are_taken(openai: Any):
    def ids(*turns: dict[str, Any]) -> list[int]:
        return openai.chat.completions.create(model="tiny", messages=turns, max_tokens=1).prompt_token_ids

    system, user = {"role": "system", "content": "Be brief."}, TURNS[0]
    assert ids({**system, "role": "developer"}, user) == ids(system, user)
    assert ids(user) == ids(system, user)  # that of the student's training
    assert ids({**system, "content": "Be long."}, user) != ids(user)
    nothing, empty = ({"role": "assistant", "content": content} for content in (None, ""))
    assert ids(user, nothing, user) == ids(user, empty, user)


@pytest.mark.slow
def test_the_server_of_a_stage_adds_no_system_message_to_what_the_stage_sends(
    run: Path, server: Server, loaded: tuple[Any, Any], tmp_path: Path
):
    from openai import OpenAI

    from distill.models import chat_template
    from distill.models.child_server import LocalServer

    assert "conversations without a system message begin with that of the training rows: Be brief." in server.said
    with (
        LocalServer(str(run), log=tmp_path / "log") as child,
        OpenAI(base_url=child.base_url, api_key=child.api_key, max_retries=0) as client,
    ):
        answer: Any = client.chat.completions.create(model="tiny", messages=TURNS, max_tokens=1)
    question = Message("user", TURNS[0]["content"])
    assert answer.prompt_token_ids == chat_template.prompt_ids((question,), "own", loaded[1])


def test_a_model_is_found_by_its_name(openai: Any):
    from openai import NotFoundError

    assert openai.models.retrieve("tiny").id == "tiny"
    with pytest.raises(NotFoundError, match='there is no model "gpt-4o" here'):
        openai.models.retrieve("gpt-4o")


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_token_is_no_stream(openai: Any, stream: bool):
    from openai import BadRequestError

    with pytest.raises(BadRequestError, match="the model takes 512"):
        openai.completions.create(model="tiny", prompt="a " * 600, stream=stream)
