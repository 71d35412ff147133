"""A running training saves, and draws its samples, when somebody asks; and the run's result does not depend on it."""

from __future__ import annotations

from collections.abc import Callable

from studio.pipelines.adapters import load_adapter
from studio.training.config import TrainConfig
from studio.training.progress import StepReport
from studio.training.run_folder import RunFolder
from studio.training.trainer import train
from studio.training.wishes import take_wishes, wish

MakeConfig = Callable[..., TrainConfig]


class WishesAtStep:
    """A progress that asks for both after a step."""

    def __init__(self, folder: RunFolder, step: int) -> None:
        self.folder = folder
        self.at_step = step

    def begin(self, total_steps: int, done_steps: int) -> None:
        self.total_steps = total_steps

    def step(self, report: StepReport) -> None:
        if report.step == self.at_step:
            wish(self.folder.path, "save")
            wish(self.folder.path, "sample")

    def say(self, message: str) -> None: ...

    def end(self) -> None: ...


def test_wishes_are_handed_out_once(tmp_path):
    assert take_wishes(tmp_path) == frozenset()
    wish(tmp_path, "save")
    assert take_wishes(tmp_path) == {"save"}
    assert take_wishes(tmp_path) == frozenset()


def test_a_running_training_saves_and_samples_when_asked(make_config: MakeConfig, tmp_path):
    settings = {"schedule__steps": 4, "run__checkpoint_every": 4, "run__sample_every": 4, "run__sample_steps": 1}
    plain = train(make_config(**settings, run__output_dir=tmp_path / "plain"))
    config = make_config(**settings, run__output_dir=tmp_path / "asked")
    folder = RunFolder(tmp_path / "asked")
    asked = train(config, progress=WishesAtStep(folder, 1))
    sampled = {path.name for path in folder.samples.iterdir()}
    saved = {path.name for path in folder.checkpoints.iterdir()}
    assert any(name not in {"step-000000", "step-000004"} for name in sampled)
    assert any(name != "step-000004" for name in saved)
    first, second = load_adapter(plain.adapter_path), load_adapter(asked.adapter_path)
    assert first.content_hash() == second.content_hash(), "asking changed what was learned"
