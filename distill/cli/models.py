"""The command that serves a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from distill.cli import completion
from distill.cli.app import app
from distill.core import console

Host = Annotated[
    str,
    typer.Option(
        help="the address to listen on; 0.0.0.0 is every address of this machine. Requests must name a loopback"
        " name, this, or the address that they came to: no other DNS name"
    ),
]
ApiKey = Annotated[
    str | None, typer.Option("--api-key-env", metavar="VAR", help="require the key in this environment variable")
]
Origins = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        metavar="URL",
        help="let web pages of this origin use it, such as http://localhost:3000; may be given again",
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="the system message of conversations without one; by default that of a student's training rows, where all"
        ' have the same; "" for none',
    ),
]


@app.command()
def serve(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL_OR_RUN", help="smollm2, a folder, a .gguf, a Hub id, a run", autocompletion=completion.runs
        ),
    ],
    port: Annotated[int, typer.Option(help="0 takes a free one")] = 8000,
    host: Host = "127.0.0.1",
    api_key_env: ApiKey = None,
    allow_origin: Origins = None,
    system: System = None,
) -> None:
    """Serve a local model, or a run's student.

    The endpoint is OpenAI-compatible: /v1/chat/completions and /v1/completions, also streamed; `tools` and
    `response_format` are refused. Web pages cannot use it, except those of --allow-origin. With --api-key-env every
    request but /health needs that key, as OpenAI's clients send it.

    Example: distill serve smollm2 --port 8000
    """
    from distill.core import credentials
    from distill.pipeline.requirements import require_training_packages

    require_training_packages("serve")
    from distill.core import student_folder
    from distill.errors import one_line
    from distill.formats.exporters.student.export import trained_system
    from distill.models import server
    from distill.run.remarks import student_remark

    run = Path(model).expanduser()
    if (line := student_remark(run)) is not None:
        console.say(line)
    if system is None and student_folder.is_student(student_folder.current(run)):
        system = trained_system(run)
        if system:
            console.say(
                f"conversations without a system message begin with that of the training rows: {one_line(system)}"
            )
    server.serve(
        model,
        host=host,
        port=port,
        origins=allow_origin or (),
        system=system,
        api_key=credentials.secret(api_key_env, "--api-key-env"),
        say=console.say,
    )
