"""Plug-ins from a package index of the tests' own: what is refused, what is put back, what is removed."""

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pexpect
import pytest

from tests.e2e.conftest import INDEX, ROOT, Installed, places_in
from tests.packages import ANSWERS, Index, sdist, wheel

pytestmark = pytest.mark.e2e


@pytest.fixture
def index() -> Iterator[Index]:
    with Index() as index:
        yield index


class Environment:
    """The session's environment with an index, and what is in it."""

    def __init__(self, installed: Installed, index: Index) -> None:
        self.installed = installed
        self.index = index
        self.env: dict[str, str] = index.settings()

    @property
    def site(self) -> Path:
        (site,) = self.installed.directory.glob("lib/*/site-packages")
        return site

    def plugins(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        done = self.installed.run("ai-cli", "plugins", *arguments, env={**self.env, **env})
        assert "Traceback" not in done.stderr
        return done

    def fails(self, *arguments: str | Path, status: int = 1, registry: str = "") -> str:
        """Run a command that must fail and change nothing; return what it says."""
        before = self.files()
        done = self.plugins(*arguments, PLUGIN_REGISTRY_URL=registry)
        assert (done.returncode, done.stdout) == (status, "")
        assert self.files() == before
        return done.stderr

    def files(self) -> dict[str, bytes]:
        """Return every file that is installed, without compiled ones."""
        places = [self.site, self.installed.directory / "bin"]
        return {
            str(path): path.read_bytes()
            for place in places
            for path in place.rglob("*")
            if path.is_file() and path.suffix != ".pyc" and "pip" not in path.parts
        }


def distributions(files: Iterable[str]) -> set[str]:
    return {Path(path).parent.name.split("-")[0] for path in files if path.endswith("/METADATA")}


@pytest.fixture
def environment(installed: Installed, index: Index) -> Iterator[Environment]:
    environment = Environment(installed, index)
    # What the bundled policy requires.
    index.add(wheel("regex", "9999", {"regex/__init__.py": "from re import *\n"}, plugins={}))
    before = environment.files()
    yield environment
    if "regex" not in distributions(before):
        installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "regex")
    for name in distributions(environment.files()) - distributions(before):
        environment.plugins("remove", name.replace("_", "-"))
    assert environment.files() == before
    shutil.rmtree(installed.home / ".local/state", ignore_errors=True)


def test_a_package_of_an_index_is_shown_asked_for_installed_and_removed(environment: Environment) -> None:
    environment.index.add(wheel("helper"))
    sha256 = environment.index.add(wheel("nice-plugin", requires=["helper>=1"]))
    assert "nobody can be asked" in environment.fails("install", "nice-plugin", status=2)
    assert environment.index.asked == []
    dry = environment.plugins("install", "nice-plugin", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "would install nice-plugin 1.0" in dry.stdout
    for part in (environment.index.url.removesuffix("/simple"), f"sha256 {sha256}", "needs helper>=1", "helper 1.0"):
        assert part in dry.stdout
    assert "llm.plugins: nice_plugin = nice_plugin:run" in dry.stdout
    done = environment.plugins("install", "nice-plugin", "--yes", "--json")
    assert json.loads(done.stdout) == {
        "name": "nice-plugin",
        "kind": "plug-in",
        "package": "nice-plugin",
        "version": "1.0",
        "done": "installed",
        "effects": ["backend 'nice_plugin' now comes from it"],
    }
    assert environment.installed.run("ai-cli", "send", "-b", "nice_plugin", "hi").stdout == "nice_plugin got: hi\n"
    assert environment.plugins("freeze").stdout == f"helper==1.0\nnice-plugin==1.0 --hash=sha256:{sha256}\n"
    assert not list(environment.site.glob("nice_plugin-1.0.dist-info/direct_url.json"))
    assert environment.plugins("uninstall", "nice_plugin").stdout.startswith("removed nice-plugin 1.0")
    assert environment.plugins("remove", "helper").returncode == 0


@pytest.mark.parametrize(("answer", "last"), [("n", "did not install quizzed"), ("y", "installed quizzed 1.0")])
def test_a_question_is_asked_on_a_terminal(environment: Environment, answer: str, last: str) -> None:
    environment.index.add(wheel("quizzed"))
    env = {**os.environ, **INDEX, **places_in(environment.installed.home), **environment.env}
    program = pexpect.spawn(
        str(environment.installed.bin("ai-cli")),
        ["plugins", "install", "quizzed"],
        env=env,
        encoding="utf-8",
        timeout=60,
    )
    program.expect(r"llm.plugins: quizzed = quizzed:run\r\nInstall it\? \[y/N\]: ")
    assert not list(environment.site.glob("quizzed*"))
    program.sendline(answer)
    program.expect(pexpect.EOF)
    program.close()
    assert last in str(program.before)
    assert program.exitstatus == (0 if answer == "y" else 1)
    assert bool(list(environment.site.glob("quizzed*"))) == (answer == "y")


def test_the_password_of_an_index_is_not_shown_or_recorded(environment: Environment) -> None:
    environment.index.add(wheel("private"))
    place = {"PIP_INDEX_URL": environment.index.url.replace("://", "://me:hunter2@")}
    done = environment.plugins("install", "private", "--yes", **place)
    assert done.returncode == 0
    assert "from http://127.0.0.1" in done.stderr
    state = environment.installed.home / ".local/state/d0ttino"
    texts = [done.stdout, done.stderr, *(path.read_text() for path in state.rglob("*") if path.is_file())]
    assert "hunter2" not in "".join(texts)
    direct = f"private @ {place['PIP_INDEX_URL'].removesuffix('/simple')}/files/private-1.0-py3-none-any.whl"
    environment.plugins("remove", "private")
    done = environment.plugins("install", direct, "--yes")
    assert done.returncode == 0
    texts = [done.stdout, done.stderr, *(path.read_text() for path in state.rglob("*") if path.is_file())]
    assert "hunter2" not in "".join(texts)


def test_a_name_that_looks_like_an_archive_is_no_package(environment: Environment) -> None:
    (environment.installed.home / "nice.zip").touch()
    assert "nice.zip looks like the name of a file" in environment.fails("install", "nice.zip", "--yes", status=2)
    assert environment.index.asked == []
    assert "is installed, but it has no plug-in and no recipe" in environment.fails("install", "click", "--yes")


def test_a_slip_of_the_finger_does_not_lead_to_a_package_of_an_index(environment: Environment) -> None:
    environment.index.add(wheel("opnrouter"))
    assert "Did you mean 'openrouter'?" in environment.fails("install", "opnrouter", "--yes", status=2)
    assert environment.index.asked == []


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"llm/__init__.py": ""}, {}, "would overwrite the package 'llm' of d0ttino"),
        ({"scripts/extra.py": ""}, {}, "would overwrite the package 'scripts' of d0ttino"),
        ({"bad-1.0.data/purelib/llm/x.py": ""}, {}, "would overwrite the package 'llm' of d0ttino"),
        ({"click/core.py": ""}, {}, "click/core.py of click"),
        (None, {"unlisted": {"llm/types.py": ""}}, "would overwrite the package 'llm' of d0ttino"),
        (None, {"unlisted": {"bad/../llm/types.py": ""}}, "would overwrite the package 'llm' of d0ttino"),
        (None, {"unlisted": {"bad-1.0.data/scripts/ai-cli": ""}}, "bin/ai-cli of d0ttino"),
        (None, {"commands": {"ai-cli": "bad:run"}}, "bin/ai-cli of d0ttino"),
        (None, {"commands": {"python": "bad:run"}}, "bin/python, which is of the environment itself"),
        ({"bad-1.0.data/scripts/python3": ""}, {}, "bin/python3, which is of the environment itself"),
        ({"bad-1.0.data/data/pyvenv.cfg": ""}, {}, "pyvenv.cfg, which is of the environment itself"),
        ({"LLM/types.py": ""}, {}, "would overwrite the package 'LLM' of d0ttino"),
        (None, {"plugins": {}}, "it has no plug-in and no recipe"),
        (None, {"requires": ["click==8.0"]}, "it would replace click"),
        (None, {"requires": ["llm"]}, "llm 0.36 would overwrite the package 'llm' of d0ttino"),
        (None, {"requires": ["pluggy>=50"]}, "d0ttino needs pluggy<2,>=1.6, and it would be 50"),
        (None, {"requires": ["d0ttino>=5"]}, "would replace d0ttino 0.1.0, which runs this"),
    ],
)
def test_what_would_do_harm_is_refused_before_anything_is_changed(
    environment: Environment, files: dict[str, str] | None, options: dict[str, object], message: str
) -> None:
    environment.index.add(
        wheel("llm", "0.36", {"llm/__init__.py": ""}, plugins={}),
        wheel("click", "8.0", {"click/__init__.py": ""}, plugins={}),
        wheel("pluggy", "50", {"pluggy/__init__.py": ""}, plugins={}),
        wheel("d0ttino", "5.0", {"llm/__init__.py": ""}, plugins={}),
        wheel("bad", "1.0", {"bad.py": ANSWERS, **(files or {})}, **options),  # type: ignore[arg-type]
    )
    said = environment.fails("install", "bad>=0", "--yes")
    assert "error: bad is not installed: " in said
    assert message in said


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ({"../outside.py": ""}, {}, "has a file that leads out of the environment: ../outside.py"),
        ({"a/../../../outside.py": ""}, {}, "has a file that leads out of the environment: a/../../../outside.py"),
        ({"/tmp/outside.py": ""}, {}, "has a file that leads out of the environment: /tmp/outside.py"),
        (None, {"commands": {"../outside": "bad:run"}}, "has a command that leads out of the environment: ../outside"),
        (None, {"unlisted": {"bad.py": "other = 1"}}, "has the file bad.py twice"),
        (None, {"missing": ["click/core.py"]}, "lists the file click/core.py, which it does not have"),
        (None, {"missing": ["../../../bin/python"]}, "lists the file ../../../bin/python, which it does not have"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_wheel_with_files_that_lead_elsewhere_is_refused(
    environment: Environment, files: dict[str, str] | None, options: dict[str, object], message: str
) -> None:
    environment.index.add(wheel("bad", "1.0", {"bad.py": ANSWERS, **(files or {})}, **options))  # type: ignore[arg-type]
    assert message in environment.fails("install", "bad>=0", "--yes")


def test_what_python_runs_whenever_it_starts_is_shown(environment: Environment) -> None:
    files = {"starter.py": ANSWERS, "starter.pth": "import os\n", "sitecustomize.py": ""}
    environment.index.add(wheel("starter", "1.0", files))
    shown = environment.plugins("install", "starter>=0", "--dry-run").stdout
    assert "  runs whenever Python starts: sitecustomize.py\n" in shown
    assert "  runs whenever Python starts: starter.pth\n" in shown


@pytest.mark.parametrize(
    "files",
    [
        {"llm/__init__.py": ""},
        {"llm/__init__.py": "import not_there", "llm/plugins.py": ""},
        {"llm/__init__.py": "raise SystemError('half')", "llm/errors.py": ""},
    ],
)
def test_another_package_llm_that_got_in_by_other_means_is_named(
    environment: Environment, files: dict[str, str]
) -> None:
    installed = environment.installed
    ours = installed.directory / "ours"
    shutil.copytree(environment.site / "llm", ours)
    environment.index.add(wheel("llm", "0.36", files, plugins={}))
    pip = ("python", "-m", "pip", "install", "-q", "llm==0.36")
    assert installed.run(*pip, env=environment.env).returncode == 0
    try:
        commands = (("ai-cli", "doctor"), ("ai-cli", "plugins", "remove", "sample"), ("ai", "hi"))
        for command in (*commands, ("python", "-m", "scripts.plugins", "remove", "llm")):
            done = installed.run(*command, env=environment.env)
            assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (1, "", 1), done.stderr
            assert "llm has overwritten the package 'llm' of d0ttino" in done.stderr
        done = installed.run("ai-cli", "plugins", "list")
        remedy = shlex.split(done.stderr.split("`")[1])
        assert installed.run(*remedy, "--yes").returncode == 0
        done = installed.run("ai-cli", "doctor")
        assert (done.returncode, done.stdout) == (1, "")
        assert "as after removing another package 'llm': install d0ttino again" in done.stderr
    finally:
        installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "llm")
        shutil.rmtree(environment.site / "llm", ignore_errors=True)
        shutil.move(ours, environment.site / "llm")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import not_there", "No module named 'not_there'"),
        ("import sys; sys.exit(3)", "SystemExit"),
        ("import os; os._exit(7)", "loading it ended the process, with status 7"),
        ("import time; time.sleep(60)", "loading it took more than 3 seconds"),
    ],
)
def test_what_cannot_be_loaded_is_taken_out_again(environment: Environment, code: str, message: str) -> None:
    environment.index.add(wheel("helper"), wheel("broken", files={"broken.py": code}, requires=["helper"]))
    said = environment.fails("install", "broken>=0", "--yes", "--load-timeout", "3")
    assert message in said
    assert "nothing is left of it" in said


def test_an_upgrade_that_fails_puts_back_what_was_there(environment: Environment) -> None:
    environment.index.add(wheel("growing", "1.0", {"growing/__init__.py": ANSWERS, "growing/old.py": ""}))
    assert environment.plugins("install", "growing", "--yes").returncode == 0
    environment.index.add(wheel("growing", "2.0", {"growing/__init__.py": "1 / 0", "growing/new.py": ""}))
    said = environment.fails("upgrade", "growing", "--yes")
    assert "division by zero" in said
    assert "growing 1.0 is there as before" in said
    assert environment.installed.run("ai-cli", "send", "-b", "growing", "hi").stdout == "growing got: hi\n"
    environment.index.add(wheel("growing", "3.0", {"growing/__init__.py": ANSWERS}))
    done = environment.plugins("upgrade", "--all", "--yes")
    assert (done.returncode, done.stdout) == (0, "replaced 1.0 by growing 3.0: backend 'growing' now comes from it\n")


def test_an_installation_that_was_killed_is_undone_by_the_next_command(environment: Environment) -> None:
    environment.index.add(
        wheel("deadly", files={"deadly.py": "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"})
    )
    before = environment.files()
    killed = environment.installed.run("ai-cli", "plugins", "install", "deadly", "--yes", env=environment.env)
    assert killed.returncode == -9
    assert environment.files() != before
    environment.index.add(wheel("sturdy"))
    done = environment.plugins("install", "sturdy", "--yes")
    assert "an installation was interrupted: deadly is as before it" in done.stderr
    assert done.stdout == "installed sturdy 1.0: backend 'sturdy' now comes from it\n"
    assert not list(environment.site.glob("deadly*"))


def test_nothing_is_built_unless_the_user_allows_it(environment: Environment, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    environment.index.add(sdist("built", "1.0", f"open({str(witness)!r}, 'w')\nraise SystemExit('was built')"))
    assert "could not resolve built" in environment.fails("install", "built", "--yes")
    assert not witness.exists()
    command = ("ai-cli", "plugins", "install", "built", "--yes", "--allow-build")
    assert "was built" in environment.installed.run(*command, env=environment.env).stderr
    assert witness.exists()


def test_the_checksum_of_a_registry_holds(environment: Environment, tmp_path: Path) -> None:
    sha256 = environment.index.add(wheel("sealed"))
    registry = tmp_path / "registry.json"
    entry = {"package": "sealed", "version": "1.0"}
    registry.write_text(json.dumps({"right": {**entry, "sha256": [sha256]}, "wrong": {**entry, "sha256": "0" * 64}}))
    place = {"PLUGIN_REGISTRY_URL": str(registry)}
    said = environment.fails("install", "wrong", "--yes", registry=str(registry))
    assert f"its sha256 is {sha256}, not the one that is given for it" in said
    assert environment.plugins("install", "right", "--yes", **place).returncode == 0


def test_what_is_yanked_or_for_another_version_is_refused(environment: Environment, tmp_path: Path) -> None:
    environment.index.add(wheel("old"))
    registry = tmp_path / "registry.json"
    entries = {
        "yanked": {"package": "old", "yanked": "it leaks"},
        "newer": {"package": "old", "requires-d0ttino": ">=9"},
    }
    registry.write_text(json.dumps(entries))
    said = environment.fails("install", "yanked", "--yes", registry=str(registry))
    assert "old was yanked: it leaks" in said
    said = environment.fails("install", "newer", "--yes", registry=str(registry))
    assert "old is for d0ttino >=9, and this is 0.1.0" in said
    listed = environment.plugins("list", PLUGIN_REGISTRY_URL=str(registry)).stdout
    assert "refused: old was yanked: it leaks" in listed


def test_a_name_that_its_registry_forgot_can_be_removed(environment: Environment, tmp_path: Path) -> None:
    environment.index.add(wheel("cellar"))
    registry = tmp_path / "registry.json"
    place = {"PLUGIN_REGISTRY_URL": str(registry)}
    registry.write_text('{"deep": "cellar"}')
    assert environment.plugins("install", "deep", "--yes", **place).returncode == 0
    registry.write_text("{}")
    done = environment.plugins("remove", "deep", **place)
    assert (done.returncode, done.stdout) == (0, "removed cellar 1.0: backend 'cellar' is gone\n")


def test_what_a_plugin_prints_is_no_answer(environment: Environment) -> None:
    noisy = "import os, sys\nprint('printed')\nos.write(1, b'written')\n"
    environment.index.add(wheel("noisy", files={"noisy.py": noisy + ANSWERS}))
    done = environment.plugins("install", "noisy", "--yes", "--json")
    assert json.loads(done.stdout)["done"] == "installed"
    assert "printed" in done.stderr


def test_a_registry_that_is_down_installs_nothing(environment: Environment) -> None:
    place = environment.index.url
    said = environment.fails("install", "sample", registry=place)
    assert "cannot be used: the server answered with status 404" in said
    assert "cannot be used" in environment.fails("recipes", "sync", "--yes", registry=place)
    assert environment.plugins("list", PLUGIN_REGISTRY_URL=place).returncode == 0


def test_a_wheel_and_a_directory_are_installed_and_upgraded(environment: Environment, tmp_path: Path) -> None:
    environment.index.add(wheel("helper"))
    name, content = wheel("local", requires=["helper"])
    (tmp_path / name).write_bytes(content)
    done = environment.plugins("install", tmp_path / name, "--yes")
    assert done.stdout == "installed local 1.0: backend 'local' now comes from it\n"
    package = tmp_path / "source"
    (package / "own/build").mkdir(parents=True)
    (package / "own/__init__.py").write_text('"""A package."""\n__version__ = "1"\nfrom own.build import run\n')
    (package / "own/build/__init__.py").write_text(ANSWERS)
    (package / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n[project]\nname = "own"\n'
        'dynamic = ["version", "description"]\n[project.entry-points."llm.plugins"]\nown = "own:run"\n'
    )
    done = environment.plugins("install", package, "--yes", PIP_NO_BUILD_ISOLATION="0")
    assert done.stdout == "installed own 1: backend 'own' now comes from it\n", done.stderr
    assert environment.installed.run("ai-cli", "send", "-b", "own", "hi").stdout == "own.build got: hi\n"
    frozen = environment.plugins("freeze").stdout
    assert frozen == f"helper==1.0\n{tmp_path / name}\n{package}\n"
    for one in ("local", "own", "helper"):
        assert environment.plugins("remove", one).returncode == 0
    (tmp_path / "all.txt").write_text(frozen)
    done = environment.plugins("install", "--from", tmp_path / "all.txt", "--yes", PIP_NO_BUILD_ISOLATION="0")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 3


def test_what_is_lost_with_the_environment_is_said_and_restored(environment: Environment) -> None:
    environment.index.add(wheel("lost"))
    assert environment.plugins("install", "lost", "--yes").returncode == 0
    assert environment.plugins("install", "policy").returncode == 0
    environment.index.add(wheel("lost", "2.0"))
    record = environment.installed.home / ".local/state/d0ttino/plugins.json"
    assert os.stat(record).st_mode & 0o777 == 0o600
    environment.installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "lost", "d0ttino-policy")
    said = environment.installed.run("ai-cli", "recipe", "echo", "x", "--yes")
    assert said.returncode == 0
    assert "lost 1.0, d0ttino-policy 0.1.0" in said.stderr
    assert "`ai-cli plugins restore` installs them again" in said.stderr
    states = {row["name"]: row["state"] for row in json.loads(environment.plugins("list", "--json").stdout)}
    assert (states["lost"], states["policy"]) == ("missing", "missing")
    done = environment.plugins("restore")
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
        "installed lost 1.0",
        "installed d0ttino-policy 0.1.0",
    ]
    assert environment.plugins("restore").stderr == "nothing is missing\n"
    environment.installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "lost")
    assert environment.plugins("remove", "lost").stdout == "forgot lost 1.0: it was not installed any more\n"
    assert environment.installed.run("ai-cli", "recipe", "echo", "x", "--yes").stderr.count("lost") == 0


def test_a_guardrail_that_is_gone_is_missed_and_a_removed_one_is_not(environment: Environment) -> None:
    steps = ("recipe", "echo", "x", "--yes")
    shown = "[1/1] printf '%s\\n' x\n"
    assert environment.plugins("install", "policy").returncode == 0
    assert environment.installed.run("ai-cli", *steps).stderr == shown
    assert environment.plugins("remove", "policy").returncode == 0
    assert environment.installed.run("ai-cli", *steps).stderr == shown
    policy = ROOT / "examples/plugins/policy"
    environment.installed.run("python", "-m", "pip", "install", "-q", "--no-build-isolation", "--no-deps", policy)
    assert environment.installed.run("ai-cli", *steps).stderr == shown
    environment.installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "d0ttino-policy")
    for _ in range(2):
        warning = environment.installed.run("ai-cli", *steps).stderr
        assert "warning: the guardrail policy (d0ttino-policy 0.1.0) of the last run is not installed" in warning
    assert (
        environment.plugins("remove", "policy").stdout == "forgot d0ttino-policy 0.1.0: it was not installed any more\n"
    )
    assert environment.installed.run("ai-cli", *steps).stderr == shown


def test_a_leftover_and_a_second_record_are_named_and_removed(environment: Environment) -> None:
    environment.index.add(wheel("twice", "1.0"))
    assert environment.plugins("install", "twice", "--yes").returncode == 0
    kept = environment.installed.home / "kept"
    shutil.copytree(environment.site / "twice-1.0.dist-info", kept)
    environment.index.add(wheel("twice", "2.0"))
    assert environment.plugins("upgrade", "twice", "--yes").returncode == 0
    for name in ("twice-1.0.dist-info", "~wice-1.0.dist-info"):
        shutil.copytree(kept, environment.site / name)
    shutil.rmtree(kept)
    doctor = json.loads(environment.installed.run("ai-cli", "doctor", "--json").stdout)
    found = [one for one in doctor if one["check"] == "leftovers"]
    named = [Path(shlex.split(one["fixes"][0])[-1]).name for one in found]
    assert named == ["twice-1.0.dist-info", "~wice-1.0.dist-info"]
    remedy = shlex.split(found[0]["fixes"][0])
    assert environment.installed.run(f"/bin/{remedy[0]}", *remedy[1:]).returncode == 0
    doctor = json.loads(environment.installed.run("ai-cli", "doctor", "--json").stdout)
    assert [one["message"].split()[0] for one in doctor if one["check"] == "leftovers"] == [
        str(environment.site / "~wice-1.0.dist-info")
    ]
    done = environment.plugins("remove", "twice")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "removed twice 2.0")
    assert not list(environment.site.glob("*wice*"))


@pytest.mark.parametrize("content", ["", "garbage\xff"])
def test_what_is_damaged_is_removed_by_its_record(environment: Environment, content: str) -> None:
    environment.index.add(wheel("damaged", files={"damaged/__init__.py": ANSWERS}))
    assert environment.plugins("install", "damaged", "--yes").returncode == 0
    (environment.site / "damaged-1.0.dist-info/METADATA").write_text(content, encoding="latin-1")
    done = environment.plugins("remove", "damaged")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "removed damaged unknown"), done.stderr
    assert not list(environment.site.glob("damaged*"))


@pytest.mark.parametrize("command", [["remove", "greedy"], ["upgrade", "greedy", "--yes"]])
def test_files_of_others_on_the_list_of_a_package_stay_and_are_named(
    environment: Environment, tmp_path: Path, command: list[str]
) -> None:
    environment.index.add(wheel("neighbour", files={"neighbour/__init__.py": ANSWERS}))
    own = {f"greedy-1.0.data/scripts/{name}": "#!python\n" for name in ("pythonize", "activate-all")}
    files = {"greedy.py": "def run(prompt): return prompt\n", **own}
    environment.index.add(wheel("greedy", files=files, commands={"greedy": "greedy:run"}))
    assert environment.plugins("install", "neighbour", "--yes").returncode == 0
    assert environment.plugins("install", "greedy", "--yes").returncode == 0
    theirs = tmp_path / "theirs"
    theirs.write_text("mine")
    others = [environment.site / "neighbour/__init__.py", environment.installed.directory / "pyvenv.cfg", theirs]
    record = environment.site / "greedy-1.0.dist-info/RECORD"
    with record.open("a") as file:  # as another installer may have written it
        file.writelines(f"{os.path.relpath(one, environment.site)},,\n" for one in others)
        file.write("greedy/../neighbour/__init__.py,,\n")
    environment.index.add(wheel("greedy", "2.0"))
    before = {one: one.read_bytes() for one in others}
    done = environment.plugins(*command)
    assert done.returncode == 0, done.stderr
    assert {one: one.read_bytes() for one in others} == before
    shown = done.stdout + done.stderr
    assert f"{others[0]} stays: it is a file of neighbour" in shown
    assert f"{others[1]} stays: it is part of the environment itself" in shown
    left = {file.name for file in (environment.installed.directory / "bin").iterdir()}
    assert left.isdisjoint({"pythonize", "activate-all"})
    assert f"{others[2]} stays: it is outside this environment" in shown
    if command[0] == "remove":
        assert not list(environment.site.glob("greedy*"))
        assert not (environment.installed.directory / "bin/greedy").exists()
    else:
        assert environment.plugins("list").stdout.count("greedy") >= 1


def test_an_editable_package_with_its_source_below_src_is_removed(environment: Environment, tmp_path: Path) -> None:
    (tmp_path / "src/author_plugin").mkdir(parents=True)
    (tmp_path / "src/author_plugin/__init__.py").write_text(f'"""A package."""\n__version__ = "1.0"\n{ANSWERS}')
    entry_points = '[project.entry-points."llm.plugins"]\nauthor = "author_plugin:run"\n'
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["flit_core"]\nbuild-backend = "flit_core.buildapi"\n[project]\n'
        f'name = "author-plugin"\ndynamic = ["version", "description"]\n{entry_points}'
    )
    egg_info = tmp_path / "src/author_plugin.egg-info"  # what setuptools leaves beside the source
    egg_info.mkdir()
    (egg_info / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: author-plugin\nVersion: 1.0\n")
    (egg_info / "entry_points.txt").write_text("[llm.plugins]\nauthor = author_plugin:run\n")
    done = environment.plugins("install", "-e", tmp_path, "--yes", PIP_NO_BUILD_ISOLATION="0")
    assert done.stdout == "installed author-plugin 1.0: backend 'author' now comes from it\n", done.stderr
    assert environment.plugins("freeze").stdout == f"-e {tmp_path}\n"
    done = environment.plugins("remove", "author")
    assert (done.returncode, done.stdout.split(":")[0]) == (0, "removed author-plugin 1.0"), done.stderr
    assert environment.plugins("freeze").stdout == ""


def test_two_at_once_do_not_mix(environment: Environment, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    wait = f"import pathlib, time\nwhile not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.05)\n"
    environment.index.add(wheel("slow", files={"slow.py": wait + ANSWERS}))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(environment.plugins, "install", "slow", "--yes")
        while not list(environment.site.glob("slow-1.0.dist-info")):
            assert not first.done()
        second = environment.plugins("install", "policy")
        gate.touch()
    assert (second.returncode, second.stdout) == (1, "")
    assert "another command is installing or removing plug-ins" in second.stderr
    assert first.result().stdout == "installed slow 1.0: backend 'slow' now comes from it\n"


def test_a_bundled_package_brings_what_it_needs_and_asks_an_index_for_nothing_else(environment: Environment) -> None:
    environment.index.add(wheel("xllamacpp", "2026.10", plugins={}))
    installed = environment.plugins("install", "local", "--yes")
    assert installed.returncode == 0, installed.stderr
    names = {path.name for path in environment.site.glob("*.dist-info")}
    assert {"xllamacpp-2026.10.dist-info", "d0ttino_local-0.1.0.dist-info"} <= names
    asked = [path for path in environment.index.asked if path.startswith("/simple/")]
    assert set(asked) == {"/simple/xllamacpp/"}
    environment.index.asked.clear()
    assert environment.plugins("remove", "local").returncode == 0
    assert environment.plugins("install", "local").returncode == 0
    assert environment.index.asked == []
    environment.plugins("remove", "local")
    environment.installed.run("python", "-m", "pip", "uninstall", "-q", "--yes", "xllamacpp")
