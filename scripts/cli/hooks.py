"""`ai-cli hooks`: each hook and its implementations, in the order of calls."""

import inspect
from typing import TYPE_CHECKING, Any, Final

import click

from llm.errors import UnknownNameError
from scripts.cli.base import Command
from scripts.cli.context import current_host, warn_of_problems
from scripts.cli.options import as_json_option
from scripts.cli.output import print_json, tell

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llm.hooks._origin import Origin
    from llm.host import Host


#: Words for the way in which the answers of a hook become one.
_KINDS: Final = {
    "COLLECT": "every answer counts",
    "FIRST": "the first answer counts",
    "NOTIFY": "notified, answers are not used",
    "FOLD": "each gets the value that the one before returned",
}


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
    return {
        "hook": name,
        "arguments": list(contract.arguments),
        "kind": _KINDS[contract.kind.name],
        "first_result": contract.kind.name == "FIRST",
        "documentation": inspect.getdoc(getattr(hookspecs, name)) or "",
        "implementations": [_implementation(*one) for one in host.implementations(name)],
    }


def _implementation(origin: "Origin", options: "Mapping[str, Any]") -> dict[str, Any]:
    marks = {mark: bool(options.get(mark)) for mark in ("wrapper", "tryfirst", "trylast")}
    return {**origin.to_json(), "from": origin.source, **marks}
