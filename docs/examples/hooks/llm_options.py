"""Adds `--in LANGUAGE` to the commands that send prompts."""

import click

from llm import RegisteredBackend, Request, hookimpl


@hookimpl
def llm_options() -> click.Option:
    return click.Option(["--in", "language"], metavar="LANGUAGE", help="Get the answer in this language.")


@hookimpl
def llm_prepare(request: Request, backend: RegisteredBackend) -> Request | None:
    language = request.metadata.get("language")
    return None if language is None else request.with_system(f"Answer in {language}.")
