"""`ai-cli servers`, `models`, `keys` and `backends --check`, with real servers on 127.0.0.1."""

import json
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keyring
import pexpect
import pytest
from click.testing import CliRunner, Result

from llm import Backend, hookimpl
from llm.backends.http import NO_MODELS
from llm.host import create_host
from scripts.ai_cli import cli
from tests.servers import FaultServer, chat_answer, free_port, http_answer

MODELS = http_answer({"data": [{"id": "qwen3:4b"}, {"id": "llama3.2:latest"}]})
Run = Callable[..., Result]


@pytest.fixture
def config(clean_environment: Path) -> Path:
    return clean_environment / ".config" / "d0ttino" / "config.toml"


@pytest.fixture
def run() -> Run:
    def invoke(*arguments: str, stdin: str | bytes = "", plugin: object = None) -> Result:
        host = create_host(entries=())
        if plugin is not None:
            host.register(plugin, "extra")
        return CliRunner().invoke(cli, list(arguments), obj=host, input=stdin)

    return invoke


def test_add_leaves_the_rest_of_the_file_as_it_is(run: Run, config: Path) -> None:
    before = (
        '# mine\nrouting_mode = "auto"   # as it is\n\n[servers.old]  # the first\nbase_url = "http://127.0.0.1:1"\n'
    )
    config.parent.mkdir(parents=True)
    config.write_text(before)
    done = run("servers", "add", "new", "http://127.0.0.1:2/v1", "-m", "m", "--header", "X-A", "b", "--timeout", "5")
    assert (done.exit_code, done.stderr) == (0, "")
    written = config.read_text()
    assert written.startswith(before)
    assert json.loads(run("servers", "list", "--json").stdout) == [
        {"name": "old", "base_url": "http://127.0.0.1:1"},
        {"name": "new", "base_url": "http://127.0.0.1:2/v1", "model": "m", "timeout": 5.0, "headers": ["X-A"]},
    ]
    assert run("servers", "remove", "new").exit_code == 0
    assert config.read_text().rstrip() == before.rstrip()


def test_add_writes_nothing_that_would_be_wrong(run: Run, config: Path) -> None:
    assert run("servers", "add", "one", "http://127.0.0.1:1").exit_code == 0
    before = config.read_text()
    for arguments, words in (
        (("one", "http://127.0.0.1:2"), "there is a server named 'one'"),
        (("two", "ftp://127.0.0.1"), "servers.two.base_url must be an address"),
        (("a b", "http://127.0.0.1"), "the name 'a b' must be letters"),
        (("two", "http://127.0.0.1", "--key", "sk-planted-1234567890"), "the name of a key, not the key"),
    ):
        done = run("servers", "add", *arguments)
        assert done.exit_code == 2
        assert words in done.stderr
        assert "planted" not in done.stderr
        assert config.read_text() == before
    assert run("servers", "add", "one", "http://127.0.0.1:2", "--replace").exit_code == 0
    assert "127.0.0.1:2" in config.read_text()


def test_a_json_file_is_changed_too_and_a_broken_one_is_not(run: Run, config: Path) -> None:
    file = config.with_suffix(".json")
    file.parent.mkdir(parents=True)
    file.write_text('{"routing_mode": "auto"}')
    assert run("servers", "add", "one", "http://127.0.0.1:1").exit_code == 0
    assert json.loads(file.read_text()) == {
        "routing_mode": "auto",
        "servers": {"one": {"base_url": "http://127.0.0.1:1"}},
    }
    file.write_text('{"routing_mode": "fast"}')
    done = run("servers", "add", "two", "http://127.0.0.1:1")
    assert done.exit_code == 2
    assert "routing_mode must be one of" in done.stderr
    assert file.read_text() == '{"routing_mode": "fast"}'


def test_unknown_servers_get_close_matches(run: Run) -> None:
    run("servers", "add", "ollama", "http://127.0.0.1:1")
    for command in (["servers", "test", "olama"], ["servers", "remove", "olama"], ["models", "-b", "olama"]):
        done = run(*command)
        assert done.exit_code == 2
        assert "Did you mean 'ollama'?" in done.stderr


def test_test_says_whether_the_server_the_key_and_the_model_are_there(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = http_answer({"error": {"message": "bad key"}}, status=401)
    with FaultServer(MODELS, MODELS, refused) as server:
        run("servers", "add", "one", f"{server.url}/v1", "--model", "qwen3:4b", "--key", "one")
        missing = run("servers", "test", "one")
        monkeypatch.setenv("ONE_API_KEY", "planted-key")
        good = run("servers", "test", "one")
        run("servers", "add", "one", f"{server.url}/v1", "--model", "qwen3:4", "--key", "one", "--replace")
        other = run("servers", "test", "one")
        bad = run("servers", "test", "one")
    assert (missing.exit_code, good.exit_code, other.exit_code, bad.exit_code) == (1, 0, 1, 1)
    assert "ai-cli keys set one" in missing.stdout
    assert good.stdout == "one: answers\n"
    assert "no model 'qwen3:4'; did you mean 'qwen3:4b'?" in other.stdout
    assert "refused the API key" in bad.stdout
    assert {one.headers["authorization"] for one in server.requests} == {"Bearer planted-key"}


def test_find_looks_at_this_machine_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = free_port()
    with FaultServer(MODELS) as server, FaultServer(http_answer("<html>")) as page, FaultServer() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        ports = [one.host.rpartition(":")[2] for one in (server, page)] + [str(nobody)]
        found = run("servers", "find", *(word for port in ports for word in ("--port", port)))
        assert found.exit_code == 0
        _, row = found.stdout.splitlines()
        command = row[row.index("ai-cli") :].split()
        assert command[1:3] == ["servers", "add"]
        assert run(*command[1:]).exit_code == 0
        again = json.loads(run("servers", "find", "--port", ports[0], "--json").stdout)
        assert [(one["models"], one["configured"]) for one in again] == [(["llama3.2:latest", "qwen3:4b"], True)]
        assert run("servers", "find", "--port", str(nobody)).exit_code == 1
    assert proxy.requests == []


def test_a_server_that_is_found_gets_a_name_of_its_own(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(MODELS) as server:
        port = int(server.host.rpartition(":")[2])
        monkeypatch.setattr("scripts.cli.servers._DEFAULT_PORTS", {port: "ollama"})
        find = ("servers", "find", "--port", str(port), "--json")
        assert json.loads(run(*find).stdout)[0]["name"] == "ollama"
        run("servers", "add", "ollama", "http://elsewhere.example/v1")
        assert json.loads(run(*find).stdout)[0]["name"] == f"ollama{port}"


def test_models_are_cached_and_the_cache_serves_when_the_server_is_gone(run: Run) -> None:
    with FaultServer(MODELS) as server:
        run("servers", "add", "one", server.url)
        for _ in range(2):
            assert run("models").stdout == "one/llama3.2:latest\none/qwen3:4b\n"
        assert len(server.requests) == 1
        assert run("models", "--refresh", "--search", "QWEN 4").stdout == "one/qwen3:4b\n"
        assert len(server.requests) == 2
    done = run("models", "-b", "one", "--refresh", "--json")
    assert done.exit_code == 0
    (row,) = json.loads(done.stdout)
    assert row["models"] == ["llama3.2:latest", "qwen3:4b"]
    assert "no answer from the server 'one'" in row["error"]
    assert "its models of less than a minute ago are listed" in done.stderr


@pytest.mark.parametrize("listed", ["9e9", "NaN"])
def test_a_list_of_models_from_the_future_is_outdated(run: Run, listed: str) -> None:
    cached = Path.home() / ".cache" / "d0ttino" / "models" / "one.json"
    with FaultServer(MODELS, http_answer({"data": [{"id": "new"}]})) as server:
        assert run("servers", "add", "one", server.url).exit_code == 0
        assert run("models").exit_code == 0
        cached.write_text(f'[{listed}, ["old"]]', encoding="utf-8")
        assert run("models").stdout == "one/new\n"


@pytest.mark.parametrize("body", ['{"object": "list", "data": null}', '{"models": []}', '{"models": null}', "[]"])
def test_a_server_without_a_model_answers_and_what_to_do_next_is_named(body: str, run: Run) -> None:
    wants_one = http_answer({"error": {"message": "model is required"}}, status=400)
    with FaultServer(*[http_answer(body)] * 3, wants_one, MODELS) as server:
        run("servers", "add", "fresh", server.url)
        tried, checked, listed = run("servers", "test", "fresh"), run("backends", "--check"), run("models")
        sent = run("send", "-b", "fresh", "hi")
        pulled = run("models")
    assert (tried.exit_code, tried.stdout) == (1, f"fresh: cannot be used: {NO_MODELS}\n")
    assert "ollama pull" in NO_MODELS
    assert f"cannot be used: {NO_MODELS}" in next(
        line for line in checked.stdout.splitlines() if line.startswith("fresh")
    )
    assert (listed.exit_code, listed.stdout) == (0, "")
    assert f"fresh: {NO_MODELS}" in listed.stderr
    assert "name one with -m; `ai-cli models -b fresh` lists" in sent.stderr
    assert pulled.stdout == "fresh/llama3.2:latest\nfresh/qwen3:4b\n"


def test_models_that_nobody_tells_are_an_error(run: Run) -> None:
    run("servers", "add", "one", f"http://127.0.0.1:{free_port()}")
    done = run("models")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "warning: one does not list its models" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "asked"),
    [
        (["-m", "one/qwen3:4b"], "qwen3:4b"),
        (["-m", "fast"], "qwen3:4b"),
        (["-b", "one", "-m", "fast"], "qwen3:4b"),
        (["-b", "one", "-m", "short"], "long/name"),
        (["-b", "one", "-m", "some/model"], "some/model"),
        (["-m", "one/some/model"], "some/model"),
        (["-m", "one/one/model"], "one/model"),
        (["-b", "one", "-m", "one/model"], "model"),
        (["-b", "one", "-m", "sample/model"], "sample/model"),
    ],
)
def test_names_of_models(arguments: list[str], asked: str, run: Run, config: Path) -> None:
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url)
        with config.open("a") as file:
            file.write('[aliases]\nfast = "one/qwen3:4b"\nshort = "long/name"\n')
        done = run("send", *arguments, "hi")
        assert (done.exit_code, done.stdout, done.stderr) == (0, "42\n", "")
    assert server.requests[0].json()["model"] == asked


def test_a_typing_error_in_a_server_or_an_alias_is_pointed_out(run: Run, config: Path) -> None:
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "ollama", server.url)
        with config.open("a") as file:
            file.write('[aliases]\nfast = "ollama/qwen3:4b"\n')
        assert "did you mean 'ollama/qwen3:4b'?" in run("send", "-m", "olama/qwen3:4b", "hi").stderr
        assert "did you mean 'fast'?" in run("send", "-m", "fst", "hi").stderr
        assert run("send", "-m", "vendor/model", "hi").stderr == ""


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (404, "no"),
        (400, "Invalid model name passed in model=qwen3:4"),
        (400, "qwen3:4 is not a valid model ID"),
        (422, "The model `qwen3:4` does not exist"),
        (400, "model 'qwen3:4' not found, try pulling it first"),
    ],
)
def test_an_unknown_model_gets_close_matches(run: Run, status: int, message: str) -> None:
    missing = http_answer({"error": {"message": message}}, status=status)
    with FaultServer(MODELS, missing) as server:
        run("servers", "add", "one", server.url)
        run("models")
        done = run("send", "-m", "one/qwen3:4", "hi")
    assert "did you mean 'qwen3:4b'? `ai-cli models -b one` lists" in done.stderr


def test_backends_check_asks_each(run: Run) -> None:
    class Plugin:
        @hookimpl
        def llm_backends(self) -> list[Backend]:
            def broken(_call: object) -> None:
                raise RuntimeError("no luck")

            return [
                Backend("asleep", lambda prompt: prompt, check=lambda _call: "it sleeps"),
                Backend("broken", lambda prompt: prompt, check=broken),
            ]

    with FaultServer(MODELS) as server:
        run("servers", "add", "one", server.url)
        done = run("backends", "--check", "--json", plugin=Plugin())
    found = {row["name"]: row["check"] for row in json.loads(done.stdout)}
    assert {name: check["ok"] for name, check in found.items()} == {
        "asleep": False,
        "broken": False,
        "lobechat": False,
        "mindbridge": False,
        "one": True,
        "openrouter": False,
        "sample": None,
    }
    assert found["asleep"]["reason"] == "it sleeps"
    assert "no luck" in found["broken"]["reason"]
    assert "ai-cli keys set openrouter" in found["openrouter"]["hint"]


def test_a_stored_key_is_sent_and_never_shown(run: Run, config: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    echo = http_answer({"error": {"message": "you sent planted-key-1"}}, status=400)
    with FaultServer(chat_answer("42"), echo) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        done = run("keys", "set", "one", stdin=" planted-key-1\n")
        assert done.exit_code == 0
        shown = done.output
        assert run("send", "-b", "one", "hi").stdout == "42\n"
        done = run("send", "-b", "one", "hi", f"--trace={trace}", "--trace-values", "--debug")
        shown += done.output + run("keys", "list").output + run("keys", "list", "--json").output
    assert server.requests[0].headers["authorization"] == "Bearer planted-key-1"
    assert "you sent ***" in done.stderr
    assert "planted" not in shown + trace.read_text()
    file = config.with_name("keys.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with_key = [file for file in config.parents[2].rglob("*") if file.is_file() and b"planted" in file.read_bytes()]
    assert with_key == [file]


def test_the_environment_wins_over_a_stored_key(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONE_API_KEY", "planted-environment")
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        assert "ONE_API_KEY is set, and wins" in run("keys", "set", "one", stdin="planted-stored").stderr
        run("send", "-b", "one", "hi")
    assert server.requests[0].headers["authorization"] == "Bearer planted-environment"


def test_a_stored_key_makes_a_backend_ready(run: Run) -> None:
    assert "OPENROUTER_API_KEY" in run("backends").stdout
    run("keys", "set", "OPENROUTER_API_KEY", stdin="planted")
    rows = {row["name"]: row for row in json.loads(run("backends", "--json").stdout)}
    assert rows["openrouter"]["ready"]
    assert [row["name"] for row in json.loads(run("keys", "list", "--json").stdout) if row["from"] == "file"] == [
        "openrouter"
    ]
    assert run("keys", "remove", "openrouter").exit_code == 0
    assert run("keys", "remove", "openrouter").exit_code == 2


def test_a_key_that_nothing_uses_is_stored_with_the_next_step(run: Run) -> None:
    unused = run("keys", "set", "one", stdin="planted")
    assert (unused.exit_code, "ai-cli servers add one ADDRESS --key one" in unused.stderr) == (0, True)
    assert "servers add" not in run("keys", "set", "openrouter", stdin="planted").stderr


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["one", "sk-planted-1234567890"], "", "a key is never an argument"),
        (["sk-planted-1234567890"], "x", "this is not the name of a key"),
        (["one"], "", "no key was given"),
        (["one"], "planted\nplanted", "holds a character that no API key can have"),
        (["one"], b"\xff\xfeplanted", "not UTF-8"),
    ],
)
def test_what_is_no_key_is_refused_and_not_shown(
    arguments: list[str], stdin: str | bytes, words: str, run: Run, config: Path
) -> None:
    done = run("keys", "set", *arguments, stdin=stdin)
    assert done.exit_code == 2
    assert words in done.stderr
    assert "planted" not in done.output
    assert not config.with_name("keys.json").exists()


def test_a_key_file_that_others_can_read_is_not_used(run: Run, config: Path) -> None:
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        run("keys", "set", "one", stdin="planted-stored")
        file = config.with_name("keys.json")
        file.chmod(0o644)
        done = run("send", "-b", "one", "hi")
        assert done.exit_code == 1
        assert f"other users can read the keys in {file}" in done.stderr
        assert f"chmod 600 {file}" in done.stderr
        file.write_text('{"one": 5}')
        file.chmod(0o600)
        assert f"{file} is damaged" in run("send", "-b", "one", "hi").stderr
    assert server.requests == []


def test_keys_test_asks_the_backends_that_use_it(run: Run) -> None:
    with FaultServer(MODELS, http_answer(status=401)) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        run("keys", "set", "one", stdin="planted")
        good, bad = run("keys", "test", "one"), run("keys", "test", "one")
    assert (good.exit_code, good.stdout) == (0, "one: answers\n")
    assert bad.exit_code == 1
    assert "refused the API key" in bad.stdout
    assert "`ai-cli keys set one`" in bad.stdout
    assert "Did you mean 'one'?" in run("keys", "test", "on").stderr


def kept_in(ring: type, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make a keyring the system's one, and return it."""
    made = type("Ring", (ring, keyring.backend.KeyringBackend), {})()
    monkeypatch.setattr(keyring.core, "_keyring_backend", made)
    return made


def test_a_keyring_is_used_where_there_is_one(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Ring:
        priority = 5
        name = "a ring"

        def __init__(self) -> None:
            self.held: dict[tuple[str, str], str] = {}

        def get_password(self, service: str, username: str) -> str | None:
            return self.held.get((service, username))

        def set_password(self, service: str, username: str, password: str) -> None:
            self.held[service, username] = password

        def delete_password(self, service: str, username: str) -> None:
            del self.held[service, username]

    ring = kept_in(Ring, monkeypatch)
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        assert "in a ring" in run("keys", "set", "one", stdin="planted").stderr
        assert json.loads(config.with_name("keys.json").read_text()) == {"one": None}
        assert run("send", "-b", "one", "hi").stdout == "42\n"
    assert server.requests[0].headers["authorization"] == "Bearer planted"
    assert "keyring" in run("keys", "list").stdout
    run("keys", "remove", "one")
    assert ring.held == {}


def test_a_keyring_that_fails_is_told_and_the_file_has_the_key(
    run: Run, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Locked:
        priority = 5
        name = "a ring"

        def get_password(self, service: str, username: str) -> str | None:
            raise RuntimeError("the ring is locked")

        def set_password(self, service: str, username: str, password: str) -> None:
            raise RuntimeError("the ring is locked")

        def delete_password(self, service: str, username: str) -> None:
            raise RuntimeError("the ring is locked")

    kept_in(Locked, monkeypatch)
    file = config.with_name("keys.json")
    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        done = run("keys", "set", "one", stdin="planted")
        assert done.exit_code == 0
        assert "warning: the system's keyring does not take the key: the ring is locked" in done.stderr
        assert f"the key one is in {file}, which only you can read" in done.stderr
        assert run("send", "-b", "one", "hi").stdout == "42\n"
        file.write_text('{"one": null}')
        done = run("send", "-b", "one", "hi")
        assert "the system's keyring did not return the key 'one': the ring is locked" in done.stderr
        assert run("keys", "remove", "one").exit_code == 0


def test_nothing_is_left_beside_the_files(run: Run, config: Path) -> None:
    run("servers", "add", "one", "http://127.0.0.1:9", "--key", "one")
    run("keys", "set", "one", stdin="planted")
    run("servers", "remove", "one")
    run("keys", "remove", "one")
    assert sorted(file.name for file in config.parent.iterdir()) == ["config.toml", "keys.json"]


def test_keys_that_are_set_at_once_are_all_there(config: Path) -> None:
    """The file of a lock is removed by whoever held it, and nobody else may hold that one."""
    command = [sys.executable, "-c", "import sys; from llm._keys import store_key; store_key(sys.argv[1], 'planted')"]
    programs = [subprocess.Popen([*command, f"k{number}"]) for number in range(8)]
    assert [program.wait(timeout=60) for program in programs] == [0] * 8
    assert len(json.loads(config.with_name("keys.json").read_text())) == 8


def test_a_store_of_a_plugin_is_asked_before_the_built_in_one(run: Run) -> None:
    class Vault:
        @hookimpl
        def llm_key(self, name: str) -> str | None:
            return f"planted-{name}-in-vault" if name == "one" else None

    class Broken:
        @hookimpl
        def llm_key(self) -> str:
            raise RuntimeError("the vault is locked")

    with FaultServer(chat_answer("42")) as server:
        run("servers", "add", "one", server.url, "--key", "one")
        for plugin, ready in ((Vault(), True), (None, False)):
            rows = json.loads(run("backends", "--json", plugin=plugin).stdout)
            assert [row["ready"] for row in rows if row["name"] == "one"] == [ready]
        run("keys", "set", "one", stdin="planted-stored")
        run("send", "-b", "one", "hi", plugin=Vault())
        broken = run("send", "-b", "one", "hi", plugin=Broken())
    sent = [one.headers["authorization"] for one in server.requests]
    assert sent == ["Bearer planted-one-in-vault", "Bearer planted-stored"]
    assert "llm_key raised RuntimeError: the vault is locked" in broken.stderr


@pytest.mark.e2e
def test_a_key_that_is_typed_is_not_shown(config: Path) -> None:
    program = pexpect.spawn(
        sys.executable, ["-m", "scripts.ai_cli", "keys", "set", "one"], encoding="utf-8", timeout=60
    )
    program.expect("Key one: ")
    program.sendline("planted-key")
    program.expect(pexpect.EOF)
    program.close()
    assert program.exitstatus == 0
    assert "planted" not in str(program.before)
    assert json.loads(config.with_name("keys.json").read_text()) == {"one": "planted-key"}
