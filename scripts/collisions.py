"""Another package `llm` in the place of ours: looking for it, and ending with one sentence."""

from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from pathlib import Path


def end(error: Exception) -> NoReturn:
    """End the process with a sentence, if `error` is due to another package `llm`; raise it again, if not.

    Nothing of ours can be imported then, so this uses the standard library alone.
    """
    import sys

    message = fault()
    if message is None:
        raise error
    # Escaped here, as paths and names are somebody else's, and the renderer may be one of the files that are missing.
    visible = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
    print(f"error: {visible}", file=sys.stderr)
    raise SystemExit(1) from error


def fault() -> str | None:
    """Return which package `llm` is in the way of ours, and the remedy; `None` if ours is whole."""
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
    others = _others(ours)
    if others:
        names = " ".join(others)
        remove = f"{sys.executable} -m pip uninstall {names}"
        return (
            f"{names} has overwritten the package 'llm' of d0ttino, so that neither works: `{remove}`, and then {again}"
        )
    if not (ours / "__init__.py").is_file():
        return f"files of d0ttino are missing in {ours}, as after removing another package 'llm': {again}"
    return None


def _others(ours: "Path") -> list[str]:
    """Return the other distributions whose records have files of our package."""
    import importlib.metadata
    from contextlib import suppress

    found = set()
    for distribution in importlib.metadata.distributions(path=[str(ours.parent)]):
        with suppress(Exception):  # what somebody else's damaged files raise is not known
            name = str(distribution.metadata["Name"])
            if any(file.parts[:1] == ("llm",) for file in distribution.files or ()):
                found.add(name)
    return sorted(found - {"d0ttino"})
