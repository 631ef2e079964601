"""Write docs/pictures: what a terminal shows of real commands, as SVG.

The commands run in a pseudo-terminal with a home directory, a plug-in and a server of their own; a terminal emulator
reads what they write. `python docs/generate_pictures.py` writes the pictures; `--check` only reports whether they are
up to date, apart from times and ids. It needs what the tests need (`pip install -e '.[test]'`).
"""

import html
import http.server
import io
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import pexpect
import pyte
from rich.console import Console
from rich.style import Style
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from llm.testing import write_distribution

PICTURES: Final = Path(__file__).parent / "pictures"
COLUMNS: Final = 100
ROWS: Final = 60

PLUGIN: Final = """
from llm import Backend, Recipe, hookimpl

@hookimpl
def llm_backends():
    return Backend("shout", lambda prompt: prompt.upper() + "!", description="answers in capitals")

@hookimpl
def llm_recipes():
    return Recipe("tidy", lambda goal: ["ls", f"rm -rf {goal}"], description="removes a directory")
"""

#: GitHub shows no font of another site, so the picture uses the reader's own.
TEMPLATE: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="TITLE" viewBox="0 0 {width} {height}">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; white-space: pre; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}"/>
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
THEME: Final = TerminalTheme(
    (22, 27, 34),
    (230, 237, 243),
    [
        *[(22, 27, 34), (255, 123, 114), (86, 211, 100), (227, 179, 65)],
        *[(121, 192, 255), (210, 168, 255), (86, 212, 221), (230, 237, 243)],
    ],
)
_COLOURS: Final = {"brown": "yellow", "brightbrown": "bright_yellow"}
_VARIES: Final = (
    (re.compile(r"\d+(?:\.\d+)? (?:ms|s)\b"), "TIME"),
    (re.compile(r"\d{8}-\d{6}-\w+"), "RUN"),
    (re.compile(r"\S*\s?…"), "…"),
    (re.compile(r"\s+"), " "),
)


@dataclass(frozen=True)
class Scene:
    """What is typed, and the title of the picture.

    Attributes:
        title: for readers who cannot see it.
        commands: the command lines, each behind `$ `.
        keys: text to wait for, and the key that is pressed then.
        variables: environment variables, beside those of every scene.
    """

    title: str
    commands: Sequence[str]
    keys: Sequence[tuple[str, str]] = ()
    variables: dict[str, str] = field(default_factory=dict)


SCENES: Final = {
    "fallback": Scene(
        "ai-cli send: OpenRouter has no credit left, so the plug-in shout answers; the trace shows both",
        (
            'ai-cli send --trace=answer.jsonl "who answers me"',
            "ai-cli trace --hook llm_route --hook llm_complete answer.jsonl",
        ),
    ),
    "question": Scene(
        "ai-cli recipe tidy: each step is shown, with the reason why it looks dangerous, and one key answers",
        ("ai-cli recipe tidy build",),
        (("uit: ", "r"), ("uit: ", "s")),
    ),
}


@contextmanager
def server() -> Iterator[str]:
    """Run a server that wants to be paid; yield its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(402)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}/v1"
        served.shutdown()


def played(scene: Scene) -> pyte.Screen:
    """Run a scene, and return the screen as it is at its end."""
    with tempfile.TemporaryDirectory() as place, server() as address:
        root = Path(place).resolve()
        site, work = root / "site", root / "home" / "project"
        (work / "build").mkdir(parents=True)
        (work / "build" / "old.o").touch()
        (work / "notes.txt").touch()
        site.mkdir()
        write_distribution(
            site,
            "acme-shout",
            version="1.0",
            entry_points={"llm.plugins": {"shout": "acme_shout"}},
            files={"acme_shout.py": PLUGIN},
        )
        environment = {
            "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
            "HOME": str(root / "home"),
            "PYTHONPATH": str(site),
            "LANG": "C.UTF-8",
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "NO_PROXY": "127.0.0.1",
            "OPENROUTER_API_KEY": "a-key-of-an-example",
            "OPENROUTER_BASE_URL": address,
            "LLM_PRIMARY_BACKEND": "openrouter",
            "LLM_FALLBACK_BACKEND": "shout",
            "LLM_ROUTING_MODE": "remote",
            "LLM_NO_LOGS": "1",
            **scene.variables,
        }
        if "SSL_CERT_FILE" in os.environ:
            environment["SSL_CERT_FILE"] = os.environ["SSL_CERT_FILE"]
        screen = pyte.Screen(COLUMNS, ROWS)
        screen.set_mode(pyte.modes.LNM)
        for last in (False, True):  # the first run makes the manifests, which are recorded once
            screen.reset()
            stream = pyte.ByteStream(screen)
            for command in scene.commands:
                shown = _played(
                    command, scene.keys if last else scene.keys[:1] and ((scene.keys[0][0], "q"),), work, environment
                )
                stream.feed(f"\x1b[1;32m$\x1b[0m \x1b[1m{command}\x1b[0m\r\n".encode())
                stream.feed(shown.replace(str(root / "home").encode(), b"/home/me"))
        return screen


def _played(command: str, keys: Sequence[tuple[str, str]], directory: Path, environment: dict[str, str]) -> bytes:
    """Run a command, press the keys when it waits for them, and return the bytes for the terminal."""
    child = pexpect.spawn(
        "/bin/sh",
        ["-c", command],
        cwd=str(directory),
        env=environment,
        dimensions=(ROWS, COLUMNS),
        timeout=60,
    )
    shown = b""
    for text, key in keys:
        child.expect_exact(text)
        shown += child.before + child.after
        child.send(key)
    child.expect(pexpect.EOF)
    child.close()
    return shown + bytes(child.before)


def picture(name: str, scene: Scene) -> str:
    """Return a scene as SVG."""
    screen = played(scene)
    rows = [row for row in range(ROWS) if screen.display[row].strip()]
    console = Console(
        width=COLUMNS,
        record=True,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    for row in range(rows[-1] + 1):
        chars = [screen.buffer[row][column] for column in range(len(screen.display[row].rstrip()))]
        line = Text()
        for (colour, bold, reverse), run in groupby(chars, lambda char: (char.fg, char.bold, char.reverse)):
            line.append("".join(char.data for char in run), Style(color=_colour(colour), bold=bold, reverse=reverse))
        console.print(line, no_wrap=True, crop=False)
    template = TEMPLATE.replace("TITLE", html.escape(scene.title))
    svg = console.export_svg(title="", theme=THEME, code_format=template, unique_id=name, font_aspect_ratio=0.6)
    return re.sub(r"[ \t]+$", "", svg, flags=re.MULTILINE)


def _colour(name: str) -> str | None:
    if name == "default":
        return None
    if re.fullmatch("[0-9a-f]{6}", name):
        return f"#{name}"
    return _COLOURS.get(name, name.replace("bright", "bright_"))


def lasting(svg: str) -> str:
    """Return the text of a picture, without what differs from run to run."""
    text = "\n".join(re.findall(r"<text [^>]*>(.*?)</text>", svg))
    text = html.unescape(text).replace("\u00a0", " ")
    for pattern, name in _VARIES:
        text = pattern.sub(name, text)
    return text


def main(arguments: list[str]) -> int:
    """Write the pictures, or check them; return the exit status."""
    if arguments not in ([], ["--check"]):
        print("usage: python docs/generate_pictures.py [--check]", file=sys.stderr)
        return 2
    status = 0
    for name, scene in SCENES.items():
        path, svg = PICTURES / f"{name}.svg", picture(name, scene)
        if not arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(svg, encoding="utf-8")
        elif not path.is_file() or lasting(path.read_text(encoding="utf-8")) != lasting(svg):
            print(f"{path.name} is out of date: run python docs/generate_pictures.py", file=sys.stderr)
            print(lasting(svg), file=sys.stderr)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
