"""Soft targets of a teacher behind an address: from what collect asked for, and from a server that scores texts."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

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
