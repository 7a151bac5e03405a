"""What the student can be, and export, is known before a teacher is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from distill.engine.mock_server import MockServer
from distill.errors import ModelError, RecipeError
from distill.pipeline.runner import run_recipe
from distill.run.context import RunOptions

hub = pytest.importorskip("huggingface_hub.constants")
RECIPE = """\
name: early
teacher: {{model: any, base_url: {url}, terms: ours, sampling: {{max_tokens: 16}}}}
collect: {{tasks: tasks.txt, test: 2}}
student: {{model: ours/tiny, prune: {{layers: {layers}}}}}
train: {{}}
"""
CONFIG = {"architectures": ["FalconForCausalLM"], "num_hidden_layers": 4, "hidden_size": 8, "vocab_size": 9}
FILES = {
    "config.json": json.dumps({**CONFIG, "num_attention_heads": 2, "intermediate_size": 16}),
    "tokenizer.json": "{}",
}


class Hub(BaseHTTPRequestHandler):
    """The Hub's answers about the one model that it has."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.partition("?")[0].rpartition("/")[2]
        listing: object = {"id": "ours/tiny", "sha": "a" * 40, "siblings": [{"rfilename": file} for file in FILES]}
        if "/tree/" in self.path:
            listing = [{"type": "file", "path": file, "size": len(FILES[file]), "oid": file} for file in FILES]
        body = (json.dumps(listing) if self.path.startswith("/api/") else FILES.get(name, "")).encode()
        self.send_response(200 if body and "ours/tiny" in self.path else 404)
        for header, value in {"ETag": f'"{name}"', "X-Repo-Commit": "a" * 40, "Content-Length": str(len(body))}.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Nothing."""


@pytest.fixture
def endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(hub, "HUGGINGFACE_CO_URL_TEMPLATE", hub.ENDPOINT + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path / "hub"))
    yield hub.ENDPOINT
    server.shutdown()
    server.server_close()


def collect(folder: Path, layers: int = 3, **options: bool) -> int:
    """Collect alone, with a student that is on the Hub; returns the number of requests to the teacher."""
    (folder / "tasks.txt").write_text("".join(f"Say the number {one}.\n" for one in range(8)))
    with MockServer() as server:
        (folder / "recipe.yaml").write_text(RECIPE.format(url=server.url, layers=layers))
        try:
            run_recipe(
                folder / "recipe.yaml", run_dir=folder / "run", stages=["collect"], options=RunOptions(**options)
            )
        finally:
            count = server.count
            (folder / "count").write_text(str(count))
        return count


def test_the_hub_says_what_a_student_can_be_before_the_teacher_is_asked(endpoint, tmp_path, capfd):
    assert collect(tmp_path) == 8
    told = capfd.readouterr().err
    assert "train: qlora at a learning rate of 0.0005 takes about " in told
    assert "exports: adapter, merged; no GGUF can be written of a FalconForCausalLM" in told
    assert told.index("exports: ") < told.index("collect: started")
    with (tmp_path / "recipe.yaml").open("a") as recipe:
        recipe.write("curate: [{filter: empty}]\n")
    run_recipe(tmp_path / "recipe.yaml", run_dir=tmp_path / "run", stages=["curate"])
    assert "exports: " not in capfd.readouterr().err  # no rule asks a model


def test_more_layers_than_the_hub_knows_are_refused_before_the_teacher_is_asked(endpoint, tmp_path):
    with pytest.raises(RecipeError, match=r"student\.prune\.layers: 5 cannot be kept, ours/tiny has 4"):
        collect(tmp_path, layers=5)
    assert (tmp_path / "count").read_text() == "0"


def test_a_hub_id_that_cannot_be_reached_stops_the_run_unless_it_is_not_to_be_looked_for(
    endpoint, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(hub, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ModelError, match=r"ours/tiny is not on this machine, .* or add --offline-student"):
        collect(tmp_path)
    assert (tmp_path / "count").read_text() == "0"
    assert collect(tmp_path, offline_student=True) == 8
    assert "not looked for (--offline-student)" in capfd.readouterr().err
