"""Uses of what all plug-ins of a process share, each with its place; watched from before the import of a plug-in."""

import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from types import FrameType, FunctionType, ModuleType
from typing import Any, Final, NoReturn

from llm.hooks._origin import is_framework
from llm.testing._probe import EXIT, WORDS, Probe, place_of

#: What all code of a process shares, and how a line that changes it looks.
SHARED: Final = {
    "the environment": r"environ|putenv",
    "the working directory": r"chdir",
    "the handlers of signals": r"signal\.",
    "the threads of the process": r"Thread|\.start\(|Executor",
    "the search path": r"sys\.path",
    "the limit of recursion": r"setrecursionlimit",
    "the locale": r"setlocale",
    "the logging of the whole program": r"basicConfig|addHandler|setLevel|dictConfig",
    "the timeout of sockets": r"setdefaulttimeout",
    "the hooks for exceptions": r"excepthook",
    "the check of certificates": r"_create_default_https_context",
}
#: Checks use these themselves, and a plug-in may while it works; it is watched where it does.
_AT_IMPORT: Final = ("the environment", "the threads of the process")


def surroundings() -> dict[str, Any]:
    """Return the state of everything that is shared."""
    import locale

    ssl: Any = sys.modules.get("ssl")
    return {
        "the environment": dict(os.environb),  # not by `os.environ`, which is watched
        "the working directory": os.getcwd(),
        "the handlers of signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "the threads of the process": sorted(one.name for one in threading.enumerate()),
        "the search path": [*sys.path],
        "the limit of recursion": sys.getrecursionlimit(),
        "the locale": locale.setlocale(locale.LC_ALL),
        "the logging of the whole program": ([*logging.root.handlers], logging.root.level),
        "the timeout of sockets": socket.getdefaulttimeout(),
        "the hooks for exceptions": (sys.excepthook, threading.excepthook),
        "the check of certificates": (
            ssl is None or ssl._create_default_https_context is not ssl._create_unverified_context
        ),
    }


def report_changes(probe: Probe, before: dict[str, Any], *, importing: bool = False) -> None:
    """Report what has changed since, and functions of others that the plug-in replaced."""
    when = "when it is imported" if importing else "when it is used"
    for what, now in surroundings().items():
        if now != before[what] and probe.check not in _QUIET and (importing or what not in _AT_IMPORT):
            probe.find(f"it changes {what} {when}", f"leave {what} as it is: all plug-ins share it",
                       probe.line_of(SHARED[what]))  # fmt: skip
    os.chdir(before["the working directory"])
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before["the handlers of signals"], strict=True):
        signal.signal(number, handler)
    if probe.check in _QUIET:
        return
    for owner, name, function in _replaced(probe):
        place = probe.line_of(rf"\b{name}\s*=[^=]|setattr\(.*{name}|patch")
        probe.find(f"it replaces {owner}.{name} {when}", WORDS["replace"], place if place[0] else place_of(function))


def _replaced(probe: Probe) -> Iterator[tuple[str, str, FunctionType]]:
    """Yield each function of the plug-in that stands in a module or class of somebody else."""
    for name, module in [*sys.modules.items()]:
        file = getattr(module, "__file__", None) or ""
        if type(module) is not ModuleType or name.partition(".")[0] in {"llm", "scripts", "__main__"}:
            continue
        if probe.owns(file) or name.startswith(("_pytest", "pytest")):
            continue
        spaces: list[tuple[str, Mapping[str, Any]]] = [(name, vars(module))]
        spaces += [
            (f"{name}.{one.__name__}", vars(one))
            for one in [*vars(module).values()]
            if isinstance(one, type) and one.__module__ == name
        ]
        for owner, space in spaces:
            for key, value in [*space.items()]:
                if isinstance(value, FunctionType) and probe.owns(value.__code__.co_filename):
                    yield owner, key, value


#: These checks use a plug-in in odd ways; what it does to its process is reported by the others.
_QUIET: Final = frozenset({"interrupts", "threads"})


def caller(probe: Probe, frame: FrameType | None) -> tuple[str | None, int | None]:
    """Return the place of the plug-in's code that does something, unless it has this project do it."""
    while frame is not None and probe.check not in _QUIET:
        if probe.owns(frame.f_code.co_filename):
            return frame.f_code.co_filename, frame.f_lineno
        if is_framework(frame) and not frame.f_code.co_filename.startswith("<frozen"):
            break
        frame = frame.f_back
    return None, None


class _Stream:
    """Standard input or output, which reports its use by the plug-in."""

    def __init__(self, probe: Probe, name: str) -> None:
        self._probe = probe
        self._name = name
        self._stream = getattr(sys, name)

    def write(self, text: str) -> int:
        """Write it, and report it."""
        frame = sys._getframe(1)
        place = caller(self._probe, frame)
        self._probe.texts.append((text, place))
        if text.strip() and place[0] is not None and frame.f_globals.get("__name__") not in {"logging", "warnings"}:
            probe, importing = self._probe, self._probe.check == "import"
            what = (
                f"it prints when it is imported: {text.strip()[:80]!r}" if importing else f"it writes to {self._name}"
            )
            warn = self._name == "stderr" and not importing
            probe.find(what, WORDS["print late" if importing else "print"], place, warn=warn)
        return int(self._stream.write(text))

    def _read(self, *arguments: Any) -> Any:
        place = caller(self._probe, sys._getframe(1))
        if place[0] is not None:
            self._probe.find("it reads stdin", WORDS["stdin"], place)
        return self._stream.read(*arguments)

    read = readline = readlines = __next__ = _read

    def __iter__(self) -> Any:
        self._read()
        return iter(())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def watch(probe: Probe) -> None:
    """Record what it reads, writes and starts, the network, and ends of the process, each with its place."""

    def connect(arguments: tuple[Any, ...], *, lookup: bool) -> None:
        address = arguments[:2] if lookup else arguments[1]
        if lookup:
            local = str(arguments[0]) in {"127.0.0.1", "localhost", "::1"}
        else:
            local = not isinstance(address, tuple) or str(address[0]).startswith(("127.", "::1"))
        if probe.blocked or not local:
            shown = f"{address[0]}:{address[1]}" if isinstance(address, tuple) else str(address)
            probe.network.append((shown, *probe.frame(sys._getframe(2))))
            raise OSError("there is no network in a check")

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in {"socket.connect", "socket.getaddrinfo"}:
            connect(arguments, lookup=event == "socket.getaddrinfo")
        elif event in {"subprocess.Popen", "os.system", "os.posix_spawn", "os.exec"} and probe.doing:
            place = caller(probe, sys._getframe(1))
            if place[0] is not None:
                probe.find(f"it runs a command {probe.doing}", WORDS["late"], place)
        elif event == "open" and probe.doing and isinstance(arguments[0], str):
            writes = arguments[2] & (os.O_WRONLY | os.O_RDWR) if isinstance(arguments[2], int) else 0
            place = caller(probe, sys._getframe(1)) if writes else (None, None)
            if place[0] is not None and not arguments[0].startswith("/dev/"):
                probe.find(f"it writes the file {arguments[0]} {probe.doing}", WORDS["late"], place)
        elif event == "os.chdir" and probe.check != "import":
            place = caller(probe, sys._getframe(1))
            if place[0] is not None:
                what = "the working directory"
                probe.find(f"it changes {what} when it is used", f"leave {what} as it is: all plug-ins share it", place)

    class Environ(type(os.environ)):  # type: ignore[misc]
        """The environment, which records the variables that the plug-in reads, and reports those that it sets."""

        def __getitem__(self, name: str) -> str:
            place = probe.frame(sys._getframe(1))
            if isinstance(name, str) and (place[0] is not None or probe.check == "answers"):
                probe.reads.setdefault(name, place)
            found: str = super().__getitem__(name)
            return found

        def __setitem__(self, name: str, value: str) -> None:
            place = caller(probe, sys._getframe(1)) if probe.check != "import" else (None, None)
            if place[0] is not None:
                probe.find("it changes the environment when it is used", WORDS["environ"], place)
            super().__setitem__(name, value)

    def ended(status: int) -> NoReturn:  # noqa: ARG001 - any ends it
        probe.find("it ends the whole process by os._exit", "raise an exception instead", probe.frame(sys._getframe(1)))
        EXIT(70)

    sleep = time.sleep

    def slept(seconds: float) -> None:
        place = caller(probe, sys._getframe(1))
        if place[0] is not None:
            probe.slept = place
        sleep(seconds)

    os.environ.__class__ = Environ
    os._exit = ended
    time.sleep = slept  # type: ignore[assignment]
    for name in ("stdin", "stdout", "stderr"):
        setattr(sys, name, _Stream(probe, name))
    sys.addaudithook(audit)
