"""The programs `ai-cli` and `ai`, in a module with a unique name: many projects have a package `scripts` or `llm`."""

import os
import sys

TYPE_CHECKING = False  # importing `typing` takes time in which Ctrl-C prints a traceback
if TYPE_CHECKING:
    from types import ModuleType


def main() -> None:
    """Run `ai-cli`."""
    _programs().main()


def main_send() -> None:
    """Run `ai`, short for `ai-cli send`."""
    _programs().main_send()


def _programs() -> "ModuleType":
    """Return `scripts.ai_cli`, with our packages from the directory of this file, whatever is on PYTHONPATH."""
    # First: a project on PYTHONPATH may have a `random.py` or `queue.py`, which is not the one that our modules import.
    library = os.path.dirname(os.__file__)
    sys.path.sort(key=lambda entry: entry not in {library, os.path.join(library, "lib-dynload")})
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    try:
        import scripts.ai_cli as programs

        try:  # noqa: SIM105 - `contextlib` takes time to import, too
            import llm  # noqa: F401
        except Exception:  # noqa: BLE001, S110 - a package that overwrote ours: the commands report it
            pass
    finally:
        sys.path.remove(here)
    return programs


if __name__ == "__main__":
    main()
