"""`ai-cli doctor`: each fault is found, and the command that it gives mends it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from llm import hookimpl
from llm.hooks._entrypoints import Blocking
from llm.hooks._manifest import Manifests
from llm.host import Host, create_host
from llm.testing import host_with, installed, write_distribution
from scripts.ai_cli import cli


def doctor(host: Host, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, ["doctor", *arguments], obj=host, env=env)


def faults(host: Host, **env: str) -> list[dict[str, Any]]:
    result = doctor(host, "--json", **env)
    found = [finding for finding in json.loads(result.stdout) if not finding["ok"]]
    assert result.exit_code == (1 if found else 0)
    assert all(finding["fixes"] for finding in found), "a fault without a command that mends it"
    return found


def shell(command: str) -> None:
    subprocess.run(["sh", "-ec", command], check=True, capture_output=True)


def after(fix: str) -> dict[str, str]:
    """Return what a command that sets or unsets a variable leaves in the environment."""
    script = f'{fix}; {sys.executable} -c "import json, os; print(json.dumps(dict(os.environ)))"'
    found: dict[str, str] = json.loads(subprocess.check_output(["sh", "-ec", script]))
    return found


class Anything:
    @hookimpl
    def llm_completed(self) -> None: ...


@pytest.fixture
def host() -> Host:
    return host_with()


@pytest.mark.parametrize("color", ["always", "never", "auto"])
def test_results_are_coloured_where_colours_are(host: Host, color: str) -> None:
    path = Path.home() / ".config" / "d0ttino" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text("=", encoding="utf-8")
    printed = doctor(host, "--color", color).stdout
    coloured = ["\x1b[31m\x1b[1mBAD\x1b[0m configuration: ", "\x1b[32mok\x1b[0m  caches: nothing wrong"]
    assert [words in printed for words in coloured] == [color == "always"] * 2
    assert [words in printed for words in ("BAD configuration: ", "ok  caches: nothing wrong")] == [
        color != "always"
    ] * 2


@pytest.fixture
def cache() -> Path:
    return Path.home() / ".cache" / "d0ttino"


@pytest.mark.e2e
def test_a_server_that_was_added_after_the_manifests_were_recorded_is_no_fault() -> None:
    for command in ("send -b sample hi", "servers add here http://127.0.0.1:9/v1", "backends"):
        subprocess.run([sys.executable, "-m", "scripts.ai_cli", *command.split()], check=True, capture_output=True)
    done = subprocess.run([sys.executable, "-m", "scripts.ai_cli", "doctor"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert all(line.startswith("ok ") for line in done.stdout.splitlines())


def test_a_sound_installation_is_status_0_and_all_checks_are_listed(host: Host) -> None:
    result = doctor(host)
    assert (result.exit_code, result.stderr) == (0, "")
    assert len(result.stdout.splitlines()) == 11
    assert all(line.startswith("ok ") for line in result.stdout.splitlines())
    findings = json.loads(doctor(host, "--json").stdout)
    assert {"check": "caches", "ok": True, "message": "nothing wrong", "fixes": []} in findings


def test_the_text_shows_each_fault_with_its_commands(host: Host, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    result = doctor(host)
    (fault,) = faults(host)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[4:7] == [
        f"BAD directories: {fault['message']}",
        f"    fix: {fault['fixes'][0]}",
        f"     or: {fault['fixes'][1]}",
    ]


# Plug-ins -----------------------------------------------------------------------------------------


def one_plugin(site: Path, code: str, value: str = "mod") -> None:
    write_distribution(site, "my-package", entry_points={"llm.plugins": {"mine": value}}, files={"mod.py": code})


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        (
            "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise ValueError('the last line') from e",
            "the last line",
        ),
        ("def broken(:", "SyntaxError: "),
        ("x = 1", "contributes nothing"),
        ("from llm import hookimpl\n@hookimpl\ndef llm_complet(): pass", "did you mean llm_complete?"),
        ("from llm import hookimpl\n@hookimpl\ndef llm_complete(promt): pass", "asks for 'promt'"),
    ],
)
def test_a_plugin_that_is_not_in_use(tmp_path: Path, code: str, words: str) -> None:
    one_plugin(tmp_path, code)
    with installed(tmp_path) as host:
        (fault,) = faults(host)
        assert fault["message"].startswith("mine (my-package 1.0): ")
        assert words in fault["message"]
        assert fault["fixes"][0] == f"{sys.executable} -m scripts.plugins remove my-package"
        environ = after(fault["fixes"][1])
        assert environ["LLM_DISABLE_PLUGINS"] == "my-package"
        assert faults(create_host(host.entries, Blocking.of(environ=environ)), **environ) == []


def test_the_command_that_removes_a_plugin_mends(tmp_path: Path) -> None:
    one_plugin(tmp_path, "1 / 0")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def ask() -> list[dict[str, Any]]:
        command = [sys.executable, "-P", "-m", "scripts.ai_cli", "doctor", "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        found = [finding for finding in json.loads(done.stdout) if not finding["ok"]]
        assert done.returncode == bool(found)
        return found

    (fault,) = ask()
    assert "ZeroDivisionError: division by zero" in fault["message"]
    assert fault["fixes"][0].endswith(" -m scripts.plugins remove my-package")
    for file in tmp_path.iterdir():  # what an installer does; pip does not remove what it has not installed
        shutil.rmtree(file) if file.is_dir() else file.unlink()
    assert ask() == []


def test_two_plugins_of_one_name(tmp_path: Path) -> None:
    for name in ("a-package", "b-package"):
        module = name.replace("-", "_")
        files = {f"{module}.py": "def run(prompt): return ''"}
        write_distribution(tmp_path, name, entry_points={"llm.plugins": {"mine": f"{module}:run"}}, files=files)
    with installed(tmp_path) as host:
        (fault,) = faults(host)
        assert "the backend 'mine' is also provided by" in fault["message"]
        environ = after(fault["fixes"][-1])
        assert environ["LLM_DISABLE_PLUGINS"] == "b-package"
        assert faults(create_host(host.entries, Blocking.of(environ=environ)), **environ) == []


def test_a_plugin_that_fails_when_it_is_asked_keeps_what_is_disabled_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one_plugin(tmp_path, "from llm import hookimpl\n@hookimpl\ndef llm_recipes(): raise ValueError('not today')")
    monkeypatch.setenv("LLM_DISABLE_PLUGINS", "echo")
    with installed(tmp_path) as host:
        (fault,) = faults(host)
    assert "llm_recipes raised ValueError: not today" in fault["message"]
    assert fault["fixes"] == ["export LLM_DISABLE_PLUGINS=echo,my-package"]


def test_names_to_block_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_DISABLE_PLUGINS", "echo,opnrouter")
    (fault,) = faults(create_host((), Blocking.of()))
    assert "no plug-in named 'opnrouter' to block. Did you mean 'openrouter'?" in fault["message"]
    environ = after(fault["fixes"][0])
    assert environ["LLM_DISABLE_PLUGINS"] == "echo"
    assert faults(create_host((), Blocking.of(environ=environ)), **environ) == []
    monkeypatch.delenv("LLM_DISABLE_PLUGINS")
    (fault,) = faults(create_host((), Blocking.of(("opnrouter",))))
    assert fault["fixes"] == ["leave out --no-plugin opnrouter"]


# Packages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["llm", "scripts"])
def test_another_distribution_owns_a_package(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    write_distribution(tmp_path, "another-one", entry_points={}, files={})
    (tmp_path / "another_one-1.0.dist-info" / "top_level.txt").write_text(f"{package}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    (fault,) = faults(host)
    assert f"the distribution another-one also has a package '{package}'" in fault["message"]
    assert fault["fixes"][0].endswith("another-one")
    assert " uninstall " in fault["fixes"][0]
    shutil.rmtree(tmp_path / "another_one-1.0.dist-info")
    assert faults(host) == []


def test_a_package_that_comes_from_somewhere_else(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import llm

    monkeypatch.setattr(llm, "__file__", str(tmp_path / "llm" / "__init__.py"))
    (fault,) = faults(host)
    assert f"the package 'llm' comes from {tmp_path}, not from " in fault["message"]
    assert fault["fixes"] == ['cd "$HOME"']
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert faults(host)[0]["fixes"] == ["unset PYTHONPATH"]


def test_no_installer(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", "")
    (fault,) = faults(host)
    assert (fault["check"], fault["fixes"]) == ("installer", [f"{sys.executable} -m ensurepip"])


# Configuration ------------------------------------------------------------------------------------


def test_the_key_of_a_configured_backend_is_missing(host: Host) -> None:
    (fault,) = faults(host, LLM_PRIMARY_BACKEND="openrouter", LLM_FALLBACK_BACKEND="sample")
    assert fault["message"] == "primary_backend is 'openrouter', which needs OPENROUTER_API_KEY"
    assert fault["fixes"][0].endswith("-m scripts.ai_cli keys set openrouter")
    assert subprocess.run(fault["fixes"][0], shell=True, input="planted-key", text=True).returncode == 0
    assert faults(host, LLM_PRIMARY_BACKEND="openrouter", LLM_FALLBACK_BACKEND="sample") == []
    environ = after(fault["fixes"][1])
    assert faults(host, LLM_PRIMARY_BACKEND="openrouter", OPENROUTER_API_KEY=environ["OPENROUTER_API_KEY"]) == []


def test_keys_of_backends_that_are_not_configured_are_no_fault(host: Host) -> None:
    assert faults(host) == []


def test_a_configured_backend_is_not_there(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_FALLBACK_BACKEND", "sampel")
    (fault,) = faults(host)
    assert "fallback_backend is 'sampel', and there is no backend named 'sampel'. Did you mean" in fault["message"]
    assert fault["fixes"] == ["unset LLM_FALLBACK_BACKEND"]
    assert "LLM_FALLBACK_BACKEND" not in after(fault["fixes"][0])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"chain": ["sampel"]}', "chain is 'sampel'"),
        ('{"primary_backnd": "sample"}', "no key named 'primary_backnd' (Did you mean 'primary_backend'"),
        ("{", "is not JSON"),
    ],
)
def test_a_configuration_file_is_to_be_edited(host: Host, content: str, words: str) -> None:
    path = Path.home() / ".config" / "d0ttino" / "config.json"
    path.parent.mkdir(parents=True)
    path.write_text(content, encoding="utf-8")
    (fault,) = faults(host)
    assert words in fault["message"]
    subprocess.run(["sh", "-ec", fault["fixes"][0]], check=True, env={**os.environ, "EDITOR": "rm"})
    assert faults(host) == []


@pytest.mark.parametrize("is_file", [True, False])
def test_a_configuration_file_that_cannot_be_read_is_one_fault_with_its_own_remedy(
    clean_environment: Path, is_file: bool
) -> None:
    file = clean_environment / ".config" / "d0ttino" / "config.toml"
    file.parent.mkdir(parents=True)
    if not is_file:
        file.mkdir()
    elif os.geteuid() == 0:
        pytest.skip("this user may read everything")
    else:
        file.touch(0o200)
    (fault,) = faults(create_host(entries=()))
    assert (fault["check"], "cannot read" in fault["message"]) == ("configuration", True)
    assert fault["fixes"] == [f"chmod u+r {file}" if is_file else f"mv {file} {file}.old"]


def test_every_mistake_of_the_configuration_is_found_at_once(tmp_path: Path) -> None:
    code = """
from llm import hookimpl
CONFIG_SCHEMA = {"type": "object", "properties": {"level": {"type": "integer"}}, "additionalProperties": False}
@hookimpl
def llm_configure(settings): pass
@hookimpl
def llm_backends(): return []
"""
    one_plugin(tmp_path, code)
    path = Path.home() / ".config" / "d0ttino" / "config.toml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "complexity_threshold = 'many'\nprimary_backnd = 'x'\n[plugins.mine]\nlevel = 'high'\nlevle = 1\n",
        encoding="utf-8",
    )
    with installed(tmp_path) as host:
        messages = [fault["message"] for fault in faults(host)]
    assert sorted(message.removeprefix(f"{path}:").partition(":")[0] for message in messages) == ["1", "2", "4", "5"]
    assert any("'levle' (Did you mean 'level'?" in message for message in messages)


def test_a_section_with_a_typing_error_in_the_name_of_its_plug_in(host: Host, tmp_path: Path) -> None:
    host.register(Anything(), "shouter")
    file = tmp_path / "config.toml"
    file.write_text("[plugins.nobody-has-this]\n\n[plugins.shouter]\n\n[plugins.shuter]\nvolume = 3\n")
    (fault,) = faults(host, LLM_CONFIG_PATH=str(file))
    assert fault["message"] == f"{file}:5: plugins: there is no plug-in named 'shuter' (Did you mean 'shouter'?)"
    checked = CliRunner().invoke(cli, ["config", "check"], obj=host, env={"LLM_CONFIG_PATH": str(file)})
    assert (checked.exit_code, "Did you mean 'shouter'?" in checked.stderr) == (1, True)


def test_a_required_plug_in_that_is_not_there(host: Host, tmp_path: Path) -> None:
    host.register(Anything(), "watch-dog")
    file = tmp_path / "config.toml"
    file.write_text('required_plugins = ["watch-dog", "watch-dgo"]\n')
    (fault,) = faults(host, LLM_CONFIG_PATH=str(file))
    assert fault["check"] == "guardrails"
    assert "the plug-in 'watch-dgo' is required, and it is not installed (did you mean 'watch-dog'?" in fault["message"]
    sent = CliRunner().invoke(cli, ["send", "hi"], obj=host, env={"LLM_CONFIG_PATH": str(file)})
    assert (sent.exit_code, "did you mean 'watch-dog'?" in sent.stderr) == (1, True)


def test_config_set_warns_of_a_value_that_the_plug_in_does_not_take(tmp_path: Path) -> None:
    code = """
from llm import hookimpl
CONFIG_SCHEMA = {"type": "object", "properties": {"level": {"type": "integer"}}, "additionalProperties": False}
@hookimpl
def llm_configure(settings): pass
"""
    one_plugin(tmp_path, code)
    with installed(tmp_path) as host:
        right, wrong = (
            CliRunner().invoke(cli, ["config", "set", "plugins.mine.level", value], obj=host) for value in ("1", "high")
        )
    assert (right.exit_code, right.stderr) == (0, "")
    assert "warning: " in wrong.stderr
    assert ":2: plugins.mine.level must be a whole number" in wrong.stderr


def test_a_variable_that_cannot_be_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLM_ROUTING_MODE", "sideways")
    (fault,) = faults(host)
    assert fault["fixes"] == ["unset LLM_ROUTING_MODE"]


# Caches and directories ---------------------------------------------------------------------------


def manifests_file() -> Path:
    return Path(str(Manifests.read().path))


def garbage(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\xff garbage")


def directory(path: Path) -> None:
    path.mkdir(parents=True)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("environments/{}/manifests.json", garbage),
        ("environments/{}/manifests.json", directory),
        ("registries/0123.json", garbage),
        ("registries/0123.json", directory),
    ],
)
def test_a_cache_that_holds_something_else(host: Host, cache: Path, name: str, spoil: Callable[[Path], None]) -> None:
    path = cache / name.format(manifests_file().parent.name)
    spoil(path)
    (fault,) = faults(host)
    assert fault["check"] == "caches"
    assert str(path) in fault["message"]
    shell(fault["fixes"][0])
    assert faults(host) == []


def test_manifests_that_is_stale(tmp_path: Path, cache: Path) -> None:
    one_plugin(tmp_path, "def run(prompt): return ''", "mod:run")
    with installed(tmp_path) as host:
        Manifests.read().store(host.manifests())
        assert faults(host) == []
        Manifests.read().store({entry: one._replace(plugins=()) for entry, one in host.manifests().items()})
        (fault,) = faults(host)
        assert "is stale, and could not be renewed: it is wrong about mine" in fault["message"]
        shell(fault["fixes"][0])
        assert faults(host) == []


@pytest.mark.parametrize("place", ["", "registries"])
def test_a_file_stands_where_a_directory_belongs(host: Host, cache: Path, place: str) -> None:
    path = cache / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    (fault,) = faults(host)
    assert fault["check"] == "directories"
    assert f"{path} is not a directory" in fault["message"]
    assert faults(host, LLM_NO_CACHE="1") == []
    shell(fault["fixes"][0])
    assert faults(host) == []
    (path.parent / f"{path.name}.old").unlink()


@pytest.mark.parametrize(
    ("path", "content"),
    [
        (".local/state/d0ttino/conversations.db", "SQLite format 3\0, and no more"),
        (".local/state/d0ttino/state.db", "?" * 9_999),
        (".local/state/d0ttino/runs/20260101-000000-0000.jsonl", "?"),
        (".config/d0ttino/keys.json", '{"openrouter": "half of'),
    ],
)
def test_a_record_that_is_damaged(host: Host, path: str, content: str) -> None:
    file = Path.home() / path
    file.parent.mkdir(mode=0o700, parents=True)
    file.write_text(content, encoding="utf-8")
    file.chmod(0o600)
    (found,) = faults(host)
    assert (found["check"], str(file) in found["message"]) == ("records", True)
    shell(found["fixes"][0])
    assert faults(host) == []
    assert file.with_name(f"{file.name}.old").read_text(encoding="utf-8") == content


def test_keys_that_others_can_read(host: Host) -> None:
    file = Path.home() / ".config/d0ttino/keys.json"
    file.parent.mkdir(parents=True)
    file.write_text("{}", encoding="utf-8")
    file.chmod(0o644)
    (found,) = faults(host)
    shell(found["fixes"][0])
    assert faults(host) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="this user may enter any directory")
def test_a_directory_that_cannot_be_entered_keeps_no_other_check_from_its_work(host: Host, cache: Path) -> None:
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    cache.chmod(0)
    try:
        result = doctor(host, "--json")
    finally:
        cache.chmod(0o700)
    found = json.loads(result.stdout)
    assert {"plug-ins", "configuration", "records", "guardrails", "installer"} <= {
        finding["check"] for finding in found
    }
    assert any(f"chmod u+rwx {cache}" in finding["fixes"] for finding in found)


@pytest.mark.parametrize("name", ["guardrails.json", "plugins.json"])
def test_a_record_in_whose_place_a_directory_stands_is_not_removed(host: Host, name: str) -> None:
    path = Path.home() / ".local/state/d0ttino" / name
    path.mkdir(mode=0o700, parents=True)
    (found,) = (one for one in faults(host) if name in one["message"])
    assert found["fixes"] == [f"mv {path} {path}.old"]


def test_a_link_to_nowhere_is_found(host: Host, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.symlink_to(cache.parent / "gone")
    (fault,) = faults(host)
    shell(fault["fixes"][0])
    assert faults(host) == []


def test_a_directory_that_cannot_be_written(host: Host, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    (fault,) = faults(host)
    assert "Permission denied" in fault["message"]
    shell(fault["fixes"][0])
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_problem_is_no_secret_keeper(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "planted-key-1")

    class Leaks:
        @hookimpl
        def llm_recipes(self) -> None:
            raise ValueError("planted-key-1")

    host.register(Leaks(), "leaks")
    (fault,) = faults(host)
    assert "ValueError: ***" in fault["message"]
