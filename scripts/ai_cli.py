"""`ai-cli`, and `ai`, short for `ai-cli send`."""

# Nothing is imported here, not even `typing`: Ctrl-C is a traceback until `main` has taken it.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from scripts.cli.program import COMMANDS, cli

__all__ = ["COMMANDS", "cli", "collect_late", "keep_for_good", "main", "main_send"]


def main() -> None:
    """Run `ai-cli`."""
    _end_quietly_on_interrupt()
    collect_late()
    try:
        from scripts.cli.program import cli
    except Exception as error:  # noqa: BLE001 - another package `llm` raises whatever it likes
        from scripts.collisions import end

        end(error)
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
        from scripts.collisions import end

        end(error)

    keep_for_good()
    click.version_option(__version__, prog_name="ai")(send)(prog_name="ai")


def _end_quietly_on_interrupt() -> None:
    """End with status 130 on Ctrl-C, until a command runs, which ends in its own way; `nohup` and the like stay."""
    try:
        import os
        import signal
        import sys
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return
    signal.signal(signal.SIGINT, lambda _number, _frame: os._exit(130))
    report = sys.unraisablehook

    def end_or_report(problem: "sys.UnraisableHookArgs") -> None:
        # Ctrl-C came in a callback of Python's own, of the import lock for example, which would go on without it.
        if isinstance(problem.exc_value, KeyboardInterrupt):
            os._exit(130)
        report(problem)

    sys.unraisablehook = end_or_report


def collect_late() -> None:
    """Look for cyclic garbage seldom: most commands end before there is any, and looking took a tenth of their time."""
    import gc

    gc.set_threshold(50_000, 20, 100)


def keep_for_good() -> None:
    """Exempt all that was imported so far from the collection of garbage: modules stay to the end in any case."""
    import gc

    gc.freeze()


def __getattr__(name: str) -> object:
    """Import the commands when they are asked for."""
    if name not in {"cli", "COMMANDS"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from scripts.cli import program

    found: object = getattr(program, name)
    return found


if __name__ == "__main__":
    main()
