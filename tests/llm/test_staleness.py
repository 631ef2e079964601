"""Manifests are believed as long as one rule says, in real processes.

A regular installation is what its installer wrote: new metadata, or an edit of the module that the entry point names or
of one that registers something, is seen at once. An editable installation is imported each time.
"""

import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from llm.hooks._manifest import ManifestFile
from llm.testing import write_distribution

pytestmark = pytest.mark.e2e

HOUR = 3600 * 10**9

#: Prints what backends there are, and which of the plug-in's modules were imported to tell.
PROGRAM = """\
import sys
from llm.host import current_host
names = [name for name, info in current_host().backends().items() if not info.origin.builtin]
print(*names, '|', *sorted(name for name in sys.modules if name.startswith('mine')))
"""

REGISTER = "from llm.backends.plugin_sdk import register_backend\n"


def backend(name: str) -> str:
    return f"{REGISTER}register_backend({name!r}, lambda prompt: {name!r})\n"


class Site:
    """A directory with installed distributions, and a shell that has it on its path."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.environment = {**os.environ, "PYTHONPATH": str(directory), "PYTHONDONTWRITEBYTECODE": "1"}

    def write(self, path: str, source: str) -> None:
        """Write a module. Unless it is written once more, it counts as written an hour ago."""
        file = self.directory / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(source), encoding="utf-8")
        self.age()

    def age(self) -> None:
        """Make everything an hour older than it is."""
        for path in (self.directory, *self.directory.rglob("*")):
            then = path.stat().st_mtime_ns
            os.utime(path, ns=(then - HOUR, then - HOUR))

    def run(self, program: str = PROGRAM, **environment: str) -> str:
        """Run a program in a new process, and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """Return a site with a package that was loaded once, and is known."""
    site = Site(tmp_path / "site")
    write_distribution(
        site.directory,
        "mine",
        entry_points={"llm.plugins": {"mine": "mine"}},
        files={"mine/__init__.py": "from . import part\n", "mine/part.py": backend("a")},
    )
    site.age()
    assert site.run() == "a | mine mine.part"
    assert site.run() == "a |"
    return site


def test_an_edit_of_a_module_that_no_entry_point_names_is_seen(site: Site) -> None:
    (site.directory / "mine" / "part.py").write_text(backend("b"))
    assert site.run() == "b | mine mine.part"


def test_an_edit_of_a_module_that_registers_nothing_is_not_looked_for(site: Site) -> None:
    """The limit of the rule: an upgrade brings new metadata, and an author has an editable installation."""
    site.write("mine/part.py", f"from .name import NAME\n{REGISTER}register_backend(NAME, lambda prompt: '')\n")
    site.write("mine/name.py", "NAME = 'a'\n")
    assert site.run() == "a | mine mine.name mine.part"
    assert site.run() == "a |"
    (site.directory / "mine" / "name.py").write_text("NAME = 'b'\n")
    assert site.run() == "a |"
    site.write("mine-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\nSummary: new\n")
    assert site.run() == "b | mine mine.name mine.part"


def test_a_name_that_is_gone_is_told_when_it_is_used_and_forgotten(site: Site) -> None:
    site.write("mine/part.py", f"from .name import NAME\n{REGISTER}register_backend(NAME, lambda prompt: '')\n")
    site.write("mine/name.py", "NAME = 'a'\n")
    assert [site.run(), site.run()] == ["a | mine mine.name mine.part", "a |"]
    (site.directory / "mine" / "name.py").write_text("NAME = 'b'\n")
    ask = "from llm import send_prompt\nprint(send_prompt('hi', backend='a'))"
    done = subprocess.run([sys.executable, "-c", ask], env=site.environment, capture_output=True, text=True)
    assert "no longer registers the backend 'a'" in done.stderr
    assert site.run() == "b | mine mine.name mine.part"


@pytest.mark.parametrize("edited", ["mine/part.py", "mine/helper.py"])
def test_an_editable_installation_is_imported_each_time(site: Site, edited: str) -> None:
    site.write("mine/part.py", f"from .helper import NAME\n{REGISTER}register_backend(NAME, lambda prompt: '')\n")
    site.write("mine/helper.py", "NAME = 'a'\n")
    site.write("mine-1.0.dist-info/direct_url.json", '{"url": "file:///src", "dir_info": {"editable": true}}')
    assert [site.run(), site.run()] == ["a | mine mine.helper mine.part"] * 2
    (site.directory / "mine" / "helper.py").write_text("NAME = 'b'\n")
    if edited == "mine/part.py":
        (site.directory / "mine" / "part.py").write_text(f"import mine.helper\n{backend('b')}")
    assert site.run() == "b | mine mine.helper mine.part"


def test_byte_code_is_no_change(site: Site) -> None:
    cache = site.directory / "mine" / "__pycache__"
    cache.mkdir()
    (cache / "part.cpython-311.pyc").write_bytes(b"")
    assert site.run() == "a |"


def test_a_failure_is_tried_again_each_time(site: Site) -> None:
    site.write("mine/part.py", f"import os\n{REGISTER}\nregister_backend(os.environ['NAME'], lambda prompt: '')")
    assert site.run() == "|"
    assert site.run(NAME="b").startswith("b | mine")


def test_an_archive_is_imported_each_time(tmp_path: Path) -> None:
    archive = tmp_path / "plugins.zip"

    def write(name: str) -> None:
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("mine-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
            file.writestr("mine-1.0.dist-info/entry_points.txt", "[llm.plugins]\nmine = mine\n")
            file.writestr("mine.py", backend(name))

    site = Site(archive)
    write("a")
    then = archive.stat().st_mtime_ns - HOUR
    os.utime(archive, ns=(then, then))
    assert [site.run(), site.run()] == ["a | mine", "a | mine"]
    write("b")
    assert site.run() == "b | mine"


def test_another_path_has_other_plugins(site: Site, tmp_path: Path) -> None:
    assert site.run(PYTHONPATH="") == "|"
    assert site.run() == "a |"


def test_the_variable_ignores_what_is_known(site: Site) -> None:
    assert site.run(LLM_NO_CACHE="1") == "a | mine mine.part"


def test_a_home_that_cannot_be_written_costs_time_only(site: Site, tmp_path: Path) -> None:
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where the directory should be")
    for _ in range(2):
        assert site.run(XDG_CACHE_HOME=str(blocked)) == "a | mine mine.part"


def test_a_clock_that_went_back_does_no_harm(site: Site) -> None:
    part = site.directory / "mine" / "part.py"
    part.write_text(backend("b"))
    past = time.time_ns() - 24 * HOUR
    os.utime(part, ns=(past, past))
    assert site.run().startswith("b | mine")


def test_processes_that_learn_together_all_see_everything(tmp_path: Path) -> None:
    site = Site(tmp_path / "site")
    for number in range(10):
        write_distribution(
            site.directory,
            f"mine{number}",
            entry_points={"llm.plugins": {f"mine{number}": f"mine{number}"}},
            files={f"mine{number}.py": backend(f"b{number}")},
        )
    site.age()
    together = [
        subprocess.Popen([sys.executable, "-c", PROGRAM], env=site.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(5)
    ]
    everything = " ".join(f"b{number}" for number in range(10))
    assert {process.communicate()[0].partition(" |")[0] for process in together} == {everything}
    assert site.run() == f"{everything} |"


def spoilt(content: bytes) -> Iterator[bytes]:
    """Yield what may be left of a file: the start of it, or bytes that were changed."""
    yield from (content[:length] for length in range(0, len(content), max(1, len(content) // 10)))
    yield content.replace(b'"a"', b'"b"')
    yield content.replace(b"[", b"{").replace(b"]", b"}")


def test_a_file_that_was_spoilt_does_no_harm(site: Site) -> None:
    path = Path(str(ManifestFile().path))
    original = path.read_bytes()
    for content in spoilt(original):
        path.write_bytes(content)
        assert site.run().partition(" |")[0] == "a", content


def test_a_plugin_whose_dependency_is_gone_fails_when_it_is_used(site: Site) -> None:
    site.write("mine/part.py", f"import helper_of_mine\n{backend('a')}")
    site.write("helper_of_mine.py", "")
    assert site.run().startswith("a |")
    assert site.run() == "a |"
    (site.directory / "helper_of_mine.py").unlink()
    ask = "from llm import send_prompt\nprint(send_prompt('hi', backend='a'))"
    done = subprocess.run([sys.executable, "-c", ask], env=site.environment, capture_output=True, text=True)
    assert "mine" in done.stderr
    assert "No module named 'helper_of_mine'" in done.stderr
    assert site.run() == "|"
