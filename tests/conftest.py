"""No test sees the user's configuration, cache or keys."""

import os
import signal
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def signals_arrive() -> None:
    """Undo what a runner in the background (`nohup`, `&`) hands down: children that ignore Ctrl-C and hang-ups."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the test a home of its own, and take away what would configure backends."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name.startswith("LLM_") or name.endswith(("_API_KEY", "_BASE_URL")) or name == "PLUGIN_REGISTRY_URL":
            monkeypatch.delenv(name)
    for name, directory in {
        "HOME": "",
        "XDG_CONFIG_HOME": ".config",
        "XDG_CACHE_HOME": ".cache",
        "XDG_STATE_HOME": ".local/state",
    }.items():
        monkeypatch.setenv(name, str(home / directory))
    return home
