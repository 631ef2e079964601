"""Files of cache and state with any content, as another version or an editor leaves them: a message, no traceback."""

import copy
import json
import os
import shlex
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm._state import cache_dir, open_named, read_named, state_dir, user_dir, write_atomically
from llm.errors import D0ttinoError
from llm.hooks._entrypoints import installed
from llm.hooks._manifest import ManifestFile
from llm.testing import host_with
from llm.types import Step, StepContext
from scripts import packages
from scripts.ai_cli import cli
from scripts.packages import registry
from tests.llm.hooks.test_loading import BACKENDS, write
from tests.llm.hooks.test_order import known, learn
from tests.scripts.terminal import AI_CLI

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)
BYTES = st.binary(max_size=100) | st.sampled_from([b"", b"[" * 99_999, b"1" * 9_999, b"{}", b"\xff\xfe", b"null\n" * 9])

INSTALLED = {
    "version": 1,
    "environments": {
        "/usr": [{"distribution": "d", "version": "1", "source": "", "sha256": "", "editable": False}],
    },
}
GUARDRAILS = {"version": 1, "environments": {"/nowhere": [{"plugin": "p", "distribution": "d", "version": "1"}]}}
COPY = {"etag": "x", "document": '{"version": 1}'}
PLACE = "https://example.test/registry.json"


def ai(*words: str) -> None:
    result = CliRunner().invoke(cli, words, obj=host_with(), prog_name="ai-cli")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output


def use_installed() -> None:
    for look in (
        packages.recorded,
        packages.recorded_elsewhere,
        lambda: packages.lost(["x"]),
        lambda: packages.record(packages.Recorded("a", "1")),
    ):
        refused_at_most(look)
    list(packages.warnings_of_loss(["x"]))


def use_guardrails() -> None:
    host = host_with()
    for look in (
        packages.recorded_guardrails,
        lambda: packages.check_guardrails(host),
        lambda: packages.lost_guardrails(host),
        lambda: packages.forget_guardrails("d"),
    ):
        refused_at_most(look)
    ai("recipe", "echo", "x", "--dry-run")


def use_copy() -> None:
    registry.stored_copy(PLACE)
    path = next(Path(cache_dir() or "", "registries").iterdir())
    refused_at_most(lambda: registry.read_copy(path))


def refused_at_most(look: Callable[[], object]) -> None:
    with suppress(D0ttinoError):
        look()


def copy_path() -> str:
    registry.store_copy(PLACE, b"{}", None)
    return str(next(Path(cache_dir() or "", "registries").iterdir()))


FILES: dict[str, tuple[Any, Callable[[], str], Callable[[], None]]] = {
    "installed": (INSTALLED, lambda: packages.INSTALLED.path, use_installed),
    "guardrails": (GUARDRAILS, lambda: packages.GUARDRAILS.path, use_guardrails),
    "copy": (COPY, copy_path, use_copy),
}


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where in JSON data a value stands."""
    yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


def changed(data: Any, place: tuple[Any, ...], value: Any) -> Any:
    """Return JSON data with another value somewhere."""
    if not place:
        return value
    data = copy.deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    return data


fixed = settings(deadline=None, max_examples=90, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.e2e
@pytest.mark.parametrize("name", FILES)
@fixed
@given(data=st.data())
def test_any_content_gives_a_message_and_no_traceback(name: str, data: st.DataObject) -> None:
    document, path, use = FILES[name]
    place = data.draw(st.sampled_from(list(places(document))))
    odd = changed(document, place, data.draw(VALUES))
    text = json.dumps(odd).encode("utf-8", "surrogatepass")
    write_atomically(path(), data.draw(st.just(text) | BYTES))
    use()


def test_a_manifest_of_any_content_drops_and_brings_no_plugin(tmp_path: Path) -> None:
    code = """
    from llm.backends.plugin_sdk import hookimpl, register_backend
    register_backend("mine", lambda prompt: "answer", description="words")
    @hookimpl
    def llm_prepare_step(step): raise PermissionError("guarded")
    """
    write(tmp_path, {BACKENDS: {"mine": "mine_module"}}, name="mine-dist", mine_module=code)
    learn(tmp_path)
    with known(tmp_path) as host:
        packages.check_guardrails(host)
    file = ManifestFile()
    rows = [row.split("\t") for row in file.read()]
    content = [[json.loads(key), *json.loads(record)] for key, record, *index in rows if not index]
    mine = next(number for number, slot in enumerate(content) if slot[0][0] == "mine-dist")
    builtins = set(host_with().backends())

    def holds(place: tuple[Any, ...], value: Any) -> None:
        spoilt = changed(content, place, value)
        found = spoilt if isinstance(spoilt, list) else [spoilt]
        records = [
            (json.dumps(key, separators=(",", ":")), json.dumps(record))
            for key, *record in (one if isinstance(one, list) and one else [one] for one in found)
        ]
        file.write(map("\t".join, [*(row for row in rows if len(row) == 3), *records]))
        with known(tmp_path) as host:
            assert set(host.backends()) >= builtins
            host.recipes()
            packages.check_guardrails(host)
            with pytest.raises(PermissionError, match="guarded"):
                host.fold("llm_prepare_step", Step("true"), context=StepContext("mine", 1, 1, {}))

    anywhere = [one for one in places(content) if one[:1] in {(), (mine,)}]
    hooks = next(one[:-1] for one in anywhere if one[-1:] == ("llm_prepare_step",))
    holds(hooks, {})
    holds((mine, 2, 0), [])
    fixed(given(st.sampled_from(anywhere), VALUES)(holds))()


@pytest.mark.e2e
def test_a_database_with_any_bytes_changed_gives_a_message_and_no_traceback() -> None:
    for words in (["logs", "on"], ["send", "-b", "sample", "hi"]):
        ai(*words)
    sound = {}
    for name in ("state.db", "conversations.db"):
        path = Path(state_dir(), name)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sound[path] = path.read_bytes()

    def change(harm: list[tuple[float, int]]) -> None:
        for path, content in sound.items():
            for one in path.parent.glob(f"{path.name}*"):
                one.unlink()
            changed = bytearray(content)
            for place, bits in harm:
                changed[int(place * (len(changed) - 1))] ^= bits
            write_atomically(path, bytes(changed))
        for words in (["usage"], ["send", "-b", "sample", "hi"], ["logs"], ["cooldown"], ["logs", "-q", "hi"]):
            ai(*words)

    harm = st.lists(st.tuples(st.floats(0, 1), st.integers(1, 255)), min_size=1, max_size=40)
    fixed(given(harm)(change))()


def pipe(path: Path) -> str:
    os.mkfifo(path, 0o600)
    return "it is a named pipe, and not a file"


def directory(path: Path) -> str:
    path.mkdir()
    return "it is a directory, and not a file"


def device(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "it is a device, and not a file"


def endpoint(path: Path) -> str:
    with closing(socket.socket(socket.AF_UNIX)) as server:
        server.bind(str(path))
    return "it is a socket, and not a file"


def large(path: Path) -> str:
    with path.open("wb") as file:
        file.truncate(2 * 2**30)
    return "it is larger than 16 MiB"


@pytest.mark.parametrize("odd", [pipe, directory, device, endpoint, large])
def test_what_a_user_named_is_read_at_once_or_not_at_all(tmp_path: Path, odd: Callable[[Path], str]) -> None:
    fault = odd(tmp_path / "named")
    with pytest.raises(OSError, match=fault) as raised:
        read_named(tmp_path / "named")
    assert raised.value.strerror == fault


def test_what_is_open_already_is_read_as_a_file_is() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"mine")
    os.close(writing)
    with os.fdopen(reading):
        assert read_named(f"/dev/fd/{reading}") == b"mine"
    assert read_named("/dev/null") == b""


def test_a_pipe_is_written_if_somebody_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(OSError, match="it is a pipe that no program reads"):
        open_named(path, os.O_WRONLY)
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    writing = open_named(path, os.O_WRONLY)
    os.write(writing, b"mine")
    assert os.read(reading, 9) == b"mine"
    assert os.get_blocking(writing)
    os.close(reading)
    os.close(writing)


PLACES: dict[str, list[list[str]]] = {
    "{config}/config.toml": [["config", "show"], ["config", "set", "primary_backend", "x"], ["send", "hi"], ["doctor"]],
    "{config}/templates/mine.toml": [["send", "-t", "mine"], ["templates", "list"], ["templates", "show", "mine"]],
    "{config}/keys.json": [["keys", "list"], ["send", "-b", "openrouter", "hi"], ["keys", "remove", "openrouter"]],
    "{state}/state.db": [["usage"], ["send", "-b", "sample", "hi"]],
    "{state}/conversations.db": [["logs"], ["send", "-b", "sample", "hi"]],
    "{here}/named": [
        ["send", "-b", "sample", "-a", "{here}/named", "hi"],
        ["send", "-b", "sample", "-s", "@{here}/named", "hi"],
        ["send", "-b", "sample", "--schema", "{here}/named", "hi"],
        ["send", "-b", "sample", "--trace={here}/named", "hi"],
        ["batch", "-b", "sample", "--prompt", "@{here}/named", "{here}/rows.jsonl"],
        ["batch", "-b", "sample", "{here}/named"],
        ["batch", "-b", "sample", "{here}/rows.jsonl", "--prompt", "{{{{text}}}}", "--output", "{here}/named"],
        ["plugins", "list"],
        ["plugins", "install", "--from", "{here}/named"],
        ["trace", "{here}/named"],
    ],
    "{here}/package/pyproject.toml": [["plugins", "check", "{here}/package"]],
}


@pytest.mark.e2e
@pytest.mark.parametrize("place", PLACES)
def test_a_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(tmp_path: Path, place: str) -> None:
    places = {"config": user_dir("config"), "state": state_dir(), "here": str(tmp_path)}
    path = Path(place.format(**places))
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path, 0o600)
    (tmp_path / "rows.jsonl").write_text('{"text": "hi"}\n', encoding="utf-8")
    for words in PLACES[place]:
        done = subprocess.run(
            [*AI_CLI, *(word.format(**places) for word in words)],
            env={**os.environ, "PLUGIN_REGISTRY_URL": str(tmp_path / "named")},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert str(path) in done.stdout + done.stderr, words
        assert "pipe" in done.stdout + done.stderr or "ordinary" in done.stderr, words
        assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_a_substituted_process_is_read_and_written_as_a_file_is(tmp_path: Path) -> None:
    program = " ".join(map(shlex.quote, AI_CLI))
    script = f"""set -e
        {program} send -b sample --trace=trace hi > answer
        {program} batch -b sample <(echo '"one"') --output >(cat > written)
        {program} trace <(cat trace) > tree
        {program} plugins install --from <(echo '# nothing')
        cat trace | {program} trace - | cmp - tree
        while [ ! -s written ]; do :; done
        """
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert json.loads((tmp_path / "written").read_text())["text"] == "Sample answer to: one"
    assert "llm_complete" in (tmp_path / "tree").read_text()


@pytest.mark.e2e
@pytest.mark.parametrize("words", [["trace"], ["plugins", "install", "--from"], ["batch", "-b", "sample"]])
@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_what_is_no_text_has_a_message(tmp_path: Path, words: list[str], content: bytes | None) -> None:
    file = tmp_path / "named"
    if content is not None:
        file.write_bytes(content)
    done = subprocess.run([*AI_CLI, *words, str(file)], capture_output=True, text=True, timeout=60)
    assert (done.returncode != 0, "Traceback" in done.stderr) == (True, False)
    assert str(file) in done.stderr


# --- the metadata of distributions ----------------------------------------------------------------------------------


def _pipe(file: Path) -> None:
    file.unlink(missing_ok=True)
    os.mkfifo(file)


def _endless(file: Path) -> None:
    file.unlink(missing_ok=True)
    file.symlink_to("/dev/zero")


def _deep(file: Path) -> None:
    file.write_text("[" * 100_000)


def _no_version(file: Path) -> None:
    file.write_text("Metadata-Version: 2.1\nName: my-package\nVersion: not one\n")


def _other_name(file: Path) -> None:
    file.write_text("Metadata-Version: 2.1\nName: d0ttino\nVersion: 1.0\n")


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("name", "damage", "finding"),
    [
        ("entry_points.txt", _pipe, "its entry_points.txt cannot be read"),
        ("entry_points.txt", _endless, "its entry_points.txt cannot be read"),
        ("METADATA", _pipe, "it is damaged: OSError: [Errno 22] it is not a file"),
        ("METADATA", _endless, "it is damaged: OSError: [Errno 27] File too large"),
        ("METADATA", _no_version, "is damaged: 'not one' is not a version"),
        ("METADATA", _other_name, "is damaged: it names 'd0ttino', and not the distribution of its directory"),
        ("RECORD", _pipe, None),
        ("direct_url.json", _pipe, None),
        ("direct_url.json", _deep, None),
    ],
)
def test_metadata_of_any_content_is_not_waited_for_and_ends_no_command(
    tmp_path: Path, name: str, damage: Callable[[Path], None], finding: str | None
) -> None:
    write(tmp_path, {BACKENDS: {"mine": "my_package:run"}}, my_package="def run(prompt): return 'mine'")
    (metadata,) = tmp_path.glob("*.dist-info")
    damage(metadata / name)
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    commands = [["send", "-b", "sample", "hi"], ["plugins", "freeze"], ["doctor"]]
    command = f"""
from scripts.ai_cli import cli
for words in {commands}:
    try:
        cli(words)
    except SystemExit:
        pass
"""
    done = subprocess.run(
        [sys.executable, "-c", command], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert "Sample answer to: hi" in done.stdout
    assert "Traceback" not in done.stderr
    assert (finding or "ok  leftovers") in done.stdout


def test_a_device_on_the_path_is_no_archive() -> None:
    assert installed([BACKENDS], ["/dev/zero"]).entries == []
