"""Contender: curator's own LLM class with its OpenAI backend, cache and all, one request per row."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import redirect_stdout
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from contest import Measured, parser, question, tell

QUIET = {
    "CURATOR_TRACKER_DISABLED": "1",
    "CURATOR_VIEWER": "0",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "OPENAI_API_KEY": "none",
    "TELEMETRY_ENABLED": "false",
}
"""No telemetry, prices from the network or hosted viewer."""
NO_LIMIT = 10**9
"""Requests and tokens per minute."""


def main() -> None:
    """Measure the call alone: importing and making the LLM are not in it, curator's cache and dataset are."""
    given = parser().parse_args()
    with redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        os.environ |= QUIET | {"CURATOR_CACHE_DIR": folder, "HF_HOME": folder, "TIKTOKEN_CACHE_DIR": _tokenizers()}
        from bespokelabs import curator

        params = {
            "base_url": given.url,
            "max_requests_per_minute": NO_LIMIT,
            "max_tokens_per_minute": NO_LIMIT,
            "max_concurrent_requests": given.concurrency,
        }
        sampling = {"max_tokens": 64}
        llm = curator.LLM("gpt-4o-mini", backend="openai", backend_params=params, generation_params=sampling)
        prompts = [question(number) for number in range(given.requests)]
        with Measured() as result:
            rows = llm(prompts)
            result.requests = len(getattr(rows, "dataset", rows))
    tell(result, version=version("bespokelabs-curator"))


def _tokenizers() -> str:
    """A folder with the tokenizer that curator counts with, which litellm brings along; else it is downloaded."""
    spec = find_spec("litellm")
    assert spec
    assert spec.origin
    return str(Path(spec.origin).parent / "litellm_core_utils" / "tokenizers")


if __name__ == "__main__":
    main()
