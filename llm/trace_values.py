"""What a trace tells of a value: its type and size always, its contents only if they are no secret.

A prompt, an answer, a goal and a command are the user's own; a trace shows them only if it is asked
to. No `repr` of a plug-in's object is ever taken: it may raise, recurse, or return 100 MB.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm.types import BackendInfo, Candidate, Completion, RecipeInfo, Request, Route, Step, StepContext, StepResult

#: How many characters of a text are shown, how many items of a list, and how many lists in lists.
MAX_CHARACTERS = 200
#: How many are searched for secrets. A secret that ends behind them must not begin within what is shown.
SEARCHED = 64 * MAX_CHARACTERS
MAX_ITEMS = 20
MAX_DEPTH = 2

#: Arguments of hooks that hold a name, not the user's text.
NAMES = frozenset({"backend", "recipe"})


class Describe:
    """Describes values for a trace.

    Args:
        redact: takes secrets out of a text.
        show_texts: whether prompts, answers, goals and commands are shown, shortened.

    """

    def __init__(self, redact: Callable[[str], str], show_texts: bool = False) -> None:
        self._redact = redact
        self._show_texts = show_texts
        self._by_type: Mapping[type, Callable[[Any], dict[str, Any]]] = {
            Request: self._request,
            Completion: self._completion,
            Route: self._route,
            Candidate: lambda one: {"backend": self.name(one.backend), "reason": self.name(one.reason)},
            BackendInfo: lambda info: {"name": self.name(info.name)},
            RecipeInfo: lambda info: {"name": self.name(info.name)},
            Step: lambda step: {"command": self._text(step.command_line)},
            StepContext: lambda context: {
                "recipe": self.name(context.recipe),
                "number": context.number,
                "total": context.total,
            },
            StepResult: lambda result: {"status": result.status},
        }

    def arguments(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Describe the arguments of a hook call."""
        return {
            name: self.name(value) if name in NAMES and isinstance(value, str) else self.value(value)
            for name, value in arguments.items()
        }

    def value(self, value: Any, depth: int = 0) -> Any:
        """Describe one value as JSON-ready data; a size stands for what is hidden or lies too deep."""
        if value is None or isinstance(value, int | float):
            return self._number(value)
        if isinstance(value, str):
            return self._text(value)
        describe = self._by_type.get(type(value))
        if describe is not None:
            try:
                return {"type": _type_name(value), **describe(value)}
            except Exception as error:  # noqa: BLE001 - what a plug-in put into its fields may raise anything
                return {"type": _type_name(value), "fault": f"its description raised {_type_name(error)}"}
        if type(value) in {list, tuple}:
            return self._items(value, depth)
        return {"type": _type_name(value)}

    def name(self, text: Any) -> str | None:
        """Return a text that may be shown, without secrets and not too long."""
        if text is None:
            return None
        if not isinstance(text, str):  # a plug-in need not keep to the types
            return f"({_type_name(text)})"
        shown = self._redact(_plain(text)[:SEARCHED])
        return shown if len(shown) <= MAX_CHARACTERS else f"{shown[:MAX_CHARACTERS]}…"

    def error(self, error: BaseException | None) -> str | None:
        """Describe an exception in one line."""
        from llm.hooks.problems import one_line

        if error is None:
            return None
        try:
            return self.name(one_line(error))
        except Exception:  # noqa: BLE001 - as above
            return _type_name(error)

    def _items(self, items: Sequence[Any], depth: int) -> Any:
        if depth == MAX_DEPTH:
            return {"type": _type_name(items), "items": len(items)}
        described = [self.value(item, depth + 1) for item in items[:MAX_ITEMS]]
        return described if len(items) <= MAX_ITEMS else [*described, {"more": len(items) - MAX_ITEMS}]

    def _number(self, value: float | None) -> Any:
        """Return a number that JSON can hold; a plug-in may return infinity, or an integer of a million digits."""
        if value is None or isinstance(value, bool) or (type(value) in {int, float} and abs(value) < 2**63):
            return value
        return {"type": _type_name(value)}

    def _text(self, text: Any) -> Any:
        if not isinstance(text, str):
            return {"type": _type_name(text)}
        described: dict[str, Any] = {"characters": str.__len__(text)}
        if self._show_texts:
            described["text"] = self.name(text)
        return described

    def _request(self, request: Request) -> dict[str, Any]:
        return {
            "prompt": self._text(request.prompt),
            "model": self.name(request.model),
            "backend": self.name(request.backend),
            "local": request.local,
            "options": sorted(self.name(key) or "" for key in request.options if isinstance(key, str))[:MAX_ITEMS],
        }

    def _completion(self, completion: Completion) -> dict[str, Any]:
        return {
            "text": self._text(completion.text),
            "backend": self.name(completion.backend),
            "model": self.name(completion.model),
            "plugin": completion.plugin,
        }

    def _route(self, route: Route) -> dict[str, Any]:
        candidates: Sequence[Candidate] = route.candidates
        return {
            "candidates": [
                {"backend": self.name(one.backend), "model": self.name(one.model), "reason": self.name(one.reason)}
                for one in candidates[:MAX_ITEMS]
            ],
            "rejected": [
                {"backend": self.name(one.backend), "reason": self.name(one.reason)}
                for one in route.rejected[:MAX_ITEMS]
            ],
        }


def _plain(text: str) -> str:
    """Return a text without the methods of a subclass, which are a plug-in's and may raise."""
    return text if type(text) is str else "".join((text, ""))


def _type_name(value: object) -> str:
    """Return the name of a value's type; not that which its metaclass claims, which may raise."""
    name: str = type.__dict__["__qualname__"].__get__(type(value))
    return name[:MAX_CHARACTERS]
