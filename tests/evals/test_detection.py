"""Average precision by hand-made cases."""

import pytest

from studio.evals.detection import average_precision, iou
from studio.pipelines.scoring import Detection

LEFT, RIGHT = (0.0, 0.0, 0.4, 0.4), (0.6, 0.6, 1.0, 1.0)


def found(name, score, box):
    return Detection(class_name=name, score=score, box=box, colour="red", colour_score=1, pattern="plain", pattern_score=1)


def test_iou():
    assert iou(LEFT, LEFT) == pytest.approx(1)
    assert iou(LEFT, RIGHT) == 0
    assert iou((0, 0, 2, 1), (1, 0, 3, 1)) == pytest.approx(1 / 3)


def test_perfect_and_absent():
    truth = [[("cat", LEFT), ("dog", RIGHT)]]
    assert average_precision(truth, [[found("cat", 0.9, LEFT)]]) == {"cat": 1.0, "dog": 0.0}


def test_a_wrong_one_before_the_right_one_halves_precision():
    truth = [[("cat", LEFT)]]
    assert average_precision(truth, [[found("cat", 0.9, RIGHT), found("cat", 0.5, LEFT)]]) == {"cat": 0.5}
    assert average_precision(truth, [[found("cat", 0.4, RIGHT), found("cat", 0.5, LEFT)]]) == {"cat": 1.0}


def test_one_object_is_found_once():
    truth = [[("cat", LEFT)], [("cat", LEFT)]]
    twice = [[found("cat", 0.9, LEFT), found("cat", 0.8, LEFT)], [found("cat", 0.7, LEFT)]]
    # right, wrong, right: precision 1 up to recall one half, then 2/3
    assert average_precision(truth, twice)["cat"] == pytest.approx((1 + 2 / 3) / 2)
