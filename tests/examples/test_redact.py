"""The example plug-in `redact`: what leaves, what comes back, and what is written down."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from llm import Attachment, Backend, Message, Request, complete, hookimpl, stream
from llm.conversations import ConversationLog
from llm.errors import ConfigError
from llm.host import Host
from llm.testing import host_with
from scripts.ai_cli import cli
from tests.examples.conftest import EXAMPLES

KEY = "sk-" + "a1b2c3d4" * 3
MAIL = "ada.lovelace@example.org"


class Echo:
    """Contributes a backend that answers with what it gets, in pieces of a length."""

    def __init__(self, length: int = 1) -> None:
        self.length = length
        self.got: list[Request] = []

    def pieces(self, prompt: str, request: Request) -> Iterator[str]:
        self.got.append(request)
        text = request.as_text
        yield from (text[start : start + self.length] for start in range(0, len(text), self.length))

    @hookimpl
    def llm_backends(self) -> Backend:
        return Backend("echo", lambda prompt, request: "".join(self.pieces(prompt, request)), stream=self.pieces)


@pytest.fixture
def echo() -> Echo:
    return Echo()


@pytest.fixture
def host(example: Callable[[str], ModuleType], echo: Echo) -> Host:
    host = host_with(echo)
    host.register(example("redact").Redact(), "redact")
    return host


def test_secrets_and_addresses_stay_here_and_are_in_the_answer(
    host: Host, echo: Echo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEPLOY_TOKEN", "hush-hush-1")
    private = "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----"
    prompt = f"Mail {MAIL} and bob@example.com, not {MAIL}: {KEY}, password = hunter2, hush-hush-1.\n{private}\nBye"
    answer = complete(Request(prompt, backend="echo"), host=host)
    assert echo.got[0].prompt.splitlines() == [
        "Mail [EMAIL-1] and [EMAIL-2], not [EMAIL-1]: [KEY-1], password = [PASSWORD-1], [SECRET-1].",
        "[PRIVATE-KEY-1]",
        "Bye",
    ]
    assert answer.text == prompt
    assert [origin.plugin for origin in answer.prepared_by] == ["redact"]
    assert answer.origin is not None
    assert answer.origin.module == __name__  # changing an answer does not make it one's own


def test_an_answer_in_pieces_is_restored_as_it_comes(host: Host, echo: Echo) -> None:
    answer = stream(Request(f"to {MAIL} [not a placeholder], [EMAIL", backend="echo"), host=host)
    assert "".join(pieces := list(answer)) == f"to {MAIL} [not a placeholder], [EMAIL"
    assert answer.whole_because is None
    assert pieces[:4] == ["t", "o", " ", MAIL]


def test_every_part_of_a_request_is_searched(host: Host, echo: Echo) -> None:
    request = Request(
        [
            Message("system", f"You write for {MAIL}"),
            Message("user", "hi"),
            Message("assistant", f"Hello {MAIL}"),
            Message("user", ["see", Attachment("text/plain", MAIL.encode(), name=f"mail of {MAIL}")]),
            Message("user", ["and", Attachment("image/png", b"\x89PNG\xff")]),
        ],
        backend="echo",
        options={"user": MAIL, "stop": [MAIL], "seed": 3},
        metadata={"schema": {"enum": [MAIL]}, "thoughts": False},
    )
    complete(request, host=host)
    (got,) = echo.got
    assert MAIL not in repr(got)
    assert got.messages[3].attachments[0] == Attachment("text/plain", b"[EMAIL-1]", name="mail of [EMAIL-1]")
    assert got.messages[4] == request.messages[4]
    assert got.options == {"user": "[EMAIL-1]", "stop": ["[EMAIL-1]"], "seed": 3}
    assert got.metadata["schema"] == {"enum": ["[EMAIL-1]"]}


def test_what_looks_like_a_placeholder_stays_what_it_is(host: Host, echo: Echo) -> None:
    prompt = f"[EMAIL-1] is not {MAIL}"
    assert complete(Request(prompt, backend="echo"), host=host).text == prompt
    assert echo.got[0].prompt == "[EMAIL-1] is not [EMAIL-2]"


def test_a_request_without_secrets_is_not_changed(host: Host, echo: Echo) -> None:
    answer = complete(Request("pass: a @ b, sk-short, the password is long; see a@b", backend="echo"), host=host)
    assert (answer.prepared_by, echo.got[0].prompt) == ((), answer.text)


def test_requests_at_the_same_time_do_not_mix(host: Host) -> None:
    from concurrent.futures import ThreadPoolExecutor

    def ask(number: int) -> bool:
        prompt = f"write to user{number}@example.org"
        return complete(Request(prompt, backend="echo"), host=host).text == prompt

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, range(100)))


def configured(host: Host, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Path.home() / "config.toml"
    file.write_text(text)
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))


def test_own_patterns_and_trusted_backends(host: Host, echo: Echo, monkeypatch: pytest.MonkeyPatch) -> None:
    configured(
        host, "[plugins.redact]\ntrusted = ['sample']\n[plugins.redact.patterns]\nNUMBER = '\\d+'\n", monkeypatch
    )
    assert complete(Request(f"7 of {MAIL}", backend="echo"), host=host).text == f"7 of {MAIL}"
    assert echo.got[0].prompt == "[NUMBER-1] of [EMAIL-1]"
    assert complete(Request(MAIL, backend="sample"), host=host).prepared_by == ()
    assert host.redactor()("12 apples") == "[NUMBER] apples"


@pytest.mark.parametrize("pattern", ["NUMBER = '('", "NUMBER = '\\d*'", "number = '\\d'", "EMAIL = 'x'"])
def test_a_pattern_that_cannot_be_used_lets_nothing_through(
    host: Host, echo: Echo, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    configured(host, f"[plugins.redact.patterns]\n{pattern}\n", monkeypatch)
    with pytest.raises(Exception, match=r"plugins\.redact\.patterns\.\w+ "):
        complete(Request("hi", backend="echo"), host=host)
    assert echo.got == []
    assert ConfigError is not None


def test_nothing_of_it_is_written_down(host: Host, tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    arguments = ["send", "-b", "echo", f"write to {MAIL}, {KEY}", f"--trace={trace}", "--trace-values"]
    result = CliRunner().invoke(cli, arguments, obj=host)
    assert result.stdout == f"write to {MAIL}, {KEY}\n"
    (turn,) = ConversationLog().turns()
    assert turn.answer == "write to [EMAIL], ***"
    written = [trace, *(path for path in Path.home().rglob("*") if path.is_file())]
    assert len(written) > 2
    for path in written:
        content = path.read_bytes()
        assert MAIL.encode() not in content, path
        assert KEY.encode() not in content, path
    assert b"[EMAIL" in trace.read_bytes()
    result = CliRunner().invoke(cli, ["send", "-b", f"no-{MAIL}", "hi"], obj=host)
    assert MAIL not in result.stderr
    assert "no-[EMAIL]" in result.stderr or "[EMAIL]" in result.stderr


@given(st.data())
def test_it_makes_no_difference_how_an_answer_is_cut_into_pieces(data: st.DataObject) -> None:
    restored = _restored()
    originals = {"[EMAIL-1]": "a@b.cd[", "[EMAIL-10]": "[EMAIL-1]", "[KEY-1]": "k"}
    words = st.sampled_from(["[", "EMAIL-1", "]", "0", "[EMAIL-1]", "[KEY-", "1]", "x", "[["])
    text = "".join(data.draw(st.lists(words, max_size=12)))
    cuts: Sequence[int] = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert "".join(restored(iter(pieces), originals)) == "".join(restored(iter([text]), originals))


def _restored() -> Any:
    import importlib
    import sys

    sys.path.insert(0, str(EXAMPLES / "redact"))
    try:
        return importlib.import_module("d0ttino_redact").restored
    finally:
        sys.path.remove(str(EXAMPLES / "redact"))
        del sys.modules["d0ttino_redact"]
