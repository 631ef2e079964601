"""Types of the names that `llm/__init__.py` imports late."""

from typing import Final

from llm._hookimpl import hookimpl as hookimpl
from llm.config import PluginSettings as PluginSettings
from llm.contributions import Backend as Backend
from llm.contributions import Recipe as Recipe
from llm.contributions import RegisteredBackend as RegisteredBackend
from llm.contributions import RegisteredRecipe as RegisteredRecipe
from llm.hooks import Origin as Origin
from llm.hooks import origin_of as origin_of
from llm.host import Host as Host
from llm.host import create_host as create_host
from llm.host import current_host as current_host
from llm.parameters import Parameter as Parameter
from llm.router import acomplete as acomplete
from llm.router import astream as astream
from llm.router import complete as complete
from llm.router import send_prompt as send_prompt
from llm.router import stream as stream
from llm.routing.batch import Outcome as Outcome
from llm.routing.batch import send_many as send_many
from llm.tracing import trace as trace
from llm.types import Answer as Answer
from llm.types import Attachment as Attachment
from llm.types import Attempt as Attempt
from llm.types import Call as Call
from llm.types import Cancellation as Cancellation
from llm.types import Candidate as Candidate
from llm.types import Completion as Completion
from llm.types import Message as Message
from llm.types import Rejection as Rejection
from llm.types import Request as Request
from llm.types import Route as Route
from llm.types import Step as Step
from llm.types import StepContext as StepContext
from llm.types import StepResult as StepResult
from llm.types import Usage as Usage

__version__: Final[str]
DISTRIBUTION: Final[str]

__all__: list[str]
