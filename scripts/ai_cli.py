"""`ai-cli`, and `ai`, short for `ai-cli send`."""

# Nothing is imported here, not even `typing`: Ctrl-C prints a traceback until `main` handles it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import NoReturn

    from scripts.cli import COMMANDS, cli

__all__ = ["COMMANDS", "cli", "collect_late", "end_for_collision", "keep_for_good", "main", "main_send"]


def main() -> None:
    """Run `ai-cli`."""
    _end_quietly_on_interrupt()
    collect_late()
    try:
        from scripts.cli import cli
    except Exception as error:  # noqa: BLE001 - another package `llm` raises whatever it likes
        end_for_collision(error)
    keep_for_good()
    cli(prog_name="ai-cli")


def main_send() -> None:
    """Run `ai`, short for `ai-cli send`."""
    _end_quietly_on_interrupt()
    collect_late()
    try:
        import click

        from llm import __version__
        from scripts.cli.send import send
    except Exception as error:  # noqa: BLE001 - another package `llm` raises whatever it likes
        end_for_collision(error)

    keep_for_good()
    click.version_option(__version__, prog_name="ai")(send)(prog_name="ai")


def _end_quietly_on_interrupt() -> None:
    """End with status 130 on Ctrl-C, until a command runs and handles it; an ignored Ctrl-C (`nohup`) stays ignored."""
    try:
        import os
        import signal
        import sys
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    end, report = os._exit, sys.unraisablehook  # now: while a plug-in runs, `os._exit` raises an error
    if os.getpid() == 1:  # in a container, signals without a handler are lost: `docker stop` would wait
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: end(128 + number))
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: end(130))

    def end_or_report(problem: "sys.UnraisableHookArgs") -> None:
        # Ctrl-C in a callback of Python itself, of the import lock for example, which would ignore it.
        if isinstance(problem.exc_value, KeyboardInterrupt):
            end(130)
        report(problem)

    sys.unraisablehook = end_or_report


def collect_late() -> None:
    """Collect cyclic garbage rarely: most commands end before there is any, and it took a tenth of their time."""
    import gc

    gc.set_threshold(50_000, 20, 100)


def keep_for_good() -> None:
    """Exempt all imported modules from garbage collection: they live to the end of the process."""
    import gc

    gc.freeze()


# Another package `llm` in the place of ours. Nothing of ours can be imported then.


def end_for_collision(error: Exception) -> "NoReturn":
    """End the process with a message if another or a missing package caused an error; raise it again if not."""
    import sys

    message = _collision() or _hidden() or _not_installed(error)
    if message is None:
        raise error
    # Escaped here: paths and names are untrusted, and the renderer may be among the missing files.
    visible = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    print(f"error: {visible}", file=sys.stderr)
    raise SystemExit(1) from error


def _collision() -> str | None:
    """Return the message about a package `llm` that hides or overwrote ours; `None` if ours is intact."""
    import sys
    from importlib.machinery import PathFinder
    from pathlib import Path

    ours = Path(__file__).resolve().parents[1] / "llm"
    spec = PathFinder.find_spec("llm")
    found = Path(spec.origin).parent if spec and spec.origin else ours
    again = "install d0ttino again (with pip: `--force-reinstall --no-deps`)"
    if found.resolve() != ours:
        return (
            f"{found} hides the package 'llm' of d0ttino here: leave that directory, or take it off PYTHONPATH; "
            "`python -P -m scripts.plugins` does not look into the working directory"
        )
    others = _other_owners(ours)
    if others:
        names = " ".join(others)
        remove = f"{sys.executable} -m pip uninstall {names}"
        return (
            f"{names} has overwritten the package 'llm' of d0ttino, so that neither works: `{remove}`, and then {again}"
        )
    if not (ours / "__init__.py").is_file():
        return f"files of d0ttino are missing in {ours}, as after removing another package 'llm': {again}"
    return None


def _hidden() -> str | None:
    """Return the message about a module on PYTHONPATH that hides a package that the commands begin with."""
    import os
    import sys

    file = os.path.abspath(getattr(sys.modules.get("click"), "__file__", None) or "")
    for entry in filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)):
        if file.startswith(os.path.join(os.path.abspath(entry), "")):
            return f"{file} hides the package 'click', which d0ttino needs: take {entry} off PYTHONPATH"
    return None


def _not_installed(error: Exception) -> str | None:
    """Return how to install a checkout, if its dependencies are missing."""
    import sys

    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing not in {"click", "pluggy"}:
        return None
    return (
        f"{sys.executable} has no package {missing!r}, which d0ttino needs: install d0ttino, in its directory by "
        "`python3 -m venv .venv && .venv/bin/pip install .`, and run `.venv/bin/ai-cli`"
    )


def _other_owners(ours: "Path") -> list[str]:
    """Return the other distributions whose records have files of our package."""
    import importlib.metadata
    from contextlib import suppress

    found = set()
    for distribution in importlib.metadata.distributions(path=[str(ours.parent)]):
        with suppress(Exception):  # damaged metadata can raise anything
            name = str(distribution.metadata["Name"])
            if any(file.parts[:1] == ("llm",) for file in distribution.files or ()):
                found.add(name)
    return sorted(found - {"d0ttino"})


def __getattr__(name: str) -> object:
    """Import the commands when they are used."""
    if name not in {"cli", "COMMANDS"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scripts import cli as commands

    found: object = getattr(commands, name)
    return found


if __name__ == "__main__":
    main()
