"""`python -m scripts.plugins` and `ai-cli plugins`: what plug-ins there are, installing and removing them.

Everything works while plug-ins are broken, because none is imported here. Where one has to be loaded,
to see whether it works, a new process does it.
"""

from typing import TYPE_CHECKING

import click

from scripts.cli.base import Group
from scripts.cli.output import print_json, print_table, say, tell
from scripts.packages.registry import PLUGIN, RECIPE, Kind, Registry, load_registry

if TYPE_CHECKING:
    from scripts.packages.changes import Change

PROGRAM = "python -m scripts.plugins"

as_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group(cls=Group)
def cli() -> None:
    """List, install and remove plug-ins; `recipes` does the same for recipes.

    The registry says which package brings which plug-in. PLUGIN_REGISTRY_URL names another one than
    the bundled: an http or https URL, or a file.
    """


@click.group("recipes", cls=Group)
def recipes() -> None:
    """List, install and remove recipes."""


cli.add_command(recipes)


def _add_commands(group: Group, kind: Kind) -> None:
    """Add `list`, `install` and `remove` for one kind."""
    one, many = kind.noun, f"{kind.noun}s"

    @group.command("list", help=f"List {many}: their packages, and whether they are installed. Imports none of them.")
    @click.option(
        "--check", "load", is_flag=True, help="Load every plug-in first, in a new process, to see if it works."
    )
    @as_json_option
    def list_(load: bool, as_json: bool) -> None:
        from scripts.packages.checking import check
        from scripts.packages.inventory import take

        checked = check() if load else None
        for warning in checked.warnings if checked else ():
            _warn(warning)
        rows = take(kind, _registry(), checked).rows
        if as_json:
            print_json([row.to_json() for row in rows])
        else:
            print_table(
                (one.upper(), "PACKAGE", "VERSION", "STATE"),
                [(row.name, row.package, row.version or "-", row.status) for row in rows],
            )

    @group.command("install", help=f"Install the {one} NAME with the package that the registry names for it.")
    @click.argument("name")
    @click.option("-U", "--upgrade", is_flag=True, help="Look for a newer version if it is installed already.")
    @as_json_option
    @click.pass_context
    def install(ctx: click.Context, name: str, upgrade: bool, as_json: bool) -> None:
        from scripts.packages.changes import find, install_and_check

        registry = _registry()
        package = find(kind, name, registry, _commands(ctx, kind))
        _tell(install_and_check(package, registry, upgrade=upgrade), as_json)

    @group.command("remove", help=f"Remove the package that brings the {one} NAME.")
    @click.argument("name")
    @as_json_option
    @click.pass_context
    def remove(ctx: click.Context, name: str, as_json: bool) -> None:
        from scripts.packages.changes import remove as remove_package

        _tell(remove_package(kind, name, _registry(), _commands(ctx, kind)), as_json)


_add_commands(cli, PLUGIN)
_add_commands(recipes, RECIPE)


@cli.command("refresh")
@as_json_option
def refresh(as_json: bool) -> None:
    """Forget what is known of installed plug-ins, and load each of them anew.

    That happens by itself when something changes. It is needed only where that cannot be seen: what a
    plug-in brings depends on something else than its own files.
    """
    from scripts.packages.checking import learn_anew

    learned = learn_anew()
    if as_json:
        print_json([{**entry._asdict(), "failure": found.failure} for entry, found in learned.items()])
        return
    failed = sum(found.failure is not None for found in learned.values())
    count = f"{len(learned)} entry point{'' if len(learned) == 1 else 's'}"
    tell(f"loaded {count}, of which {failed} failed: `{PROGRAM} list` shows them")


@recipes.command("sync")
@click.option("--dry-run", is_flag=True, help="Print what would be installed, and install nothing.")
@as_json_option
def sync(dry_run: bool, as_json: bool) -> int:
    """Install every recipe of the registry that is not installed.

    One that fails does not stop the others; the exit status is 1 if any failed.
    """
    from scripts.packages.changes import FAILED
    from scripts.packages.changes import sync as sync_recipes

    changes = sync_recipes(_registry(), dry_run=dry_run)
    if as_json:
        print_json([change.to_json() for change in changes])
    for change in changes:
        if change.done == FAILED:
            say(f"error: {change}")
        elif not as_json:
            tell(str(change))
    if not changes:
        say("every recipe of the registry is installed")
    return int(any(change.done == FAILED for change in changes))


def _registry() -> Registry:
    return load_registry(_warn)


def _warn(text: str) -> None:
    say(f"warning: {text}")


def _commands(ctx: click.Context, kind: Kind) -> str:
    """Return how the commands for plug-ins are called here, for hints."""
    group = ctx.parent if kind is PLUGIN or ctx.parent is None else ctx.parent.parent
    return PROGRAM if group is None else group.command_path


def _tell(change: "Change", as_json: bool) -> None:
    if as_json:
        print_json(change.to_json())
    else:
        tell(str(change))


if __name__ == "__main__":
    cli(prog_name=PROGRAM)
