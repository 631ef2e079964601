"""`ai-cli usage`: tokens and costs, summed."""

from datetime import datetime
from typing import Any

import click

from llm.errors import D0ttinoError
from llm.usage import KEYS, NO_USAGE_VARIABLE, Sum, enabled, entries, ledger_path, point_in_time, summed
from scripts.cli.base import Command
from scripts.cli.options import as_json_option
from scripts.output import print_json, print_message, print_note, print_table, print_warning


def _keys(_ctx: click.Context, _parameter: click.Parameter, value: str) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(value.split(",")))
    for key in keys:
        if key not in KEYS:
            raise click.BadParameter(f"{key!r} is not one of {', '.join(KEYS)}")
    return keys


@click.command(cls=Command)
@click.option(
    "--by", default="backend,model", callback=_keys, metavar="KEYS", help="Sum by these: backend, model, day."
)
@click.option("--since", metavar="TIME", help="Leave out earlier attempts: 2026-01-31, 12h, 7d or 4w.")
@as_json_option()
def usage(by: tuple[str, ...], since: str | None, as_json: bool) -> None:
    """Sum tokens and costs of what was sent, by backend and model.

    Failed attempts and retries count as well. `~` marks a number with estimates, for servers that do not
    report their tokens.
    """
    path = ledger_path()
    begin = None if since is None else point_in_time(since, datetime.now().astimezone())
    damaged: list[int] = []
    try:
        sums = summed(entries(path, damaged.append), by, begin)
    except OSError as error:
        raise D0ttinoError(f"cannot read {path}: {error.strerror or error}") from error
    if damaged:
        print_warning(
            f"{len(damaged)} rows of {path} make no sense, number {damaged[0]} is the first; they do not count"
        )
    if not enabled():
        print_note(f"{NO_USAGE_VARIABLE} is set: what is sent now is not recorded")
    if as_json:
        print_json([{**dict(zip(by, values, strict=True)), **total.to_json()} for values, total in sums])
        return
    if not sums:
        print_message("nothing was recorded" + ("" if since is None else f" since {since}"))
        return
    header = (*(key.upper() for key in by), "ATTEMPTS", "FAILED", "INPUT", "OUTPUT", "COST")
    everything = Sum()
    for _, total in sums:
        everything.join(total)
    rows = [(*(value or "-" for value in values), *_cells(total)) for values, total in sums]
    if len(sums) > 1:
        rows.append(("total", *[""] * (len(by) - 1), *_cells(everything)))
    print_table(header, rows)
    if everything.unpriced:
        print_note(f"the cost of {everything.unpriced} of them is not known; `ai-cli docs settings` has prices")


def _cells(total: Sum) -> tuple[str, ...]:
    about = "~" if total.estimated else ""

    def tokens(count: int) -> str:
        return f"{about}{count}" if count else "0"

    cost = "-" if total.cost is None else f"{about if total.cost else ''}{_amount(total.cost)}"
    return str(total.attempts), str(total.failed), tokens(total.input_tokens), tokens(total.output_tokens), cost


def _amount(cost: float) -> Any:
    return f"{cost:.6f}".rstrip("0").rstrip(".") if cost >= 1e-6 or not cost else f"{cost:.1g}"
