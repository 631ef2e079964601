from pathlib import Path

import pytest
from llm import Backend, Request, Step, StepContext, complete, hookimpl
from llm.host import Host
from llm.router import NoAnswerError
from llm.testing import host_with

from {{ module }}.plugin import {{ title }}


class Recorder:
    """Contributes a backend elsewhere and one on this machine, and records what each is sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def answer(self, prompt: str) -> str:
        self.sent.append(prompt)
        return "fine"

    @hookimpl.llm_backends
    def llm_backends(self) -> list[Backend]:
        return [Backend("away", self.answer), Backend("here", self.answer, local=True)]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def host(recorder: Recorder) -> Host:
    made = host_with(recorder)
    made.register({{ title }}(), "{{ short }}")
    return made


def test_a_secret_does_not_leave(host: Host, recorder: Recorder) -> None:
    with pytest.raises(NoAnswerError, match="the prompt holds a secret"):
        complete(Request("this is TOP SECRET", backend="away"), host=host)
    assert recorder.sent == []


def test_everything_else_does_and_a_secret_may_stay_here(host: Host, recorder: Recorder) -> None:
    complete(Request("hi", backend="away"), host=host)
    complete(Request("this is TOP SECRET", backend="here"), host=host)
    assert recorder.sent == ["hi", "this is TOP SECRET"]


def test_it_guards_steps_as_well(host: Host) -> None:
    context = StepContext("any", 1, 1, {})
    assert host.fold("llm_prepare_step", Step("date"), context=context)[0] == Step("date")
    with pytest.raises(Exception, match="the step holds a secret"):
        host.fold("llm_prepare_step", Step("echo TOP SECRET"), context=context)


def test_the_configuration_names_what_is_guarded(
    host: Host, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[plugins.{{ short }}]\npatterns = ['PIN [0-9]+']\n")
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))
    with pytest.raises(NoAnswerError, match="the prompt holds a secret"):
        complete(Request("PIN 1234", backend="away"), host=host)
