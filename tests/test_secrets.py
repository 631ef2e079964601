"""No key gets out: keys are planted, plug-ins give them away, and everything that was written is searched."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import example, given
from hypothesis import strategies as st

import llm
from llm.host import Host
from llm.redaction import MASK, looks_secret, redactor
from llm.testing import host_with, installed, write_distribution
from scripts.ai_cli import cli
from scripts.steps import step_environment

#: Environment, and the core of each secret in it. Some have characters that URLs, JSON and `repr` write otherwise.
PLANTED = {
    "OPENROUTER_API_KEY": "PLANTED01 with space",
    "LOBECHAT_API_KEY": "PLANTED02'quote\"both",
    "LOBECHAT_BASE_URL": "http://someone:PLANTED03%2Fpassword@127.0.0.1:9/v1?api_key=PLANTED04",
    "MINDBRIDGE_BASE_URL": "https://PLANTED05userkey@127.0.0.1:9/v1",
    "PLUGIN_REGISTRY_URL": "http://someone:PLANTED06password@127.0.0.1:9/registry.json?token=PLANTED07",
    "OPENROUTER_BASE_URL": "http://127.0.0.1:9/v1",  # nobody is asked
    "LEAKY_DECLARED": "PLANTED08/declared\\by=the&backend",
    "LEAKY_HEADER_TOKEN": "PLANTED09header",
    "DEPLOY_CREDENTIALS": "-----BEGIN-----\nPLANTED10 second line\n-----END-----",
}
CORE = "PLANTED"

MODULE = """
import json
import os
from urllib.parse import quote, quote_plus, unquote

from llm import Backend, Candidate, Completion, Recipe, Rejection, Route, Step, hookimpl
from llm.backends.http import ChatCompletionsBackend
from llm.backends.plugin_sdk import register_backend

NAMES = [name for name in os.environ if "PLANTED" in os.environ[name]]


def all_keys():
    values = [os.environ[name] for name in NAMES]
    values += [unquote(value) for value in values]
    written = [*values, *map(repr, values), *map(json.dumps, values), *map(quote, values)]
    written += [quote(value, "") for value in values] + [quote_plus(value) for value in values]
    lines = [line for value in values for line in value.splitlines()]
    headers = [f"Authorization: Bearer {os.environ['OPENROUTER_API_KEY']}", "x-api-key: PLANTED11unknown"]
    headers += ["https://someone:PLANTED12unknown@example.com/?sig=PLANTED13&a=b", "sk-PLANTED14unknown"]
    return " ".join((*written, *lines, *headers, repr({"api_key": "PLANTED15unknown"})))


class Leaky:
    def __repr__(self):
        return all_keys()


class Header(ChatCompletionsBackend):
    label = "Header"
    default_base_url = "http://127.0.0.1:9/v1"
    secret_env = ("LEAKY_HEADER_TOKEN",)

    def headers(self):
        return {"X-Api-Key": os.environ["LEAKY_HEADER_TOKEN"], all_keys(): "x"}


register_backend("header", Header)
register_backend("returns", lambda prompt: Leaky())


@hookimpl
def llm_backends():
    return [
        Backend(name, run, description=all_keys(), secret_env=("LEAKY_DECLARED",))
        for name, run in {"raises": raises, "exits": exits, "object": lambda prompt: Leaky()}.items()
    ]


def raises(prompt):
    try:
        raise ValueError(all_keys())
    except ValueError as error:
        raise RuntimeError(all_keys()) from error


def exits(prompt):
    raise SystemExit(all_keys())


@hookimpl
def llm_route(request, backends, settings):
    if request.prompt == "route":
        return Route((Candidate("raises", reason=all_keys()), Candidate("sample", reason=all_keys())),
                     (Rejection("exits", all_keys()),), (all_keys(),))
    if request.prompt == "nowhere":
        return Route((), (Rejection("exits", all_keys()),), (all_keys(),))


@hookimpl
def llm_completed():
    raise RuntimeError(all_keys())


@hookimpl
def llm_recipes():
    return [Recipe("leaks", leaks, description=all_keys()), Recipe("steps", lambda goal: ["true"])]


def leaks(goal):
    raise RuntimeError(all_keys())


@hookimpl
def llm_run_step(step):
    raise RuntimeError(all_keys())


@hookimpl
def llm_commands(cli):
    import click

    @cli.command()
    def leak():
        raise RuntimeError(all_keys())

    @cli.command()
    def leak_usage():
        raise click.UsageError(all_keys())

    raise RuntimeError(all_keys())
"""

FILES = {
    "leaky_mod.py": MODULE,
    "leaky_import.py": "from leaky_mod import all_keys\nraise RuntimeError(all_keys())",
    "leaky_exit.py": "from leaky_mod import all_keys\nraise SystemExit(all_keys())",
}
ENTRY_POINTS = {"llm.plugins": {"leaky": "leaky_mod", "import": "leaky_import", "exit": "leaky_exit"}}

COMMANDS = [
    *[("send", "-b", name, "hi") for name in ("raises", "exits", "object", "returns", "header")],
    ("send", "-b", "openrouter", "hi", "--max-attempts", "1"),
    *[("send", "-b", name, "hi") for name in ("lobechat", "mindbridge", "sample", "nobody")],
    ("send", "route"),
    ("send", "route", "--json"),
    ("send", "nowhere"),
    ("plan", "route"),
    ("plan", "-b", "raises", "hi"),
    ("do", "route", "--yes"),
    ("recipe", "leaks", "hi", "--yes"),
    ("recipe", "steps", "hi", "--yes", "--log=log"),
    ("backends",),
    ("backends", "--json"),
    ("recipes",),
    ("recipes", "--json"),
    ("plugins", "list"),
    ("plugins", "list", "--json"),
    ("plugins", "install", "nobody"),
    ("plugins", "remove", "nobody"),
    ("plugins", "recipes", "list"),
    ("hooks",),
    ("hooks", "--json"),
    ("doctor",),
    ("doctor", "--json"),
    ("why", "send", "route"),
    ("why", "send", "route", "--json"),
    ("why", "send", "nowhere"),
    ("why", "recipe", "leaks"),
    ("why", "recipe", "leaks", "--json"),
    ("leak",),
    ("leak-usage",),
    ("--help",),
]
OPTIONS = [
    (),
    ("--debug",),
    ("--trace",),
    ("--trace", "--trace-values", "--debug"),
    ("--trace=trace", "--trace-values"),
]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Go to a directory of its own, and plant the keys."""
    directory = tmp_path / "work"
    directory.mkdir()
    monkeypatch.chdir(directory)
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    return directory


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory with the plug-ins that give keys away, installed."""
    directory = tmp_path / "site"
    write_distribution(directory, "leaky", entry_points=ENTRY_POINTS, files=FILES)
    return directory


@pytest.fixture
def host(site: Path, workplace: Path) -> Iterator[Host]:
    with installed(site) as host:
        yield host


def written(*directories: Path) -> str:
    """Return the names and contents of all files below some directories."""
    files = [file for directory in directories for file in directory.rglob("*") if file.is_file()]
    return "\n".join(f"{file}\n{file.read_text(encoding='utf-8', errors='replace')}" for file in files)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_no_command_shows_a_key(host: Host, workplace: Path, command: tuple[str, ...]) -> None:
    for options in OPTIONS:
        result = CliRunner().invoke(cli, [*command, *options], obj=host, prog_name="ai-cli")
        assert CORE not in result.output, options
    assert CORE not in written(workplace, Path.home())
    assert (workplace / "trace").is_file() or command in {("--help",), ("leak-usage",)}


def test_no_process_writes_a_key_anywhere(site: Path, workplace: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(site)}
    commands = (
        # A name that nobody has is warned of before there is a host that knows what is secret.
        ["send", "route", "--trace", "--no-plugin=nobody"],
        ["plugins", "list", "--check"],
        ["plugins", "list"],
        ["doctor", "--debug"],
    )
    shown = []
    for command in commands:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "scripts.ai_cli", *command], env=environment, capture_output=True, text=True
        )
        shown.append(done.stdout + done.stderr)
    assert CORE not in "".join(shown)
    assert CORE not in written(workplace, Path.home())
    # What is searched is there: the failure is told, and kept without what it gave away.
    assert all("RuntimeError" in text and MASK in text for text in shown)
    (manifests,) = Path.home().glob(".cache/d0ttino/environments/*/manifests.json")
    assert MASK in manifests.read_text(encoding="utf-8")


def test_a_program_traces_without_keys_as_well(host: Host) -> None:
    from llm.tracing import Describe, records

    with llm.trace(host) as trace, pytest.raises(llm.router.NoAnswerError):
        llm.send_prompt("hi", backend="raises", host=host)
    found = str(list(records(trace, Describe(redactor(host.secret_names()), True))))
    assert CORE not in found
    assert MASK in found


def test_asking_for_secret_names_is_not_part_of_a_trace(host: Host) -> None:
    with llm.trace(host) as trace:
        assert "LEAKY_DECLARED" in host.secret_names()
    assert trace.spans == []


@pytest.mark.parametrize(
    "text",
    [
        "there is no backend named 'key'; Did you mean 'keys'?",
        "set OPENROUTER_API_KEY",
        "export OPENROUTER_API_KEY=...",
        "http://127.0.0.1:8000/v1/chat/completions?limit=10",
        "basic authentication, bearer of news, token: none",
        "git@github.com:me/project, sk-learn",
        "/home/someone/project.py, line 3",
        "the password is not set; secret: ***",
    ],
)
def test_harmless_text_stays_as_it_is(text: str) -> None:
    assert redactor(environ={"A_KEY": "short", "HOME": "/home/someone", "TOKEN": ""})(text) == text


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("OPENROUTER_API_KEY", True),
        ("APIKEY", True),
        ("GITHUB_TOKEN", True),
        ("DB_PASSWORD", True),
        ("KEYBOARD", False),
        ("MONKEY", False),
        ("PATH", False),
        ("GITHUB_PAT", True),
        ("PATTERN", False),
        ("AZURE_CONN_STRING", True),
        ("connection_str", True),
        ("CONN_STRENGTH", False),
        ("STR_CONN", False),
        ("MYSECRETS", True),
        ("npm_config_authtoken", True),
        ("TOKENS_LEFT", False),
        ("PGPASS", False),
        ("DB_PASS", True),
        ("PASS_DB", False),
        ("MY_CREDS_FILE", True),
    ],
)
def test_which_variables_hold_secrets(name: str, secret: bool) -> None:
    assert looks_secret(name) is secret


#: Pieces of secrets, and of what looks like one.
PIECES = (
    *("://", "@", "?", "&", "=", ":", " ", "'", '"', "-", "_", "/", "abcdefghij", "Ab1"),
    *("Bearer", "BASIC", "api_key", "x-api-key", "access-token", "Client_Secret", "passwd", "password", "auth"),
    *("sig", "signature", "credentials", "sk", "PK", "rk", "ghp", "gho", "ghs", "glpat", "xoxa", "xoxb", "xoxp"),
)


@given(st.lists(st.sampled_from(PIECES), max_size=8).map("".join))
@example("sk-abcdefghij")
def test_no_secret_is_passed_over_because_its_text_shows_no_sign_of_one(text: str) -> None:
    redact = redactor(environ={})
    # Letters beyond ASCII have each text looked through.
    assert redact(text) + "\n\u2026" == redact(f"{text}\n\u2026")


def test_a_secret_that_is_part_of_another_leaves_no_rest() -> None:
    redact = redactor(environ={"A_KEY": "abcdef", "B_KEY": "abcdefghij"})
    assert redact("abcdefghij abcdef") == f"{MASK} {MASK}"


GIVE_ACCESS = {
    "DATABASE_URL": "postgres://me:hunter2@db/app",
    "HTTPS_PROXY": "http://me:hunter2@proxy:3128",
    "PLUGIN_REGISTRY_URL": "https://example.org/registry.json?private_token=abcdef",
    "PIP_INDEX_URL": "https://example.org/simple?X-Amz-Signature=abcdef",
    "AZURE_DEVOPS_PAT": "abcdef",
    "MYSQL_PWD": "x",
    "PGPASSWORD": "x",
    "SMTP_PASS": "x",
    "REDISCLI_AUTH": "x",
    "MYSECRETSAUCE": "x",
    "npm_config__authToken": "x",
    "SLACK_WEBHOOK_URL": "https://example.org/T0/B0/xyz",
    "AWS_ACCESS_KEY_ID": "x",
    "AWS_PROFILE": "production",
    "AZURE_STORAGE_CONNECTION_STRING": "AccountName=x",
    "SENTRY_DSN": "https://0123456789abcdef@example.org/1",
    "WHATEVER": "ghp_0123456789abcdefghij",
}
HARMLESS = {
    "PATH": "/usr/bin:/bin",
    "PWD": "/tmp",
    "OLDPWD": "/tmp",
    "SSH_AUTH_SOCK": "/run/agent",
    "GIT_ASKPASS": "/usr/bin/ask",
    "XAUTHORITY": "/home/me/.Xauthority",
    "AWS_REGION": "eu-central-1",
    "TOKENIZERS_PARALLELISM": "false",
    "COMPATIBLE": "1",
    "DOCS_URL": "https://example.org/a?page=2&sort=up",
    "KEYBOARD": "de",
}


@pytest.mark.parametrize(("name", "value"), GIVE_ACCESS.items())
def test_variables_that_give_access_do_not_reach_steps(name: str, value: str) -> None:
    secrets = host_with().secret_names()
    assert step_environment(secrets, {name: value}) == {}
    assert step_environment(secrets, {name: value}, keep=[name]) == {name: value}


def test_other_variables_reach_steps() -> None:
    assert step_environment(host_with().secret_names(), HARMLESS) == HARMLESS
