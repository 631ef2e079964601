"""What a trace tells of a value: its type and size always, its contents only if they are no secret.

A prompt, an answer, a goal and a command are the user's own; a trace shows them only if it is asked
to. No `repr` of a plug-in's object is ever taken: it may raise, recurse, or return 100 MB.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm.types import BackendInfo, Candidate, Completion, RecipeInfo, Request, Route, Step, StepContext, StepResult

#: How many characters of a text are shown, how many items of a list, and how many lists in lists.
MAX_CHARACTERS = 200
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
            Step: lambda step: {"command": self._text(step.command)},
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
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return self._text(value)
        describe = self._by_type.get(type(value))
        if describe is not None:
            return {"type": type(value).__name__, **describe(value)}
        if type(value) in {list, tuple}:
            return self._items(value, depth)
        return {"type": self.name(type(value).__qualname__)}

    def name(self, text: str | None) -> str | None:
        """Return a text that may be shown, without secrets and not too long."""
        if text is None:
            return None
        shown = self._redact(text[: 4 * MAX_CHARACTERS])
        return shown if len(shown) <= MAX_CHARACTERS else f"{shown[:MAX_CHARACTERS]}…"

    def error(self, error: BaseException | None) -> str | None:
        """Describe an exception in one line."""
        from llm.hooks.problems import one_line

        return None if error is None else self.name(one_line(error))

    def _items(self, items: Sequence[Any], depth: int) -> Any:
        if depth == MAX_DEPTH:
            return {"type": type(items).__name__, "items": len(items)}
        described = [self.value(item, depth + 1) for item in items[:MAX_ITEMS]]
        return described if len(items) <= MAX_ITEMS else [*described, {"more": len(items) - MAX_ITEMS}]

    def _text(self, text: Any) -> Any:
        if not isinstance(text, str):
            return {"type": type(text).__qualname__}
        described: dict[str, Any] = {"characters": len(text)}
        if self._show_texts:
            described["text"] = self.name(text)
        return described

    def _request(self, request: Request) -> dict[str, Any]:
        return {
            "prompt": self._text(request.prompt),
            "model": self.name(request.model),
            "backend": self.name(request.backend),
            "local": request.local,
            "options": sorted(map(str, request.options)),
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
