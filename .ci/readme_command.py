"""Print a command that README.md gives: `python3 .ci/readme_command.py main|test`."""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def readme_command(name: str) -> str:
    """Return the command below the marker `<!-- command: NAME -->`."""
    pattern = rf"<!-- command: {re.escape(name)} -->\n```console\n(.*?)\n```"
    match = re.search(pattern, README.read_text(encoding="utf-8"), re.DOTALL)
    if match is None:
        raise SystemExit(f"README.md has no command marked {name!r}")
    return match[1]


if __name__ == "__main__":
    print(readme_command(sys.argv[1]))
