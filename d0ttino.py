"""The programs `ai-cli` and `ai`, under a name that no other project has: many have a package `scripts`."""

import os
import sys


def main() -> None:
    """Run `ai-cli`."""
    _import_own_scripts()
    from scripts.ai_cli import main

    main()


def main_send() -> None:
    """Run `ai`, short for `ai-cli send`."""
    _import_own_scripts()
    from scripts.ai_cli import main_send

    main_send()


def _import_own_scripts() -> None:
    """Import the package `scripts` beside this file, where PYTHONPATH has another one as well."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path.insert(0, here)
    try:
        import scripts  # noqa: F401
    finally:
        sys.path.remove(here)


if __name__ == "__main__":
    main()
