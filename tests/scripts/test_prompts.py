"""What `ai-cli send` takes: words, standard input, a system prompt, files, templates, a schema; and thoughts."""

import json
import os
import socket
import subprocess
import sys
from base64 import b64encode
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pexpect
import pytest
from click.testing import CliRunner, Result

from llm import Request
from llm.backends.plugin_sdk import Backend, register_backend
from llm.errors import UsageError
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from scripts.cli.attachments import _check_peer, _check_redirect
from tests.servers import Exchange, FaultServer, free_port, http_answer

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 8
AI_CLI = [sys.executable, "-m", "scripts.ai_cli"]


class Remembering(Backend):
    """Answers with the next text, and remembers the requests."""

    def __init__(self, *answers: str) -> None:
        super().__init__("mine")
        self.answers = list(answers) or ["ok"]
        self.requests: list[Request] = []

    def run(self, prompt: str, *, request: Request) -> str:
        self.requests.append(request)
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]

    @property
    def told(self) -> list[tuple[str, str]]:
        return [(message.role, message.text) for message in self.requests[-1].messages]


@pytest.fixture
def host() -> Host:
    return host_with()


def run(host: Host, backend: Backend, *arguments: str, stdin: str | bytes = "") -> Result:
    if "mine" not in host.backends():
        register_backend("mine", backend, host=host)
    return CliRunner().invoke(cli, ["send", "-b", "mine", *arguments], obj=host, input=stdin, prog_name="ai-cli")


@pytest.mark.parametrize(
    ("arguments", "stdin", "sent"),
    [
        (["hello", "world"], "", "hello world"),
        (["summarize"], "- old\n+ new\n", "summarize\n\n- old\n+ new"),
        (["summarize"], " \n", "summarize"),
        (["-"], "from stdin\n", "from stdin"),
        ([], "from stdin\n", "from stdin"),
        ([], "\ufefffrom stdin\r\n", "from stdin"),
        (["summarize"], "\ufeff", "summarize"),
    ],
)
def test_words_and_stdin_become_the_prompt(host: Host, arguments: list[str], stdin: str, sent: str) -> None:
    backend = Remembering()
    result = run(host, backend, *arguments, stdin=stdin)
    assert (result.exit_code, result.stdout, result.stderr) == (0, "ok\n", "")
    assert backend.told == [("user", sent)]


def test_without_a_prompt_there_is_nothing_to_send(host: Host) -> None:
    backend = Remembering()
    result = run(host, backend)
    assert result.exit_code == 2
    assert "Missing argument 'PROMPT'" in result.stderr
    assert not backend.requests


def test_bytes_on_stdin_are_no_text(host: Host) -> None:
    for content, why in ((b"\xff\xfe", "is not UTF-8 text"), (b"P\0N\0G\0", "is not text: it holds NUL characters")):
        for words in (["what is this"], ["-"], []):
            result = run(host, Remembering(), *words, stdin=content)
            assert result.exit_code == 2
            assert f"standard input {why}" in result.stderr
            assert "--attach" in result.stderr


def test_a_system_prompt_as_text_and_from_a_file(host: Host, tmp_path: Path) -> None:
    file = tmp_path / "pirate.txt"
    file.write_text("Talk like a pirate.\n", encoding="utf-8")
    backend = Remembering()
    for given, told in [("Be brief.", "Be brief."), (f"@{file}", "Talk like a pirate."), ("@@home", "@home")]:
        assert run(host, backend, "-s", given, "hi").exit_code == 0
        assert backend.told == [("system", told), ("user", "hi")]
    result = run(host, backend, "-s", f"@{tmp_path / 'none'}", "hi")
    assert (result.exit_code, len(backend.requests)) == (2, 3)
    assert f"error: --system: cannot read {tmp_path / 'none'}: No such file or directory" in result.stderr


# Attachments


def test_texts_become_parts_and_images_attachments(host: Host, tmp_path: Path) -> None:
    (tmp_path / "notes.bin").write_text("a note\n", encoding="utf-8")
    (tmp_path / "photo.txt").write_bytes(PNG)
    backend = Remembering()
    files = [word for name in ("notes.bin", "photo.txt") for word in ("-a", str(tmp_path / name))]
    assert run(host, backend, *files, "compare").exit_code == 0
    (message,) = backend.requests[0].messages
    assert message.text == "compare\n\n--- notes.bin ---\na note\n--- end ---"
    (image,) = message.attachments
    assert (image.media_type, image.data, image.name) == ("image/png", PNG, "photo.txt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"%PDF-1.7 ...\xff", "it is a PDF document"),
        (b"\x00\x01", "it is neither an image nor UTF-8 text"),
        ("Grüße".encode("latin-1"), "it is neither an image nor UTF-8 text"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "it is a HEIC photo: convert it to JPEG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0", "it is an AVIF image: convert it to PNG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "it is a video"),
        (b"RIFF\0\0\0\0WAVEfmt \0", "it is sound (WAV)"),
        (b"ID3\x04\0\0", "it is sound (MP3)"),
        (b"SQLite format 3\0", "it is an SQLite database"),
        (b"\x28\xb5\x2f\xfd\0\xff", "it is compressed with zstd"),
        (b"a" * (20 * 2**20 + 1), "it is larger than 20 MiB"),
        (None, "No such file or directory"),
    ],
)
def test_what_cannot_be_attached(host: Host, tmp_path: Path, content: bytes | None, words: str) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    backend = Remembering()
    result = run(host, backend, "-a", str(file), "what is it")
    assert result.exit_code == 2
    assert f"error: --attach {file}: {words}" in result.stderr
    assert not backend.requests


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_text_may_be_in_any_unicode_that_its_mark_names(host: Host, tmp_path: Path, encoding: str) -> None:
    text = "Grüße"
    (tmp_path / "note").write_bytes(text.encode(encoding))
    backend = Remembering()
    assert run(host, backend, "-a", str(tmp_path / "note"), "what is it").exit_code == 0
    assert run(host, backend, "what is it", stdin=text.encode(encoding)).exit_code == 0
    asked = [request.messages[0].text for request in backend.requests]
    assert asked == [f"what is it\n\n--- note ---\n{text}\n--- end ---", f"what is it\n\n{text}"]


def test_a_text_that_begins_like_an_image_is_text(host: Host, tmp_path: Path) -> None:
    (tmp_path / "note").write_text("GIF8 is old, BM is older", encoding="utf-8")
    backend = Remembering()
    assert run(host, backend, "-a", str(tmp_path / "note"), "what is it").exit_code == 0
    assert "GIF8 is old" in backend.requests[0].messages[0].text


def test_attachments_by_stdin_and_other_addresses(host: Host, tmp_path: Path) -> None:
    (tmp_path / "a b.png").write_bytes(PNG)
    backend = Remembering()
    encoded = f"data:image/png;base64,{b64encode(PNG).decode()}"
    for place, stdin in (("-", PNG), (f"file://{tmp_path}/a%20b.png", b""), (encoded, b"")):
        result = run(host, backend, "-a", place, "what is it", stdin=stdin)
        assert (result.exit_code, result.stderr) == (0, "")
        (image,) = backend.requests[-1].messages[0].attachments
        assert (image.media_type, image.data) == ("image/png", PNG)
    assert run(host, backend, "-a", "data:,a%20text", "what is it").exit_code == 0
    assert "a text" in backend.requests[-1].messages[0].text
    for place, words in (
        ("-", "it is empty"),
        ("file://elsewhere/a.png", "it is a file on another machine"),
        ("data:image/png;base64,???", "it is not a complete `data:` URL"),
        ("data:image/png", "it is not a complete `data:` URL"),
    ):
        result = run(host, backend, "-a", place, "what is it")
        assert result.exit_code == 2
        assert words in result.stderr


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PNG, "standard input is an image\n  `--attach -` sends it"),
        (b"%PDF-1.4\n\xe2", "standard input is a PDF document, and not text"),
        (b"Gr\xfc\xdfe", "`iconv` makes UTF-8 of it"),
    ],
)
def test_bytes_on_stdin_are_named(host: Host, content: bytes, words: str) -> None:
    result = run(host, Remembering(), "what is it", stdin=content)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-5 and 3"], "put `--` before a PROMPT that begins with '-'"),
        (["-o", "temperature=0.5", "hi"], "-o takes two words: -o temperature 0.5"),
        (["hi", "-o", "answer.txt"], "-o KEY VALUE passes an option to the backend\n"),
        (["-m", "", "hi"], "--model is empty"),
        (["caf\udce9"], "the prompt is not UTF-8 text"),
    ],
)
def test_mistakes_on_the_command_line_have_their_remedy(host: Host, arguments: list[str], words: str) -> None:
    backend = Remembering()
    result = run(host, backend, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not backend.requests


def test_an_address_that_cannot_be_reached_has_its_reason(host: Host) -> None:
    place = f"http://me:hidden@127.0.0.1:{free_port()}/a.png"
    result = run(host, Remembering(), "-a", place, "what is it")
    assert result.exit_code == 2
    assert "no answer from the server at 127.0.0.1:" in result.stderr
    assert "the connection was refused" in result.stderr
    assert "[::1" in run(host, Remembering(), "-a", "http://[::1", "what is it").stderr


def test_an_address_is_fetched_without_a_password(host: Host) -> None:
    (Path.home() / ".netrc").write_text("machine 127.0.0.1 login me password planted-password\n", encoding="utf-8")
    backend = Remembering()
    with FaultServer(
        http_answer(status=302, headers={"Location": "/b.png"}), http_answer(PNG, headers={"Content-Type": "text/html"})
    ) as server:
        assert run(host, backend, "-a", f"{server.url}/a.png?x=1", "what is it").exit_code == 0
        assert [request.target for request in server.requests] == ["/a.png?x=1", "/b.png"]
        assert not any("authorization" in request.headers for request in server.requests)
    (image,) = backend.requests[0].messages[0].attachments
    assert (image.media_type, image.data, image.name) == ("image/png", PNG, "a.png")


def test_an_address_that_fails(host: Host) -> None:
    with FaultServer(http_answer(status=404)) as server:
        result = run(host, Remembering(), "-a", f"{server.url}/a.png", "what is it")
    assert result.exit_code == 2
    assert "the server answered with HTTP status 404" in result.stderr


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("http://127.0.0.1:{port}/secret", "it redirects to http://127.0.0.1:{port}, which is not a public address"),
        ("http://localhost:{port}/secret", "which is not a public address"),
        ("http://2130706433:{port}/secret", "which is not a public address"),
        ("http://me:planted@[::ffff:127.0.0.1]:{port}/", "redirects to http://[::ffff:127.0.0.1]:{port}, which is no"),
        ("http://169.254.169.254/latest/meta-data", "which is not a public address"),
        ("http://10.0.0.1/", "which is not a public address"),
        ("http://[fd00::1]/", "which is not a public address"),
        ("http://0.0.0.0:{port}/", "which is not a public address"),
        ("http://[64:ff9b::7f00:1]/", "which is not a public address"),
        ("http://[2002:7f00:1::]/", "which is not a public address"),
        ("http://[::/", "an invalid address"),
        ("http://example.com:99999/", "an invalid address"),
        ("file:///etc/passwd", "which is not a web address"),
    ],
)
def test_a_redirect_leads_to_no_place_of_the_users_own(host: Host, target: str, words: str) -> None:
    with FaultServer(http_answer(b"secret")) as other:
        port = other.host.rpartition(":")[2]
        hop = http_answer(status=302, headers={"Location": "/further"})
        leap = http_answer(status=302, headers={"Location": target.replace("{port}", port)})
        with FaultServer(hop, leap) as server:
            result = run(host, Remembering(), "-a", f"{server.url}/a.txt", "what is it")
    assert result.exit_code == 2
    assert words.replace("{port}", port) in result.stderr
    assert "planted" not in result.stderr
    assert other.requests == []


@pytest.mark.parametrize("public", ["1.1.1.1", "8.8.8.8", "2606:4700:4700::1111"])
def test_a_redirect_to_a_public_place_is_followed(public: str) -> None:
    there = f"https://[{public}]/x" if ":" in public else f"https://{public}/x"
    _check_redirect("https://example.com/a", "https://example.com/a", there)
    with pytest.raises(UsageError, match="which is not encrypted"):
        _check_redirect("https://example.com/a", "https://example.com/a", there.replace("https", "http"))


def test_a_name_that_means_another_place_when_connected_is_not_asked(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name server of a redirect's target tells a public address to who checks, and this machine to who connects."""
    found: list[str] = []
    resolve = socket.getaddrinfo

    def rebinding(name: Any, *args: Any, **kwargs: Any) -> Any:
        found.extend([str(name)] * (name == "rebinding.example"))
        public = name == "rebinding.example" and len(found) == 1
        return resolve("1.1.1.1" if public else "127.0.0.1", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    with FaultServer(http_answer(b"secret")) as other:
        there = f"http://rebinding.example:{other.host.rpartition(':')[2]}/secret"
        with FaultServer(http_answer(status=302, headers={"Location": there})) as server:
            result = run(host, Remembering(), "-a", f"{server.url}/a.txt", "what is it")
    assert (result.exit_code, other.requests) == (2, [])
    assert "it redirects to rebinding.example, which is not a public address now" in result.stderr


@pytest.mark.parametrize(
    ("first", "url", "peer", "allowed"),
    [
        ("1.1.1.1", "http://a.example/b", "1.1.1.1", True),
        ("1.1.1.1", "http://a.example/b", "8.8.8.8", True),
        ("1.1.1.1", "http://a.example/b", "127.0.0.1", False),
        ("1.1.1.1", "http://a.example/b", "::ffff:10.0.0.1", False),
        ("1.1.1.1", "http://a.example/b", "::127.0.0.1", False),
        ("1.1.1.1", "http://b.example/b", "169.254.169.254", False),
        ("1.1.1.1", "http://b.example/b", "fe80::1%eth0", False),
        ("10.0.0.1", "http://a.example/b", "10.0.0.2", True),
        ("10.0.0.1", "http://b.example/b", "10.0.0.2", False),
        ("10.0.0.1", "http://b.example/b", "10.0.0.1", False),
    ],
)
def test_where_a_connection_behind_a_redirect_may_lead(first: str, url: str, peer: str, allowed: bool) -> None:
    with nullcontext() if allowed else pytest.raises(UsageError, match="not a public address now"):
        _check_peer("http://a.example/a", url, [first], peer)


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX-A: ", b"HTTP/1.1 200 OK\r\n\r\n"])
def test_an_address_that_answers_drop_by_drop_ends_on_time(
    host: Host, head: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def dripping(exchange: Exchange) -> None:
        exchange.connection.sendall(head)
        while not exchange.stopping.wait(0.02):
            exchange.connection.sendall(b"a")

    monkeypatch.setattr("scripts.cli.attachments._TOTAL_TIMEOUT", 0.5)
    with FaultServer(dripping) as server:
        result = run(host, Remembering(), "-a", f"{server.url}/a.txt", "what is it")
    assert result.exit_code == 2
    assert "it took too long" in result.stderr


def test_an_address_that_announces_too_much_is_not_read(host: Host) -> None:
    answer = http_answer(b"a", headers={"Content-Length": str(2**40)})
    with FaultServer(answer) as server:
        result = run(host, Remembering(), "-a", f"{server.url}/a.txt", "what is it")
    assert "it is larger than 20 MiB" in result.stderr


def test_an_address_whose_answer_is_cut_off(host: Host) -> None:
    with FaultServer(http_answer(b"half", headers={"Content-Length": "8"})) as server:
        result = run(host, Remembering(), "-a", f"{server.url}/a.txt", "what is it")
    assert result.exit_code == 2
    assert result.stderr.endswith("broke in the middle of the answer, after 4 bytes\n")


# Thoughts


def test_thoughts_are_left_out_unless_asked_for(host: Host) -> None:
    backend = Remembering("<think>\nhm\n</think>\n\nHello")
    assert run(host, backend, "hi").stdout == "Hello\n"
    assert run(host, backend, "--stream", "hi").stdout == "Hello\n"
    assert json.loads(run(host, backend, "--json", "hi").stdout)["text"] == "Hello"
    assert run(host, backend, "--show-thoughts", "hi").stdout == "<think>\nhm\n</think>\n\nHello\n"


def test_an_answer_of_thoughts_alone_is_told(host: Host) -> None:
    for streamed in ([], ["--stream"]):
        result = run(host, Remembering("<think>hm"), *streamed, "hi")
        assert "the answer holds thoughts only; --show-thoughts shows them" in result.stderr
        assert (result.exit_code, result.stdout) == (1, "")


def reasoning(stream: bool) -> bytes:
    if not stream:
        return http_answer({"choices": [{"message": {"reasoning_content": "hm", "content": "Hello"}}]})
    deltas: list[dict[str, Any]] = [{"reasoning": "h", "content": ""}, {"reasoning": "m"}, {"content": "Hello"}]
    events = [{"choices": [{"delta": delta}]} for delta in deltas]
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return http_answer(body, headers={"Content-Type": "text/event-stream"})


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
def test_thoughts_in_fields_of_their_own(streamed: str, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    with FaultServer(reasoning(streamed == "--stream")) as server:
        monkeypatch.setenv("MINDBRIDGE_BASE_URL", server.url)
        for option, shown in (([], "Hello\n"), (["--show-thoughts"], "<think>\nhm\n</think>\n\nHello\n")):
            arguments = ["send", "-b", "mindbridge", streamed, *option, "hi"]
            result = CliRunner().invoke(cli, arguments, obj=host, prog_name="ai-cli")
            assert result.stdout == shown


@pytest.mark.parametrize(
    ("answer", "options", "escaped"),
    [
        ("\x1b[1mbold", ["--no-stream"], "\\x1b[1mbold"),
        ('{"name": "\u202e"}', ["--schema", "name"], '{"name": "\\u202e"}'),
    ],
)
def test_raw_answers_are_printed_as_they_are_on_a_terminal(answer: str, options: list[str], escaped: str) -> None:
    with FaultServer(http_answer({"choices": [{"message": {"content": answer}}]})) as server:
        for option, shown in (([], f"{escaped}\r\n"), (["--raw"], f"{answer}\r\n")):
            child = pexpect.spawn(
                "/bin/sh",  # on a busy machine the waiting line is drawn on stderr
                ["-c", 'exec "$@" 2>/dev/null', "sh", *AI_CLI, "send", "-b", "mindbridge", *options, *option, "hi"],
                env={**os.environ, "MINDBRIDGE_BASE_URL": server.url},
                encoding="utf-8",
                timeout=60,
            )
            assert child.read() == shown


# Schemas


def test_the_server_is_asked_for_the_schema(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"choices": [{"message": {"content": '```json\n{"name": "Ada", "age": 36}\n```'}}]}
    with FaultServer(http_answer(good)) as server:
        monkeypatch.setenv("MINDBRIDGE_BASE_URL", server.url)
        arguments = ["send", "-b", "mindbridge", "--schema", "name, age int", "who"]
        result = CliRunner().invoke(cli, arguments, obj=host, prog_name="ai-cli")
        body = server.requests[0].json()
    assert (result.exit_code, result.stdout) == (0, '{"name": "Ada", "age": 36}\n')
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "answer",
            "schema": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
                "required": ["name", "age"],
                "additionalProperties": False,
            },
        },
    }
    assert body["messages"][0]["role"] == "system"


def test_a_wrong_answer_is_asked_for_once_more(host: Host) -> None:
    backend = Remembering('{"age": "old"}', '{"age": 36}')
    result = run(host, backend, "--schema", "age int", "--json", "who")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["data"] == {"age": 36}
    assert [role for role, _ in backend.told] == ["system", "user", "assistant", "user"]
    assert "$.age: 'old' is not of type 'integer'" in backend.told[-1][1]


def test_an_answer_that_stays_wrong_is_an_error(host: Host) -> None:
    backend = Remembering("no idea")
    result = run(host, backend, "--schema", "age int", "who")
    assert (result.exit_code, result.stdout, len(backend.requests)) == (1, "", 2)
    assert "error: the answer does not follow the schema: it is not JSON" in result.stderr


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ('{"$defs": {"list": {"items": {"$ref": "#/$defs/list"}}}, "$ref": "#/$defs/list"}', "[" * 900 + "]" * 900),
        ('{"$ref": "#"}', "[1]"),
        ('{"multipleOf": 0.1}', "1e400"),
    ],
)
def test_an_answer_that_cannot_be_compared_with_the_schema_is_an_error(host: Host, schema: str, answer: str) -> None:
    result = run(host, Remembering(answer), "--schema", schema, "who")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "error: the answer does not follow the schema: it is nested too deeply, or has too large" in result.stderr


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ("name, age integr", "'age integr' is neither a file that exists nor a field"),
        ("none.json", "'none.json' is neither a file that exists nor a field"),
        ('{"type": 1}', "it is not a JSON Schema"),
        ('{"$schema": 5}', "`$schema` is not text"),
        ('{"items": ' * 300 + "{}" + "}" * 300, "it is nested too deeply"),
        ("{", "is not JSON"),
        (" , ", "it has no field"),
        ('{"$ref": "http://127.0.0.1:1/x"}', "it refers to a schema that is not in it"),
    ],
)
def test_what_is_no_schema(host: Host, schema: str, words: str) -> None:
    result = run(host, Remembering("{}"), "--schema", schema, "who")
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    "schema",
    [
        '{"properties": {"a": {"pattern": "^(a+)+$"}}}',
        '{"patternProperties": {"^(b+)+$": {"type": "integer"}}}',
        json.dumps(
            {
                "$ref": "#/$defs/0",
                "$defs": {str(n): {"anyOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(50)}
                | {"50": {"type": "integer"}},
            }
        ),
    ],
)
def test_a_schema_whose_check_does_not_end_is_bounded_and_the_answer_is_shown(
    host: Host, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm.routing.schema._PATIENCE", 2.0)
    backend = Remembering(json.dumps({"a": "a" * 60 + "!", "b" * 60 + "!": "x"}))
    result = run(host, backend, "--schema", schema, "who")
    assert (result.exit_code, result.stdout, len(backend.requests)) == (1, "", 1)
    assert "error: the answer could not be compared with the schema within 2 s" in result.stderr
    assert '{"a": "aaaa' in result.stderr


def test_a_schema_with_patterns_and_references_is_checked_with_those(host: Host, tmp_path: Path) -> None:
    schema = {
        "$id": "https://example.com/a",
        "properties": {"code": {"$ref": "a#/$defs/code"}, "rest": {"$ref": "b"}},
        "$defs": {"code": {"pattern": "^[A-Z]+$"}, "b": {"$id": "b", "type": "integer"}},
        "required": ["code"],
    }
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(schema))
    backend = Remembering('{"code": "ab"}', '{"code": "AB", "rest": 7}')
    result = run(host, backend, "--schema", str(file), "who")
    assert (result.exit_code, result.stdout) == (0, '{"code": "AB", "rest": 7}\n')
    assert "$.code: 'ab' does not match '^[A-Z]+$'" in backend.told[-1][1]


@pytest.mark.parametrize(
    "place", ["{url}/x", "file:///etc/hostname", "#/$defs/none", "other.json", "https://json-schema.org/schema"]
)
def test_a_schema_of_another_place_is_not_fetched_and_nobody_is_asked(host: Host, place: str) -> None:
    with FaultServer(http_answer({"type": "object"})) as server:
        place = place.format(url=server.url)
        schema = {"properties": {"a": {"items": {"anyOf": [{"$ref": place}]}}}}
        backend = Remembering("{}")
        result = run(host, backend, "--schema", json.dumps(schema), "who")
    assert (result.exit_code, backend.requests, server.requests) == (2, [], [])
    assert f"it refers to a schema that is not in it: {place}" in result.stderr
    assert "copy that one below `$defs`" in result.stderr


# Templates


def template(name: str, text: str) -> Path:
    directory = Path(os.environ["XDG_CONFIG_HOME"]) / "d0ttino/templates"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.toml").write_text(text, encoding="utf-8")
    return directory / f"{name}.toml"


def test_a_template_is_filled(host: Host) -> None:
    template(
        "translate",
        'system = "You translate into {{language}}."\nprompt = "Translate, {{tone}}: {{input}}"\nmodel = "big"\n'
        'backend = "mine"\noptions = { temperature = 0.2 }\n[variables]\ntone = "kindly"\n',
    )
    backend = Remembering()
    result = run(host, backend, "-t", "translate", "-p", "language={{tone}}", "-o", "seed", "7", "good", "day")
    assert (result.exit_code, result.stderr) == (0, "")
    assert backend.told == [("system", "You translate into {{tone}}."), ("user", "Translate, kindly: good day")]
    request = backend.requests[0]
    assert (request.model, dict(request.options)) == ("big", {"temperature": 0.2, "seed": "7"})
    assert run(host, backend, "-t", "translate", "-p", "language=Dutch", "-s", "No.", "-m", "small", "x").exit_code == 0
    assert (backend.told[0], backend.requests[1].model) == (("system", "No."), "small")


def test_a_prompt_without_input_comes_before_the_text(host: Host) -> None:
    template("sum", 'prompt = "Summarize:"')
    backend = Remembering()
    assert run(host, backend, "-t", "sum", stdin="a long text").exit_code == 0
    assert backend.told == [("user", "Summarize:\n\na long text")]


@pytest.mark.parametrize(
    ("text", "arguments", "words"),
    [
        ('promt = "x"', [], "there is no key 'promt' in a template\n  Did you mean 'prompt'?"),
        ("prompt = 1", [], "prompt must be text, not int"),
        ("prompt =", [], "mine.toml: Invalid value (at "),
        ('model = "m"', [], "it has neither a prompt nor a system prompt"),
        ('prompt = "{{ a }} {{b}}"', ["-p", "a=1"], "needs a value for b\n  -p b=VALUE"),
        ('prompt = "{{name}}"', ["-p", "nam=1"], "there is no variable of this template named 'nam'\n  Did you mean"),
        ('prompt = "{{input}}"', [], "needs a text for {{input}}"),
        ('prompt = "x"', ["-p", "a"], "-p 'a' is not NAME=VALUE"),
    ],
)
def test_a_template_that_cannot_be_used(host: Host, text: str, arguments: list[str], words: str) -> None:
    template("mine", text)
    backend = Remembering()
    result = run(host, backend, "-t", "mine", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert not backend.requests


def test_a_template_that_is_not_there(host: Host) -> None:
    template("translate", 'prompt = "x"')
    result = run(host, Remembering(), "-t", "transalte", "hi")
    assert "there is no template named 'transalte'\n  Did you mean 'translate'?" in result.stderr
    result = run(host, Remembering(), "-t", "../../etc/passwd", "hi")
    assert "cannot be the name of a template" in result.stderr
    assert "-p is for the variables of a template" in run(host, Remembering(), "-p", "a=1", "hi").stderr


@pytest.mark.parametrize("written", ['"age int"', '"age.json"', '{ type = "object", required = ["age"] }'])
def test_a_template_may_have_a_schema(host: Host, written: str) -> None:
    file = template("who", f'prompt = "Who?"\nschema = {written}')
    file.with_name("age.json").write_text('{"type": "object", "required": ["age"]}')
    backend = Remembering("no", '{"age": 7}', '{"n": 1}')
    result = run(host, backend, "-t", "who")
    assert (result.exit_code, result.stdout) == (0, '{"age": 7}\n')
    assert "age" in str(backend.requests[0].metadata["schema"])
    assert run(host, backend, "-t", "who", "--schema", "n int").stdout == '{"n": 1}\n'


def test_a_schema_of_a_template_that_is_none(host: Host) -> None:
    file = template("who", 'prompt = "Who?"\nschema = "age integr"')
    result = run(host, Remembering("x"), "-t", "who")
    assert result.exit_code == 2
    assert f"{file}: schema: 'age integr' is neither a file" in result.stderr


def templates(host: Host, *arguments: str) -> Any:
    return CliRunner().invoke(cli, ["templates", *arguments], obj=host, prog_name="ai-cli")


def test_templates_are_listed_and_shown(host: Host) -> None:
    assert "there are no templates in" in templates(host, "list").stderr
    text = '# mine \u2800\ndescription = "Translate \\u202e a text."\nprompt = "{{language}} {{input}}"'
    file = template("translate", text)
    assert templates(host, "list").stdout.splitlines()[1].split() == [
        *("translate", "language", "Translate", "\\u202e", "a", "text.")
    ]
    shown = templates(host, "show", "translate").stdout
    assert shown.startswith(f"# {file}\n# mine \\u2800\n")
    assert json.loads(templates(host, "show", "translate", "--json").stdout)["prompt"] == "{{language}} {{input}}"
    template("broken", "prompt = 1")
    result = templates(host, "list", "--json")
    assert ([row["name"] for row in json.loads(result.stdout)], result.exit_code) == (["translate"], 1)
    assert "prompt must be text" in result.stderr
    assert "Did you mean 'translate'?" in templates(host, "show", "transalte").stderr


# As a process


@pytest.mark.e2e
def test_a_closed_stdin_and_a_device_are_left_alone() -> None:
    for redirection in ("<&-", "< /dev/null", "< /dev/zero"):
        line = f'exec "$0" -m scripts.ai_cli send -b sample hi {redirection}'
        done = subprocess.run(["/bin/sh", "-c", line, sys.executable], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout, done.stderr) == (0, "Sample answer to: hi\n", "")


@pytest.mark.e2e
def test_a_pipe_that_stays_open_is_waited_for_with_a_word() -> None:
    line = f"(read line < /dev/tty; echo piped) | {sys.executable} -m scripts.ai_cli send -b sample hi"
    child = pexpect.spawn("/bin/sh", ["-c", line], encoding="utf-8", timeout=60)
    child.expect_exact(" waiting for the end of standard input, which is sent as well")
    child.sendline("go")
    child.expect_exact("Sample answer to: hi\r\n\r\npiped")
    child.expect(pexpect.EOF)


def test_a_byte_order_mark_is_no_harm(host: Host, tmp_path: Path) -> None:
    """Editors of Windows write one before whatever they save."""
    file = tmp_path / "schema.json"
    file.write_text('\ufeff{"type": "object"}', encoding="utf-8")
    template("marked", "\ufeffprompt = '{{input}}'\n")
    backend = Remembering('\ufeff{"a": 1}')
    result = run(host, backend, "-t", "marked", "--schema", str(file), "hi")
    assert (result.exit_code, result.stdout) == (0, '{"a": 1}\n')
    assert backend.requests[0].messages[-1].text == "hi"
    assert "error: --schema: it is not JSON" in run(host, backend, "--schema", '{"type":', "hi").stderr
