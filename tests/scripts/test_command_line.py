"""Help, colours, tables, waits and completion of all commands; `config`, `init` and `docs`."""

import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click
import pexpect
import pyte
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llm.host import Host
from llm.testing import host_with, installed, write_distribution
from scripts.ai_cli import cli
from scripts.cli.base import Command, Group
from tests.scripts.terminal import AI_CLI, Terminal
from tests.servers import Exchange, FaultServer, chat_answer


@pytest.fixture
def host() -> Host:
    return host_with()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments, prog_name="ai-cli")


def config_file() -> Path:
    return Path(run("config", "path").stdout.strip())


# Help and versions


def test_help_has_sections_and_cuts_no_sentence(host: Host) -> None:
    shown = CliRunner().invoke(cli, ["-h"], obj=host, prog_name="ai-cli").stdout
    assert [line for line in shown.splitlines() if line.endswith(":") and not line.startswith(" ")] == [
        "Ask:",
        "Run steps:",
        "Look back:",
        "Set up:",
        "Get help:",
        "Options:",
        "Options of every command:",
    ]
    assert "..." not in shown.partition("Ask:")[2]
    assert shown == CliRunner().invoke(cli, ["--help"], obj=host, prog_name="ai-cli").stdout


def test_the_help_of_a_command_begins_with_its_own_options(host: Host) -> None:
    shown = CliRunner().invoke(cli, ["send", "--help"], obj=host, prog_name="ai-cli").stdout
    titles = ("Options:", "Routing:", "Options of every command, see `ai-cli --help`:")
    own, routing, everywhere = (shown.index(f"\n{title}\n") for title in titles)
    assert (
        own < shown.index("--template") < routing < shown.index("--max-attempts") < everywhere < shown.index("--trace")
    )
    assert shown.count("\n") < 60


@pytest.mark.parametrize("arguments", [["send", "-h"], ["plugins", "list", "-h"], ["config", "-h"]])
def test_every_command_takes_the_short_option_for_help(host: Host, arguments: list[str]) -> None:
    result = CliRunner().invoke(cli, arguments, obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout[:7]) == (0, "Usage: ")


def test_the_version_has_what_a_report_needs() -> None:
    assert run("--version").stdout == "ai-cli, version 0.1.0\n"
    lines = run("--version", "-v").stdout.splitlines()
    assert lines[0] == "ai-cli, version 0.1.0"
    assert {line.split(" ")[0] for line in lines} >= {"interpreter:", "pluggy", "click", "plug-ins:"}


def test_a_missing_command_is_an_error() -> None:
    result = run("--no-plugins")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Missing command" in result.stderr


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("recipes list", "ai-cli recipes"),
        ("models list -b sample", "ai-cli models"),
        ("backends list", "ai-cli backends"),
        ("logs list", "ai-cli logs"),
        ("models refresh", "ai-cli models --refresh"),
        ("backends check", "ai-cli backends --check"),
        ("doctor help", "ai-cli doctor --help"),
        ("plugins help", "ai-cli plugins --help"),
        ("help", "ai-cli --help"),
        ("help plugins", "ai-cli plugins --help"),
        ("help nothing", "ai-cli --help"),
        ("version", "ai-cli --version"),
        ("recipes mine", None),
        ("config list", None),
        ("install acme", "ai-cli plugins install acme"),
        ("set one two", "ai-cli keys set one two` or `ai-cli config set one two"),
        ("tell me more -m small", "ai-cli send tell me more -m small"),
        ("sample -s brief hi", "ai-cli send -b sample -s brief hi"),
        ("completion bash zsh", None),
    ],
)
def test_a_word_of_other_programs_leads_to_the_command(host: Host, typed: str, meant: str | None) -> None:
    result = CliRunner().invoke(cli, typed.split(), obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout) == (2, "")
    error = result.stderr.splitlines()[-1]
    assert error.startswith(("error: No such command", "error: Got unexpected extra argument"))
    assert error.partition("Did you mean ")[2] == (f"`{meant}`?" if meant else "")


def test_a_prompt_in_place_of_a_command_leads_to_send(host: Host) -> None:
    result = CliRunner().invoke(cli, ["send it, please"], obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith("Did you mean `ai-cli send 'send it, please'`?")


@pytest.mark.parametrize(("typed", "meant"), [("-m small hi", "ai-cli send -m small hi"), ("--nothing hi", None)])
def test_an_option_of_send_without_it_leads_there(host: Host, typed: str, meant: str | None) -> None:
    result = CliRunner().invoke(cli, typed.split(), obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout) == (2, "")
    error = result.stderr.splitlines()[-1]
    assert error.startswith("error: No such option")
    assert (f"`{meant}`" in error) == (meant is not None)


def test_the_command_of_a_plugin_that_is_not_installed_leads_to_its_installation(host: Host, tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["serve", "--port", "1"], obj=host, prog_name="ai-cli")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].endswith("is not installed: `ai-cli plugins install serve`")
    write_distribution(tmp_path, "d0ttino-serve", entry_points={"llm.plugins": {"serve": "it"}}, files={"it.py": ""})
    with installed(tmp_path) as there:
        result = CliRunner().invoke(cli, ["serve"], obj=there, prog_name="ai-cli")
    assert "plugins install" not in result.stderr


# Colours and tables


@pytest.mark.parametrize(
    ("arguments", "environment", "coloured"),
    [
        ([], {}, False),  # stderr is no terminal
        (["--color", "always"], {}, True),
        (["--color=always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {}, False),
    ],
)
def test_colours_away_from_a_terminal(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], environment: dict[str, str], coloured: bool
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    result = run("send", "-b", "smple", "hi", *arguments)
    assert result.exit_code == 2
    assert ("\x1b[31m" in result.stderr) is coloured


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({"TERM": "xterm-256color"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_on_a_terminal(environment: dict[str, str], coloured: bool) -> None:
    terminal = Terminal("send", "-b", "smple", "hi", env=environment)
    shown = terminal.child.read()
    assert "there is no backend named 'smple'" in shown
    assert ("\x1b[" in shown) is coloured


@pytest.mark.e2e
@pytest.mark.parametrize("group", [(), ("plugins",), ("config",)])
def test_a_group_by_itself_shows_its_help_in_colour(group: tuple[str, ...]) -> None:
    shown = Terminal(*group, env={"TERM": "xterm-256color"}).child.read()
    assert "\x1b[1mOptions:" in shown
    assert "\\x1b" not in shown


@pytest.mark.parametrize(("when", "coloured"), [("always", True), ("never", False), ("auto", False)])
def test_the_colours_of_a_trace(when: str, coloured: bool) -> None:
    result = run("send", "-b", "sample", "hi", "--trace", "--color", when)
    assert "answered by backend:sample" in result.stderr
    assert ("\x1b[1m" in result.stderr) is coloured
    assert result.stdout == "Sample answer to: hi\n"


@pytest.mark.e2e
def test_a_table_fits_a_narrow_terminal() -> None:
    terminal = Terminal("backends", size=(24, 50), env={"NO_COLOR": "1", "TERM": "xterm"})
    lines = terminal.child.read().replace("\r", "").splitlines()
    assert [line.split()[0] for line in lines] == ["BACKEND", "lobechat", "mindbridge", "openrouter", "sample"]
    assert max(map(len, lines)) <= 50
    assert any(line.endswith("…") for line in lines)


def test_a_table_in_a_pipe_is_whole() -> None:
    assert "OPENROUTER_API_KEY" in run("backends").stdout
    assert "…" not in run("backends").stdout


@pytest.mark.e2e
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_notes_on_failed_attempts_come_before_the_answer(stream: str) -> None:
    with FaultServer(chat_answer("Hello.")) as server:
        environment = {
            "LLM_PRIMARY_BACKEND": "openrouter",
            "LLM_FALLBACK_BACKEND": "lobechat",
            "LLM_ROUTING_MODE": "remote",
            "LOBECHAT_BASE_URL": server.url,
            "NO_COLOR": "1",
            "TERM": "dumb",  # no line that shows the wait, which a busy machine takes long enough for
        }
        shown = Terminal("send", "hi", stream, size=(24, 200), env=environment).child.read().splitlines()
    assert [line.split()[0] for line in shown] == ["note:", "note:", "Hello."]


# Waits


@pytest.mark.e2e
def test_a_wait_shows_the_backend_and_leaves_nothing_behind() -> None:
    def slow(exchange: Exchange) -> None:
        exchange.stopping.wait(1.5)
        exchange.connection.sendall(chat_answer("Hello."))

    with FaultServer(slow) as server:
        environment = {"OPENROUTER_API_KEY": "k", "OPENROUTER_BASE_URL": server.url, "TERM": "xterm-256color"}
        terminal = Terminal("send", "-b", "openrouter", "hi", env=environment)
        terminal.expect("waiting for openrouter")
        screen = pyte.Screen(80, 24)
        stream = pyte.Stream(screen)
        stream.feed("waiting for openrouter" + terminal.child.read())
    assert [line.rstrip() for line in screen.display if line.strip()] == ["Hello."]


# Completion


def completions(*words: str, environment: dict[str, str] | None = None) -> tuple[list[str], str]:
    asked = {"_AI_CLI_COMPLETE": "bash_complete", "COMP_WORDS": " ".join(words), "COMP_CWORD": str(len(words) - 1)}
    program = [sys.executable, "-c", "import sys; from scripts.ai_cli import main; sys.argv[0] = 'ai-cli'; main()"]
    done = subprocess.run(
        program, env={**os.environ, **asked, **(environment or {})}, capture_output=True, text=True, timeout=60
    )
    return [line.partition(",")[2] for line in done.stdout.splitlines()], done.stderr


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("ai-cli", "conf"), "config"),
        (("ai-cli", "send", "-b", "sam"), "sample"),
        (("ai-cli", "recipe", "ec"), "echo"),
        (("ai-cli", "send", "--no-c"), "--no-cooldown"),
        (("ai-cli", "hooks", "llm_comp"), "llm_complete"),
        (("ai-cli", "docs", "rou"), "routing"),
        (("ai-cli", "--no-plugin", "sam"), "sample"),
        (("ai-cli", "send", "-b", "openrouter", "-o", "temp"), "temperature"),
        (("ai-cli", "send", "-b", "openrouter", "-o", "store", "t"), "true"),
    ],
)
def test_a_shell_completes(words: tuple[str, ...], found: str) -> None:
    names, said = completions(*words)
    assert found in names
    assert said == ""


@pytest.mark.e2e
def test_a_shell_completes_models_by_their_short_names(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[aliases]\nfast = "sample/tiny"\n')
    assert completions("ai-cli", "send", "-m", "f", environment={"LLM_CONFIG_PATH": str(file)})[0] == ["fast"]


@pytest.mark.e2e
def test_completion_stays_silent_where_something_is_broken(tmp_path: Path) -> None:
    write_distribution(
        tmp_path, "broken", entry_points={"llm.plugins": {"broken": "broken:x"}}, files={"broken.py": "print(1); 1/0"}
    )
    environment = {"PYTHONPATH": str(tmp_path), "LLM_CONFIG_PATH": "/nonexistent/config.toml"}
    names, said = completions("ai-cli", "send", "-b", "o", environment=environment)
    assert (names, said) == (["openrouter"], "")


@pytest.mark.e2e
def test_bash_completes_with_the_installed_script(tmp_path: Path) -> None:
    binaries = tmp_path / "bin"
    binaries.mkdir()
    program = binaries / "ai-cli"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from scripts.ai_cli import main; main()" "$@"\n')
    program.chmod(0o755)
    for _ in range(2):  # a second time adds nothing
        assert run("completion", "bash", "--install").exit_code == 0
    start = Path.home() / ".bashrc"
    assert start.read_text().count("completion.bash") == 1

    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "TERM": "dumb", "INPUTRC": "/dev/null"}
    shell = pexpect.spawn("bash", ["--rcfile", str(start), "-i"], env=environment, encoding="utf-8", timeout=60)
    shell.send("ai-cli doct\t")
    shell.expect("ai-cli doctor")
    shell.close(force=True)


@pytest.mark.e2e
@pytest.mark.skipif(shutil.which("fish") is None, reason="NOT TESTED: there is no fish")
@pytest.mark.parametrize(("line", "found"), [("ai-cli doct", "doctor"), ("ai --no-c", "--no-cooldown")])
def test_fish_completes_each_program_in_a_new_shell(tmp_path: Path, line: str, found: str) -> None:
    for name, function in (("ai-cli", "main"), ("ai", "main_send")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "from scripts.ai_cli import *; {function}()" "$@"\n')
        program.chmod(0o755)
    assert run("completion", "fish", "--install").exit_code == 0
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["fish", "-c", f"complete -C '{line}'"], env=environment, capture_output=True, text=True)
    assert found in done.stdout.split()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell(shell: str) -> None:
    script = run("completion", shell).stdout
    assert f"_AI_CLI_COMPLETE={shell}_complete" in script
    assert f"_AI_COMPLETE={shell}_complete" in script


# The configuration


def test_the_configuration_with_its_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text(
        'primary_backend = "sample"\n[servers.mine]\nbase_url = "http://h/v1"\nheaders = {X-A = "secret"}\n'
    )
    monkeypatch.setenv("LLM_ROUTING_MODE", "remote")
    rows = {row["key"]: (row["value"], row["source"]) for row in json.loads(run("config", "show", "--json").stdout)}
    assert rows["primary_backend"] == ("sample", str(config_file()))
    assert rows["routing_mode"] == ("remote", "LLM_ROUTING_MODE")
    assert rows["complexity_threshold"] == (50, "default")
    assert rows["servers.mine.headers"] == (["X-A"], str(config_file()))
    assert "secret" not in run("config", "show").stdout


def test_a_value_is_set_and_comments_stay() -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text("# mine\ncomplexity_threshold = 5 # few\n")
    assert run("config", "set", "servers.mine.base_url", "http://127.0.0.1:1/v1").exit_code == 0
    assert run("config", "set", "complexity_threshold", "7").exit_code == 0
    assert config_file().read_text().startswith("# mine\ncomplexity_threshold = 7 # few\n")
    assert json.loads(run("servers", "list", "--json").stdout)[0]["name"] == "mine"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rooting_mode", "auto", "Did you mean 'routing_mode'"),
        ("complexity_threshold", "many", "must be a whole number"),
        ("a b", "1", "is not a key"),
    ],
)
def test_a_value_that_would_be_a_mistake_is_not_written(key: str, value: str, words: str) -> None:
    result = run("config", "set", key, value)
    assert result.exit_code in {1, 2}
    assert words in result.stderr
    assert not config_file().exists()


def test_check_names_the_line() -> None:
    assert run("config", "check").exit_code == 0
    config_file().parent.mkdir(parents=True)
    config_file().write_text("\nprimary_backnd = 'x'\n")
    result = run("config", "check")
    assert result.exit_code == 1
    assert f"{config_file()}:2: there is no key named 'primary_backnd'" in result.stderr


@pytest.mark.e2e
def test_check_names_what_every_command_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    directory = Path.home() / ".config" / "d0ttino"
    for variable, value in ("LLM_CONFIG_PATH", str(directory / "gone.toml")), ("LLM_ROUTING_MODE", "fast"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            result = run("config", "check")
        assert (result.exit_code, result.stdout, variable in result.stderr) == (1, "", True)
    directory.mkdir(parents=True)
    (directory / "config.toml").write_text("", encoding="utf-8")
    (directory / "config.json").write_text("{}", encoding="utf-8")
    result = run("config", "check")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "there are two configuration files" in result.stderr


def test_edit_opens_an_editor_and_checks_what_it_wrote(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "nonsense = 1" >> "$1"\n')
    editor.chmod(0o755)
    done = subprocess.run(
        [*AI_CLI, "config", "edit"],
        env={**os.environ, "VISUAL": str(editor)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "there is no key named 'nonsense'" in done.stderr
    assert "# [servers.ollama]" in config_file().read_text()


# The first backend


def test_init_needs_a_terminal() -> None:
    result = run("init")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "ai-cli servers add" in result.stderr


@pytest.mark.e2e
def test_init_ends_with_an_answer() -> None:
    with FaultServer(chat_answer("Hello.")) as server:
        terminal = Terminal("init", env={"TERM": "dumb"})
        before = terminal.expect("Number [1]: ")
        number = next(line for line in before.splitlines() if "by its address" in line).split(".")[0].strip()
        terminal.type(f"{number}\n")
        terminal.expect("Address, up to and with /v1: ")
        terminal.type("here\n")
        terminal.expect("an address begins with http:// or https://")
        terminal.expect("Address, up to and with /v1: ")
        terminal.type(f"{server.url}\n")
        terminal.expect("Name for it [server]: ")
        terminal.type("mine\n")
        terminal.expect("empty: none): ")
        terminal.type("top-secret\n")
        terminal.expect("Model (empty: its default): ")
        terminal.type("tiny\n")
        shown = terminal.expect("Hello.")
        assert f"the key is in {config_file().parent / 'keys.json'}, which only you can read" in shown
        assert terminal.status() == 0
    assert "top-secret" not in before + shown
    assert server.requests[0].headers["authorization"] == "Bearer top-secret"
    assert server.requests[0].json()["model"] == "tiny"
    assert "top-secret" not in config_file().read_text()
    assert json.loads(run("config", "show", "--json").stdout)[0]["value"] == "mine"


@pytest.mark.e2e
def test_init_replaces_no_server() -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text('[servers.mine]\nbase_url = "http://h/v1"\n')
    terminal = Terminal("init", env={"TERM": "dumb"})
    before = terminal.expect("Number [1]: ")
    number = next(line for line in before.splitlines() if "by its address" in line).split(".")[0].strip()
    terminal.type(f"{number}\n")
    terminal.expect("Address, up to and with /v1: ")
    terminal.type("http://127.0.0.1:9/v1\n")
    terminal.expect("Name for it [server]: ")
    terminal.type("mine\n")
    terminal.expect("there is a server named 'mine'")
    terminal.expect("Name for it [server]: ")
    terminal.child.close(force=True)


@pytest.mark.e2e
def test_init_offers_installed_backends_and_names_the_one_before(tmp_path: Path) -> None:
    config_file().parent.mkdir(parents=True)
    config_file().write_text('primary_backend = "lobechat"\n')
    module = "from llm import Backend, hookimpl\n@hookimpl\ndef llm_backends(): return Backend('acme', str.upper)\n"
    files = {"acme_init.py": module}
    write_distribution(tmp_path, "acme-init", entry_points={"llm.plugins": {"acme": "acme_init"}}, files=files)
    terminal = Terminal("init", path=tmp_path, env={"TERM": "dumb"})
    before = terminal.expect("Number [1]: ")
    number = next(line for line in before.splitlines() if "acme" in line).split(".")[0].strip()
    terminal.type(f"{number}\n")
    terminal.expect("Model (empty: its default): ")
    terminal.type("\n")
    terminal.expect("primary backend in place of lobechat: acme")
    terminal.expect("SAY HELLO IN ONE SHORT SENTENCE.")
    assert terminal.status() == 0


@pytest.mark.e2e
def test_init_takes_a_model_that_it_does_not_list(tmp_path: Path) -> None:
    module = (
        "from llm import Backend, hookimpl\nMODELS = [f'm{number}' for number in range(25)]\n"
        "@hookimpl\ndef llm_backends(): return Backend('many', lambda prompt, model: f'by {model}', models=MODELS)\n"
    )
    files = {"acme_many.py": module}
    write_distribution(tmp_path, "acme-many", entry_points={"llm.plugins": {"many": "acme_many"}}, files=files)
    terminal = Terminal("init", path=tmp_path, env={"TERM": "dumb"})
    before = terminal.expect("Number [1]: ")
    number = next(line for line in before.splitlines() if "many:" in line).split(".")[0].strip()
    terminal.type(f"{number}\n")
    assert "and 5 more" in terminal.expect("Model [1]: ")
    for wrong in ("21", "m25"):
        terminal.type(f"{wrong}\n")
        terminal.expect("give a number up to 20, or the name of a model")
        terminal.expect("Model [1]: ")
    terminal.type("m24\n")
    terminal.expect("by m24")
    assert terminal.status() == 0


@pytest.mark.e2e
def test_init_asks_for_a_model_until_there_is_one_where_the_server_has_no_default() -> None:
    terminal = Terminal("init", env={"TERM": "dumb"})
    before = terminal.expect("Number [1]: ")
    number = next(line for line in before.splitlines() if "OpenAI:" in line).split(".")[0].strip()
    terminal.type(f"{number}\n")
    terminal.expect("Key for openai (not shown; empty: none): ")
    terminal.type("planted-key\n")
    terminal.expect("Model: ")
    terminal.type("\n")
    terminal.expect("Model: ")
    terminal.type("\x03")
    if terminal.child.expect_exact(["aborted\r\n", pexpect.TIMEOUT], timeout=5):
        terminal.type("\x03")  # readline misses a signal that comes before it waits
    assert terminal.status() == 130
    assert not config_file().exists()
    assert not (config_file().parent / "keys.json").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("key", ["\x03", "\x04"])
def test_ctrl_c_and_ctrl_d_in_init_change_nothing(key: str) -> None:
    terminal = Terminal("init", env={"TERM": "dumb"})
    terminal.expect("Number [1]: ")
    terminal.type(key)
    if terminal.child.expect_exact(["aborted\r\n", pexpect.TIMEOUT], timeout=5):
        terminal.type(key)  # readline misses a signal that comes before it waits
    assert terminal.status() == 130
    assert not config_file().exists()


# The documentation


def test_the_pages_of_the_documentation() -> None:
    listed = run("docs").stdout
    assert "reference/environment" in listed
    page = run("docs", "environment").stdout
    assert page.startswith("# Environment variables\n")
    assert "<!--" not in run("docs", "hooks").stdout


def test_a_part_of_a_page() -> None:
    part = run("docs", "llm_prepare").stdout
    assert part.startswith("## llm_prepare\n")
    assert "## llm_complete" not in part


def test_words_of_the_text_below_a_heading_find_it() -> None:
    rows = run("docs", "install", "ollama").stdout.splitlines()
    assert rows[0].split() == ["PAGE", "HEADING"]
    assert 1 < len(rows) <= 9
    assert any(row.startswith("guides/coming-from ") for row in rows)
    assert run("docs", "mods", "archived").stdout.startswith("## mods\n")
    assert run("docs", "mods", "zyzzyva").exit_code == 2


def test_an_unknown_topic_gets_close_matches() -> None:
    result = run("docs", "enviroment")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Did you mean" in result.stderr
    assert "environment" in result.stderr


@pytest.mark.skipif(
    tuple(map(int, importlib.metadata.version("click").split(".")[:2])) < (8, 4),
    reason="the reference has the words of a later click",
)
def test_the_reference_is_up_to_date() -> None:
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, str(root / "docs/generate_reference.py"), "--check"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert (done.returncode, done.stderr) == (0, "")


OPTIONS = [
    click.Option(["-f", "--flag"], is_flag=True),
    click.Option(["--yes", "-y"], is_flag=True),
    click.Option(["-x"], is_flag=True),
    click.Option(["-v", "--verbose"], count=True),
    click.Option(["-n", "--name"], multiple=True),
    click.Option(["-t", "--two"], nargs=2, multiple=True),
    click.Option(["-m", "--maybe"], is_flag=False, flag_value=""),
]
WORDS = ["-f", "-y", "-x", "-v", "-n", "-t", "-m", "-fx", "-nfoo", "-n=1", "--name", "--name=f", "--yes", "--nam", "-z"]


def parsed(command: click.Command, arguments: list[str]) -> object:
    """Return the values of a command's parameters, or the error of its arguments."""
    try:
        return command.make_context("it", list(arguments)).params
    except click.ClickException as error:
        return error.format_message()


@pytest.mark.parametrize("kind", [click.Command, click.Group])
@given(st.lists(st.sampled_from([*WORDS, "--", "-", "word"]), max_size=6))
def test_options_of_one_letter_are_read_as_click_reads_them(kind: type[click.Command], arguments: list[str]) -> None:
    ours: type[click.Command] = {click.Command: Command, click.Group: Group}[kind]
    more: dict[str, Any] = {"no_args_is_help": False} if kind is click.Group else {}
    words = [] if kind is click.Group else [click.Argument(["words"], nargs=-1)]
    of_ours, of_theirs = (parsed(made("it", params=[*OPTIONS, *words], **more), arguments) for made in (ours, kind))
    assert of_ours == of_theirs


# The first process of a container

_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--"]


def _silent(exchange: Exchange) -> None:
    exchange.stopping.wait(60)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_first_process_of_a_container_ends_on_a_signal(number: int) -> None:
    if not shutil.which("unshare") or subprocess.run([*_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("NOT TESTED: this user may not make namespaces")
    with FaultServer(_silent) as server:
        program = subprocess.Popen(
            [*_CONTAINER, *AI_CLI, "send", "-b", "mindbridge", "hi"],
            env={**os.environ, "MINDBRIDGE_BASE_URL": server.url},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        try:
            while not server.requests and program.poll() is None:
                time.sleep(0.02)
            (first,) = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
            os.kill(int(first), number)
            assert program.wait(30) == 128 + number
        finally:
            program.kill()
            program.communicate()
