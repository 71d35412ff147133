"""Work on a Ray cluster: a task for each group or training, taken up again by another node if its own one dies.

What crosses the network is JSON, the bytes of pictures, and files by their hash: a node asks for a file only if it has none of
that content. The function that runs there is this module's own; nothing of the caller's is pickled. A cluster trusts everybody
who reaches its ports: one that is started here binds to loopback, and others belong on a network of one's own.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import platformdirs

from studio.batch.executors import Stop
from studio.batch.tasks import BaseRef, FileRef, GroupTask, TrainTask, files_of
from studio.batch.work import Outcome, Work, do_work
from studio.batch.workshop import Drawn, Workshop
from studio.pipelines.base_facts import read_base_facts
from studio.pipelines.base_files.content_hash import file_sha256
from studio.pipelines.errors import Cancelled, MissingDependencyError, StudioError
from studio.pipelines.files import atomic_write_bytes
from studio.pipelines.pictures import PictureRecord

if TYPE_CHECKING:
    from studio.batch.runner import Settings

FILES_VARIABLE = "STUDIO_FILES"
"""Folder of a node for files that came by their hash."""

MAX_RETRIES = 3
_POLL_SECONDS = 0.5
_NOT_SENT_BACK = ("checkpoints", "photos")


class RayExecutor:
    """Tasks on a cluster.

    Args:
        settings: threads of each task, and the device: a task on CUDA takes one GPU.
        num_workers: tasks at a time on a cluster that is started here.
        address: of a cluster that is there; None starts one on this machine, which ends with the batch.
        shares_files: whether nodes may look for files at their paths, before they ask for them by hash.
    """

    def __init__(
        self, settings: Settings, *, num_workers: int = 2, address: str | None = None, shares_files: bool = True
    ) -> None:
        self.settings = settings
        self.num_workers = num_workers
        self.address = address
        self.shares_files = shares_files
        self._sent: dict[str, Any] = {}

    def run(self, work: Sequence[Work], should_stop: Stop) -> Iterator[Outcome]:
        """As many at a time as the cluster has room for, and whatever is finished first.

        Raises:
            StudioError: the cluster cannot be reached.
        """
        ray = _ray(on_loopback=self.address is None)
        starts = not ray.is_initialized()
        if starts:
            self._connect(ray)
        try:
            yield from self._all(ray, work, should_stop)
        finally:
            self._sent.clear()
            if starts:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        try:
            if self.address is not None:
                ray.init(address=self.address, log_to_driver=False)
            else:
                ray.init(
                    num_cpus=self.num_workers * self.settings.threads,
                    include_dashboard=False,
                    log_to_driver=False,
                    _node_ip_address="127.0.0.1",
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StudioError(f"The Ray cluster at {self.address or 'this machine'} cannot be reached: {error}") from error

    def _all(self, ray: Any, work: Sequence[Work], should_stop: Stop) -> Iterator[Outcome]:
        remote = ray.remote(work_on_node)
        pieces: dict[Any, Work] = {}
        waiting = list(work)
        # Enough to keep every node busy, and not all at once: a file is sent when the first group that needs it is.
        most = max(2, int(ray.cluster_resources().get("CPU", 1)) * 2)
        while waiting or pieces:
            if should_stop():
                for reference in pieces:
                    ray.cancel(reference, force=True)
                raise Cancelled("Stopped; groups that were begun on the cluster are given up.")
            while waiting and len(pieces) < most:
                piece = waiting.pop(0)
                options = self._options(piece)
                pieces[remote.options(**options).remote(self._message(piece), self._files(ray, piece))] = piece
            finished, _ = ray.wait(list(pieces), num_returns=1, timeout=_POLL_SECONDS)
            for reference in finished:
                piece = pieces.pop(reference)
                try:
                    yield _outcome(piece, ray.get(reference))
                except ray.exceptions.RayError as error:
                    sentence = f"The cluster gave it up: {str(error).strip().splitlines()[0]}"
                    yield Outcome(piece, failures=dict.fromkeys(piece.wanted, sentence))

    def _options(self, piece: Work) -> dict[str, Any]:
        first = piece.group.tasks[0]
        num_processes = first.num_processes if isinstance(first, TrainTask) else 1
        on_gpu = self.settings.device.startswith("cuda")
        return {
            "num_cpus": self.settings.threads * num_processes,
            "num_gpus": num_processes if on_gpu else 0,
            "max_retries": MAX_RETRIES,
            "name": f"group {piece.group.index}",
        }

    def _message(self, piece: Work) -> str:
        return json.dumps(
            {
                "group": piece.group.model_dump(mode="json"),
                "wanted": sorted(piece.wanted),
                "threads": self.settings.threads,
                "device": "cuda" if self.settings.device.startswith("cuda") else self.settings.device,
                "shares_files": self.shares_files,
                "base": {name: ref.model_dump() for name, ref in base_files(piece.group.tasks[0].base).items()},
            }
        )

    def _files(self, ray: Any, piece: Work) -> dict[str, Any]:
        """Hash -> where the cluster keeps the bytes; each file is put there once."""
        wanted = files_of(piece.group.tasks) | {ref.sha256: ref for ref in base_files(piece.group.tasks[0].base).values()}
        for sha256, ref in wanted.items():
            if sha256 not in self._sent:
                self._sent[sha256] = ray.put(Path(ref.path).read_bytes())
        return {sha256: self._sent[sha256] for sha256 in wanted}


@lru_cache(maxsize=8)
def base_files(ref: BaseRef) -> Mapping[str, FileRef]:
    """A base model's files by their place in its folder; none where every node has it by name (embedded, or on the hub)."""
    path = Path(ref.spec).expanduser()
    if ref.spec == "embedded" or not path.exists():
        return {}
    if path.is_file():
        return {path.name: FileRef(path=str(path.resolve()), sha256=file_sha256(path))}
    weights = {file.resolve() for file in read_base_facts(ref.spec).files}
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file() and (file.resolve() in weights or file.suffix in (".json", ".txt")):
            found[file.relative_to(path).as_posix()] = FileRef(path=str(file.resolve()), sha256=file_sha256(file))
    return found


def work_on_node(message: str, files: Mapping[str, Any]) -> tuple[str, list[bytes]]:
    """Do one piece of work on a node: JSON and bytes in, JSON and bytes out.

    Args:
        message: a JSON table. files: hash -> a reference to the bytes, fetched if they are needed.
    """
    import torch

    values = json.loads(message)
    group = GroupTask.model_validate(values["group"])
    if torch.get_num_threads() != values["threads"]:
        torch.set_num_threads(values["threads"])
    store = NodeFiles(files, looks_at_paths=values["shares_files"])
    group = _with_base(group, store, {name: FileRef.model_validate(each) for name, each in values["base"].items()})
    workshop = _workshop(values["device"])
    workshop.fetch = store.path_of
    work = Work(group, frozenset(values["wanted"]))
    first = group.tasks[0]
    if not isinstance(first, TrainTask):
        return _answer(do_work(work, workshop), {})
    with tempfile.TemporaryDirectory(prefix="studio-training-") as folder:
        photos = Path(folder) / "photos-of-the-concept"
        for name, ref in first.photos.items():
            atomic_write_bytes(photos / Path(name).name, store.path_of(ref).read_bytes())
        run = Path(folder) / "run"
        outcome = do_work(Work(group, work.wanted, str(run)), workshop, photos=photos)
        return _answer(outcome, _made(run) if outcome.adapter is not None else {})


class NodeFiles:
    """Files on a node: at their paths if they are what they should be, else in its own folder, by their hash.

    Args:
        looks_at_paths: whether paths mean anything here, as on one machine or with a shared disk.
    """

    def __init__(self, files: Mapping[str, Any], *, looks_at_paths: bool = True) -> None:
        self.files = files
        self.looks_at_paths = looks_at_paths
        chosen = os.environ.get(FILES_VARIABLE)
        self.folder = Path(chosen) if chosen else Path(platformdirs.user_cache_dir("diffusion-customization-studio")) / "files"

    def path_of(self, ref: FileRef) -> Path:
        """Where the file lies here; it is fetched if it does not. Raises StudioError if what comes is another file."""
        there = Path(ref.path)
        if self.looks_at_paths and there.is_file() and file_sha256(there) == ref.sha256:
            return there
        own = self.folder / ref.sha256[:2] / ref.sha256 / there.name
        if not own.is_file() or file_sha256(own) != ref.sha256:
            import ray

            data = ray.get(self.files[ref.sha256])
            if hashlib.sha256(data).hexdigest() != ref.sha256:
                raise StudioError(f"{there.name} came over the network as another file; start the batch again.")
            atomic_write_bytes(own, data)
        return own


@lru_cache(maxsize=1)
def _workshop(device: str) -> Workshop:
    """This process's workshop: what it loaded for the last task is at hand for the next."""
    return Workshop(device)


def _with_base(group: GroupTask, store: NodeFiles, files: Mapping[str, FileRef]) -> GroupTask:
    """The group with its base model where it lies on this node."""
    ref = group.tasks[0].base
    if not files or (store.looks_at_paths and Path(ref.spec).exists()):
        return group
    if len(files) == 1 and ref.spec.endswith(".safetensors"):
        spec = str(store.path_of(next(iter(files.values()))))
    else:
        folder = store.folder / "bases" / ref.content_hash
        for name, file in files.items():
            place = folder / name
            if not place.is_file() or file_sha256(place) != file.sha256:
                atomic_write_bytes(place, store.path_of(file).read_bytes())
        spec = str(folder)
    here = ref.model_copy(update={"spec": spec})
    tasks = []
    for task in group.tasks:
        changed: dict[str, Any] = {"base": here}
        if isinstance(task, TrainTask):
            changed["settings"] = {**task.settings, "model": {**task.settings.get("model", {}), "base": spec}}
        tasks.append(task.model_copy(update=changed))
    return group.model_copy(update={"tasks": tuple(tasks)})


def _made(run: Path) -> dict[str, bytes]:
    """What a training left, without what only it needs."""
    return {
        path.relative_to(run).as_posix(): path.read_bytes()
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.relative_to(run).parts[0] not in _NOT_SENT_BACK and not path.name.startswith(".")
    }


def _answer(outcome: Outcome, files: Mapping[str, bytes]) -> tuple[str, list[bytes]]:
    table = {
        "pictures": [{"id": drawn.task_id, "record": drawn.record.to_json()} for drawn in outcome.pictures],
        "failures": dict(outcome.failures),
        "seconds": outcome.seconds,
        "files": list(files),
    }
    return json.dumps(table), [*(drawn.data for drawn in outcome.pictures), *files.values()]


def _outcome(piece: Work, answer: tuple[str, list[bytes]]) -> Outcome:
    values, blobs = json.loads(answer[0]), list(answer[1])
    count = len(values["pictures"])
    pictures = [
        Drawn(each["id"], data, PictureRecord.from_json(each["record"]))
        for each, data in zip(values["pictures"], blobs[:count], strict=True)
    ]
    files = dict(zip(values["files"], blobs[count:], strict=True))
    for name in files:
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise StudioError(f"A node sent a file for {name!r}, which is outside the training's folder.")
    adapter = Path(piece.folder) / "adapter.safetensors" if files else None
    return Outcome(piece, tuple(pictures), adapter, values["failures"], values["seconds"], files)


LOOPBACK_ONLY = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""By this Ray takes 127.0.0.1 for its own address and binds every port there; by default it looks up the network's, whatever
address it is told."""


def _ray(*, on_loopback: bool) -> Any:
    """Ray, imported with what has to be said before."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if on_loopback:
        for name, value in LOOPBACK_ONLY.items():
            os.environ.setdefault(name, value)
    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise MissingDependencyError(
            'Work on several machines needs Ray: pip install "diffusion-customization-studio[ray]".'
        ) from error
    return ray
