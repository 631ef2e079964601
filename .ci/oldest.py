"""Print pip constraints: the oldest release of each direct dependency that pyproject.toml allows."""

import re
import tomllib
from pathlib import Path

project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
for requirement in project["dependencies"]:  # not of the tests: nobody else needs those
    bound = re.match(r"([\w.-]+)(?:\[[\w,]+\])?>=([\w.]+)", requirement)
    if bound:
        print(f"{bound[1]}=={bound[2]}")
