"""Soft targets of a teacher behind an address: from what collect asked for, and from a server that scores texts."""

from __future__ import annotations

import asyncio
import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

import distill
from distill.engine.journal.store import Journal
from distill.engine.mock_server import MockServer
from distill.engine.mock_server.thread import LoopThread
from distill.types import Completion, Failure
from tests.support import llama_cpp

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.model
PROMPTS = [f"Write number {number}." for number in range(4)]
TRAIN = {"objective": {"kind": "soft", "k": 5}, "epochs": 1, "batch_rows": 128, "eval_steps": 0, "learning_rate": 5e-3}


@contextmanager
def served(model: str) -> Iterator[str]:
    """`distill serve` in this process; gives its address."""
    from aiohttp import web

    from distill.models import server
    from distill.models.server_access import AccessControl

    app, decoder = server._load(model, None, print)
    runner = web.AppRunner(app.application(AccessControl("127.0.0.1")), access_log=None, shutdown_timeout=0.01)

    async def start() -> int:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return int(runner.addresses[0][1])

    thread = LoopThread(asyncio.new_event_loop())
    decoder.start()
    try:
        yield f"http://127.0.0.1:{thread.start(start, runner.cleanup)}/v1"
    finally:
        thread.stop()
        decoder.stop(seconds=5)


def recipe(folder: Path, tiny: str, url: str, *, model: str, **sampling) -> dict:
    """A recipe that collects four answers from a server and trains a tiny student on them."""
    (folder / "tasks.txt").write_text("\n".join(PROMPTS))
    teacher = {"model": model, "base_url": url, "terms": "ours",
               "sampling": {"max_tokens": 12, **sampling}}  # fmt: skip
    return {"name": "soft", "seed": 1, "teacher": teacher, "collect": {"tasks": str(folder / "tasks.txt"), "test": 0},
            "curate": [{"filter": "empty"}],
            "student": {"model": tiny}, "train": TRAIN}  # fmt: skip


STAGES = ["collect", "curate", "train"]


def test_a_server_scores_the_rows_that_came_without_probabilities(tiny, tmp_path, capsys):
    from distill.models import chat_template, loading

    with served(tiny) as url:
        run = distill.run_recipe(recipe(tmp_path, tiny, url, model=tiny), run_dir=tmp_path / "run", stages=STAGES)
    stage = run.stages["train"]
    assert stage["counts"]["objective"] == {"targets": 1.0, "tokenizers": {tiny: "same"}}
    assert stage["requests"] == {"asked": 5, "replayed": 1, "failed": 1, "retried": 0}  # a way that it refuses
    assert 'template adds one that the student does not see ("You are a helpful AI' in capsys.readouterr().err
    rows = distill.soft_targets(run)
    model, tokenizer = loading.load_causal(tiny), loading.load_tokenizer(tiny)
    session = run.kept[0]
    messages = [distill.Message(one["role"], one["content"]) for one in session["messages"]]
    example = chat_template.encode(messages, "own", tokenizer)
    with torch.no_grad():
        logs = torch.log_softmax(model(input_ids=torch.tensor([example.input_ids])).logits[0].float(), -1)
    trained = [place for place, label in enumerate(example.labels) if label != chat_template.IGNORED][:12]
    mine = [row for row in rows if row["session"] == session["id"]]
    assert [(row["turn"], row["token"]) for row in mine] == [(1, example.input_ids[place]) for place in trained]
    for row, place in zip(mine, trained, strict=True):
        assert (len(row["ids"]), row["token"] in row["ids"]) == (5, True)
        np.testing.assert_allclose(row["logprobs"], logs[place - 1, row["ids"]].numpy(), atol=0.01)
        assert math.exp(row["tail"]) == pytest.approx(1 - float(logs[place - 1, row["ids"]].exp().sum()), abs=2e-3)


PIECES = {b"Ye": {b"Ye": 0.6, b"No": 0.3}, b"s, ": {b"s, ": 0.9}, b"two": {b"two": 0.5, b" two": 0.2}, b".": {}}
"""The tokens of the mock server's answer, whose probabilities are unlike; the last has a sentinel alone."""


def reply(body) -> dict:
    """A chat completion as OpenAI writes it, with another tokenizer than the student's."""

    def entry(piece: bytes, share: float | None) -> dict:
        return {"token": piece.decode(), "bytes": list(piece), "logprob": math.log(share) if share else -9999.0}

    content = [entry(piece, top.get(piece)) | {"top_logprobs": [entry(*one) for one in top.items()]}
               for piece, top in PIECES.items()]  # fmt: skip
    text = b"".join(PIECES).decode()
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    return {"id": "x", "model": body["model"], "choices": [{**choice, "logprobs": {"content": content}}]}


def test_probabilities_that_collect_asked_for_are_learnt_by_their_bytes(tiny, tmp_path, capsys):
    from distill.models import loading

    with MockServer(answer=reply) as server:
        asked = recipe(tmp_path, tiny, server.url, model="gpt", logprobs=True, top_logprobs=20)
        run = distill.run_recipe(asked, run_dir=tmp_path / "run", stages=STAGES)
    assert all(body["top_logprobs"] == 20 for body in server.bodies)
    rows = list(distill.soft_targets(run))[:5]
    tokenizer = loading.load_tokenizer(tiny)
    texts = [
        {
            tokenizer.decode([id_]): round(math.exp(logprob), 2)
            for id_, logprob in zip(row["ids"], row["logprobs"], strict=True)
        }
        for row in rows
    ]
    assert [tokenizer.decode([row["token"]]) for row in rows] == ["Yes", ",", " two", ".", "<|im_end|>"]
    assert texts == [{"Ye": 0.6, "No": 0.3}, {}, {}, {}, {}]  # the next boundaries are within a token, or unsound
    assert [row["tail"] for row in rows[1:]] == [None] * 4
    assert run.stages["train"]["counts"]["objective"] == {"targets": 0.2, "tokenizers": {}}
    assert "; 4 tokens came with no distribution (sentinels" in capsys.readouterr().err


LLAMA = """
import sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.warmup, settings.n_parallel = sys.argv[1], 1024, False, 2
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def test_the_probabilities_of_llama_cpps_server_are_learnt(tiny, tmp_path):
    """A server that nobody here wrote."""
    llama_cpp.require()
    from distill.core.embedded import fetch

    command = [sys.executable, "-c", LLAMA, str(fetch("smollm2"))]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as server:
        assert server.stdout is not None
        url = f"{server.stdout.readline().strip()}/v1"
        asked = recipe(tmp_path, tiny, url, model="llama", temperature=0.0, logprobs=True, top_logprobs=20)
        try:
            run = distill.run_recipe(asked, run_dir=tmp_path / "run", stages=STAGES)
        finally:
            server.terminate()
    objective, rows = run.stages["train"]["counts"]["objective"], distill.soft_targets(run)
    assert objective["targets"] > 0.9  # all but end tokens
    told = [row for row in rows if row["ids"]]
    assert all(row["token"] in row["ids"] for row in told)
    with Journal.open(run.folder / "journal.sqlite", read_only=True) as journal:
        (key,) = run.kept[0]["meta"]["keys"]
        content = journal.get(key).raw["choices"][0]["logprobs"]["content"]
    first = [row["logprobs"][row["ids"].index(row["token"])] for row in told[:3]]
    assert first == pytest.approx([one["logprob"] for one in content[:3]], abs=0.01)


def answered(way: str, ids: list[int], tops: list[dict | None], own: list[float | None]) -> dict:
    """A reply of a server that scores `ids`, in the shape of a way, with one token generated behind them."""
    if way == "prompt_logprobs":  # vLLM's
        rows = [None if top is None else {str(id_): {"logprob": value, "rank": 1, "decoded_token": "x"}
                                          for id_, value in {**top, id_: one}.items()}
                for id_, top, one in zip(ids, tops, own, strict=True)]  # fmt: skip
        return {"choices": [{"text": "", "prompt_logprobs": rows}]}
    named = [None if top is None else {f"token_id:{id_}": value for id_, value in top.items()} for top in tops]
    scores = {
        "tokens": [f"token_id:{id_}" for id_ in [*ids, 9]],
        "token_logprobs": [*own, -1.0],
        "top_logprobs": [*named, {}],
    }
    return {"choices": [{"text": "", "logprobs": scores}]}


@pytest.mark.parametrize("way", ["prompt_logprobs", "echo"])
def test_a_servers_scores_are_read_in_either_shape(way, tiny):
    """The realised token may be the k + 1st; nulls, sentinels and masses above 1 leave a token without a target."""
    from distill.models import loading
    from distill.models.chat_template import Example
    from distill.train.objectives import Endpoint
    from distill.train.objectives.endpoint_scores import NoScores, Scorer

    example = Example([5, 6, 7, 8, 9], [-100, 6, 7, 8, 9])
    tops = [None, {1: -0.5, 2: -1.5}, {1: -9999.0, 2: -9999.0}, {1: -0.1, 2: -0.1}, {9: -0.2, 2: -3.0}]
    raw = answered(way, example.input_ids, tops, [None, -4.0, -9999.0, -0.1, -0.2])
    asked: list = []

    def ask(requests):
        asked.extend(requests)
        refusal = Failure(key="", reason="http_400", detail=f"HTTP 400: no {way}", transient=False)
        return [Completion(key="", text="", finish="stop", raw=raw) if way in one.sampling.extra_body else refusal
                for one in requests]  # fmt: skip

    tokenizer = loading.load_tokenizer(tiny)
    (target,) = Scorer(Endpoint("m", {}, ask), "m", tokenizer, 2)([example])
    assert [sorted(row) for row in target.ids.tolist()] == [[1, 6], [0, 0], [0, 0], [2, 9]]
    assert np.isnan(target.tail).tolist() == [False, True, True, False]
    np.testing.assert_allclose(np.exp(target.tail[0]), 1 - math.exp(-0.5) - math.exp(-4), atol=1e-3)
    assert all((one.sampling.temperature, one.sampling.extra_body["prompt"]) == (1.0, [5, 6, 7, 8, 9]) for one in asked)
    silent = Scorer(Endpoint("m", {}, lambda ones: [Completion(key="", text="", finish="stop")]), "m", tokenizer, 2)
    with pytest.raises(NoScores, match=r"m scores no given text \(prompt_logprobs: the reply has no scores; echo: "):
        silent([example])


def cut(text: str, widths) -> list[bytes]:
    """A text in pieces of these widths, over and over."""
    pieces, place = [], 0
    for width in itertools.cycle(widths):
        if place >= len(text):
            return pieces
        pieces.append(text[place : place + width].encode())
        place += width
    return pieces


@given(st.lists(st.integers(1, 4), min_size=1), st.lists(st.integers(1, 4), min_size=1), st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_probabilities_are_mapped_where_both_have_a_boundary(theirs, ours, seed):
    """Against brute force: every pair of prefixes of equal bytes, and every spelling that both have."""
    from distill.train.objectives import by_bytes

    draw, text = np.random.default_rng(seed), "abcabacbcacb"
    teacher, student = [*cut(text, theirs), by_bytes.END], [*cut(text, ours), by_bytes.END]
    spellings = sorted({"".join(one) for n in (1, 2, 3) for one in itertools.product("abc", repeat=n)})
    ids = {spelling.encode(): number for number, spelling in enumerate(spellings) if len(spelling) < 3} | {
        by_bytes.END: 99
    }
    tokens = []
    for piece in teacher:
        shares = draw.dirichlet(np.ones(len(spellings)))
        others = {spelling.encode(): share for spelling, share in zip(spellings, shares, strict=True)}
        best = sorted(others, key=lambda one: -others[one])[:4]
        tokens.append(by_bytes.TeacherToken(piece, [(one, float(np.log(others[one]))) for one in best]))
    target = by_bytes.mapped(tokens, student, ids, 4)
    joined = [b"".join(one for one in pieces if one) for pieces in (teacher, student)]
    assert joined[0] == joined[1] == text.encode()
    for place, piece in enumerate(student):
        before = b"".join(one for one in student[:place] if one)
        match = [at for at in range(len(teacher)) if b"".join(one for one in teacher[:at] if one) == before
                 and (teacher[at] is by_bytes.END) == (piece is by_bytes.END)]  # fmt: skip
        event("boundary shared" if match else "no boundary")
        if not match:
            assert np.isnan(target.tail[place])
            continue
        expected = {ids[one]: logprob for one, logprob in tokens[match[0]].entries if one in ids}
        if not expected:
            assert np.isnan(target.tail[place])
            continue
        pairs = zip(target.ids[place].tolist(), target.logprobs[place].tolist(), strict=True)
        assert {id_: value for id_, value in pairs if value > -6e4} == pytest.approx(expected, abs=0.01)
        assert np.exp(float(target.tail[place])) == pytest.approx(1 - sum(np.exp(list(expected.values()))), abs=2e-3)
    assert 0 <= target.spelt <= target.reported


@pytest.mark.parametrize(
    "entries",
    [[], [(b"a", 0.0), (b"b", 0.0)], [(b"a", -0.01), (b"b", -0.02)], [(b"a", -2.0), (b"b", -2.0), (b"c", -2.0)]],
    ids=["none", "mass of two", "mass above one", "all equal"],
)
def test_what_is_no_distribution_gives_no_target(entries):
    from distill.train.objectives import by_bytes

    token = by_bytes.TeacherToken(b"a", entries)
    target = by_bytes.mapped([token], [b"a"], {b"a": 0, b"b": 1, b"c": 2}, 3)
    assert np.isnan(target.tail).all()
    assert (target.reported, target.unsound) == (0, 1)


def test_an_answer_that_stands_twice_in_a_reply_gets_no_targets():
    """A thought before it may say the same in another context."""
    from distill.train.objectives import by_bytes

    tokens = [by_bytes.TeacherToken(piece, [(piece, -0.1)]) for piece in (b"yes", b"? ", b"yes")]
    once, twice = (by_bytes.mapped(tokens[start:], [b"yes"], {b"yes": 0}, 1).tail for start in (1, 0))
    assert (bool(np.isnan(twice).all()), bool(np.isnan(once).any())) == (True, False)


def test_a_reply_is_read_as_the_api_writes_it():
    from distill.train.objectives.by_bytes import TeacherToken, distribution, of_reply

    top = [{"token": "a", "logprob": -0.1, "bytes": [97]}, {"token": "b", "logprob": -9999.0, "bytes": None}]
    content = [{"token": "a", "logprob": -0.1, "bytes": [97], "top_logprobs": top}]
    entries = [(b"a", -0.1), (b"a", -0.1), (b"b", -9999.0)]
    assert of_reply({"choices": [{"logprobs": {"content": content}}]}) == [TeacherToken(b"a", entries)]
    assert distribution(entries) == {b"a": -0.1}
    for broken in (
        {},
        {"choices": []},
        {"choices": [{"logprobs": None}]},
        {"choices": [{"logprobs": {"content": [{}]}}]},
    ):
        assert of_reply(broken) == []
