"""The commands: `ai-cli`, and `python -m scripts.plugins`."""

import os
import sys

#: The file in the state directory that records the packages that the user installed. It stands here because most
#: commands only check whether it exists, and import no more for that.
INSTALLED_FILE = "plugins.json"

# Many projects have a directory of this name: their `python -m scripts.release` works although ours is imported.
__path__ += [
    place
    for place in (os.path.join(directory, "scripts") for directory in dict.fromkeys(sys.path) if directory)
    if place not in __path__ and os.path.isdir(place)
]
