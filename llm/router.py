"""The public functions that send requests; see `llm.routing.router`."""

from llm.routing.errors import CutAnswerError, NoAnswerError, NoCandidateError
from llm.routing.router import AnswerStream, choose_route, complete, send_prompt, stream

__all__ = [
    "AnswerStream",
    "CutAnswerError",
    "NoAnswerError",
    "NoCandidateError",
    "choose_route",
    "complete",
    "send_prompt",
    "stream",
]
