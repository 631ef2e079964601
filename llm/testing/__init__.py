"""Hosts for tests of plug-ins, and real distributions in a temporary directory.

```python
from llm.testing import installed, write_distribution


def test_my_plugin_answers(tmp_path):
    write_distribution(
        tmp_path,
        "acme-internal-greeter",
        entry_points={"llm.plugins": {"shout": "my_module:shout"}},
        files={"my_module.py": "def shout(prompt): return prompt.upper()"},
    )
    with installed(tmp_path) as host:
        assert complete(Request("hi", backend="shout"), host=host).text == "HI"
```
"""

import importlib
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from llm._installed import installed_plugins
from llm.host import Host, create_host

__all__ = ["host_with", "installed", "write_distribution"]


def host_with(*plugins: object) -> Host:
    """Return a host with the built-in plug-ins and the given ones, and nothing that is installed.

    Args:
        plugins: modules or objects with `@hookimpl` functions; the last is asked first. For shims,
            pass the host to them: `register_backend("name", run, host=host)`.

    Raises:
        PluginDefinitionError: a plug-in does not keep to the hooks' contract.
    """
    host = create_host(entries=())
    for plugin in plugins:
        host.register(plugin)
    return host


def write_distribution(
    directory: Path,
    name: str,
    *,
    version: str = "1.0",
    entry_points: Mapping[str, Mapping[str, str]],
    files: Mapping[str, str],
    metadata: Iterable[tuple[str, str]] = (),
) -> None:
    """Write an installed distribution into a directory, as an installer leaves it.

    Args:
        directory: the directory; `installed` puts it on `sys.path`.
        name: name of the distribution.
        version: its version.
        entry_points: group to name to value.
        files: path to contents of its modules.
        metadata: further fields of its metadata, `("Requires-Dist", "d0ttino")` for example.
    """
    place = directory / f"{name.replace('-', '_')}-{version}.dist-info"
    place.mkdir(parents=True)
    fields = [("Metadata-Version", "2.1"), ("Name", name), ("Version", version), *metadata]
    (place / "METADATA").write_text("".join(f"{key}: {value}\n" for key, value in fields), encoding="utf-8")
    lines = [
        line
        for group, entries in entry_points.items()
        for line in (f"[{group}]", *(f"{entry} = {value}" for entry, value in entries.items()))
    ]
    (place / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for path, contents in files.items():
        file = directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(contents, encoding="utf-8")


@contextmanager
def installed(directory: Path) -> Iterator[Host]:
    """Put a directory on `sys.path` and yield a host with the plug-ins of its distributions.

    Afterwards the directory is off the path and the modules imported from it are forgotten.
    """
    path = str(directory)
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        _, entries, damages = installed_plugins([path])
        host = create_host(entries)
        for damage in damages:
            host.add_damaged(damage)
        yield host
    finally:
        sys.path.remove(path)
        for name in [name for name, module in sys.modules.items() if _is_below(module, path)]:
            del sys.modules[name]


def _is_below(module: object, directory: str) -> bool:
    places = [getattr(module, "__file__", None), *getattr(module, "__path__", ())]
    return any(isinstance(place, str) and place.startswith(directory + os.sep) for place in places)
