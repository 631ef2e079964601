"""`--trace`, `LLM_TRACE` and `ai-cli trace`: what is shown, where it goes, and what goes wrong with it."""

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
from click.testing import CliRunner, Result

import llm
from llm import hookimpl
from llm.backends.plugin_sdk import register_backend
from llm.host import Host
from llm.testing import host_with, write_distribution
from scripts.ai_cli import cli
from tests.counting import tick

SCHEMA = json.loads((Path(llm.__file__).parent / "trace.schema.json").read_text(encoding="utf-8"))
FILES = {
    "bad_mod.py": "raise ImportError('no module named ' + 'x' * 300)",
    "good_mod.py": "def run(prompt): return prompt.upper()",
    "seen_mod.py": "open('imported', 'w').close()\ndef run(prompt): return ''",
}


def run(host: Host, *arguments: str, **env: str) -> Result:
    return CliRunner().invoke(cli, arguments, obj=host, env=env, prog_name="ai-cli")


@pytest.fixture
def host() -> Host:
    return host_with()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Return a directory with an installed distribution of three plug-ins; it is the working directory, too."""
    entry_points = {"llm.plugins": {"bad": "bad_mod", "good": "good_mod:run", "seen": "seen_mod:run"}}
    write_distribution(tmp_path, "my-package", entry_points=entry_points, files=FILES)
    return tmp_path


def process(site: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "scripts.ai_cli", *arguments],
        cwd=site,
        env={**os.environ, "PYTHONPATH": str(site), **env},
        capture_output=True,
        text=True,
    )


def on_terminal(site: Path, *arguments: str) -> str:
    """Run `ai-cli` on a terminal of 80 columns and return what it shows there."""
    terminal, tty = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "80", "TERM": "xterm-256color"}
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "scripts.ai_cli", *arguments], cwd=site, env=environment, stdout=tty, stderr=tty
    )
    os.close(tty)
    shown = bytearray()
    while True:
        try:
            piece = os.read(terminal, 65536)
        except OSError:  # the child has closed its side
            break
        if not piece:
            break
        shown += piece
    os.close(terminal)
    assert child.wait() == 0
    return shown.decode()


def tree_of(text: str) -> list[str]:
    lines = text.splitlines()
    return lines[next(number for number, line in enumerate(lines) if line.startswith("trace: ")) :]


# The tree -----------------------------------------------------------------------------------------


def test_loads_failures_and_blocked_plugins_in_a_pipe(site: Path) -> None:
    done = process(site, "send", "-b", "good", "hi", "--trace", "--no-plugin", "seen")
    assert (done.returncode, done.stdout) == (0, "HI\n")
    assert not (site / "imported").exists()
    lines = tree_of(done.stderr)
    assert max(map(len, lines)) <= 80
    text = "\n".join(lines)
    assert "trace: answered by backend:good (my-package 1.0)" in text
    assert "- seen (my-package 1.0) blocked by --no-plugin seen" in text
    assert "loaded good (my-package 1.0), its contributions" in text  # the line is cut where its time has four digits
    assert "✗ bad (my-package 1.0) not loaded: ImportError: no module" in text
    assert "search for installed plug-ins, 3 found" in text
    assert "\x1b" not in text


def test_the_tree_on_a_terminal_has_colour_and_no_line_longer_than_it(site: Path) -> None:
    shown = on_terminal(site, "send", "-b", "good", "hi", "--trace")
    assert "\x1b[" in shown
    lines = tree_of(re.sub(r"\x1b\[[\d;]*m", "", shown).replace("\r\n", "\n"))
    assert max(map(len, lines)) <= 80
    assert any("✗ bad (my-package 1.0) not loaded" in line for line in lines)
    assert lines[-1].startswith("   └─ the rest ")


def test_calls_of_one_hook_are_shown_alone(host: Host, file: Path) -> None:
    result = run(host, "trace", "--hook", "llm_route", "--hook", "llm_completed", str(file))
    lines = tree_of(result.stdout)
    assert (result.exit_code, result.stderr) == (0, "")
    assert lines[0] == "trace: answered by backend:sample (built in) after 1 failed attempt"
    assert [line.split()[1] for line in lines if line[0] in "├└"][:1] == ["llm_route"]
    assert {line.split()[1] for line in lines if line[0] in "├└"} == {"llm_route", "llm_completed"}


def test_without_utf8_the_tree_is_ascii(site: Path) -> None:
    done = process(site, "send", "-b", "good", "hi", "--trace", PYTHONIOENCODING="ascii")
    assert "\n".join(tree_of(done.stderr)).isascii()


#: Runs `ai-cli` with a clock by which each module that is imported takes a millisecond, and each look at it 10 μs.
COUNTED = """\
import itertools, sys, time
looks = itertools.count(0, 10_000)
time.perf_counter_ns = lambda: 1_000_000 * len(sys.modules) + next(looks)
from scripts.ai_cli import main
main()
"""


def test_the_times_add_up_and_the_rest_is_small(site: Path) -> None:
    command = [sys.executable, "-P", "-c", COUNTED, "send", "-b", "good", "hi", "--trace"]
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=site, env=environment, capture_output=True, text=True)
    lines = tree_of(done.stderr)
    start = next(number for number, line in enumerate(lines) if line.startswith("└─ total "))
    matches = [re.fullmatch(r"(?:└─|   [├└]─) (.*?) +([\d.]+) ms", line) for line in lines[start:]]
    total, *parts_ = [(match[1], float(match[2])) for match in matches if match is not None]
    parts = dict(parts_)
    assert list(parts) == ["start-up", "imports of plug-ins", "hooks", "the rest"]
    assert sum(parts.values()) == pytest.approx(total[1])
    assert min(parts.values()) >= 0
    assert parts["the rest"] < total[1] / 2


def test_wide_characters_and_deep_nesting_stay_within_the_width() -> None:
    from rich.cells import cell_len

    from scripts.cli.trace_view import TreeLine, draw

    deep = TreeLine("漢字" * 100, 12345.0)
    for _ in range(60):
        deep = TreeLine("e\N{COMBINING ACUTE ACCENT}" * 100, 1e9, "", (deep, TreeLine("漢" * 200)))
    lines = [text for text, _ in draw(deep, 80)]
    assert max(map(cell_len, lines)) <= 80
    assert all(line.endswith((" ms", "…")) for line in lines)


def test_a_wrapper_that_replaced_the_answer_is_the_one_who_answered(host: Host) -> None:
    class Wrapper:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Any, Any]:
            yield
            return "mine"

    host.register(Wrapper(), "wrapper")
    first = tree_of(run(host, "send", "-b", "sample", "hi", "--trace").stderr)[0]
    assert first.startswith("trace: answered by wrapper (this program)")


# Where it goes ------------------------------------------------------------------------------------

COMMANDS = [
    ("send", "-b", "sample", "hi"),
    ("plan", "-b", "sample", "hi"),
    ("do", "-b", "sample", "hi", "--dry-run"),
    ("recipe", "echo", "hi", "--dry-run"),
    ("backends",),
    ("recipes",),
    ("hooks",),
    ("doctor",),
    ("why", "send", "hi"),
    ("why", "recipe", "echo"),
    ("plugins", "list"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_takes_trace_before_and_after_it(host: Host, command: tuple[str, ...], tmp_path: Path) -> None:
    plain = run(host, *command)
    before, after = run(host, "--trace", *command), run(host, *command, "--trace")
    for traced in (before, after):
        assert (traced.exit_code, traced.stdout) == (plain.exit_code, plain.stdout)
        assert tree_of(traced.stderr)[-1].startswith("   └─ the rest ")
    file = tmp_path / "trace"
    assert run(host, *command, f"--trace={file}").stderr == plain.stderr
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    for record in records:
        jsonschema.validate(record, SCHEMA)
    assert records[-1]["spans"] == len(records) - 2


@pytest.mark.parametrize(
    ("value", "shown"),
    [("1", True), ("true", True), ("ON", True), ("", False), ("0", False), ("off", False), ("no", False)],
)
def test_the_variable_turns_it_on_and_off(
    host: Host, value: str, shown: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ("trace: " in run(host, "send", "-b", "sample", "hi", LLM_TRACE=value).stderr) is shown
    assert list(tmp_path.iterdir()) == []


def test_the_variable_may_name_a_file_and_the_option_wins(host: Host, tmp_path: Path) -> None:
    file, other = tmp_path / "trace", tmp_path / "other"
    assert "trace: " not in run(host, "backends", LLM_TRACE=str(file)).stderr
    assert file.stat().st_mode & 0o777 == 0o600
    run(host, "backends", f"--trace={other}", LLM_TRACE=str(tmp_path / "unused"))
    assert sorted(tmp_path.iterdir()) == [other, file]


def test_trace_needs_something_behind_the_equals_sign(host: Host) -> None:
    result = run(host, "backends", "--trace=")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--trace=" in result.stderr


def test_words_behind_two_dashes_are_no_options(host: Host) -> None:
    result = run(host, "send", "-b", "sample", "--", "--trace")
    assert (result.stdout, result.stderr) == ("Sample answer to: --trace\n", "")


def test_prompts_and_answers_only_on_request(host: Host) -> None:
    assert "private" not in run(host, "send", "-b", "sample", "private", "--trace").stderr
    assert (
        "'Sample answer to: private'"
        in run(host, "send", "-b", "sample", "private", "--trace-values", "--trace").stderr
    )


def test_options_behind_the_command_of_a_plugin_count_before_it_is_asked(site: Path) -> None:
    code = """
        import click
        from llm import hookimpl

        @hookimpl
        def llm_commands(cli):
            @cli.command()
            def hello():
                click.echo("hello")
    """
    entry_points = {"llm.plugins": {"commands": "commands_mod"}}
    code = "\n".join(line.removeprefix("        ") for line in code.splitlines())
    write_distribution(site, "commands", entry_points=entry_points, files={"commands_mod.py": code})
    done = process(site, "hello", "--trace", "--no-plugin", "seen")
    assert (done.returncode, done.stdout) == (0, "hello\n")
    assert "loaded commands (commands 1.0)" in done.stderr
    assert "blocked by --no-plugin seen" in done.stderr
    assert not (site / "imported").exists()


def test_the_command_of_a_plugin_that_fails_ends_with_a_traceback_and_the_trace(host: Host) -> None:
    class Commands:
        @hookimpl
        def llm_commands(self, cli: click.Group) -> None:
            @cli.command()
            def hello() -> None:
                raise RuntimeError("out of order")

    host.register(Commands(), "commands")
    result = run(host, "hello", "--trace")
    assert result.exit_code == 1
    assert "RuntimeError: out of order" in result.stderr
    assert "llm_commands" in result.stderr


# What goes wrong with it --------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["option", "variable"])
@pytest.mark.parametrize(("place", "reason"), [(".", "directory"), ("/dev/full", "space"), ("no/such/file", "No such")])
def test_a_trace_that_cannot_be_written_is_a_warning(
    host: Host, how: str, place: str, reason: str, tmp_path: Path
) -> None:
    target = str(tmp_path / place)
    if how == "option":
        result = run(host, "send", "-b", "sample", "hi", f"--trace={target}")
    else:
        result = run(host, "send", "-b", "sample", "hi", LLM_TRACE=target)
    assert (result.exit_code, result.stdout) == (0, "Sample answer to: hi\n")
    (line,) = result.stderr.splitlines()
    assert line.startswith("warning: the trace was not written to ")
    assert reason in line


def test_a_failing_command_keeps_its_status_when_its_trace_cannot_be_written(host: Host, tmp_path: Path) -> None:
    assert run(host, "send", "-b", "none", "hi", f"--trace={tmp_path}").exit_code == 2


def test_a_closed_stderr_does_not_matter(site: Path) -> None:
    command = f"{sys.executable} -P -m scripts.ai_cli send -b sample hi --trace 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=site, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "Sample answer to: hi\n")


class Nasty:
    """What a plug-in returns that must not be looked at too closely."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    __str__ = __eq__ = __len__ = __hash__ = __repr__  # type: ignore[assignment]


class Text(str):
    __slots__ = ()

    def __len__(self) -> int:
        raise RuntimeError("len")

    __getitem__ = __str__ = __repr__ = __len__  # type: ignore[assignment]


class NastyError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("str")


def recursive() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


@pytest.mark.parametrize("texts", [(), ("--trace-values",)], ids=["sizes", "texts"])
@pytest.mark.parametrize(
    "result",
    [
        Nasty(),
        Text("text"),
        NastyError(),
        RecursionError(),
        ValueError("x" * 1_000_000),
        recursive(),
        "x" * 1_000_000,
        b"\xff",
        float("inf"),
        float("nan"),
        10**5000,
        "\ud800\x1b[31m",
        llm.Completion("text", model=Nasty()),  # type: ignore[arg-type]
        llm.Completion("text", backend=Text("b"), model=Text("m")),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_that_misbehave_do_no_harm(host: Host, result: Any, texts: tuple[str, ...], tmp_path: Path) -> None:
    class Answers:
        @hookimpl
        def llm_complete(self) -> Any:
            if isinstance(result, BaseException):
                raise result
            return result

        @hookimpl
        def llm_completed(self) -> Any:
            return result

    class Around:
        @hookimpl(wrapper=True)
        def llm_completed(self) -> Generator[None, Any, Any]:
            yield
            return result

    host.register(Answers(), "answers")
    host.register(Around(), "around")
    plain = run(host, "plan", "-b", "sample", "hi")
    file = tmp_path / "trace"
    traced = run(host, "plan", "-b", "sample", "hi", f"--trace={file}", *texts)
    assert (traced.exit_code, traced.stdout, traced.stderr) == (plain.exit_code, plain.stdout, plain.stderr)
    lines = file.read_text(encoding="utf-8").splitlines()
    for line in lines:
        jsonschema.validate(json.loads(line, parse_constant=pytest.fail), SCHEMA)
    assert len("".join(lines)) < 20_000
    shown = run(host, "trace", str(file))
    assert (shown.exit_code, shown.stderr) == (0, "")
    assert shown.stdout.isprintable() or "\x1b" not in shown.stdout
    assert tree_of(run(host, "plan", "-b", "sample", "hi", "--trace", *texts).stderr)


# Reading ------------------------------------------------------------------------------------------


@pytest.fixture
def file(host: Host, tmp_path: Path) -> Path:
    """Return a trace file with a hook call in another one, wrappers and an attempt that failed."""

    class Wrapper:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Generator[None, Any, Any]:
            return (yield)

    def fails(prompt: str) -> str:
        return llm.send_prompt(prompt, backend="none", host=host)

    register_backend("fails", fails, host=host)
    host.register(Wrapper(), "outer")
    host.register(Wrapper(), "inner")
    path = tmp_path / "trace"
    environment = {"LLM_PRIMARY_BACKEND": "fails", "LLM_FALLBACK_BACKEND": "sample", "LLM_ROUTING_MODE": "remote"}
    assert run(host, "send", "hi", f"--trace={path}", **environment).exit_code == 0
    return path


def test_a_file_is_shown_as_the_tree(host: Host, file: Path) -> None:
    result = run(host, "trace", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    lines = tree_of(result.stdout)
    assert lines[0].startswith("trace: answered by backend:sample (built in) after 1 failed attempt")
    assert max(map(len, lines)) <= 80
    assert lines[-1].startswith("   └─ the rest ")


@pytest.mark.parametrize(
    ("content", "status", "words"),
    [
        (b"", 1, "is empty"),
        (b"\x7fELF\x00\xff\xfe", 1, "is not a trace: line 1"),
        (b'{"record":"trace","version":99,"program":"d0ttino 9"}\n', 1, "of version 99"),
        (b'{"record":"trace","version":0}\n', 1, "does not begin with a trace record"),
        (b'{"record":"end","spans":0,"duration_us":1}\n', 1, "does not begin with a trace record"),
    ],
)
def test_what_is_no_trace_is_refused(host: Host, content: bytes, status: int, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    result = run(host, "trace", str(path))
    assert (result.exit_code, result.stdout) == (status, "")
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("place", ["missing", "."])
def test_a_file_that_cannot_be_read_is_named(host: Host, place: str, tmp_path: Path) -> None:
    result = run(host, "trace", str(tmp_path / place))
    assert (result.exit_code, result.stdout) == (2, "")
    assert f"cannot read {tmp_path / place}" in result.stderr


def test_a_truncated_file_is_shown_up_to_the_cut(host: Host, file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) * 2 // 3])
    result = run(host, "trace", str(file))
    assert result.exit_code == 0
    assert "is cut short or damaged" in result.stderr
    assert "does not end as a trace does" in result.stderr
    assert "llm_route" in result.stdout


def damage(change: Callable[[dict[str, Any]], object]) -> Callable[[list[dict[str, Any]]], object]:
    return lambda records: change(next(one for one in records if one["record"] == "hook"))


@pytest.mark.parametrize("chrome", [(), ("--chrome",)], ids=["tree", "chrome"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (damage(lambda one: one.pop("implementations")), "'implementations' is a required property"),
        (damage(lambda one: one.update(duration_us="long", start_us="late")), "is not of type 'number'"),
        (damage(lambda one: one["implementations"][0].pop("plugin")), "'plugin' is a required property"),
        (damage(lambda one: one.update(implementations=3)), "3 is not of type 'array'"),
        (damage(lambda one: one.update(implementations=[3])), "3 is not of type 'object'"),
    ],
)
def test_a_record_that_is_none_is_named(
    host: Host, file: Path, spoil: Callable[[Any], object], words: str, chrome: tuple[str, ...]
) -> None:
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    spoil(records)
    file.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    result = run(host, "trace", str(file), *chrome)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "is damaged: record 3 (hook)" in result.stderr
    assert words in result.stderr


def test_records_of_a_kind_that_is_not_known_are_passed_over(host: Host, file: Path) -> None:
    lines = file.read_text(encoding="utf-8").splitlines()
    lines.insert(1, '{"record":"of the future"}')
    file.write_text("\n".join(lines), encoding="utf-8")
    assert run(host, "trace", str(file)).stderr == ""


def test_spans_nested_too_deeply_are_no_crash(host: Host, file: Path) -> None:
    header, *_, end = file.read_text(encoding="utf-8").splitlines()
    span = {"record": "phase", "thread": "x", "start_us": 0, "duration_us": 0, "name": "x", "reason": ""}
    spans = [json.dumps({**span, "id": number, "parent": number - 1}) for number in range(1, 5000)]
    file.write_text("\n".join([header, *spans, end]), encoding="utf-8")
    result = run(host, "trace", str(file))
    assert result.exit_code == 1
    assert "Traceback" not in result.stderr


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let times be whole microseconds, which no file rounds, and no two the same."""
    tick(monkeypatch)


def test_the_chrome_format(host: Host, ticking: None, file: Path) -> None:
    result = run(host, "trace", "--chrome", str(file))
    assert (result.exit_code, result.stderr) == (0, "")
    document = json.loads(result.stdout)
    assert set(document) == {"displayTimeUnit", "traceEvents", "otherData"}
    names = {event["tid"] for event in document["traceEvents"] if event["ph"] == "M"}
    events = [event for event in document["traceEvents"] if event["ph"] == "X"]
    for event in events:
        assert set(event) == {"name", "cat", "ph", "ts", "dur", "pid", "tid", "args"}
        assert event["tid"] in names
        assert event["ts"] >= 0 <= event["dur"]
    assert {"phase", "hook", "wrapper", "implementation"} == {event["cat"] for event in events}
    assert [event["ts"] for event in events] == sorted(event["ts"] for event in events)
    # Viewers draw what lies within another event below it: events overlap as a whole or not at all.
    open_ends: list[float] = []
    for event in events:
        while open_ends and open_ends[-1] <= event["ts"]:
            open_ends.pop()
        assert not open_ends or event["ts"] + event["dur"] <= open_ends[-1]
        open_ends.append(event["ts"] + event["dur"])
    attempts = [event for event in events if event["name"] == "llm_complete"]
    wrappers = [event for event in events if event["cat"] == "wrapper"]
    assert (len(attempts), len(wrappers)) == (2, 4)
    assert wrappers[0]["ts"] + wrappers[0]["dur"] >= wrappers[1]["ts"] + wrappers[1]["dur"]


def test_each_attempt_shows_its_backend(host: Host) -> None:
    assert "llm_complete backend=sample " in run(host, "send", "hi", "-b", "sample", "--trace").stderr


def test_a_wrapper_that_changes_an_answer_on_its_way_is_not_said_to_have_answered(host: Host) -> None:
    class Louder:
        @hookimpl(wrapper=True)
        def llm_complete(self) -> Any:
            answer = yield
            return answer.map(str.upper)

    host.register(Louder(), "louder")
    result = run(host, "send", "-b", "sample", "hi", "--trace")
    assert "trace: answered by backend:sample (built in)" in result.stderr
    assert "louder (this program" in result.stderr
    assert "changed the answer" in result.stderr
