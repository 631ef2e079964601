"""`ai-cli backends`, `ai-cli recipes` and `ai-cli hooks`: what plug-ins contribute."""

import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import click

from llm._installed import BACKEND_GROUP, RECIPE_GROUP
from llm.errors import D0ttinoError, UnknownNameError
from scripts.cli.base import Command, Group
from scripts.cli.context import current_cooldowns, current_host, set_aside, warn_of_problems
from scripts.cli.options import NameOf, as_json_option
from scripts.output import print_json, print_line, print_table, stdout_to_stderr

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm.contributions import RegisteredBackend, RegisteredRecipe
    from llm.hooks._origin import Origin
    from llm.host import Catalog, Host

#: The readiness of a backend whose plug-in is blocked.
_NO_READINESS: Final[dict[str, Any]] = {"ready": False, "set_one_of": [], "models": [], "cooldown": None}


@click.group(cls=Group, invoke_without_command=True)
@as_json_option()
@click.option("--check", is_flag=True, help="Ask each backend whether it would answer now.")
@click.pass_context
def backends(ctx: click.Context, as_json: bool, check: bool) -> None:
    """List backends, their plug-ins, and whether they are ready to use.

    A backend that failed several times in a row is set aside for a while, and shown as such.
    """
    if ctx.invoked_subcommand is not None:
        return
    host = current_host(ctx)
    with stdout_to_stderr():
        offers = host.backends()
    warn_of_problems(host, configuration=True)
    cooldowns = set_aside(ctx)
    found: Mapping[str, Any] = {}
    if check:
        from scripts.cli.models import checked

        found = checked(host, offers.active)
    rows = [
        *_rows(
            offers,
            lambda info: {
                **_readiness(host, info),
                "cooldown": cooldowns.get(info.name),
                **({"check": found[info.name].to_json()} if offers[info.name] is info and info.name in found else {}),
            },
        ),
        *_blocked_rows(host, "backend", BACKEND_GROUP, _NO_READINESS),
    ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("BACKEND", "PLUG-IN", "FROM", "STATUS"),
        [(row["name"], row["plugin"], row["from"], _status(row, _setup(row))) for row in rows],
    )


@backends.command()
@click.argument("name", required=False)
@click.pass_context
def reset(ctx: click.Context, name: str | None) -> None:
    """Close the circuit breakers of all backends, or of NAME."""
    cooldowns = current_cooldowns(ctx)
    try:
        names = cooldowns.reset(name)
    except OSError as error:
        raise D0ttinoError(f"cannot change {cooldowns.path}: {error.strerror or error}") from error
    if name is not None and not names:
        host = current_host(ctx)
        with stdout_to_stderr():
            offers = host.backends()
        if name not in offers:
            raise UnknownNameError("backend", name, offers, hint=host.why_missing())
    print_line("\n".join(f"{one} is used again" for one in names) or "nothing was set aside")


@click.command(cls=Command)
@as_json_option()
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:
    """List recipes and their plug-ins."""
    host = current_host(ctx)
    with stdout_to_stderr():
        offers = host.recipes()
    warn_of_problems(host)
    rows = [*_rows(offers), *_blocked_rows(host, "recipe", RECIPE_GROUP, {})]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("RECIPE", "PLUG-IN", "FROM", "DESCRIPTION"),
        [(row["name"], row["plugin"], row["from"], _status(row, row["description"])) for row in rows],
    )


def _rows(
    offers: "Catalog[RegisteredBackend] | Catalog[RegisteredRecipe]",
    more: Callable[[Any], dict[str, Any]] = lambda _info: {},
) -> list[dict[str, Any]]:
    """Return a row for each name in use, by name, each followed by those that it shadows."""
    rows = []
    for name in sorted(offers):
        winner = offers[name]
        shadowed = offers.shadowed.get(name, ())
        for info in (winner, *shadowed):
            origin = info.origin
            rows.append(
                {
                    "name": name,
                    "description": info.description,
                    **origin.to_json(),
                    "from": origin.source,
                    "shadows": [str(other.origin) for other in shadowed] if info is winner else [],
                    "shadowed_by": None if info is winner else str(winner.origin),
                    "blocked_by": None,
                    **more(info),
                }
            )
    return rows


def _blocked_rows(host: "Host", kind: str, group: str, more: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield a row for each plug-in of a kind that was left out, under the name that is known without importing it."""
    for blocked in host.blocked:
        origin = blocked.origin
        declared = origin.entry_point or ""
        if declared.startswith(f"{group}:") or (origin.builtin and origin.plugin.startswith(f"{kind}:")):
            yield {
                "name": origin.plugin.removeprefix(f"{kind}:"),
                "description": "",
                **origin.to_json(),
                "from": origin.source,
                "shadows": [],
                "shadowed_by": None,
                "blocked_by": blocked.by,
                **more,
            }


def _readiness(host: "Host", info: "RegisteredBackend") -> dict[str, Any]:
    with stdout_to_stderr():
        missing = [] if host.is_ready(info) else list(info.ready_env)
    return {"ready": not missing, "set_one_of": missing, "models": list(info.models)}


def _setup(row: dict[str, Any]) -> str:
    if row.get("check"):
        return str(row["check"]["words"])
    if row["cooldown"] is not None:
        return str(row["cooldown"]["reason"])
    return "ready" if row["ready"] else f"set {' or '.join(row['set_one_of'])}"


def _status(row: dict[str, Any], status: str) -> str:
    if row["blocked_by"]:
        return f"not used: blocked by {row['blocked_by']}"
    if row["shadowed_by"]:
        return f"not used: shadowed by {row['shadowed_by']}"
    shadows = f"shadows {', '.join(row['shadows'])}" if row["shadows"] else ""
    return "; ".join(filter(None, (status, shadows)))


#: Words for the way in which the answers of a hook become one.
_KINDS: Final = {
    "COLLECT": "all are asked, and every answer counts",
    "FIRST": "one answer decides: the first that is not None",
    "NOTIFY": "all are called, and results are not used",
    "FOLD": "folded: each gets the value that the one before returned",
}


@click.command(cls=Command)
@click.argument("name", required=False, type=NameOf("hook"))
@as_json_option()
@click.pass_context
def hooks(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List hooks and their implementations, in the order in which they are asked.

    With NAME, show that hook's signature, its documentation and an example as well.
    """
    host = current_host(ctx)
    warn_of_problems(host)
    if name is not None and name not in host.contracts:
        raise UnknownNameError("hook", name, host.contracts)
    rows = [_hook(host, name) | _described(host, name)] if name else [_hook(host, hook) for hook in host.contracts]
    if as_json:
        print_json({"hooks": rows, "blocked": [blocked.to_json() for blocked in host.blocked]})
        return
    for row in rows:
        print_line(f"{row['hook']}({', '.join(row['arguments'])})  {row['kind']}")
        for number, one in enumerate(row["implementations"], 1):
            marks = "".join(f", {mark}" for mark in ("wrapper", "tryfirst", "trylast") if one[mark])
            print_line(f"  {number}. {one['plugin']} ({one['from']}){marks}")
        if not row["implementations"]:
            print_line("  nobody implements it")
        if name:
            print_line(f"\n{row['signature']}\n\n{row['documentation']}\n\nAn exception {row['on_error']}.")
            print_line(f"\nExample:\n\n{textwrap.indent(row['example'], '    ')}\nSee `ai-cli docs {name}`.")
    for blocked in host.blocked:
        print_line(f"not in use: {blocked}")


def _hook(host: "Host", name: str) -> dict[str, Any]:
    from llm import hookspecs

    contract = host.contracts[name]
    return {
        "hook": name,
        "arguments": list(contract.arguments),
        "kind": _KINDS[contract.kind.name],
        "first_result": contract.kind.name == "FIRST",
        "documentation": inspect.getdoc(getattr(hookspecs, name)) or "",
        "implementations": [_implementation(*one) for one in host.implementations(name)],
    }


def _described(host: "Host", name: str) -> dict[str, Any]:
    """Return the signature of a hook, the effect of an exception, and an example."""
    from scripts.cli.docs import blocks

    found = blocks(name)
    fails = "fails the attempt or step" if host.contracts[name].propagates else "is recorded, and the others go on"
    return {
        "signature": found[0].rstrip() if found else name,
        "on_error": "fails each use of the plug-in" if name == "llm_configure" else fails,
        "example": found[-1] if found else "",
    }


def _implementation(origin: "Origin", options: "Mapping[str, Any]") -> dict[str, Any]:
    marks = {mark: bool(options.get(mark)) for mark in ("wrapper", "tryfirst", "trylast")}
    return {**origin.to_json(), "from": origin.source, **marks}
