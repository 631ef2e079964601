"""The example plug-in `guard`, in this process: what it refuses, and what it masks of an answer."""

import importlib
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm import Backend, Message, Request, complete, hookimpl, stream
from llm._installed import installed_plugins
from llm.hooks._manifest import Manifests
from llm.host import create_host
from llm.router import NoAnswerError
from llm.testing import host_with, write_distribution

EXAMPLE = Path(__file__).parents[2] / "examples" / "plugins" / "guard"
KEY = "sk-" + "a1b2c3d4" * 3


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    yield importlib.import_module("d0ttino_guard")
    del sys.modules["d0ttino_guard"]


class Reader:
    """Contributes a backend that answers with a text, letter by letter where that is wanted."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.read = 0

    def _letters(self, prompt: str) -> Iterator[str]:
        for letter in self.text:
            self.read += 1
            yield letter

    @hookimpl
    def llm_backends(self) -> Backend:
        return Backend("reader", lambda prompt: self.text, stream=self._letters)


@pytest.mark.parametrize(
    "request_",
    [
        Request(f"my key is {KEY}", backend="reader"),
        Request("-----BEGIN RSA PRIVATE KEY-----", backend="reader"),
        Request("hi", backend="reader").with_system("The password: hunter2"),
        Request([Message("user", "password=x"), Message("assistant", "thanks"), "hi"], backend="reader"),
    ],
    ids=["prompt", "key", "system", "earlier message"],
)
def test_a_request_with_a_secret_anywhere_in_it_is_refused(
    guard: ModuleType, monkeypatch: pytest.MonkeyPatch, request_: Request
) -> None:
    host = host_with(guard, Reader("fine"))
    with pytest.raises(NoAnswerError, match=r"\[d0ttino_guard .*it was not sent"):
        complete(request_, host=host)
    with pytest.raises(NoAnswerError, match="it was not sent"):
        list(stream(request_, host=host))
    monkeypatch.setenv("D0TTINO_GUARD_ALLOW", "another,reader")
    assert complete(request_, host=host).text == "fine"


def test_a_secret_that_another_plugin_adds_is_refused_as_well(guard: ModuleType) -> None:
    class Adds:
        @hookimpl
        def llm_prepare(self, request: Request) -> Request:
            return request.with_system(f"use {KEY}")

    for plugins in ((guard, Adds()), (Adds(), guard)):
        with pytest.raises(NoAnswerError, match="an API key"):
            complete(Request("hi", backend="reader"), host=host_with(*plugins, Reader("fine")))


def test_secrets_in_answers_are_masked_and_the_answer_still_comes_as_it_is_made(guard: ModuleType) -> None:
    reader = Reader(f"Use {KEY} and password : hunter2 for all of the machines that you have.")
    host = host_with(guard, reader)
    expected = "Use [secret] and [secret] for all of the machines that you have."
    assert complete(Request("hi", backend="reader"), host=host).text == expected
    answer = stream(Request("hi", backend="reader"), host=host)
    first = next(answer)
    assert reader.read < len(reader.text)
    pieces = [first, *answer]
    assert "".join(pieces) == expected
    assert len(pieces) > 5
    assert answer.completion is not None
    assert (answer.whole_because, answer.completion.text) == (None, expected)
    assert answer.completion.origin is not None
    assert answer.completion.origin.module == __name__  # changing an answer does not make it one's own


def test_answers_of_a_trusted_backend_are_left_alone(guard: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D0TTINO_GUARD_ALLOW", "reader")
    assert complete(Request("hi", backend="reader"), host=host_with(guard, Reader(KEY))).text == KEY


@given(st.data())
def test_it_makes_no_difference_how_an_answer_is_cut_into_pieces(data: st.DataObject) -> None:
    sys.path.insert(0, str(EXAMPLE))
    try:
        masked = importlib.import_module("d0ttino_guard").masked
    finally:
        sys.path.remove(str(EXAMPLE))
        del sys.modules["d0ttino_guard"]
    words = st.sampled_from(["a", "password", ":", "= ", "x", "\n", " ", KEY, "passphrase:", "word "])
    text = "".join(data.draw(st.lists(words, max_size=12)))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)))) | {0, len(text)})
    pieces = [text[start:end] for start, end in pairwise(cuts)]
    assert "".join(masked(iter(pieces))) == "".join(masked(iter([text])))


def test_nothing_is_sent_while_it_cannot_be_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest says that it is a guardrail; a dependency that has gone since must not open the door."""
    source = (EXAMPLE / "d0ttino_guard" / "__init__.py").read_text(encoding="utf-8")
    write_distribution(
        tmp_path,
        "d0ttino-guard",
        entry_points={"llm.plugins": {"guard": "d0ttino_guard"}},
        files={"d0ttino_guard/__init__.py": source},
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    _, entries, _ = installed_plugins([str(tmp_path)])
    host = create_host(entries, manifests=Manifests.read())
    assert complete(Request("hi", backend="sample"), host=host).text == "Sample answer to: hi"
    host.learn()
    del sys.modules["d0ttino_guard"]
    (tmp_path / "d0ttino_guard" / "__init__.py").write_text("import a_library_that_is_gone\n")
    host = create_host(entries, manifests=Manifests.read())
    with pytest.raises(NoAnswerError, match=r"guard .*a_library_that_is_gone.*nothing goes on without it"):
        complete(Request("hi", backend="sample"), host=host)


def test_a_plugin_says_itself_whether_nothing_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget refuses and is not a wrapper; a cache is one, and a broken cache must not keep anybody from working."""
    refuses = "from llm import hookimpl\nGUARDRAIL = True\n@hookimpl\ndef llm_complete(request): pass\n"
    stores = (
        "from llm import hookimpl\nGUARDRAIL = False\n@hookimpl(wrapper=True)\ndef llm_complete(): return (yield)\n"
    )
    for name, source in (("refuses", refuses), ("stores", stores)):
        write_distribution(tmp_path, name, entry_points={"llm.plugins": {name: name}}, files={f"{name}.py": source})
    monkeypatch.syspath_prepend(str(tmp_path))
    _, entries, _ = installed_plugins([str(tmp_path)])
    create_host(entries, manifests=Manifests.read()).learn()
    for name, goes_on in (("stores", True), ("refuses", False)):
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text("import a_library_that_is_gone\n")
        host = create_host(entries, manifests=Manifests.read())
        if goes_on:
            assert complete(Request("hi", backend="sample"), host=host).text == "Sample answer to: hi"
        else:
            with pytest.raises(NoAnswerError, match=r"refuses .*a_library_that_is_gone.*nothing goes on without it"):
                complete(Request("hi", backend="sample"), host=host)


def test_a_wrapper_is_a_guardrail_also_beside_another_implementation_of_its_hook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever of the two comes first by its name."""
    for wraps, answers in (("a", "b"), ("b", "a")):
        module = f"both_{wraps}"
        source = (
            "from llm import hookimpl\n"
            f"@hookimpl(specname='llm_complete', wrapper=True)\ndef {wraps}(): return (yield)\n"
            f"@hookimpl(specname='llm_complete', tryfirst=True)\ndef {answers}(request): pass\n"
        )
        site = tmp_path / module
        write_distribution(site, module, entry_points={"llm.plugins": {module: module}}, files={f"{module}.py": source})
        monkeypatch.syspath_prepend(str(site))
        _, entries, _ = installed_plugins([str(site)])
        create_host(entries, manifests=Manifests.read()).learn()
        del sys.modules[module]
        (site / f"{module}.py").write_text("import a_library_that_is_gone\n")
        with pytest.raises(NoAnswerError, match="nothing goes on without it"):
            complete(Request("hi", backend="sample"), host=create_host(entries, manifests=Manifests.read()))
