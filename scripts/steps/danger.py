r"""Finding commands that look dangerous: a help against haste, not a boundary.

A shell can say the same thing in endless ways (`r\m`, `$(printf rm)`, a script that is downloaded), and
nothing here tries to follow it. Who has to keep a command from running uses another account, a sandbox
or a machine of its own.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from llm.types import Step
from scripts.render import hides_something

#: What separates commands. Quotes as well: `sh -c "rm -rf /"` has a command in them.
_SEPARATORS: Final = str.maketrans(dict.fromkeys(";(){}`&|", "\n"))
_QUOTES: Final = str.maketrans("\"'", "  ", "\\")

#: Programs that run the rest of their arguments.
_PREFIXES: Final = frozenset(
    {"sudo", "doas", "env", "nohup", "time", "exec", "command", "xargs", "nice", "setsid", "timeout", "then", "do", "!"}
)
_SHELLS: Final = frozenset({"sh", "bash", "zsh", "dash", "ksh", "fish", "python", "python3", "perl", "ruby", "node"})

# Each repetition has a bound: a command may be a mebibyte long.
_FORK_BOMB: Final = r"(?<![\w:])([\w:]{1,40})\s{0,9}\(\)\s{0,9}\{[^}]{0,99}\|\s{0,9}\1\s{0,9}&"
_TO_DEVICE: Final = r">\s{0,9}/dev/(?:sd|hd|vd|xvd|nvme|mmcblk|disk|mapper)"
_TO_SYSTEM: Final = r">\s{0,9}/(?:etc|boot|usr|bin|sbin|lib\w*)/"
_DROP: Final = r"(?i)\bdrop\s{1,9}(?:table|database|schema)\b"
_TRUNCATE: Final = r"(?i)\btruncate\s{1,9}table\b"


def dangers(step: Step) -> tuple[str, ...]:
    """Return why a step looks dangerous, each reason fit for "it ..."; empty: it does not."""
    text = step.command_line
    reasons = ["asks for a confirmation of its own"] if step.confirm else []
    if step.confirm and hides_something(text):
        reasons = ["has characters that cannot be seen"]
    written = text.lower()
    for sign, pattern, reason in (
        ("()", _FORK_BOMB, "starts itself without end"),
        (">", _TO_DEVICE, "overwrites a disk"),
        (">", _TO_SYSTEM, "overwrites a file of the system"),
        ("drop", _DROP, "deletes data of a database"),
        ("truncate", _TRUNCATE, "deletes data of a database"),
    ):
        # Without its sign a command needs no pattern, whose compilation takes longer than all else here.
        if sign in written and re.search(pattern, text):
            reasons.append(reason)
    before = ""
    for words, at in _commands(text):
        name = posixpath.basename(words[at].rstrip("/"))
        rule = _RULES.get(name)
        reason_of_rule = rule(words[at + 1 :]) if rule is not None else None
        if reason_of_rule:
            reasons.append(reason_of_rule)
        if before in {"curl", "wget", "base64"} and name in _SHELLS:
            reasons.append(f"runs what {before} gives it")
        before = name
    return tuple(dict.fromkeys(reasons))


def _commands(text: str) -> Iterator[tuple[list[str], int]]:
    """Yield the words of each command with the index of its program; what only runs it stands before.

    Each word is looked at a fixed number of times, however many shells are in a row: a command may have a mebibyte.
    """
    for part in text.translate(_SEPARATORS).split("\n"):
        words = part.translate(_QUOTES).split()
        at = 0
        while True:
            while at < len(words) and _only_runs_others(words[at]):
                at += 1
            if at == len(words):
                break
            yield words, at
            try:
                at = words.index("-c", at) + 1 if posixpath.basename(words[at].rstrip("/")) in _SHELLS else len(words)
            except ValueError:
                break


def _only_runs_others(word: str) -> bool:
    return word in _PREFIXES or word.startswith("-") or "=" in word or word.isdigit()


def _flags(words: Sequence[str]) -> set[str]:
    """Return single letters and long options: `-rf --force` gives r, f and --force."""
    short = {letter for word in words if re.match(r"-[^-]", word) for letter in word[1:]}
    return short | {word.partition("=")[0] for word in words if word.startswith("--")}


def _rm(words: Sequence[str]) -> str | None:
    if not _flags(words) & {"r", "R", "--recursive"}:
        return None
    targets = [word for word in words if not word.startswith("-")]
    wide = [
        target
        for target in targets
        if re.fullmatch(r"(?:/|~|/\*|\*|\.|\.\.|\./\*|\$\{?\w+\}?/?\*?|/\w+/?\*?|~/?\*?)", target)
    ]
    return f"deletes all of {wide[0]}" if wide else "deletes directories" if _flags(words) & {"f", "--force"} else None


def _git(words: Sequence[str]) -> str | None:
    flags = _flags(words)
    own_options = {index + 1 for index, word in enumerate(words) if word in {"-C", "-c"}}
    subcommand = next(
        (word for index, word in enumerate(words) if index not in own_options and not word.startswith("-")), ""
    )
    if subcommand == "push" and (
        flags & {"f", "--force", "--mirror", "--delete"} or any(w.startswith("+") for w in words)
    ):
        return "overwrites a remote branch"
    if subcommand == "reset" and "--hard" in flags:
        return "throws away changes"
    if subcommand == "clean" and "f" in flags:
        return "deletes files that git does not know"
    return None


def _first_word_in(reason: str, *names: str) -> "Callable[[Sequence[str]], str | None]":
    return lambda words: reason if set(names) & set(words) else None


def _always(reason: str) -> "Callable[[Sequence[str]], str | None]":
    return lambda _words: reason


def _recursive_on_root(reason: str) -> "Callable[[Sequence[str]], str | None]":
    def rule(words: Sequence[str]) -> str | None:
        system = any(re.fullmatch(r"/|~|/(?:etc|usr|bin|lib|var|boot|home|root)/?", word) for word in words)
        return reason if system and _flags(words) & {"R", "--recursive"} else None

    return rule


_RULES: Final[dict[str, Callable[[Sequence[str]], str | None]]] = {
    "rm": _rm,
    "git": _git,
    "dd": lambda words: "writes to a device" if any(word.startswith("of=/dev/") for word in words) else None,
    "find": _first_word_in("deletes what it finds", "-delete"),
    "chmod": _recursive_on_root("changes the permissions of a whole system"),
    "chown": _recursive_on_root("changes the owner of a whole system"),
    "crontab": lambda words: "deletes all cron jobs" if "r" in _flags(words) else None,
    "kill": lambda words: "ends every process" if "-1" in words[1:] else None,
    "docker": _first_word_in("deletes containers, images or volumes", "prune"),
    "kubectl": _first_word_in("deletes resources of a cluster", "delete", "drain"),
    "terraform": _first_word_in("destroys infrastructure", "destroy"),
    "iptables": lambda words: "deletes firewall rules" if _flags(words) & {"F", "--flush"} else None,
    **dict.fromkeys(("shutdown", "reboot", "halt", "poweroff"), _always("stops the machine")),
    **dict.fromkeys(("mkfs", "mkswap", "fdisk", "parted", "wipefs", "shred"), _always("destroys data on a disk")),
    **{f"mkfs.{kind}": _always("destroys data on a disk") for kind in ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat")},
    **dict.fromkeys(("userdel", "groupdel"), _always("deletes accounts")),
}
