"""Blocks of the benchmark, and figures from them worked by hand."""
import pytest

from tools.benchmark import measure
from tools.benchmark.measure import SIDES


def blocks(**ours_and_baseline):
    return {case: dict(zip(SIDES, sides, strict=True)) for case, sides in ours_and_baseline.items()}


def test_summary_takes_medians_and_ratios_round_by_round():
    # the machine is ten times slower in the second round: ratios of medians would be 200 / 100
    given = blocks(at=([300.0, 20.0, 200.0], [100.0, 10.0, 160.0]),
                   loader=([6000.0, 2000.0, 5000.0], [600.0, 500.0, 500.0]))
    got = measure.summary(given)
    at = got['at']
    assert at['images_per_second'] == {'ours': 200, 'baseline': 100}
    assert at['quartiles'] == {'ours': [110, 250], 'baseline': [55, 130]}
    assert at['ratio'] == 2  # of 3, 2 and 1.25
    assert at['ratio_quartiles'] == [1.625, 2.5]
    assert got['loader']['ratio'] == 10


def test_summary_of_one_round():
    given = blocks(at=([4.0], [2.0]), loader=([8.0], [1.0]))
    assert measure.summary(given)['at'] == {'images_per_second': {'ours': 4, 'baseline': 2},
                                            'quartiles': {'ours': [4, 4], 'baseline': [2, 2]},
                                            'ratio': 2, 'ratio_quartiles': [2, 2]}


def test_summary_refuses_sides_of_different_length():
    with pytest.raises(ValueError):
        measure.summary(blocks(at=([1.0, 2.0], [1.0])))


def test_each_round_measures_each_side_once_and_turns_the_order():
    asked = []

    def contender(case, side):
        return lambda: asked.append((case, side)) or float(len(asked))

    keys = [(case, side) for case in ('at', 'student') for side in SIDES]
    got = measure.alternate({key: contender(*key) for key in keys}, 2)
    assert asked == keys[::-1] + keys
    assert got == blocks(at=([4.0, 5.0], [3.0, 6.0]), student=([2.0, 7.0], [1.0, 8.0]))


def test_speed_leaves_out_the_warm_up_and_ends_the_batches():
    ended, seen = [], []

    def batches():
        try:
            yield from range(100)
        finally:
            ended.append(True)

    def consume(some):
        seen.append(list(some))
        return 10**9 * len(seen[-1])

    assert measure.images_per_second(batches(), consume, 2, 3) > 10**9  # it took less than 3 s
    assert seen == [[0, 1], [2, 3, 4]] and ended == [True]
