from pathlib import Path

import pytest
from llm import Backend, Request, complete, hookimpl
from llm.host import Host
from llm.testing import host_with

from {{ module }}.plugin import {{ title }}


class Backends:
    @hookimpl.llm_backends(tryfirst=True)
    def llm_backends(self) -> list[Backend]:
        return [Backend("away", lambda prompt: "away"), Backend("here", lambda prompt: "here", local=True)]


@pytest.fixture
def host() -> Host:
    made = host_with(Backends())
    made.register({{ title }}(), "{{ short }}")
    return made


def test_a_short_prompt_is_answered_here(host: Host) -> None:
    completion = complete(Request("what is the time"), host=host)
    assert completion.text == "here"
    assert "4 words" in completion.route.candidates[0].reason
    assert completion.to_json()["policy"] == "{{ short }}"


def test_a_long_one_is_left_to_the_next_policy(host: Host) -> None:
    completion = complete(Request("word " * 21), host=host)
    assert completion.to_json()["policy"] != "{{ short }}"


def test_who_names_a_backend_gets_it(host: Host) -> None:
    assert complete(Request("hi", backend="away"), host=host).text == "away"


def test_the_configuration_says_what_is_short(host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[plugins.{{ short }}]\nwords = 1\n")
    monkeypatch.setenv("LLM_CONFIG_PATH", str(file))
    assert complete(Request("two words"), host=host).to_json()["policy"] != "{{ short }}"
