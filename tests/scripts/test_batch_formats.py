"""`ai-cli batch` with files as people have them: tables, text, OpenAI's format; each is resumed by its own file."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from llm.backends.plugin_sdk import register_backend
from llm.errors import D0ttinoError
from llm.host import Host
from llm.testing import host_with, write_distribution
from llm.types import Attachment, Completion, Request, Usage
from scripts.ai_cli import cli
from scripts.batch.rows import Prompts, Source
from scripts.cli.config import Template

REVIEWS = 'id,text\n7,"Good, ""really"""\n7,"two\nlines"\n9,bad x\n'


@pytest.fixture
def asked() -> list[str]:
    return []


@pytest.fixture
def host(asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host whose backend `echo` repeats prompts, and fails for those with an `x`."""
    monkeypatch.chdir(tmp_path)
    host = host_with()

    def echo(prompt: str) -> Completion:
        asked.append(prompt)
        if "x" in prompt:
            raise ValueError("no x")
        return Completion(prompt.upper(), usage=Usage(1, 2, cost=0.25))

    register_backend("echo", echo, host=host)
    register_backend("kind", lambda prompt: prompt.upper(), host=host)
    return host


def run(host: Host, *arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, ("batch", *arguments), obj=host, input=text, prog_name="ai-cli")


def rows(path: str = "out.csv", delimiter: str = ",") -> list[list[str]]:
    with Path(path).open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file, delimiter=delimiter))


def reviews() -> list[str]:
    Path("in.csv").write_text(REVIEWS, encoding="utf-8")
    return ["in.csv", "-b", "echo", "--prompt", "say {{text}}"]


# --- tables in and out ----------------------------------------------------------------------------------------------


def test_a_csv_file_gets_its_answers_as_columns(host: Host) -> None:
    result = run(host, *reviews(), "--output", "out.csv")
    assert result.exit_code == 1
    assert rows() == [
        ["id", "text", "answer", "error"],
        ["7", 'Good, "really"', 'SAY GOOD, "REALLY"', ""],
        ["7", "two\nlines", "SAY TWO\nLINES", ""],
        ["9", "bad x", "", rows()[3][3]],
    ]
    assert "no x" in rows()[3][3]
    assert "error: line 5: backend echo" in result.stderr  # the row before has two lines
    assert "2 answered, 1 failed, cost 0.5" in result.stderr


def test_a_second_run_asks_again_for_what_failed_and_puts_it_in_its_place(host: Host, asked: list[str]) -> None:
    arguments = reviews()
    run(host, *arguments, "--output", "out.csv")
    with Path("in.csv").open("a") as file:
        file.write("10,new\n")
    asked.clear()
    result = run(host, *(word.replace("echo", "kind") for word in arguments), "--output", "out.csv")
    assert (result.exit_code, asked) == (0, [])
    assert [row[2] for row in rows()] == ["answer", 'SAY GOOD, "REALLY"', "SAY TWO\nLINES", "SAY BAD X", "SAY NEW"]
    assert "2 answered, 0 failed, 2 done before" in result.stderr
    assert not Path("out.csv.part").exists()


def test_results_that_a_spreadsheet_saved_are_completed(host: Host, asked: list[str]) -> None:
    arguments = reviews()
    run(host, *arguments, "--output", "out.csv")
    saved = rows()
    with Path("out.csv").open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file, lineterminator="\r\n").writerows(saved)
    with Path("in.csv").open("a") as file:
        file.write("10,new\n")
    asked.clear()
    assert "2 done before" in run(host, *arguments, "--output", "out.csv").stderr
    assert len(asked) == 2
    found = rows()
    assert [row[0] for row in found] == ["id", "7", "7", "9", "10"]
    assert found[-1][2] == "SAY NEW"


@pytest.mark.parametrize("output", ["out.csv", "out.jsonl"])
@pytest.mark.parametrize("change", ["removed or replaced", "changed"])
def test_a_batch_ends_where_another_program_takes_its_results_away(
    host: Host, asked: list[str], output: str, change: str
) -> None:
    def meddle(prompt: str) -> str:
        asked.append(prompt)
        if prompt == "50":
            os.unlink(output) if change == "removed or replaced" else os.truncate(output, 3)
        return prompt

    register_backend("meddle", meddle, host=host)
    Path("in.txt").write_text("".join(f"{number}\n" for number in range(200)))
    result = run(host, "in.txt", "-b", "meddle", "--workers", "1", "--output", output)
    assert result.exit_code == 1
    assert f"another program has {change}" in result.stderr
    assert len(asked) < 200


def test_results_cannot_go_through_links_in_a_circle(host: Host) -> None:
    Path("out.csv").symlink_to("out.csv")
    result = run(host, *reviews(), "--output", "out.csv")
    assert result.exit_code == 1
    assert "Too many levels of symbolic links" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_row_that_has_a_key_twice_is_a_failure(host: Host, asked: list[str]) -> None:
    Path("in.jsonl").write_text('{"prompt": "a", "prompt": "b"}\n{"prompt": "c"}\n')
    result = run(host, "in.jsonl", "-b", "echo")
    assert "line 1: the key 'prompt' appears twice" in result.stderr
    assert asked == ["c"]


@pytest.mark.parametrize("cut", range(1, 60, 3))
def test_a_result_that_was_cut_is_made_again(host: Host, asked: list[str], cut: int) -> None:
    arguments = reviews()
    Path("in.csv").write_text('id,text\n1,"Good, ""really"""\n2,"two\nlines\n"\n', encoding="utf-8")
    run(host, *arguments, "--output", "out.csv")
    whole = Path("out.csv").read_bytes()
    Path("out.csv").write_bytes(whole[:-cut])
    asked.clear()
    assert run(host, *arguments, "--output", "out.csv").exit_code == 0
    assert Path("out.csv").read_bytes() == whole
    assert len(asked) == (1 if cut < len(whole.split(b"\n2,")[1]) + 3 else 2)


def test_late_results_of_a_run_that_was_killed_count(host: Host, asked: list[str]) -> None:
    arguments = reviews()
    run(host, *arguments, "--output", "out.csv")
    late = {"row": 3, "result": '9,bad x,"found\nlate",\n'}
    Path("out.csv.part").write_text(json.dumps(late) + '\n{"row": 1, "resu', encoding="utf-8")
    asked.clear()
    assert run(host, *arguments, "--output", "out.csv").exit_code == 0
    assert asked == []
    assert rows()[3] == ["9", "bad x", "found\nlate", ""]
    assert not Path("out.csv.part").exists()


@pytest.mark.parametrize("name", ["out.csv", "out.parquet"])
def test_a_late_result_never_takes_the_place_of_another_row(host: Host, asked: list[str], name: str) -> None:
    if name == "out.parquet":
        pytest.importorskip("pyarrow")
    arguments = [*reviews(), "--columns", "id,answer", "--output", name]
    line = "9,LATE\n" if name == "out.csv" else '{"id": "9", "answer": "LATE"}\n'
    Path(f"{name}.part").write_text(json.dumps({"row": 3, "result": line}) + "\n", encoding="utf-8")
    assert run(host, *arguments, "--limit-cost", "0").exit_code == 3
    assert Path(f"{name}.part").exists()
    assert run(host, *arguments).exit_code == 0
    assert len(asked) == 2
    again = run(host, name, "-b", "kind", "--prompt", "{{answer}}", "--columns", "id,answer", "--output-format", "csv")
    assert [line[0] for line in csv.reader(io.StringIO(again.stdout))] == ["id", "7", "7", "9"]
    assert again.stdout.endswith("9,LATE\n")
    assert not Path(f"{name}.part").exists()


def test_chosen_columns_are_all_that_is_written(host: Host) -> None:
    run(host, *reviews(), "--output", "out.csv", "--columns", "answer,id", "--columns", "cost")
    assert rows()[:2] == [["answer", "id", "cost"], ['SAY GOOD, "REALLY"', "7", "0.25"]]
    assert rows()[3] == ["", "9", ""]
    assert (
        "1 failed, 2 done before" in run(host, *reviews(), "--output", "out.csv", "--columns", "answer,id,cost").stderr
    )
    result = run(host, *reviews(), "--output", "out.jsonl", "--columns", "id,answer")
    assert result.exit_code == 1
    assert json.loads(Path("out.jsonl").read_text().splitlines()[0]) == {"id": "7", "answer": 'SAY GOOD, "REALLY"'}


def test_a_column_that_the_input_has_already_keeps_its_name(host: Host) -> None:
    Path("in.csv").write_text("answer,error\nold,none\n")
    run(host, "in.csv", "-b", "echo", "--prompt", "{{answer}}", "--output", "out.csv")
    assert rows() == [["answer", "error", "answer_2", "error_2"], ["old", "none", "OLD", ""]]


@pytest.mark.parametrize(
    ("content", "arguments", "words"),
    [
        ("id,text\n1,a\n", ["--prompt", "{{txt}}"], "in.csv, line 1: there is no column named 'txt'\n  Did you mean"),
        ("id,text\n1,a\n", [], "make one of the columns: --prompt 'Summarize: {{text}}'"),
        ("id,text\n1,a\n", ["--prompt", "the same"], "or it would be the same for each row"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "--columns", "idd"], "--columns: there is no column named 'idd'"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "-p", "lang=de"], "there is no variable of this template named"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "--encoding", "klingon"], "there is no encoding 'klingon'"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "--delimiter", "ab"], "--delimiter 'ab' is not one character"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "--output", "other.csv"], "it has the columns mine, yours"),
        ("id,text\n1,a\n", ["--prompt", "{{text}}", "--output", "in.csv"], "cannot go into the file that the prompts"),
        ("a,a\n1,2\n", ["--prompt", "{{a}}"], "in.csv has two columns 'a'"),
        ("", ["--prompt", "{{a}}"], "in.csv is empty: its first line must name the columns"),
    ],
)
def test_what_would_fail_every_row_is_refused_first(
    host: Host, asked: list[str], content: str, arguments: list[str], words: str
) -> None:
    Path("in.csv").write_text(content)
    Path("other.csv").write_text("mine,yours\n1,2\n")
    result = run(host, "in.csv", "-b", "echo", *arguments)
    assert (result.exit_code, result.stdout, asked) == (2, "", [])
    assert words in result.stderr
    assert Path("other.csv").read_text() == "mine,yours\n1,2\n"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b"1", "there is no column named 'text' in this row"),
        (b"1,a,b", "the row has 3 fields, and the header 2"),
        (b"1,caf\xe9", "column 'text': the byte 0xe9 after 3 characters is not UTF-8"),
        (b"1,", "nothing to ask about: 'text' is empty"),
    ],
)
def test_a_row_with_a_fault_is_a_failure_among_the_results(host: Host, row: bytes, words: str) -> None:
    Path("in.csv").write_bytes(b"id,text\n0,before\n" + row + b"\n2,after\n")
    result = run(host, "in.csv", "-b", "echo", "--prompt", "{{text}}", "--output", "out.csv")
    assert result.exit_code == 1
    assert [line[2] for line in rows()] == ["answer", "BEFORE", "", "AFTER"]
    assert words in rows()[2][3]
    assert "error: line 3: " in result.stderr


def test_a_quote_that_is_nowhere_closed_is_named_and_what_stands_before_is_answered(host: Host) -> None:
    Path("in.csv").write_text('id,text\n1,one\n2,"two\n3,three\n')
    result = run(host, "in.csv", "-b", "echo", "--prompt", "{{text}}", "--output", "out.csv")
    assert result.exit_code == 2
    assert "in.csv, line 3, column text: a quote is opened and never closed" in result.stderr
    assert rows()[1:] == [["1", "one", "ONE", ""]]


@pytest.mark.parametrize(
    "content",
    [
        b'\xef\xbb\xbfid;text\r\n1;one, two\r\n\r\n;\r\n2;"a;b"\r\n',
        b"sep=|\nid|text\n1|one, two\n2|a;b\n",
        b"id\ttext\n1\tone, two\n2\ta;b\n",
        'id,text\r1,"one, two"\r2,a;b\r'.encode("utf-16"),
        '\n\n"id" , "text" \n1,"one, two"\n2,a;b\n'.replace(" ", "").replace("one,two", "one, two").encode(),
    ],
)
def test_dialects_marks_and_empty_lines(host: Host, content: bytes) -> None:
    Path("in.csv").write_bytes(content)
    result = run(
        host, "in.csv", "-b", "echo", "--prompt", "{{text}}", "--columns", "id,answer", "--output", "out.jsonl"
    )
    assert result.exit_code == 0, result.stderr
    lines = map(json.loads, Path("out.jsonl").read_text().splitlines())
    assert [list(line.values()) for line in lines] == [["1", "ONE, TWO"], ["2", "A;B"]]


def test_a_table_keeps_its_delimiter_on_a_pipe(host: Host) -> None:
    result = run(host, "-", "--format", "csv", "-b", "echo", "--prompt", "{{b}}", "--output", "-", text="a;b\n1;2,5\n")
    assert result.stdout == "a;b;answer;error\n1;2,5;2,5;\n"
    result = run(host, "-", "--format", "tsv", "-b", "echo", "--prompt", "{{a b}}", text="a b\n1\n")
    assert result.stdout == "a b\tanswer\terror\n1\t1\t\n"
    result = run(host, "-", "--format", "csv", "-b", "echo", "--prompt", "{{b}}", text="a,b\n")
    assert result.stdout == "a,b,answer,error\n"


def test_long_fields_and_odd_encodings_come_through(host: Host) -> None:
    long = "é" * 1_000_000
    Path("in.csv").write_bytes(f"id,text\n1,{long}\n".encode("cp1252"))
    arguments = ["in.csv", "-b", "kind", "--prompt", "{{text}}", "--encoding", "cp1252", "--output", "out.tsv"]
    assert run(host, *arguments).exit_code == 0
    csv.field_size_limit(2**30)
    assert rows("out.tsv", "\t")[1][2] == long.upper()
    assert "0 answered, 0 failed, 1 done before" in run(host, *arguments).stderr


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("in.xlsx", b"PK\x03\x04...", "in.xlsx is a spreadsheet or another archive\n  save it as CSV"),
        ("in.csv.gz", b"\x1f\x8b\x08", "in.csv.gz is compressed\n  gunzip -c FILE | ai-cli batch - --format csv"),
        ("in.jsonl.gz", b"\x1f\x8b\x08", "gunzip -c FILE | ai-cli batch - --format jsonl"),
        ("in.csv", b"PAR1", "in.csv is a Parquet file\n  --format parquet"),
        ("in.json", b'[\n{"prompt": "a"}\n]\n', "in.json is one JSON document"),
        ("in.parquet", b"id,text\n", "in.parquet is not a Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_named(host: Host, asked: list[str], name: str, content: bytes, words: str) -> None:
    if name == "in.parquet":
        pytest.importorskip("pyarrow")
    Path(name).write_bytes(content)
    result = run(host, name, "-b", "echo", "--prompt", "{{text}}")
    assert (result.exit_code, asked) == (2, [])
    assert words in result.stderr


def test_plain_text_has_a_prompt_in_each_line(host: Host) -> None:
    Path("in.txt").write_text('one\r\n\n{"two": 2}\n')
    result = run(host, "in.txt", "-b", "echo", "--columns", "line,answer")
    assert [json.loads(line) for line in result.stdout.splitlines()] == [
        {"line": 1, "answer": "ONE"},
        {"line": 3, "answer": '{"TWO": 2}'},
    ]


def test_json_lines_are_rows_for_a_template(host: Host) -> None:
    Path("in.jsonl").write_text('{"id": 1, "model": "T-Ford", "tags": ["a"]}\n{"id": 2, "modl": "?"}\n')
    result = run(host, "in.jsonl", "-b", "echo", "--prompt", "{{model}}: {{tags}}", "--output", "out.jsonl")
    first, second = (json.loads(line) for line in Path("out.jsonl").read_text().splitlines())
    assert (first["text"], first["id"], first["asked_model"]) == ('T-FORD: ["A"]', 1, None)
    assert "there is no column named 'model' in this row. Did you mean 'modl'?" in second["error"]
    assert result.exit_code == 1


def test_a_template_of_the_user_is_filled_with_columns(host: Host, asked: list[str]) -> None:
    path = Path.home() / ".config/d0ttino/templates/tell.toml"
    path.parent.mkdir(parents=True)
    path.write_text('prompt = "In {{language}}, {{tone}}: {{input}}"\n[variables]\ntone = "kindly"\n')
    Path("in.csv").write_text("prompt,language\nhello,French\nbye,German\n")
    result = run(host, "in.csv", "-t", "tell", "-b", "echo", "--output", "out.csv")
    assert result.exit_code == 0, result.stderr
    assert sorted(asked) == ["In French, kindly: hello", "In German, kindly: bye"]
    asked.clear()
    run(
        host, "in.csv", "-t", "tell", "-p", "tone=loudly", "-p", "language=Latin", "-b", "echo", "--output", "other.csv"
    )
    assert sorted(asked) == ["In Latin, loudly: bye", "In Latin, loudly: hello"]


def test_a_system_prompt_has_columns_too(host: Host) -> None:
    told: list[Any] = []

    def chat(request: Request) -> str:
        told.append((request.system, request.prompt))
        return "ok"

    register_backend("chat", lambda prompt, request: chat(request), host=host)
    Path("in.csv").write_text("prompt,who\nhello,a pirate\n")
    result = run(host, "in.csv", "-b", "chat", "-s", "You are {{who}}.", "--columns", "answer")
    assert result.exit_code == 0, result.stderr
    assert told == [("You are a pirate.", "hello")]


# --- answers by a schema --------------------------------------------------------------------------------------------


def test_fields_of_a_schema_become_columns_and_a_wrong_answer_is_asked_for_again(host: Host) -> None:
    answers = iter(['{"label": "good"}', '{"label": "good", "score": 1}', "no", "never"])
    register_backend("labels", lambda prompt: next(answers), host=host)
    Path("in.csv").write_text("text\none\ntwo\n")
    arguments = [
        "in.csv",
        "-b",
        "labels",
        "--prompt",
        "{{text}}",
        "--schema",
        "label, score int",
        "--output",
        "out.csv",
    ]
    result = run(host, *arguments, "--workers", "1")
    assert result.exit_code == 1
    assert rows()[:2] == [["text", "label", "score", "error"], ["one", "good", "1", ""]]
    assert "the answer does not follow the schema: it is not JSON" in rows()[2][3]
    assert next(answers, None) is None


# --- OpenAI's batch files -------------------------------------------------------------------------------------------


def openai_line(custom_id: Any, **body: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/chat/completions", "body": body}


def test_openais_batch_files_are_answered_in_their_own_format(host: Host) -> None:
    told: list[Request] = []

    def chat(prompt: str, request: Request) -> Completion:
        told.append(request)
        if prompt == "x":
            raise ValueError("no x")
        return Completion("hi", served_model="m-1", finish_reason="length", usage=Usage(3, 4))

    register_backend("chat", chat, host=host)
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "hello"}, image]},
    ]
    lines = [
        openai_line("a", model="m", messages=messages, temperature=0.2),
        openai_line("b", messages=[{"role": "user", "content": "x"}]),
        openai_line("a", messages=messages),
        openai_line("c", messages=[{"role": "tool", "content": "x"}]),
        {**openai_line("d", messages=messages), "url": "/v1/embeddings"},
    ]
    Path("in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    result = run(host, "in.jsonl", "-b", "chat", "--output", "out.jsonl", "--workers", "1")
    assert result.exit_code == 1
    first = told[0]
    assert (first.system, first.prompt, first.model, dict(first.options)) == (
        "Be brief.",
        "hello",
        "m",
        {"temperature": 0.2},
    )
    assert first.messages[1].attachments == (Attachment("image/png", b"\0\0\0"),)
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [line["custom_id"] for line in found] == ["a", "b", "a", "c", "d"]
    body = found[0]["response"]["body"]
    assert (found[0]["response"]["status_code"], found[0]["error"]) == (200, None)
    assert body["choices"][0]["message"]["content"] == "hi"
    assert (body["model"], body["choices"][0]["finish_reason"]) == ("m-1", "length")
    assert body["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    assert (found[1]["response"], found[1]["error"]["code"]) == (None, "no_answer")
    assert found[2]["error"]["message"] == "line 1 has the custom_id 'a' already"
    assert "`role` must be system, user or assistant" in found[3]["error"]["message"]
    assert "only POST /v1/chat/completions is understood" in found[4]["error"]["message"]
    before = found[0]
    told.clear()
    run(host, "in.jsonl", "-b", "kind", "--output", "out.jsonl")
    again = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert (again[0], told) == (before, [])
    assert again[1]["response"]["body"]["choices"][0]["message"]["content"] == "X"


# --- Parquet --------------------------------------------------------------------------------------------------------


def test_parquet_in_and_out(host: Host, asked: list[str]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as parquet

    table = pyarrow.table({"id": [1, 2, 3], "text": ["one", "x", None], "score": [0.5, None, 1.0]})
    parquet.write_table(table, "in.parquet")
    arguments = ["in.parquet", "-b", "echo", "--prompt", "{{text}}", "--output", "out.parquet"]
    result = run(host, *arguments)
    assert result.exit_code == 1
    found = parquet.read_table("out.parquet")
    assert found.schema.field("id").type == pyarrow.int64()
    assert found["score"].to_pylist() == [0.5, None, 1.0]
    assert found["answer"].to_pylist() == ["ONE", None, None]
    assert not Path("out.parquet.part").exists()
    asked.clear()
    run(host, *(word.replace("echo", "kind") for word in arguments))
    assert asked == []
    assert parquet.read_table("out.parquet")["answer"].to_pylist() == ["ONE", "X", None]


def test_parquet_without_pyarrow_says_what_to_install(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    Path("in.parquet").write_bytes(b"PAR1")
    result = run(host, "in.parquet", "-b", "echo", "--prompt", "{{text}}")
    assert result.exit_code == 2
    assert "d0ttino[parquet]" in result.stderr


# --- anything -------------------------------------------------------------------------------------------------------

cells = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), min_size=2, max_size=2)


@given(table=st.lists(cells.filter(lambda row: any(map(str.strip, row))), max_size=6))
def test_any_table_is_read_as_it_was_written(table: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["a", "b"], *table])
    source = Source(io.BytesIO(text.getvalue().encode()), "in.csv", "csv")
    assert [list((row.values or {}).values()) for row in source] == table


@pytest.mark.parametrize("format", ["csv", "tsv"])
@given(content=st.binary(max_size=300))
def test_any_bytes_are_a_table_or_a_fault(format: str, content: bytes) -> None:
    lines = []
    with suppress(D0ttinoError):
        rows = Source(io.BytesIO(b"prompt\n" + content), "in", format)
        lines = list(Prompts(rows, Request(""), Template("--prompt"), {}))
    with suppress(D0ttinoError):
        list(Source(io.BytesIO(content), "in", format))
    assert all((line.request is None) != (line.error is None) for line in lines)


# --- limits and progress --------------------------------------------------------------------------------------------


def test_a_limit_of_cost_ends_it_with_a_status_of_its_own_and_a_higher_one_goes_on(
    host: Host, asked: list[str]
) -> None:
    Path("in.txt").write_text("".join(f"{number}\n" for number in range(100)))
    result = run(host, "in.txt", "-b", "echo", "--output", "out.jsonl", "--limit-cost", "2.5")
    assert result.exit_code == 3
    assert len(asked) == 10
    assert "10 answered, 0 failed, cost 2.5" in result.stderr
    assert "the limit of 2.5 is reached" in result.stderr
    result = run(host, "in.txt", "-b", "echo", "--output", "out.jsonl", "--limit-cost", "1000")
    assert result.exit_code == 0
    assert "90 answered, 0 failed, 10 done before" in result.stderr
    assert [json.loads(line)["text"] for line in Path("out.jsonl").read_text().splitlines()] == list(
        map(str, range(100))
    )


def test_a_limit_cannot_hold_if_nobody_knows_the_cost(host: Host) -> None:
    Path("in.txt").write_text("a\nb\nc\n")
    result = run(host, "in.txt", "-b", "kind", "--output", "out.jsonl", "--limit-cost", "2.5")
    assert result.exit_code == 3
    assert "the cost of an answer of kind is unknown, so --limit-cost cannot be enforced" in result.stderr
    assert len(Path("out.jsonl").read_text().splitlines()) == 1


def test_elsewhere_than_on_a_terminal_a_line_now_and_then_says_how_far_it_is(host: Host) -> None:
    Path("in.txt").write_text("a\nx\nb\n")
    result = run(host, "in.txt", "-b", "echo", "--output", "out.jsonl", "--progress", "0.000001")
    assert "note: 3/3, " in result.stderr
    assert "/s, cost 0.5, 1 failed (1 ValueError), 0:00:00 left" in result.stderr
    assert "left" not in run(host, "in.txt", "-b", "echo", "--output", "again.jsonl").stderr


# --- in a process of its own ----------------------------------------------------------------------------------------

SLOW = """
import time
from llm.backends.plugin_sdk import register_backend

def slow(prompt):
    time.sleep(0.02)
    return prompt

register_backend("slow", slow)
"""


def start(*arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "scripts.ai_cli", "batch", *arguments]
    return subprocess.Popen(command, text=True, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_a_table_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    write_distribution(site, "demo", entry_points={"llm.plugins": {"demo": "slow"}}, files={"slow.py": SLOW})
    monkeypatch.setenv("PYTHONPATH", f"{Path(__file__).parents[2]}:{site}")
    Path("in.csv").write_text("id,text\n" + "".join(f'{row},"{row}\nline"\n' for row in range(60)))
    arguments = [
        "in.csv",
        "-b",
        "slow",
        "--prompt",
        "{{text}}",
        "--columns",
        "id,answer",
        "--output",
        name,
        "--workers",
        "2",
    ]
    process = start(*arguments)
    end = time.monotonic() + 60
    while not Path(name).exists() or Path(name).read_bytes().count(b"\n") < 20:
        assert time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate(timeout=60)
    done = start(*arguments)
    _, err = done.communicate(timeout=60)
    assert done.returncode == 0, err
    assert "done before" in err
    if name == "out.csv":
        assert rows() == [["id", "answer"], *([str(row), f"{row}\nline"] for row in range(60))]
    else:
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        assert lines == [{"id": str(row), "answer": f"{row}\nline"} for row in range(60)]
