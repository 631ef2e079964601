"""An answer that is shown as it comes."""

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from llm.attempts import Pursuit, Try
from llm.errors import BackendError, BackendTimeoutError, D0ttinoError
from llm.hooks.boundary import PLUGIN_FAULTS
from llm.pieces import Pieces
from llm.types import Completion, Request

if TYPE_CHECKING:
    from llm.host import Host
    from llm.retries import RetryPolicy


class CutAnswerError(D0ttinoError):
    """An answer broke off after some of it was shown.

    Attributes:
        completion: what had come until then.

    """

    def __init__(self, message: str, completion: Completion, *, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.completion = completion


class AnswerStream(Iterator[str]):
    """The texts of an answer, as they come. `llm.router.stream` makes one.

    Attributes:
        completion: the whole answer and who gave it, once the last text was read; of an answer that broke
            off, what had come.
        whole_because: why the answer came in one piece, if it did.

    """

    def __init__(self, request: Request, host: "Host", pursuit: Pursuit, retries: "RetryPolicy") -> None:
        self.completion: Completion | None = None
        self.whole_because: str | None = None
        self._request = request
        self._host = host
        self._pursuit = pursuit
        self._retries = retries
        self._texts = self._read()

    def __next__(self) -> str:
        return next(self._texts)

    def close(self) -> None:
        """Read no further; what has come is the completion, marked as cut."""
        self._texts.close()

    def _read(self) -> Generator[str, None, None]:
        try:
            first: tuple[Try, Completion | Pieces] = self._pursuit.first(self._ask)
        except D0ttinoError as error:
            self._host.hook.llm_completed(request=self._request, completion=None, error=error)
            raise
        this, answer = first
        if isinstance(answer, Completion):
            self._end(self._pursuit.answered(this, answer))
            yield answer.text
        else:
            yield from self._show(this, answer)

    def _ask(self, request: Request, backend: str) -> Completion | Pieces | None:
        """Return a whole answer, or one of which the first text has come: until then another may answer."""
        self.whole_because = why_whole(self._host, backend)
        if self.whole_because is None:
            pieces: Pieces | None = self._host.hook.llm_stream(request=request, backend=backend)
            if pieces is not None:
                return pieces.begin() or pieces
            self.whole_because = f"no plug-in streams this request for the backend {backend!r}"
        whole: Completion | None = self._host.hook.llm_complete(request=request, backend=backend)
        return whole

    def _show(self, this: Try, pieces: Pieces) -> Generator[str, None, None]:
        texts: list[str] = []
        try:
            for piece in pieces:
                if isinstance(piece, Completion):
                    self._end(self._pursuit.answered(this, replace(piece, text="".join(texts))))
                    return
                texts.append(piece)
                yield piece
                if self._retries.clock() > self._pursuit.deadline:
                    cut: BaseException = BackendTimeoutError(f"it took longer than {self._pursuit.timeout:g} s")
                    break
        except PLUGIN_FAULTS as error:
            cut = error
        except GeneratorExit:
            self._cut(this, texts, BackendError("nobody read it to its end"))
            raise
        except BaseException:
            self._cut(this, texts, BackendError("it was interrupted"))
            raise
        finally:
            with suppress(*PLUGIN_FAULTS):
                pieces.close()
        raise self._cut(this, texts, cut) from cut

    def _end(self, completion: Completion, error: D0ttinoError | None = None) -> None:
        self.completion = completion
        self._host.hook.llm_completed(request=self._request, completion=completion, error=error)

    def _cut(self, this: Try, texts: list[str], error: BaseException) -> CutAnswerError:
        completion = self._pursuit.cut(this, "".join(texts), error)
        attempt = completion.attempts[-1]
        failure = CutAnswerError(f"the answer was cut short: {attempt}", completion, hint=attempt.hint)
        self._end(completion, failure)
        return failure


def why_whole(host: "Host", backend: str) -> str | None:
    """Return why the answer of a backend has to come in one piece; `None`: it can come in pieces.

    What guards answers, or gives them itself, by `llm_complete` alone must not be passed by.
    """
    streaming = {id(one.plugin) for one in host.hook.llm_stream.get_hookimpls()}
    providing = {id(one.plugin) for one in host.hook.llm_backends.get_hookimpls()}
    for one in host.hook.llm_complete.get_hookimpls():
        guards = one.wrapper or id(one.plugin) not in providing
        if guards and id(one.plugin) not in streaming:
            return f"{one.plugin_name} implements llm_complete and not llm_stream"
    origin = host.backends()[backend].origin
    provider = host.get_plugin(origin.plugin) if origin is not None else None
    return None if id(provider) in streaming else f"the backend {backend!r} answers in one piece"
