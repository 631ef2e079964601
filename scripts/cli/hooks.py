"""`ai-cli hooks`: each hook and its implementations, in the order of calls."""

import inspect
from typing import TYPE_CHECKING, Any, cast

import click

from llm.errors import UnknownNameError
from scripts.cli.base import Command
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import as_json_option
from scripts.cli.output import print_json, tell

if TYPE_CHECKING:
    from llm.hooks.boundary import HostPlugin
    from llm.host import Host


@click.command(cls=Command)
@click.argument("name", required=False)
@as_json_option()
@click.pass_context
def hooks(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List hooks and their implementations, in the order in which they are asked.

    With NAME, show that hook's documentation as well.
    """
    host = current_host(ctx)
    warn_of_problems(host)
    if name is not None and name not in host.contracts:
        raise UnknownNameError("hook", name, host.contracts)
    rows = [_hook(host, hook) for hook in ([name] if name else host.contracts)]
    if as_json:
        print_json({"hooks": rows, "blocked": [blocked.to_json() for blocked in host.blocked]})
        return
    for row in rows:
        tell(f"{row['hook']}({', '.join(row['arguments'])})  {row['kind']}")
        for number, one in enumerate(row["implementations"], 1):
            marks = "".join(f", {mark}" for mark in ("wrapper", "tryfirst", "trylast") if one[mark])
            tell(f"  {number}. {one['plugin']} ({one['from']}){marks}")
        if not row["implementations"]:
            tell("  nobody implements it")
        if name:
            tell()
            tell(row["documentation"])
    for blocked in host.blocked:
        tell(f"not in use: {blocked}")


def _hook(host: "Host", name: str) -> dict[str, Any]:
    from llm import hookspecs

    contract = host.contracts[name]
    caller = getattr(host.hook, name)
    return {
        "hook": name,
        "arguments": list(contract.arguments),
        "kind": "every answer counts" if contract.collects else "the first answer counts",
        "first_result": not contract.collects,
        "documentation": inspect.getdoc(getattr(hookspecs, name)) or "",
        # pluggy keeps them in reverse: the last in its list is asked first
        "implementations": [_implementation(one) for one in reversed(caller.get_hookimpls())],
    }


def _implementation(one: Any) -> dict[str, Any]:
    origin = cast("HostPlugin", one.plugin).origin
    return {
        **origin.to_json(),
        "from": origin.source,
        "wrapper": one.wrapper,
        "tryfirst": one.tryfirst,
        "trylast": one.trylast,
    }
