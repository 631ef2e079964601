"""The programs `ai-cli` and `ai`, under a name that no other project has: many have a package `scripts` or `llm`."""

import os
import sys

TYPE_CHECKING = False  # `typing` takes time in which Ctrl-C is a traceback
if TYPE_CHECKING:
    from types import ModuleType


def main() -> None:
    """Run `ai-cli`."""
    _programs().main()


def main_send() -> None:
    """Run `ai`, short for `ai-cli send`."""
    _programs().main_send()


def _programs() -> "ModuleType":
    """Return `scripts.ai_cli`, with our packages from beside this file, whatever PYTHONPATH has of their names."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    try:
        import scripts.ai_cli as programs

        try:  # noqa: SIM105 - so would `contextlib`
            import llm  # noqa: F401
        except Exception:  # noqa: BLE001, S110 - one that overwrote ours: the commands import it again, and name it
            pass
    finally:
        sys.path.remove(here)
    return programs


if __name__ == "__main__":
    main()
