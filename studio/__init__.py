"""Diffusion Customization Studio: teach a text-to-image model new concepts and compose them.

The rooms (`studio.training`, `studio.pipelines`, ...) are folders beside this one in the repository. An installed
package has them as ordinary sub-packages; in a clone that nobody has installed, the finder below reads exactly
those folders, and nothing else of the repository, so that `studio.tests` or `studio.setup` never exist.
"""

import sys

# This file stays readable by old interpreters, so that the sentence can be printed.
if sys.version_info < (3, 11):  # noqa: UP036
    raise SystemExit(
        f"Diffusion Customization Studio needs Python 3.11 or newer; this is Python {sys.version_info[0]}.{sys.version_info[1]}. "
        "Make a virtual environment with a newer one, for example: python3.12 -m venv .venv"
    )

from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

__version__ = "0.1.0"

ROOMS = ("training", "composition", "pipelines", "kernels", "ui", "assets")
"""Sub-packages whose folders stand beside `studio/` in the repository."""


class _SiblingRooms(MetaPathFinder):
    """Find `studio.<room>` in the folder `<room>` of a clone.

    A finder and not an entry in `__path__`: that would make every other module of the repository importable too.
    """

    def __init__(self, clone_dir: Path) -> None:
        self.clone_dir = clone_dir

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module spec of a room, or None for every other name."""
        package, _, room = fullname.rpartition(".")
        if package != __name__ or room not in ROOMS:
            return None
        folder = self.clone_dir / room
        return spec_from_file_location(fullname, folder / "__init__.py", submodule_search_locations=[str(folder)])


def _find_rooms_of_a_clone() -> None:
    clone_dir = Path(__file__).resolve().parent.parent
    rooms_are_there = all((clone_dir / room / "__init__.py").is_file() for room in ROOMS)
    if (clone_dir / "pyproject.toml").is_file() and rooms_are_there:
        sys.meta_path.insert(0, _SiblingRooms(clone_dir))


_find_rooms_of_a_clone()
