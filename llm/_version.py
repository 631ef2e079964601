"""Name and version of the distribution."""

from typing import Final

__version__: Final = "0.1.0"

#: The distribution's name on an index.
DISTRIBUTION: Final = "d0ttino"
