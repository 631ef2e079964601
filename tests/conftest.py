"""No test sees the user's configuration, cache or keys, or what else differs from one machine to another."""

import os
import signal
from pathlib import Path

import hypothesis
import pytest

#: What a test keeps of the environment that pytest was started in. Everything else is as on a machine where nobody
#: has set anything: proxies, editors, the language and what configures Python among it.
KEPT = {"LD_LIBRARY_PATH", "PATH", "TMPDIR"}
KEPT_PREFIXES = ("COVERAGE_", "PYTEST_")

#: A slow machine is no fault.
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(scope="session", autouse=True)
def signals_arrive() -> None:
    """Undo what a runner in the background (`nohup`, `&`) hands down: children that ignore Ctrl-C and hang-ups."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the test an environment and a home of its own, and return that home."""
    home = tmp_path_factory.mktemp("home")
    for name in list(os.environ):
        if name not in KEPT and not name.startswith(KEPT_PREFIXES):
            monkeypatch.delenv(name)
    for name, value in {
        "HOME": home,
        "XDG_CONFIG_HOME": home / ".config",
        "XDG_CACHE_HOME": home / ".cache",
        "XDG_STATE_HOME": home / ".local/state",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
        # A pytest that a test runs removes what it finds of earlier runs, which may be gigabytes.
        "PYTEST_DEBUG_TEMPROOT": tmp_path_factory.getbasetemp(),
    }.items():
        monkeypatch.setenv(name, str(value))
    return home
