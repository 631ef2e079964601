"""Packages written from the documentation word for word, installed with pip, run with the installed commands."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.docs.follow import Reader, by_project, matches
from tests.docs.markdown import ROOT, Block, blocks_of
from tests.e2e.conftest import Installed

pytestmark = pytest.mark.e2e


class InstallingReader(Reader):
    """Follows a page with the commands of a real installation, pip among them."""

    def __init__(self, directory: Path, installed: Installed) -> None:
        super().__init__(directory)
        self._installed = installed

    def run(self, command: str) -> str:
        """Run a command as it stands on the page and return what it prints."""
        result = self._installed.run("/bin/sh", "-c", f"exec 2>&1; {command}", cwd=self.project, env=self._paths())
        return result.stdout

    def _paths(self) -> dict[str, str]:
        return {"PATH": f"{self._installed.directory / 'bin'}:/usr/bin:/bin", "PIP_ROOT_USER_ACTION": "ignore"}


@contextmanager
def removed_afterwards(installed: Installed, name: str) -> Iterator[None]:
    try:
        yield
    finally:
        installed.run("pip", "uninstall", "--yes", "--quiet", name)


def project(page: str, name: str) -> list[Block]:
    found = by_project(blocks_of(ROOT / page))[name]
    # pytest is not in the environment: the page says that it has to be installed for that step.
    return [block for block in found if "pytest" not in block.text]


@pytest.mark.parametrize(
    ("page", "name", "editable"),
    [
        ("README.md", "acme-internal-shout", True),
        ("docs/plugins.md", "acme-internal-greeter", True),
        ("docs/plugins.md", "acme-internal-greeter", False),
        ("docs/guides/forms.md", "forms", True),
        ("docs/guides/forms.md", "forms", False),
        ("docs/recipes.md", "acme-internal-recipes", True),
    ],
)
def test_a_package_written_from_the_documentation_works(
    installed: Installed, tmp_path: Path, page: str, name: str, editable: bool
) -> None:
    reader = InstallingReader(tmp_path, installed)
    compared = 0
    with removed_afterwards(installed, name):
        for block, command, printed in reader.follow(_with_pip(project(page, name), editable)):
            if not command.line.startswith("pip "):
                compared += 1
                assert matches(printed, command.output), f"{block}: {command.line}\n{printed}"
    assert compared


def _with_pip(blocks: list[Block], editable: bool) -> list[Block]:
    if editable:
        return blocks
    replaced = []
    for block in blocks:
        text = block.text.replace("pip install -q -e .", "pip install -q .")
        replaced.append(Block(block.page, block.line, block.language, text, block.path, block.project, block.remark))
    return replaced
