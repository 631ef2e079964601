"""`ai-cli backends` and `ai-cli recipes`: what there is, and whose it is."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from scripts.cli.base import Command, current_host, warn_of_problems
from scripts.cli.output import print_json, print_table

if TYPE_CHECKING:
    from llm.host import Offers
    from llm.types import BackendInfo, RecipeInfo

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.command(cls=Command)
@as_json_option
@click.pass_context
def backends(ctx: click.Context, as_json: bool) -> None:
    """List backends: whose they are, and whether they are ready to use."""
    host = current_host(ctx)
    offers = host.backends()
    warn_of_problems(host)
    rows = _rows(offers, _readiness)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("BACKEND", "PLUG-IN", "FROM", "STATUS"),
        [(row["name"], row["plugin"], row["from"], _status(row, _setup(row))) for row in rows],
    )


@click.command(cls=Command)
@as_json_option
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List recipes, and whose they are."""
    host = current_host(ctx)
    offers = host.recipes()
    warn_of_problems(host)
    rows = _rows(offers)
    if as_json:
        print_json(rows)
        return
    print_table(
        ("RECIPE", "PLUG-IN", "FROM", "DESCRIPTION"),
        [(row["name"], row["plugin"], row["from"], _status(row, row["description"])) for row in rows],
    )


def _rows(
    offers: "Offers[BackendInfo] | Offers[RecipeInfo]", more: Callable[[Any], dict[str, Any]] = lambda _info: {}
) -> list[dict[str, Any]]:
    """Return a row for each name in use, by name, each followed by those that it shadows."""
    rows = []
    for name in sorted(offers):
        winner = offers[name]
        shadowed = offers.shadowed.get(name, ())
        for info in (winner, *shadowed):
            origin = info.origin
            assert origin is not None  # the host puts it on everything that a hook returns
            rows.append(
                {
                    "name": name,
                    "description": info.description,
                    **origin.to_json(),
                    "from": origin.source,
                    "shadows": [str(other.origin) for other in shadowed] if info is winner else [],
                    "shadowed_by": None if info is winner else str(winner.origin),
                    **more(info),
                }
            )
    return rows


def _readiness(info: "BackendInfo") -> dict[str, Any]:
    missing = [] if info.is_ready(os.environ) else list(info.ready_env)
    return {"ready": not missing, "set_one_of": missing, "models": list(info.models)}


def _setup(row: dict[str, Any]) -> str:
    return "ready" if row["ready"] else f"set {' or '.join(row['set_one_of'])}"


def _status(row: dict[str, Any], status: str) -> str:
    if row["shadowed_by"]:
        return f"not used: shadowed by {row['shadowed_by']}"
    return f"{status}; shadows {', '.join(row['shadows'])}" if row["shadows"] else status
