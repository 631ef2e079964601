"""What the pages show is what happens: code compiles, commands print what stands there, links lead somewhere."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from llm.config import load_settings
from tests.docs.follow import Reader, by_project, matches
from tests.docs.markdown import ROOT, Block, anchors, blocks, blocks_of, commands, links, pages, tutorial_files

PAGES = {str(page.relative_to(ROOT)): page for page in pages()}
BLOCKS = [block for page in pages() for block in blocks_of(page)]
PROJECTS = {
    f"{page}: {name or 'without files'}": found
    for page, path in PAGES.items()
    for name, found in by_project(blocks_of(path)).items()
    if any(block.language == "console" and not block.remark for block in found)
}

MINIMAL_MODULE = """from llm.backends.plugin_sdk import Backend, register_backend

class MyBackend(Backend):
    def run(self, prompt: str) -> str:
        return "response"

def run(prompt: str, model: str | None = None) -> str:
    return MyBackend().run(prompt)

register_backend("my_backend", run)
"""


@pytest.mark.e2e
@pytest.mark.parametrize("project", PROJECTS)
def test_commands_print_what_the_page_shows(project: str, tmp_path: Path) -> None:
    wrong = [
        f"{block}: $ {command.line}\n--- the page\n{command.output}--- really\n{printed}"
        for block, command, printed in Reader(tmp_path).follow(PROJECTS[project])
        if not matches(printed, command.output)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    ast.parse(block.text, str(block))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in {"json", "toml"}], ids=str)
def test_data_can_be_read(block: Block) -> None:
    assert json.loads(block.text) if block.language == "json" else tomllib.loads(block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "console"], ids=str)
def test_a_console_block_begins_with_a_command(block: Block) -> None:
    assert block.remark == "command" or block.text.startswith("$ ")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = PAGES[page].read_text(encoding="utf-8")
    for target in links(text):
        if target.startswith(("https:", "http:")):
            continue
        path, _, anchor = target.partition("#")
        file = (PAGES[page].parent / path).resolve() if path else PAGES[page]
        assert file.exists(), f"{page} links to {target}"
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), f"{page} links to {target}"


def test_the_first_plugin_is_the_smallest_one() -> None:
    files = tutorial_files(PAGES["docs/plugins.md"].read_text(encoding="utf-8"))
    assert files["acme_internal_greeter/plugins/backend.py"] == MINIMAL_MODULE
    entry_points = tomllib.loads(files["pyproject.toml"])["project"]["entry-points"]
    assert entry_points == {"llm.plugins": {"my_backend": "acme_internal_greeter.plugins:backend"}}


def test_the_plugin_of_the_readme_has_at_most_20_lines_10_of_them_python() -> None:
    files = tutorial_files(PAGES["README.md"].read_text(encoding="utf-8"))
    assert "@hookimpl" in files["acme_internal_shout.py"]
    assert len(files["acme_internal_shout.py"].splitlines()) <= 10
    assert sum(1 for text in files.values() for line in text.splitlines() if line.strip()) <= 20


def test_the_example_configuration_has_every_key() -> None:
    files = tutorial_files(PAGES["docs/guides/settings.md"].read_text(encoding="utf-8"), "configuration")
    (text,) = files.values()
    path = Path.home() / ".config" / "d0ttino" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    settings = load_settings()
    assert settings.path == str(path)
    assert set(tomllib.loads(text)) == set(settings.__dataclass_fields__) - {"path"}


def test_what_is_understood_of_a_page() -> None:
    page = """`a.py`:

```python
x = 1
```

Text.

<!-- project: p -->
`b/c.py`:

````python
```
````

<!-- not run: it is slow -->
```console
$ one
1
$ two
```
<!-- project: end -->
"""
    first, second, third = blocks(page, "page.md")
    assert (first.path, first.project, first.text, str(first)) == ("a.py", "", "x = 1\n", "page.md:4")
    assert (second.path, second.project, second.text) == ("b/c.py", "p", "```\n")
    assert (third.path, third.remark) == (None, "not run")
    assert [(command.line, command.output) for command in commands(third)] == [("one", "1\n"), ("two", "")]
    assert tutorial_files(page) == {"b/c.py": "```\n"}


def test_an_ellipsis_stands_for_any_text_and_durations_do_not_count() -> None:
    assert matches("took 3.1 s\n", "took ... s\n")
    assert matches('{"duration": 0.5}', '{"duration": 1e-05}')
    assert matches("3 passed in 144.35s (0:02:24)\n", "3 passed in ...s\n")
    assert not matches("took 3.1 s\n", "took ... ms\n")


@pytest.mark.e2e
def test_commands_leave_the_temporary_files_of_other_runs_alone(tmp_path: Path) -> None:
    reader = Reader(tmp_path)
    reader.write("test_it.py", "def test_place(tmp_path):\n    print(tmp_path)\n")
    assert str(reader.temporary) in reader.run("python -m pytest -q -s")


@pytest.mark.parametrize("page", ["README.md", "docs/plugins.md", "docs/recipes.md", "docs/managing.md"])
def test_the_package_that_a_reader_writes_has_a_name_that_nobody_takes_by_accident(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    first, *_ = re.findall(r'^\[project\]\nname = "(.+)"$', text, re.MULTILINE)
    assert first.startswith("acme-internal-")


@pytest.mark.e2e
def test_the_page_on_scale_shows_what_the_simulation_gives() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "scale.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.e2e
def test_the_pictures_show_what_a_terminal_shows() -> None:
    command = [sys.executable, str(ROOT / "docs" / "generate_pictures.py"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])
def test_no_page_is_too_long_to_read(page: str) -> None:
    lines = PAGES[page].read_text(encoding="utf-8").splitlines()
    assert len(lines) <= (340 if lines[0].startswith("<!-- Written by") else 300)
