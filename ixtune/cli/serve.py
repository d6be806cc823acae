"""`ixtune serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ixtune.cli.options import ForceOption, QuantizeOption


def command(
    adapter: Annotated[
        list[str] | None,
        typer.Option(metavar="[NAME=]PATH", help="Adapter or run folder to serve under a name; repeat for several."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="[NAME=]PATH", help="Merged or exported model to serve instead.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="`nano`, a checkpoint folder or a hub id; served as `base`. Default: named by the adapter."),
    ] = None,
    quantize: QuantizeOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any free one.")] = 8000,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key that clients must send. Required unless --host is local.")
    ] = None,
    image_root: Annotated[
        Path | None, typer.Option(help="Folder from which requests may name images by path. Default: none.")
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Load images from public http and https URLs.")
    ] = False,
    max_batch: Annotated[int, typer.Option(min=1, max=256, help="Maximum number of answers generated at once.")] = 8,
    max_waiting: Annotated[
        int, typer.Option(min=1, max=10_000, help="Maximum number of waiting requests; more are refused with 429.")
    ] = 64,
    max_context: Annotated[
        int, typer.Option(min=16, help="Maximum tokens of prompt and answer, images included.")
    ] = 16_384,
    running_tokens: Annotated[
        int, typer.Option(min=16, help="Maximum tokens of all running answers, whose keys and values are in memory.")
    ] = 65_536,
    cache_gib: Annotated[float, typer.Option(min=0, help="Memory for keys and values of recent images, in GiB.")] = 1.0,
    vectors_gib: Annotated[
        float, typer.Option(min=0, help="Main memory for image vectors that all models share, in GiB.")
    ] = 1.0,
    max_body_mib: Annotated[int, typer.Option(min=1, max=1024, help="Maximum size of a request in MiB.")] = 32,
    timeout: Annotated[float, typer.Option(min=1, help="Maximum seconds for one request.")] = 300.0,
    force: ForceOption = False,
) -> None:
    """Serve a base and its adapters over HTTP in OpenAI's form, with a page to try them.

    All adapters share one base in memory; a request names one of them as its model. Ctrl-C finishes running requests.

    Example: ixtune serve --adapter runs/receipts

    Example: ixtune serve --adapter receipts=runs/receipts --adapter charts=runs/charts --host 0.0.0.0
    --api-key-file key.txt
    """
    from ixtune.base import resolve
    from ixtune.cli.console import quiet_libraries
    from ixtune.errors import UsageError
    from ixtune.evaluation.contenders import contenders, require_form

    # check the options before slow imports and before loading a model
    if model is not None and (adapter or base):
        raise UsageError(
            "--model cannot be combined with --adapter or --base",
            where="--model",
            hint="leave out --adapter and --base",
        )
    require_form(quantize)
    served = contenders(base, adapter or [], [model] if model else [])
    key = _key(api_key_file)
    local = _is_local(host)
    if not local and key is None:
        raise UsageError(
            f"anyone on the network could use a server on {host}",
            where="--host",
            hint="add --api-key-file with a long random text in it: openssl rand -hex 32 > key.txt",
        )
    if image_root is not None and not image_root.is_dir():
        raise UsageError("there is no such folder", where=f"--image-root {image_root}", hint="check the path")
    _require_extra()
    _log_requests()
    resolve(served[0].base)
    quiet_libraries()
    from ixtune.serving.engine.models import Models, require_one_base

    require_one_base(served)
    from ixtune.serving.app import AppSettings, build
    from ixtune.serving.engine.engine import Engine
    from ixtune.serving.engine.job import Limits
    from ixtune.serving.engine.memory_plan import plan_of
    from ixtune.serving.images import ImageOpener
    from ixtune.serving.server import listen, serve

    sock = listen(host, port)
    limits = Limits(
        rows=max_batch,
        waiting=max_waiting,
        running_tokens=running_tokens,
        prefix_bytes=int(cache_gib * 2**30),
        vector_bytes=int(vectors_gib * 2**30),
    )
    engine = Engine(Models(served, quantize, force), limits)
    plan = plan_of(engine.models, limits)
    plan.require_room()
    settings = AppSettings(
        api_key=key,
        max_context=min(max_context, engine.models.member.trained_tokens),
        timeout=timeout,
        max_body=max_body_mib << 20,
        local_only=local and key is None,
    )
    app = build(engine, ImageOpener(image_root, allow_http, max_body_mib << 20), settings)
    address = f"http://{'localhost' if local else host}:{sock.getsockname()[1]}"
    serve(app, engine, sock, timeout, lambda: _announce(address, list(engine.models.by_name), plan.lines()))
    typer.echo("stopped; all requests were finished", err=True)


def _announce(address: str, names: list[str], memory: list[str]) -> None:
    from ixtune.cli.console import is_quiet

    for line in () if is_quiet() else memory:
        typer.echo(line, err=True)
    typer.echo(f"serving {', '.join(names)} on {address}; the API is under {address}/v1, Ctrl-C stops it", err=True)


def _key(file: Path | None) -> str | None:
    from ixtune.errors import UsageError

    if file is None:
        return None
    try:
        key = file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UsageError("the key cannot be read", where=str(file), hint="check the path of --api-key-file") from error
    if len(key) < 16 or not key.isprintable() or " " in key:  # noqa: PLR2004
        raise UsageError(
            "the key is shorter than 16 characters, or contains spaces",
            where=str(file),
            hint="write one line: openssl rand -hex 32 > key.txt",
        )
    return key


def _is_local(host: str) -> bool:
    import ipaddress

    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _log_requests() -> None:
    """Print a line for each request on stderr: method, address, status, time; nothing of its content."""
    import logging

    from ixtune.cli.console import is_quiet

    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    log = logging.getLogger("ixtune.serving")
    log.handlers = [handler]
    log.setLevel(logging.WARNING if is_quiet() else logging.INFO)
    log.propagate = False


def _require_extra() -> None:
    from importlib.util import find_spec

    from ixtune.errors import IxtuneError

    missing = [name for name in ("fastapi", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise IxtuneError(
            f"serve needs {', '.join(missing)}, which is not installed", hint='pip install "ixtune[serve]"'
        )
