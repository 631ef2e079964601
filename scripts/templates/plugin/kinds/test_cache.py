from pathlib import Path

import pytest
from llm import Backend, Request, complete, hookimpl, stream
from llm.host import Host
from llm.testing import host_with

from {{ module }}.plugin import {{ title }}


class Counter:
    """Contributes backends that count how often they are asked."""

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, prompt: str) -> str:
        self.asked += 1
        if prompt == "fail":
            raise ValueError("no")
        return f"answer {self.asked}"

    @hookimpl.llm_backends
    def llm_backends(self) -> list[Backend]:
        return [Backend("one", self.answer), Backend("two", self.answer)]


@pytest.fixture
def counter() -> Counter:
    return Counter()


@pytest.fixture
def host(counter: Counter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    file = tmp_path / "config.toml"
    file.write_text(f"[plugins.{{ short }}]\npath = '{tmp_path / 'answers.sqlite'}'\n")
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))
    made = host_with(counter)
    made.register({{ title }}(), "{{ short }}")
    return made


def test_the_second_answer_costs_nothing(host: Host, counter: Counter) -> None:
    first, second = (complete(Request("hi", backend="one"), host=host) for _ in range(2))
    assert (first.text, second.text, counter.asked) == ("answer 1", "answer 1", 1)
    assert second.plugin == "{{ short }}"


def test_a_stream_is_stored_and_answered_from_the_cache(host: Host, counter: Counter) -> None:
    assert "".join(stream(Request("hi", backend="one"), host=host)) == "answer 1"
    assert "".join(stream(Request("hi", backend="one"), host=host)) == "answer 1"
    assert complete(Request("hi", backend="one"), host=host).text == "answer 1"
    assert counter.asked == 1


@pytest.mark.parametrize(
    "other",
    [
        Request("ho", backend="one"),
        Request("hi", backend="two"),
        Request("hi", backend="one", model="large"),
        Request("hi", backend="one", options={"temperature": 1}),
        Request("hi", backend="one").with_system("Be brief."),
    ],
)
def test_another_request_is_another_answer(other: Request, host: Host, counter: Counter) -> None:
    complete(Request("hi", backend="one"), host=host)
    complete(other, host=host)
    assert counter.asked == 2


def test_a_failure_is_not_stored(host: Host, counter: Counter) -> None:
    for _ in range(2):
        with pytest.raises(Exception, match="ValueError: no"):
            complete(Request("fail", backend="one"), host=host)
    assert counter.asked == 2
