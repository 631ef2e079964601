"""`ai-cli batch`: in order, resumable, and nothing is lost, however it ends."""

import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import assume, given
from hypothesis import strategies as st

from llm.backends.plugin_sdk import register_backend
from llm.host import Host
from llm.testing import host_with, write_distribution
from llm.types import Completion, Request
from llm.usage import entries, ledger_path
from scripts.ai_cli import cli
from scripts.batch.rows import Prompts, Source
from scripts.cli.config import Template

AI_CLI = [sys.executable, "-m", "scripts.ai_cli"]

BACKENDS = """
import os, time
from llm.backends.plugin_sdk import register_backend

def note(prompt):
    with open("asked", "a") as file:
        file.write(prompt + "\\n")

def slow(prompt):
    note(prompt)
    time.sleep(0.02)
    print("noise of a plug-in")
    return prompt

def stuck(prompt):
    note(prompt)
    if prompt == "5":
        time.sleep(600)
    return prompt

register_backend("slow", slow)
register_backend("stuck", stuck)
"""


@pytest.fixture
def host() -> Host:
    host = host_with()
    register_backend("echo", lambda prompt: prompt, host=host)
    return host


@pytest.fixture
def asked(host: Host) -> list[str]:
    """The prompts that the backend `picky` got; it fails for those with an `x`."""
    asked: list[str] = []

    def picky(prompt: str) -> str:
        asked.append(prompt)
        if "x" in prompt:
            raise ValueError(f"no {prompt}")
        return prompt.upper()

    register_backend("picky", picky, host=host)
    return asked


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(host: Host, *arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, ("batch", *arguments), obj=host, input=text, prog_name="ai-cli")


def write(*lines: Any) -> None:
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def records(path: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def texts(path: str = "out.jsonl") -> list[str | None]:
    return [record["text"] for record in records(path)]


# --- answers of runs with other settings -------------------------------------------------------------


@pytest.mark.parametrize("output", ["out.jsonl", "out.csv", "out.parquet"])
def test_answers_of_runs_with_other_settings_stay_and_are_named(host: Host, asked: list[str], output: str) -> None:
    if output == "out.parquet":
        pytest.importorskip("pyarrow")
    Path("in.csv").write_text("prompt\none\ntwo\nx\n")
    common = ("in.csv", "--output", output)
    first = run(host, *common, "-b", "picky")
    assert (first.exit_code, "other settings" in first.stderr) == (1, False)
    before = Path(output).read_bytes()
    assert "other settings" not in run(host, *common, "-b", "picky").stderr
    second = run(host, *common, "-b", "echo", "-m", "m", "-s", "Be short.")
    assert second.exit_code == 0
    assert f"{output} has answers of earlier runs with other settings, which are kept" in second.stderr
    numbers = "lines 2-3" if output == "out.jsonl" else "rows 1-2"
    assert f"  {numbers}: backend picky, model by default, no system prompt\n" in second.stderr
    assert "give another file to --output" in second.stderr
    assert sorted(asked) == ["one", "two", "x", "x"]
    third = run(host, *common, "-b", "picky")
    number = "line 4" if output == "out.jsonl" else "row 3"
    assert f"  {number}: backend echo, model m, a system prompt\n" in third.stderr
    assert "picky" not in third.stderr
    if output == "out.csv":
        answered = before.partition(b"x,")[0]
        assert answered == b"prompt,answer,error\none,ONE,\ntwo,TWO,\n"
        assert Path(output).read_bytes().startswith(answered)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--prompt", "Say {{prompt}}"], "no --prompt or template"),
        (["--option", "temperature", "1"], "no value of an option"),
        (["--schema", "answer str"], "no schema"),
        (["-m", "other"], "model by default"),
    ],
)
def test_each_kind_of_change_is_named(host: Host, options: list[str], words: str) -> None:
    Path("in.csv").write_text("prompt\none\n")
    columns = ("--columns", "prompt,answer")
    run(host, "in.csv", "-b", "echo", "--output", "out.csv", *columns)
    assert f"  row 1: {words}\n" in run(host, "in.csv", "-b", "echo", "--output", "out.csv", *columns, *options).stderr


def test_a_new_file_at_an_old_place_has_no_old_answers(host: Host) -> None:
    write("one")
    run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    Path("out.jsonl").unlink()
    assert "other settings" not in run(host, "in.jsonl", "-b", "sample", "--output", "out.jsonl").stderr
    assert "other settings" not in run(host, "in.jsonl", "-b", "sample", "--output", "out.jsonl").stderr


def test_the_primary_backend_counts_as_one_that_is_named(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    write("one")
    run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    monkeypatch.setenv("LLM_PRIMARY_BACKEND", "echo")
    assert "other settings" not in run(host, "in.jsonl", "--output", "out.jsonl").stderr
    monkeypatch.setenv("LLM_PRIMARY_BACKEND", "sample")
    assert "  line 1: backend echo\n" in run(host, "in.jsonl", "--output", "out.jsonl").stderr


@pytest.mark.parametrize(
    "damage",
    ["[]", "{", '{"runs": [7]}', '{"runs": [{"settings": 7, "before": [[1]]}]}', "[" * 100_000],
)
def test_a_damaged_record_of_how_was_asked_ends_no_batch(host: Host, clean_environment: Path, damage: str) -> None:
    write("one")
    run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    (record,) = (clean_environment / ".local" / "state" / "d0ttino" / "batches").iterdir()
    record.write_text(damage)
    write("one", "two")
    for backend in ("sample", "echo"):
        result = run(host, "in.jsonl", "-b", backend, "--output", "out.jsonl")
        assert (result.exit_code, "Traceback" in result.stderr) == (0, False)
        assert (
            f"the settings of earlier runs are unknown: {record} is damaged" in " ".join(result.stderr.split())
        ) == (backend == "sample")
    assert "  line 2: backend sample\n" in result.stderr


def test_a_named_pipe_is_read_if_a_program_writes_to_it(host: Host) -> None:
    os.mkfifo("in.jsonl")
    writer = threading.Thread(target=lambda: Path("in.jsonl").write_text('"one"\n"two"\n'), daemon=True)
    writer.start()
    assert [json.loads(line)["text"] for line in run(host, "in.jsonl", "-b", "echo").stdout.splitlines()] == [
        "one",
        "two",
    ]
    assert "it is a named pipe, and not a file: in.jsonl" in run(host, "in.jsonl", "-b", "echo").stderr


# --- lines and results -------------------------------------------------------------------------------


def test_answers_go_to_stdout_as_json_lines_in_order(host: Host) -> None:
    write("one", {"prompt": "two", "id": "second", "model": "m"}, {"prompt": "three", "backend": "sample"})
    result = run(host, "in.jsonl", "-b", "echo")
    assert result.exit_code == 0
    first, second, third = map(json.loads, result.stdout.splitlines())
    assert (first["line"], first["text"], first["backend"], first["error"]) == (1, "one", "echo", None)
    assert "id" not in first
    assert (second["id"], second["asked_model"]) == ("second", "m")
    assert third["text"] == "Sample answer to: three"
    assert first["attempts"][0]["input_tokens"] == 1
    assert "3 answered, 0 failed" in result.stderr


def test_standard_input_is_read_and_options_count_for_each_line(host: Host) -> None:
    register_backend("options", lambda prompt, options: json.dumps(options["a"] + options["b"]), host=host)
    text = '\n"x"\n\n{"prompt": "x", "options": {"b": "own"}}'
    result = run(host, "-", "-b", "options", "--option", "a", "1", "--option", "b", "2", text=text)
    assert [(line["line"], line["text"]) for line in map(json.loads, result.stdout.splitlines())] == [
        (2, '"12"'),
        (4, '"1own"'),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("nonsense", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("7", "neither a string nor an object"),
        ("[]", "neither a string nor an object"),
        ("{}", "has no prompt"),
        ('{"promt": "hi"}', "Did you mean 'prompt'?"),
        ('{"prompt": 5}', "`prompt` must be text"),
        ('{"prompt": "hi", "local": "yes"}', "`local` must be true or false"),
        ('{"prompt": "hi", "options": []}', "`options` must be an object"),
        ('{"prompt": ""}', "the prompt is empty"),
        ('{"prompt": "hi", "backend": "nobody"}', "there is no backend named 'nobody'"),
    ],
)
def test_a_line_that_cannot_be_sent_is_a_failure_among_the_results(host: Host, line: str, words: str) -> None:
    Path("in.jsonl").write_text(f'"before"\n{line}\n"after"\n')
    result = run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    assert result.exit_code == 1
    assert texts() == ["before", None, "after"]
    assert words in records()[1]["error"]
    assert "error: line 2: " in result.stderr


@pytest.mark.parametrize("format", ["jsonl", "openai", "text"])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_lines_or_faults(format: str, content: bytes) -> None:
    assume(not content.startswith((b"PK\x03\x04", b"\x1f\x8b", b"PAR1")))  # refused as a whole, as no text
    rows = Source(io.BytesIO(content), "in", format, encoding="utf-8")
    lines = list(Prompts(rows, Request(""), Template("--prompt"), {}))
    assert len(lines) <= content.count(b"\n") + content.count(b"\r") + 1
    assert all((line.request is None) != (line.error is None) for line in lines)


def test_failures_do_not_end_it_and_are_told(host: Host, asked: list[str]) -> None:
    write("a", "bx", "c")
    result = run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    assert (result.exit_code, result.stdout) == (1, "")
    assert texts() == ["A", None, "C"]
    assert records()[1]["attempts"][0]["error_type"] == "ValueError"
    assert "error: line 2: backend picky" in result.stderr
    assert "2 answered, 1 failed" in result.stderr


def test_many_failures_are_counted_on_stderr(host: Host, asked: list[str]) -> None:
    write(*["x"] * 30)
    result = run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    assert result.stderr.count("error: line") == 20
    assert "10 more failures" in result.stderr


def test_a_fallback_is_told_once(host: Host, asked: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PRIMARY_BACKEND": "picky", "FALLBACK_BACKEND": "echo", "ROUTING_MODE": "remote"}.items():
        monkeypatch.setenv(f"LLM_{name}", value)
    write("1x", "2x", "3")
    result = run(host, "in.jsonl", "--output", "out.jsonl")
    assert texts() == ["1x", "2x", "3"]
    assert [record["fell_back"] for record in records()] == [True, True, False]
    assert result.stderr.count("echo answered instead of picky") == 1


def test_an_answer_that_is_not_whole_is_told_once_and_in_each_result(host: Host) -> None:
    short: Any = lambda prompt: Completion(prompt, finish_reason="length")  # noqa: E731 - typed as any backend
    register_backend("short", short, host=host)
    write("a", "b")
    result = run(host, "in.jsonl", "-b", "short", "--output", "out.jsonl")
    assert result.stderr.count("the answer is not whole: it ends where the limit of tokens was reached") == 1
    assert [record["finish_reason"] for record in records()] == ["length", "length"]


def test_thoughts_are_no_part_of_a_result(host: Host) -> None:
    write("<think>hm</think>one", "<think>hm", "two")
    result = run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    assert (result.exit_code, texts()) == (1, ["one", None, "two"])
    assert "line 2: the answer holds thoughts only" in result.stderr


@pytest.mark.parametrize("output", ["/dev/full", "out.jsonl"])
def test_a_disk_that_is_full_is_told_with_the_file(tmp_path: Path, output: str) -> None:
    (tmp_path / "in.jsonl").write_text('"a"\n', encoding="utf-8")
    command = f"{sys.executable} -m scripts.ai_cli batch in.jsonl -b sample --output {output}"
    limit = "trap '' XFSZ; ulimit -f 0; " if output == "out.jsonl" else ""  # no file may grow, as on a full disk
    environment = {**os.environ, "LLM_NO_USAGE": "1", "LLM_NO_CACHE": "1"}
    result = subprocess.run(
        ["/bin/sh", "-c", limit + command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 1
    assert result.stderr.count("error:") == 1
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("error:"))
    assert line.removeprefix("error: ").partition(": ")[2].endswith(output)


def test_each_line_is_recorded_in_the_ledger(host: Host) -> None:
    write("a", "b")
    run(host, "in.jsonl", "-b", "echo")
    assert [entry["backend"] for entry in entries(ledger_path())] == ["echo", "echo"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "No such file"),
        (["in.jsonl", "-b", "eco"], "Did you mean 'echo'?"),
        (["in.jsonl", "--output", "in.jsonl"], "cannot go into the file that the prompts come from"),
        (["in.jsonl", "--output", "notes.txt"], "is not a result of `ai-cli batch`"),
        (["in.jsonl", "--workers", "0"], "--workers"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_sent(host: Host, arguments: list[str], words: str) -> None:
    write("a")
    Path("notes.txt").write_text("my notes\n")
    result = run(host, *arguments)
    assert result.exit_code in {1, 2}
    assert words in result.stderr
    assert Path("notes.txt").read_text() == "my notes\n"
    assert not Path(ledger_path()).exists()


# --- running it again --------------------------------------------------------------------------------


def test_a_second_run_does_what_failed_and_what_is_new(host: Host, asked: list[str]) -> None:
    write("a", "bx", "c")
    run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    with Path("in.jsonl").open("a") as file:
        file.write('"d"\n')
    asked.clear()
    result = run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    assert (result.exit_code, asked) == (0, [])
    assert texts() == ["A", "bx", "C", "d"]
    assert [record["line"] for record in records()] == [1, 2, 3, 4]
    assert "2 answered, 0 failed, 2 done before" in result.stderr
    before = Path("out.jsonl").read_bytes()
    assert run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl").exit_code == 0
    assert (asked, Path("out.jsonl").read_bytes()) == ([], before)


def test_a_line_that_fails_again_has_one_result(host: Host, asked: list[str]) -> None:
    write("a", "bx", "c")
    for _ in range(3):
        assert run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl").exit_code == 1
    assert texts() == ["A", None, "C"]
    assert sorted(asked) == ["a", "bx", "bx", "bx", "c"]


@pytest.mark.parametrize("cut", [1, 30, 400])
def test_half_a_line_at_the_end_is_done_again(host: Host, asked: list[str], cut: int) -> None:
    write("a", "b", "c")
    run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    whole = texts()
    with Path("out.jsonl").open("r+b") as file:
        file.truncate(Path("out.jsonl").stat().st_size - cut)
    asked.clear()
    assert run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl").exit_code == 0
    assert (asked, texts()) == (["c"], whole)


@pytest.mark.parametrize(
    ("file", "record"),
    [
        ("out.jsonl", {"line": 1, "input": "f" * 17, "error": None, "text": "x"}),
        ("out.jsonl", {"line": 1, "input": "-1", "error": None, "text": "x"}),
        ("out.csv.part", {"row": "1", "result": "one,1,\n"}),
        ("out.csv.part", {"row": -1, "result": "one,1,\n"}),
        ("out.csv.part", {"row": 1, "result": None}),
    ],
)
def test_numbers_that_no_run_wrote_are_refused(
    host: Host, asked: list[str], file: str, record: dict[str, object]
) -> None:
    Path("in.csv").write_text("prompt\none\n")
    Path("out.csv").write_text("prompt,answer,error\n")
    Path(file).write_text(json.dumps(record) + "\n")
    result = run(host, "in.csv", "-b", "echo", "--output", file.removesuffix(".part"))
    assert (result.exit_code, asked) == (2, [])
    assert f"{file}, line 1, is not a result of `ai-cli batch`" in result.stderr


def test_results_of_another_input_are_not_mixed_with_these(host: Host, asked: list[str]) -> None:
    write("a", "b")
    run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    before = Path("out.jsonl").read_bytes()
    write("new", "a", "b")
    result = run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    assert result.exit_code == 2
    assert "has an answer to another line 1" in result.stderr
    assert (sorted(asked), Path("out.jsonl").read_bytes()) == (["a", "b"], before)


def test_a_link_stays_a_link_and_keeps_its_mode(host: Host, asked: list[str]) -> None:
    Path("real.jsonl").touch(0o640)
    Path("out.jsonl").symlink_to("real.jsonl")
    write("a", "bx")
    run(host, "in.jsonl", "-b", "picky", "--output", "out.jsonl")
    run(host, "in.jsonl", "-b", "echo", "--output", "out.jsonl")
    assert Path("out.jsonl").is_symlink()
    assert texts("real.jsonl") == ["A", "bx"]
    assert Path("real.jsonl").stat().st_mode & 0o777 == 0o640


# --- in processes of their own -----------------------------------------------------------------------


@pytest.fixture
def installed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = directory / "site"
    write_distribution(
        site, "demo", entry_points={"llm.plugins": {"demo": "demo_backends"}}, files={"demo_backends.py": BACKENDS}
    )
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{site}")


def start(*arguments: str, **streams: Any) -> "subprocess.Popen[str]":
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    return subprocess.Popen([*AI_CLI, "batch", *arguments], text=True, stdin=subprocess.DEVNULL, **streams)


def wait_for(lines: int, path: str = "out.jsonl") -> None:
    end = time.monotonic() + 60
    while not Path(path).exists() or Path(path).read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end
        time.sleep(0.01)


def asked_for() -> list[str]:
    return Path("asked").read_text().split()


@pytest.mark.usefixtures("installed")
def test_a_batch_that_is_killed_goes_on_where_it_was() -> None:
    prompts = [str(number) for number in range(60)]
    write(*prompts)
    process = start("in.jsonl", "-b", "slow", "--output", "out.jsonl", "--workers", "2")
    wait_for(10)
    process.kill()
    process.communicate()
    answered = len(records()) if Path("out.jsonl").read_bytes().endswith(b"\n") else len(records()) - 1
    assert 10 <= answered < 60
    assert texts()[:answered] == prompts[:answered]
    Path("asked").unlink()
    done = start("in.jsonl", "-b", "slow", "--output", "out.jsonl")
    out, _err = done.communicate(timeout=60)
    assert (done.returncode, out) == (0, "")
    assert texts() == prompts
    assert sorted(asked_for(), key=int) == prompts[answered:]


@pytest.mark.usefixtures("installed")
def test_ctrl_c_ends_it_at_once_and_keeps_what_was_answered() -> None:
    prompts = [str(number) for number in range(1, 40)]
    write(*prompts)
    process = start("in.jsonl", "-b", "stuck", "--output", "out.jsonl", "--workers", "2")
    wait_for(4)
    while not {"5", "8"} <= set(asked_for()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=60)  # prompt 5 takes longer
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    kept = texts()
    assert kept[:4] == ["1", "2", "3", "4"]
    assert {"6", "7"} <= set(kept)  # answered, while one before them was waited for
    Path("asked").unlink()
    done = start("in.jsonl", "-b", "slow", "--output", "out.jsonl")
    done.communicate(timeout=60)
    assert texts() == prompts
    assert set(asked_for()).isdisjoint(kept)


@pytest.mark.usefixtures("installed")
def test_ctrl_c_ends_the_waiting_for_standard_input() -> None:
    process = subprocess.Popen(
        [*AI_CLI, "batch", "-", "-b", "slow", "--output", "out.jsonl"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write('"a"\n"b"\n')
    process.stdin.flush()
    assert process.stderr is not None
    for _ in range(2):
        assert process.stderr.readline() == "noise of a plug-in\n"
    time.sleep(0.5)  # the outcome of what was said last is on its way
    process.send_signal(signal.SIGINT)
    _out, _err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert texts() == ["a", "b"]


@pytest.mark.usefixtures("installed")
def test_two_runs_do_not_write_to_one_file() -> None:
    write(*(str(number) for number in range(1, 20)))
    process = start("in.jsonl", "-b", "stuck", "--output", "out.jsonl")
    wait_for(4)
    second = start("in.jsonl", "-b", "slow", "--output", "out.jsonl")
    _, err = second.communicate(timeout=60)
    process.kill()
    process.communicate()
    assert second.returncode == 2
    assert "another run is writing to" in err


@pytest.mark.usefixtures("installed")
def test_what_plugins_print_does_not_come_between_the_results() -> None:
    write("a", "b", "c")
    process = start("in.jsonl", "-b", "slow")
    out, err = process.communicate(timeout=60)
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["a", "b", "c"]
    assert err.count("noise of a plug-in") == 3


@pytest.mark.usefixtures("installed")
def test_a_reader_that_has_seen_enough_ends_it_quietly() -> None:
    write(*(str(number) for number in range(1, 2000)))
    process = start("in.jsonl", "-b", "slow")
    assert process.stdout is not None
    assert process.stderr is not None
    assert json.loads(process.stdout.readline())["text"] == "1"
    process.stdout.close()
    process.wait(60)
    err = process.stderr.read()
    process.stderr.close()
    assert process.returncode == 1
    assert "rror" not in err
    assert "Traceback" not in err


@pytest.mark.usefixtures("installed")
def test_a_terminal_shows_a_bar() -> None:
    write(*(str(number) for number in range(1, 30)))
    ours, theirs = pty.openpty()
    process = start("in.jsonl", "-b", "slow", "--output", "out.jsonl", stderr=theirs)
    os.close(theirs)
    shown = b"".join(read_all(ours))
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"/29" in shown
    assert b"29 answered, 0 failed" in shown
    assert len(texts()) == 29


def read_all(terminal: int) -> Iterator[bytes]:
    try:
        while piece := os.read(terminal, 65536):
            yield piece
    except OSError:  # Linux says so when the other side is closed
        pass


MEASURED = """
import resource, sys
from scripts.ai_cli import cli
try:
    cli(["batch", sys.argv[1], "-b", "sample", "--output", sys.argv[2]], prog_name="ai-cli")
finally:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def memory_for(prompts: int) -> int:
    """Return how many KiB of memory a batch takes at most."""
    name = f"{prompts}.jsonl"
    Path(name).write_text("".join(json.dumps(f"{number} " + "word " * 200) + "\n" for number in range(prompts)))
    command = [sys.executable, "-c", MEASURED, name, f"out-{name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert Path(f"out-{name}").read_bytes().count(b"\n") == prompts, done.stderr
    return int(done.stdout)


@pytest.mark.e2e
def test_memory_does_not_grow_with_the_number_of_prompts() -> None:
    # Prompts and answers of 8,000 lines have 16 MB, their results 25 MB.
    assert memory_for(8000) - memory_for(500) < 5000


def test_an_option_that_other_programs_take_for_a_file_is_explained(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("hi\n", encoding="utf-8")
    result = CliRunner().invoke(cli, ["batch", str(tmp_path / "prompts.txt"), "-o", "out.csv"], prog_name="ai-cli")
    assert result.exit_code == 2
    assert "--output FILE names the file for the results" in result.stderr
