"""The choice of the checkpoint and the warning about learning by heart."""

from __future__ import annotations

from studio.training.selection import CheckpointScore, choose_checkpoint, overfit_warnings

BASE = CheckpointScore(step=0, prompt_fidelity=0.30, identity_training=0.20, identity_held_out=0.20)


def _score(step: int, fidelity: float, training: float, held_out: float | None) -> CheckpointScore:
    return CheckpointScore(step=step, prompt_fidelity=fidelity, identity_training=training, identity_held_out=held_out)


def test_highest_held_out_identity_among_the_faithful():
    scores = [_score(1, 0.31, 0.4, 0.40), _score(2, 0.26, 0.6, 0.55), _score(3, 0.20, 0.9, 0.80)]
    choice = choose_checkpoint(BASE, scores)
    assert choice.step == 2
    assert "held-out photo" in choice.reason
    assert "1 of 3 checkpoints lost" in choice.reason


def test_few_photos_are_judged_by_the_training_photos_and_say_so():
    scores = [_score(1, 0.3, 0.4, None), _score(2, 0.3, 0.6, None)]
    choice = choose_checkpoint(BASE, scores)
    assert choice.step == 2
    assert "fewer than four" in choice.reason


def test_when_none_is_faithful_the_most_faithful_is_taken():
    choice = choose_checkpoint(BASE, [_score(1, 0.2, 0.4, 0.4), _score(2, 0.1, 0.9, 0.9)])
    assert choice.step == 1
    assert "No checkpoint" in choice.reason
    assert any("Prompt fidelity fell" in warning for warning in choice.warnings)


def test_equal_scores_take_the_earlier():
    assert choose_checkpoint(BASE, [_score(1, 0.3, 0.5, 0.5), _score(2, 0.3, 0.5, 0.5)]).step == 1


def test_overfit_warning_needs_both_rise_and_fall():
    learning = [_score(1, 0.3, 0.5, 0.5), _score(2, 0.3, 0.6, 0.6)]
    by_heart = [*learning, _score(3, 0.3, 0.8, 0.5)]
    noisy = [*learning, _score(3, 0.3, 0.6, 0.59)]
    assert overfit_warnings(BASE, learning) == ()
    assert overfit_warnings(BASE, noisy) == ()
    (warning,) = overfit_warnings(BASE, by_heart)
    assert "step 2" in warning
