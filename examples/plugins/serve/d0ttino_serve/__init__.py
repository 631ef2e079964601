"""Serves the backends of d0ttino with OpenAI's interface: `ai-cli serve`."""

import os
import secrets
import socket
from types import FrameType

import click

from llm import hookimpl
from llm.errors import UsageError
from scripts.plugin_sdk import current_host, enable_state, print_message

__version__ = "0.1.0"

TOKEN = "D0TTINO_SERVE_TOKEN"  # noqa: S105 - the name of the variable
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@hookimpl
def llm_commands(cli: click.Group) -> None:
    """Add `ai-cli serve`."""
    cli.add_command(serve)


@click.command()
@click.option("--host", "address", default="127.0.0.1", show_default=True, help="Listen at this address.")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535), help="0: any that is free.")
@click.option("--no-token", is_flag=True, help="Answer everybody on this machine without a token.")
@click.pass_context
def serve(ctx: click.Context, address: str, port: int, no_token: bool) -> None:
    """Serve the backends with OpenAI's interface: /v1/chat/completions and /v1/models. Ctrl-C ends it.

    Clients need a token: that of D0TTINO_SERVE_TOKEN, or of the key `serve` (`ai-cli keys set serve`), or else a new
    one, which is printed.
    """
    import uvicorn

    from d0ttino_serve.app import make_app

    if no_token and address not in LOOPBACK:
        raise UsageError(f"--no-token would let everybody who reaches {address} spend your money", hint="leave it out")
    host = current_host(ctx)
    enable_state(host)  # usage is recorded, and failing backends are set aside, as with `ai-cli send`
    known = os.environ.get(TOKEN, "").strip() or host.key("serve")
    token = None if no_token else known or secrets.token_urlsafe(24)
    try:
        listener = socket.create_server((address, port), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
    except OSError as error:
        raise UsageError(f"cannot listen at {address}, port {port}: {error.strerror or error}") from error
    shown = f"[{address}]" if ":" in address else address
    print_message(f"serving at http://{shown}:{listener.getsockname()[1]}/v1; Ctrl-C ends it")
    if token is not None and not known:
        click.echo(f"OPENAI_API_KEY={token}", err=True)  # not by `print_message`, which would mask it
    app = make_app(host, token)

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            app.state.end()  # answers under way end at once, with an error that says why
            super().handle_exit(sig, frame)

    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=2, limit_concurrency=200)
    try:
        Server(config).run(sockets=[listener])
    except KeyboardInterrupt:
        print_message("stopped")
