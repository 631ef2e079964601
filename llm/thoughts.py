"""Thoughts that models write into their answers, between tags (`<think>`, `[THINK]`, `◁think▷`) or in channels."""

import re
from typing import Final

from llm._state import cached, store_in_cache

_NAMES: Final = "think|thinking|thoughts?|reasoning|reflection|scratchpad"

#: What a tag begins with. Most texts have none, and need none of the patterns, whose compilation takes a millisecond.
_BEGINNINGS: Final = "<[◁"

#: What such a tag begins with; some vendors put their name before its own: `<seed:think>`.
_BEGIN: Final = rf"[{re.escape(_BEGINNINGS)}]\s{{0,3}}(/?)\s{{0,3}}(?:[a-z]{{1,10}}:)?"

#: Any tag that a model puts around its thoughts.
_THOUGHT: Final = rf"{_BEGIN}(?:{_NAMES})\s{{0,3}}[>\]▷]"

#: Tags that an answer has for no other reason: XML that was asked for may well have a `<reasoning>`.
_THINK: Final = rf"{_BEGIN}(?:think|thinking|thought)\s{{0,3}}[>\]▷]"

#: The end of a text that may become a tag with the next piece.
_BEGUN: Final = rf"[{re.escape(_BEGINNINGS)}]\s{{0,3}}/?\s{{0,3}}(?:[a-z]{{1,10}}:)?[a-z]{{0,10}}\s{{0,3}}$"

_FENCE: Final = r"^[ \t]*(?:`{3}|~{3})"

#: What an answer begins with whose server passes on the model's own format: OpenAI's Harmony, and Cohere's.
_FORMATS: Final = ("<|channel|>", "<|start|>", "<|START_THINKING|>", "<|START_RESPONSE|>")
_MARK: Final = r"<\|(\w{1,30})\|>"
_MARK_BEGUN: Final = r"<(?:\|(?:\w{1,30}\|?)?)?$"

#: What follows each mark of these formats. A header ends with the mark `message`.
_FOLLOWS: Final = {
    **dict.fromkeys(("start", "channel", "constrain", "end", "return", "call"), "header"),
    "START_THINKING": "thoughts",
    **dict.fromkeys(("END_THINKING", "START_RESPONSE", "END_RESPONSE", "END_OF_TURN_TOKEN"), "text"),
}

#: So many models are remembered.
_MOST: Final = 200

#: What stands around thoughts that a server sends in a field of their own, where they are asked for.
OPEN: Final = "<think>\n"
CLOSE: Final = "\n</think>\n\n"


def _may_have_tag(text: str) -> bool:
    return any(beginning in text for beginning in _BEGINNINGS)


def _search(pattern: str, text: str) -> re.Match[str] | None:
    return re.search(pattern, text, re.IGNORECASE) if _may_have_tag(text) else None


def without_thoughts(text: str) -> str:
    """Return an answer without what the model thought before it.

    A tag that nobody opened ends thoughts as well: some servers leave the first one out. Thoughts
    that nobody closed go on to the end.
    """
    served = _Served()
    text = served.feed(text) + served.finish()
    kept: list[str] = []
    start = depth = counted = 0
    spoken_of: int | None = None  # where such a tag ended
    in_code = False
    for tag in re.finditer(_THOUGHT, text, re.IGNORECASE) if _may_have_tag(text) else ():
        if not depth:
            in_code ^= len(re.findall(_FENCE, text[counted : tag.start()], re.MULTILINE)) % 2 == 1
            counted = tag.end()
            if not tag[1] and in_code and text[text.rfind("\n", 0, tag.start()) + 1 : tag.start()].strip():
                spoken_of = tag.end()  # in a command
                continue
            if tag[1] and spoken_of is not None and "\n" not in text[spoken_of : tag.start()]:
                spoken_of = None
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
    """Return what a reader is shown of a whole answer; see `ThoughtFilter`.

    Thoughts whose first tag the server left out are dropped as well.
    """
    tag = None if text.lstrip().startswith(_FORMATS) else _search(_THINK, text)
    if tag is not None and tag[1] and text[: tag.start()][-1:] != "`":
        return text[tag.end() :].lstrip()
    thoughts = ThoughtFilter()
    return thoughts.feed(text) + thoughts.finish()


class _Served:
    """Reads the messages or phases of a model's own format, and gives out those that are the answer."""

    def __init__(self) -> None:
        self.is_raw: bool | None = None  # the answer has such a format; `None`: that is not known yet
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
        # Texts and the names of marks take turns.
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
    """Drops the thoughts of an answer that comes in pieces.

    Thoughts begin with a tag at the beginning of a line, outside of code: an answer may also speak of such tags. Where
    a server leaves the first tag out, they end with one that nobody opened.

    Args:
        inside: whether to expect that: nothing is shown then until thoughts or the whole answer have ended.
    """

    def __init__(self, *, inside: bool = False) -> None:
        self.dropped = False  # there were any
        self.shown = False  # anything else than blanks was there
        self.began_inside = False  # thoughts ended that nobody had opened: what was shown before were thoughts
        self._served = _Served()
        self._waiting: list[str] | None = [] if inside else None
        self._held = ""
        self._blank = ""
        self._line = ""
        self._depth = 0
        self._opened = False  # in the middle of a line: it is spoken of
        self._in_code = False
        self._skip_blank = False

    def feed(self, piece: str) -> str:
        """Return what can be shown by now."""
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
            # One in code or backticks, or behind one in the middle of a line, is spoken of.
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
        """Return the rest."""
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
        if text.isspace():  # it belongs to thoughts that may come
            self._blank += text
            return ""
        self.shown = True
        return text if self.dropped else self._blank + text


def begins_inside(model: str) -> bool:
    """Whether answers of a model were seen to begin inside its thoughts; `model` is whatever the caller calls it."""
    return model in _seen()


def note_begins_inside(model: str) -> None:
    """Remember in this user's cache that the answers of a model begin inside its thoughts."""
    known = _seen()
    if model not in known:
        store_in_cache([*known, model][-_MOST:], "thoughts")


def _seen() -> list[str]:
    known = cached("thoughts")
    return [str(one) for one in known] if isinstance(known, list) else []
