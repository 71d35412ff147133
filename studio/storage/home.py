"""The studio's home: one folder with jobs, outputs, the library and the databases over them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from studio.pipelines.files import output_errors
from studio.storage.network import refuse_network_folder

HOME_VARIABLE = "STUDIO_HOME"


@dataclass(frozen=True)
class Home:
    """Paths under one home folder.

    ::

        STUDIO_HOME/ jobs.sqlite3  library.sqlite3     can be rebuilt from the folders below
                     jobs/ID/      job.json events.jsonl result.json log.txt
                     outputs/ID/   what a job made: pictures, a training's run folder
                     library/      adapters/ concepts/ plans/ pictures/ entries/ thumbnails/ trash/
                     logs/         of the workers

    Attributes:
        root: absolute.
    """

    root: Path

    @property
    def jobs_database(self) -> Path:
        """The table of jobs."""
        return self.root / "jobs.sqlite3"

    @property
    def library_database(self) -> Path:
        """The catalogue."""
        return self.root / "library.sqlite3"

    @property
    def jobs(self) -> Path:
        """A folder per job."""
        return self.root / "jobs"

    @property
    def outputs(self) -> Path:
        """What jobs made, a folder each."""
        return self.root / "outputs"

    @property
    def library(self) -> Path:
        """Files of the library and what is known about them."""
        return self.root / "library"

    @property
    def logs(self) -> Path:
        """Of workers."""
        return self.root / "logs"

    def create(self) -> Home:
        """Make the folders, and return this home.

        Raises:
            OutputError: it cannot be written to, or it lies on a network folder, where a database would be damaged.
        """
        with output_errors(self.root):
            for folder in (self.root, self.jobs, self.outputs, self.library, self.logs):
                folder.mkdir(parents=True, exist_ok=True)
        refuse_network_folder(self.root)
        return self


def find_home(path: Path | str | None = None) -> Home:
    """The home at `path`; by default at `STUDIO_HOME`, or else where this system keeps a person's data."""
    chosen = path if path is not None else os.environ.get(HOME_VARIABLE)
    if chosen is None or not str(chosen):
        chosen = platformdirs.user_data_path("diffusion-customization-studio", appauthor=False)
    return Home(Path(chosen).expanduser().absolute())
