"""
`hf-genrec serve`: a trained model behind HTTP.
"""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from hf_genrec.cli.command_line import app, arguments_for, given, output_on
from hf_genrec.cli.options import Device, Dtype, Model, torch_dtype
from hf_genrec.serving.server.settings import TOKEN_VARIABLE, ServerSettings


_DEFAULT = ServerSettings()


@app.command("serve")
def _serve(
    ctx: typer.Context,
    model: Model,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all networks.")] = _DEFAULT.host,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any.")] = _DEFAULT.port,
    max_batch: Annotated[int, typer.Option(min=1, help="Users computed together; 1 for none.")] = _DEFAULT.max_batch,
    window_ms: Annotated[
        float, typer.Option(min=0, help="Milliseconds that an idle model waits for a fuller batch.")
    ] = _DEFAULT.window_ms,
    max_queue: Annotated[int, typer.Option(help="Users that may wait before 429.")] = _DEFAULT.max_queue,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is answered by 504.")] = _DEFAULT.timeout,
    drain: Annotated[
        float, typer.Option(min=0, help="Seconds after SIGTERM in which requests are still accepted.")
    ] = _DEFAULT.drain,
    threads: Annotated[
        int | None, typer.Option(min=1, help="Threads that compute.", show_default="the cores there are")
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(metavar="FOLDER", help="Text encoder for new items.", show_default="the one of training"),
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of a repository.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    compile_networks: Annotated[
        bool,
        typer.Option(
            "--compile", help="torch.compile first: one to three minutes, then shorter answers for single users."
        ),
    ] = False,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="A line on stderr per request.")] = False,
) -> None:
    """
    Serve a model over HTTP.

    Until Ctrl-C or SIGTERM; http://HOST:PORT/docs describes the routes.

    The routes that change the catalog ask for the token in the environment variable HF_GENREC_TOKEN. Without one they
    are off, unless the server listens on a loopback address.

    \b
    Examples:
      hf-genrec serve run
      hf-genrec serve user/repository --port 9000 --max-batch 128 --window-ms 2
      hf-genrec serve run --dtype bfloat16
      hf-genrec serve run --compile
      HF_GENREC_TOKEN=secret hf-genrec serve run --host 0.0.0.0
      curl -X POST http://127.0.0.1:8000/recommend -H 'Content-Type: application/json' -d '{"history": ["50", "181"]}'
    """
    settings = ServerSettings(**arguments_for(ServerSettings, ctx), token=os.environ.get(TOKEN_VARIABLE))
    with output_on(False):
        from hf_genrec.serving.recommender import Recommender
        from hf_genrec.serving.server.app import serve

        options: dict[str, Any] = given({"revision": revision, "device": device, "dtype": torch_dtype(dtype)})

        def load() -> Recommender:
            recommender = Recommender.from_pretrained(model, **options)
            if compile_networks:
                typer.echo("Compiling: one to three minutes, in which requests are answered by 503.", err=True)
                recommender.compile()
            return recommender

        serve(
            load,
            settings,
            log_requests=log_requests,
            when_listening=lambda address: typer.echo(
                f"Serving {model} at {address}, described at {address}/docs", err=True
            ),
        )
