import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from r1jax.metrics import (
    auc,
    bootstrap_interval,
    calibration_error,
    cons_at_k,
    pass_at_k,
    standard_error,
)


def test_importing_needs_no_jax():
    code = "import r1jax.metrics, sys; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class TestPassAtK:
    @pytest.mark.parametrize("n", range(1, 7))
    def test_against_counting_every_draw(self, n):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            want = sum(any(draw) for draw in draws) / len(draws)
            assert pass_at_k(n, c, k) == pytest.approx(want, abs=1e-15)

    def test_pass_at_1_is_the_mean_whatever_n(self):
        assert [pass_at_k(n, n // 4, 1) for n in (4, 16, 64)] == [0.25] * 3
        assert pass_at_k(10, 3, 1) == 0.3

    def test_large_n_is_exact(self):
        # One right in a million, k = half a million: exactly one half.
        assert pass_at_k(10**6, 1, 5 * 10**5) == 0.5
        # Two right: 1 − (n/2)(n/2 − 1) / (n (n − 1)) = 1 − (n/2 − 1) / (2 (n − 1))
        n = 10**5
        assert pass_at_k(n, 2, n // 2) == 1 - (n // 2 - 1) / (2 * (n - 1))
        # So rare that 1 − (1 − x) in doubles has lost its digits: k/n for c = 1.
        assert pass_at_k(10**18, 1, 3) == 3e-18
        # Both large: about 4,000 digits in numerator and denominator.
        assert pass_at_k(10**4, 5 * 10**3, 5 * 10**3) == 1.0

    def test_numpy_integers(self):
        assert pass_at_k(np.int64(4), np.int32(1), np.int64(2)) == 0.5

    @pytest.mark.parametrize("n, c, k", [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, 0), (0, 0, 1)])
    def test_errors(self, n, c, k):
        with pytest.raises(ValueError, match=f"n={n}"):
            pass_at_k(n, c, k)

    def test_counts_are_integers(self):
        with pytest.raises(TypeError):
            pass_at_k(4, 0.5, 1)


class TestConsAtK:
    def test_majority(self):
        assert cons_at_k(["1", "2", "2"], "2", 3) == 1.0
        assert cons_at_k(["1", "2", "2"], "1", 3) == 0.0

    def test_only_the_first_k_vote(self):
        answers = ["1", "2", "2", "2"]
        assert cons_at_k(answers, "1", 1) == 1.0
        assert cons_at_k(answers, "2", 3) == 1.0

    def test_ties_go_to_the_answer_seen_first(self):
        assert cons_at_k(["1", "2", "2", "1"], "1", 4) == 1.0
        assert cons_at_k(["2", "1", "1", "2"], "1", 4) == 0.0
        # Seen first, although the other one reached two votes earlier, and sorts first.
        assert cons_at_k(["b", "a", "a", "b"], "b", 4) == 1.0

    @pytest.mark.parametrize(
        "forms",
        [
            ["042", "42", "42.0"],
            ["1/2", "0.5", ".50"],
            ["-0", "0", "+0.00"],
            ["3", " 3\n", "6/2"],
            ["7.", "7", "+7"],
        ],
    )
    def test_equivalent_forms_vote_together(self, forms):
        answers = [forms[0], "9", "9", forms[1], forms[2]]
        for gold in forms:
            assert cons_at_k(answers, gold, 5) == 1.0

    @pytest.mark.parametrize(
        "a, b",
        [
            ("12345678901234567890", "12345678901234567891"),  # the same double
            ("0.3", "0.30000000000000001"),
            ("1/3", "0.3333333333333333"),
            ("1/0", "2/0"),
            ("x", "X"),
            ("1e2", "100"),  # exponents are compared as text
            ("1e999999999", "1e999999998"),  # and cost nothing
            ("1_0", "10"),
            ("1" * 5000, "01" + "1" * 4999),  # too long to be read as a number
        ],
    )
    def test_different_values_do_not(self, a, b):
        assert cons_at_k(["9", "9", a, b], "9", 4) == 1.0
        assert cons_at_k(["9", "9", a, b, a], b, 5) == 0.0
        assert cons_at_k([a], b, 1) == 0.0

    def test_text_is_compared_without_outer_space(self):
        assert cons_at_k([" x + 1", "2", "x + 1 "], "x + 1", 3) == 1.0

    def test_unreadable_answers_never_win(self):
        assert cons_at_k([None, None, None, "5"], "5", 4) == 1.0
        assert cons_at_k([None, None], "5", 2) == 0.0
        assert cons_at_k([None, None], "None", 2) == 0.0

    def test_own_equivalence(self):
        calls = []

        def same_length(reference, answer):
            calls.append((reference, answer))
            return len(reference) == len(answer)

        assert cons_at_k(["a", "bb", "cc", "bb"], "zz", 4, equal=same_length) == 1.0
        # The reference comes first; a text seen before is not compared again.
        assert calls == [("a", "bb"), ("a", "cc"), ("bb", "cc"), ("zz", "bb")]

    def test_result_is_a_float(self):
        assert type(cons_at_k(["1"], "1", 1, equal=lambda a, b: np.True_)) is float

    @pytest.mark.parametrize("k", [0, -1, 4])
    def test_errors(self, k):
        with pytest.raises(ValueError, match=f"k={k} with 3 answers"):
            cons_at_k(["1", "2", None], "1", k)


class TestStandardError:
    def test_by_hand(self):
        # mean 0.5, squares 4 · 0.25, sample variance 1/3, over n = 4: √(1/12)
        assert standard_error([0, 1, 1, 0]) == pytest.approx((1 / 12) ** 0.5, rel=1e-12)

    def test_no_spread(self):
        assert standard_error([1.0, 1.0]) == 0.0

    def test_one_question_says_nothing(self):
        assert math.isnan(standard_error([1.0]))


class TestBootstrapInterval:
    def test_close_to_the_normal_interval(self):
        values = np.random.default_rng(3).normal(size=400)
        low, high = bootstrap_interval(values)
        half = 1.96 * standard_error(values)
        assert low == pytest.approx(values.mean() - half, abs=0.1 * half)
        assert high == pytest.approx(values.mean() + half, abs=0.1 * half)

    def test_a_coin_of_two_questions(self):
        # Means of two draws from {0, 1}: 0, ½, 1 with ¼, ½, ¼. The middle 40% are all ½,
        # and the middle 80% reach both ends.
        assert bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
        assert bootstrap_interval([0, 1], level=0.8) == (0.0, 1.0)

    def test_seed(self):
        values = np.random.default_rng(0).normal(size=30)
        assert bootstrap_interval(values) == bootstrap_interval(values, seed=0)
        assert bootstrap_interval(values) != bootstrap_interval(values, seed=1)

    def test_wider_level_is_wider(self):
        values = np.random.default_rng(0).normal(size=30)
        low, high = bootstrap_interval(values, level=0.5)
        lower, higher = bootstrap_interval(values, level=0.99)
        assert lower < low < high < higher

    def test_more_questions_than_a_block_holds(self):
        low, high = bootstrap_interval(np.arange(1_500_000) % 2, resamples=3)
        assert 0.49 < low <= high < 0.51

    def test_one_question(self):
        assert bootstrap_interval([0.25]) == (0.25, 0.25)

    @pytest.mark.parametrize("kwargs", [{"level": 0}, {"level": 1}, {"level": 95}])
    def test_level(self, kwargs):
        with pytest.raises(ValueError, match="level="):
            bootstrap_interval([0, 1], **kwargs)

    def test_resamples(self):
        with pytest.raises(ValueError, match="resamples=0"):
            bootstrap_interval([0, 1], resamples=0)


@pytest.mark.parametrize("f", [standard_error, bootstrap_interval])
@pytest.mark.parametrize(
    "values, message",
    [([], "one value per question"), ([[1.0]], "one value"), ([1, math.nan], "question 1")],
)
def test_values_are_checked(f, values, message):
    with pytest.raises(ValueError, match=message):
        f(values)


class TestCalibrationError:
    def test_by_hand(self):
        # Ten bins. 0.62, 0.68 share one: mean 0.65, half of them right: 2/5 · |0.5 − 0.65| = 0.06.
        # The others are in the last: mean 0.95, 2 of 3 right: 3/5 · |2/3 − 0.95| = 0.17.
        confidence, right = [0.62, 0.68, 0.9, 1.0, 0.95], [1, 0, 1, 1, 0]
        assert calibration_error(confidence, right) == pytest.approx(0.06 + 0.17, abs=1e-12)

    def test_the_extremes(self):
        assert calibration_error([1.0, 0.0], [1, 0]) == 0
        assert calibration_error([1.0, 0.0], [0, 1]) == 1
        # Without bins between, over- and underconfidence cancel: |0.5 − 0.5|.
        assert calibration_error([0.25, 0.75], [1, 0], bins=1) == 0
        assert calibration_error([0.25, 0.75], [1, 0], bins=2) == 0.75

    def test_a_border_belongs_to_the_upper_bin(self):
        # 0.5 with 0.75: |1/2 − 0.625| = 0.125; with 0.25 apart: 1/3 · 0.25 + 2/3 · 0.125.
        got = calibration_error([0.25, 0.5, 0.75], [0, 1, 0], bins=2)
        assert got == pytest.approx(0.25 / 3 + 0.25 / 3)

    def test_a_tie_may_count_half(self):
        assert calibration_error([0.5] * 3, [0.5] * 3) == 0

    def test_what_is_right_as_often_as_it_is_sure_has_little(self):
        rng = np.random.default_rng(0)
        confidence = rng.random(100_000)
        right = rng.random(100_000) < confidence
        # Noise alone: a bin's share is off by about √(p (1 − p) / 10,000) < 0.005.
        assert calibration_error(confidence, right) < 0.01
        # Always 0.1 too sure: the mean of the gap, whichever the bin.
        sure = np.minimum(confidence + 0.1, 1)
        want = (sure - confidence).mean()
        assert calibration_error(sure, right) == pytest.approx(want, abs=0.01)

    def test_errors(self):
        for confidence, right in (([], []), ([0.5], [1, 0]), ([[0.5]], [[1]])):
            with pytest.raises(ValueError, match="need one of each for every prediction"):
                calibration_error(confidence, right)
        with pytest.raises(ValueError, match=r"confidence\[1\] is 1.5: need a share between"):
            calibration_error([0.5, 1.5], [1, 1])
        with pytest.raises(ValueError, match=r"right\[0\] is nan: need a share between"):
            calibration_error([0.5, 0.5], [math.nan, 1])
        with pytest.raises(ValueError, match="bins=0: need at least 1"):
            calibration_error([0.5], [1], bins=0)


class TestAuc:
    def test_by_hand(self):
        # Pairs (positive, negative): 3 over 1 and over 2, 2 over 1, 2 level with 2: 3.5 of 4.
        assert auc([3, 2, 2, 1], [True, True, False, False]) == 3.5 / 4
        assert auc([1, 2], [1, 0]) == 0 and auc([2, 1], [1, 0]) == 1
        assert auc([5, 5, 5], [1, 0, 0]) == 0.5

    def test_against_counting_pairs(self):
        rng = np.random.default_rng(0)
        score = rng.integers(0, 5, 40).astype(np.float32)  # with ties
        positive = rng.random(40) < 0.4
        pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
        assert auc(score, positive) == pytest.approx(np.mean(pairs), rel=1e-12)

    def test_only_the_order_of_scores_counts(self):
        rng = np.random.default_rng(1)
        score, positive = rng.standard_normal(50), rng.random(50) < 0.5
        assert auc(np.exp(score), positive) == auc(score, positive)
        assert auc(-score, positive) == pytest.approx(1 - auc(score, positive), abs=1e-12)

    def test_nothing_to_tell_apart(self):
        for score, positive in (
            ([1, 2], [1, 1]),
            ([1, 2], [0, 0]),
            ([], []),
            ([math.nan, 1], [1, 0]),
        ):
            assert math.isnan(auc(score, positive))

    def test_errors(self):
        for score, positive in (([0.5], [1, 0]), ([[0.5]], [[1]])):
            with pytest.raises(ValueError, match="need one of each for everything that is scored"):
                auc(score, positive)
