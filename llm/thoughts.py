"""Thoughts in the text of answers, between tags (`<think>`, `[THINK]`, `◁think▷`) or in channels."""

import re
from typing import Final

from llm._state import cached, store_in_cache

_NAMES: Final = "think|thinking|thoughts?|reasoning|reflection|scratchpad"

#: The first characters of tags. Texts without these need no pattern, whose compilation takes a millisecond.
_BEGINNINGS: Final = "<[◁"

#: The beginning of a tag; some vendors put their name before its own: `<seed:think>`.
_BEGIN: Final = rf"[{re.escape(_BEGINNINGS)}]\s{{0,3}}(/?)\s{{0,3}}(?:[a-z]{{1,10}}:)?"

#: Any tag around thoughts.
_THOUGHT: Final = rf"{_BEGIN}(?:{_NAMES})\s{{0,3}}[>\]▷]"

#: Tags around thoughts that answers have for no other reason: XML in an answer may well have a `<reasoning>`.
_THINK: Final = rf"{_BEGIN}(?:think|thinking|thought)\s{{0,3}}[>\]▷]"

#: The end of a piece that may be the beginning of a tag.
_BEGUN: Final = rf"[{re.escape(_BEGINNINGS)}]\s{{0,3}}/?\s{{0,3}}(?:[a-z]{{1,10}}:)?[a-z]{{0,10}}\s{{0,3}}$"

_FENCE: Final = r"^[ \t]*(?:`{3}|~{3})"

#: The beginnings of answers in a model's own format, OpenAI's Harmony and Cohere's, which some servers pass on.
_FORMATS: Final = ("<|channel|>", "<|start|>", "<|START_THINKING|>", "<|START_RESPONSE|>")
_MARK: Final = r"<\|(\w{1,30})\|>"
_MARK_BEGUN: Final = r"<(?:\|(?:\w{1,30}\|?)?)?$"

#: The kind of text behind each mark of these formats. A header ends with the mark `message`.
_FOLLOWS: Final = {
    **dict.fromkeys(("start", "channel", "constrain", "end", "return", "call"), "header"),
    "START_THINKING": "thoughts",
    **dict.fromkeys(("END_THINKING", "START_RESPONSE", "END_RESPONSE", "END_OF_TURN_TOKEN"), "text"),
}

#: The number of models that are remembered.
_MOST: Final = 200

#: The tags around thoughts that come in a member of their own.
OPEN: Final = "<think>\n"
CLOSE: Final = "\n</think>\n\n"


def _may_have_tag(text: str) -> bool:
    return any(beginning in text for beginning in _BEGINNINGS)


def _search(pattern: str, text: str) -> re.Match[str] | None:
    return re.search(pattern, text, re.IGNORECASE) if _may_have_tag(text) else None


def without_thoughts(text: str) -> str:
    """Return an answer without the model's thoughts.

    A closing tag alone ends thoughts as well: some servers leave the opening one out. Thoughts without a closing tag go
    on to the end.
    """
    served = _Served()
    text = served.feed(text) + served.finish()
    kept: list[str] = []
    start = depth = counted = 0
    mentioned: int | None = None  # the end of a tag that the answer only mentions
    in_code = False
    for tag in re.finditer(_THOUGHT, text, re.IGNORECASE) if _may_have_tag(text) else ():
        if not depth:
            in_code ^= len(re.findall(_FENCE, text[counted : tag.start()], re.MULTILINE)) % 2 == 1
            counted = tag.end()
            if not tag[1] and in_code and text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()].strip():
                mentioned = tag.end()  # in a command
                continue
            if tag[1] and mentioned is not None and "\n" not in text[mentioned : tag.start()]:
                mentioned = None
                continue
        if tag[1]:
            counted = tag.end()
            if not depth:
                kept.clear()
                in_code = False
            depth = max(depth - 1, 0)
            start = tag.end()
        else:
            if not depth:
                kept.append(text[start : tag.start()])
            depth += 1
    return "".join(kept) if depth else "".join([*kept, text[start:]])


def shown_of(text: str) -> str:
    """Return the part of a whole answer that users see; see `ThoughtFilter`.

    Thoughts without an opening tag are dropped as well.
    """
    tag = None if text.lstrip().startswith(_FORMATS) else _search(_THINK, text)
    if tag is not None and tag[1] and text[: tag.start()][-1:] != "`":
        return text[tag.end() :].lstrip()
    thoughts = ThoughtFilter()
    return thoughts.feed(text) + thoughts.finish()


class _Served:
    """A filter for a model's own format, which passes the messages or phases of the answer."""

    def __init__(self) -> None:
        self.is_raw: bool | None = None  # whether the answer has such a format; `None`: not known yet
        self.dropped = False  # there were thoughts
        self._held = self._header = ""
        self._place = "text"

    def feed(self, piece: str) -> str:
        if self.is_raw is False:
            return piece
        text, self._held = self._held + piece, ""
        if self.is_raw is None:
            begun = text.lstrip()
            if not begun.startswith(_FORMATS) and any(one.startswith(begun) for one in _FORMATS):
                self._held = text
                return ""
            self.is_raw = begun.startswith(_FORMATS)
            if not self.is_raw:
                return text
            text = begun
        begun_mark = re.search(_MARK_BEGUN, text)
        if begun_mark is not None:
            text, self._held = text[: begun_mark.start()], begun_mark[0]
        # Texts and the names of marks alternate.
        return "".join(self._take(part, bool(number % 2)) for number, part in enumerate(re.split(_MARK, text)))

    def finish(self) -> str:
        held, self._held = self._held, ""
        return held if self._place == "text" else ""

    def _take(self, text: str, is_mark: bool) -> str:
        if is_mark and text == "message":
            channel = self._header.split()[:1]
            self._place = "text" if channel in ([], ["final"]) else "thoughts"
        elif is_mark and text in _FOLLOWS:
            self._place = _FOLLOWS[text]
            self._header = self._header if text == "constrain" else ""
        else:
            text = f"<|{text}|>" if is_mark else text
            self._header += text if self._place == "header" else ""
            return text if self._place == "text" else ""
        self.dropped |= self._place == "thoughts"
        return ""


class ThoughtFilter:
    """A filter that drops the thoughts of an answer in pieces.

    Thoughts begin with a tag at the beginning of a line, outside of code: elsewhere the answer only mentions the tag.
    Where a server leaves the opening tag out, they end with a closing one.

    Args:
        inside: whether to expect thoughts without an opening tag: nothing is shown until they or the answer end.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self.dropped = False  # there were thoughts
        self.shown = False  # there was other text than blanks
        self.began_inside = False  # thoughts without an opening tag ended: text that was shown before were thoughts
        self._served = _Served()
        self._waiting: list[str] | None = [] if inside else None
        self._held = ""
        self._blank = ""
        self._line = ""
        self._depth = 0
        self._opened = False  # by a tag that the answer only mentions
        self._in_code = False
        self._skip_blank = False

    def feed(self, piece: str) -> str:
        """Return the text that can be shown now."""
        piece = self._served.feed(piece)
        if self._served.is_raw:
            self._waiting = None
            if self._served.dropped and not self.dropped:
                self.dropped = self._skip_blank = True
        return self._feed(piece)

    def _feed(self, piece: str) -> str:
        text, self._held = self._held + piece, ""
        if self._waiting is not None:
            if _search(_THINK, text) is not None:
                text, self._waiting = "".join((*self._waiting, text)), []
            tags = re.finditer(_THINK, text, re.IGNORECASE) if _may_have_tag(text) else ()
            if not any(text[: tag.start()][-1:] != "`" for tag in tags):
                begun = _search(_BEGUN, text)
                self._held = "" if begun is None else begun[0]
                self._waiting.append(text.removesuffix(self._held))
                return ""
            self._waiting = None
        out = []
        while True:
            tag = _search(_THINK, text)
            if tag is None:
                break
            before, text = text[: tag.start()], text[tag.end() :]
            if self._depth:
                self._depth += -1 if tag[1] else 1
                self._skip_blank = True
                continue
            out.append(self._take(before))
            # A tag in code or backticks, or behind one in the middle of a line, is only mentioned.
            opened = self._opened or self._in_code or self._line.endswith("`")
            if tag[1] and not self.dropped and not opened:
                out.clear()
                self.dropped, self.began_inside, self.shown, self._skip_blank = True, True, False, True
            elif tag[1] or self._in_code or self._line.strip():
                self._opened = not tag[1] and not self._in_code and not self._line.endswith("`")
                out.append(self._take(tag[0]))
            else:
                self.dropped, self._depth = True, 1
        begun = _search(_BEGUN, text)
        if begun is not None:
            text, self._held = text[: begun.start()], begun[0]
        if not self._depth:
            out.append(self._take(text))
        return "".join(out)

    def finish(self) -> str:
        """Return the rest of the text."""
        return self._feed(self._served.finish()) + self._finish()

    def _finish(self) -> str:
        if self._waiting is not None:
            text, self._waiting, self._held = "".join((*self._waiting, self._held)), None, ""
            return self._feed(text) + self._finish()
        held, self._held = self._held, ""
        rest = "" if self._depth else self._take(held)
        return rest if self.shown or self.dropped else rest + self._blank

    def _take(self, text: str) -> str:
        if self._skip_blank:
            text = text.lstrip()
        if not text:
            return ""
        self._skip_blank = False
        whole = self._line + text
        lines = whole.rpartition("\n")
        self._in_code ^= len(re.findall(_FENCE, lines[0], re.MULTILINE)) % 2 == 1 if lines[1] else False
        self._line = lines[2]
        if self.shown:
            return text
        if text.isspace():  # it may belong to thoughts
            self._blank += text
            return ""
        self.shown = True
        return text if self.dropped else self._blank + text


def begins_inside(model: str) -> bool:
    """Whether answers of a model were seen to begin inside its thoughts; `model` is any name for it."""
    return model in _seen()


def note_begins_inside(model: str) -> None:
    """Record in this user's cache that the answers of a model begin inside its thoughts."""
    known = _seen()
    if model not in known:
        store_in_cache([*known, model][-_MOST:], "thoughts")


def _seen() -> list[str]:
    known = cached("thoughts")
    return [str(one) for one in known] if isinstance(known, list) else []
