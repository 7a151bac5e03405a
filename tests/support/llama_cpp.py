"""Has llama.cpp itself read a GGUF file, in a process of its own, and say what it makes of texts and conversations."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

_ASK = """
import json, sys, urllib.request
import xllamacpp

asked = json.load(sys.stdin)
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.warmup, settings.n_parallel = asked["gguf"], 512, False, 1
settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1  # its threads spin, ruinous on a busy machine
server = xllamacpp.Server(settings)


def post(path, body):
    request = urllib.request.Request(server.listening_address + path, json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def greedy(prompt):
    body = {"prompt": prompt, "n_predict": 8, "temperature": 0, "return_tokens": True, "cache_prompt": False}
    return post("/completion", body)["tokens"]


json.dump({
    "tokens": [post("/tokenize", {"content": text, "add_special": True})["tokens"] for text in asked["texts"]],
    "greedy": [greedy(prompt) for prompt in asked["prompts"]],
    "rendered": [post("/apply-template", {"messages": turns})["prompt"] for turns in asked["chats"]],
}, sys.stdout)
"""


def require() -> None:
    """Skip a test, or fail it with REQUIRE_LLAMA_CPP=1, where llama.cpp is not installed."""
    if find_spec("xllamacpp") is None:
        if os.environ.get("REQUIRE_LLAMA_CPP") == "1":
            pytest.fail("REQUIRE_LLAMA_CPP=1 but xllamacpp is not installed; pip install xllamacpp")
        pytest.skip("llama.cpp has NOT read the files: pip install xllamacpp")


def ask(gguf: Path, *, texts: Any = (), prompts: Any = (), chats: Any = ()) -> dict[str, Any]:
    """Ids of `texts`, eight greedy ids after `prompts` (lists of ids), and `chats` rendered by the file's template."""
    require()
    asked = {"gguf": str(gguf), "texts": list(texts), "prompts": list(prompts), "chats": list(chats)}
    finished = subprocess.run(
        [sys.executable, "-c", _ASK], input=json.dumps(asked), capture_output=True, text=True, timeout=240, check=False
    )
    assert finished.returncode == 0, finished.stderr[-2000:]
    found: dict[str, Any] = json.loads(finished.stdout)
    return found
