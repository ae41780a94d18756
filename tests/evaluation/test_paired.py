"""Paired comparisons against hand-computed tables and scipy."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import stats

from fer_lab.evaluation.binomial import difference, same_share, wilson
from fer_lab.evaluation.paired import (
    ALPHA,
    chance,
    discordant,
    duels,
    holm,
    mcnemar,
    paired_interval,
    sign_flip,
    ties,
)
from fer_lab.evaluation.uncertainty import Interval, bootstrap


def test_mcnemar_is_exact_for_few_and_chi_square_for_many() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)  # by hand: 2 P(X <= 1), X ~ B(6, 1/2)
    assert mcnemar(3, 3) == 1 and mcnemar(0, 0) == 1
    table = np.array([[794, 86], [150, 570]])  # Agresti 1990, approval twice: (150 - 86)^2 / 236 = 17.36
    statistic = (table[0, 1] - table[1, 0]) ** 2 / (table[0, 1] + table[1, 0])
    assert statistic == pytest.approx(17.36, abs=0.005)
    assert mcnemar(86, 150) == pytest.approx(1 - stats.chi2(1).cdf(statistic))
    assert mcnemar(86, 150) == mcnemar(150, 86) == pytest.approx(stats.binomtest(86, 236).pvalue, rel=0.2)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.6]) == [1, 1] and holm([]) == []
    random = np.random.default_rng(0).uniform(size=9).tolist()
    by_definition = [
        min(1, max((9 - rank) * p for rank, p in enumerate(sorted(random)) if p <= one)) for one in random
    ]
    assert holm(random) == pytest.approx(by_definition)


def flags(shares: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Both right, only the first, only the second, none."""
    both, first, second, none = (np.ones(count, bool) for count in shares)
    return (
        np.concatenate([both, first, ~second, ~none]),
        np.concatenate([both, ~first, second, ~none]),
    )


def test_the_paired_interval_is_the_plain_bootstraps_and_close_to_the_normal_one() -> None:
    first, second = flags((500, 90, 50, 360))
    assert discordant(first, second) == (90, 50)
    found = paired_interval(first, second)
    gains = first.astype(float) - second
    plain = bootstrap(lambda drawn: float(gains[drawn].mean()), len(gains), resamples=4000)
    assert found == pytest.approx(plain, abs=0.002)
    half = 1.96 * gains.std() / math.sqrt(len(gains))
    assert found == pytest.approx((0.04 - half, 0.04 + half), abs=0.0015)


def test_subjects_are_drawn_whole() -> None:
    first, second = flags((500, 90, 50, 360))
    alone = [str(place) for place in range(len(first))]
    assert paired_interval(first, second, alone) == pytest.approx(paired_interval(first, second), abs=0.002)
    by_ten = (
        np.repeat(np.arange(100), 10).astype(str).tolist()
    )  # the gains lie side by side: few people have them
    gains = (first.astype(float) - second).reshape(100, 10)
    expected = stats.bootstrap((gains.mean(1),), np.mean, method="percentile", n_resamples=4000, rng=0)
    interval = expected.confidence_interval
    assert paired_interval(first, second, by_ten) == pytest.approx((interval.low, interval.high), abs=0.004)
    assert all(map(math.isnan, paired_interval(first, second, ["A"] * len(first))))


def test_every_pair_is_judged_and_told_in_words() -> None:
    first, second = flags((500, 90, 50, 360))
    third = first.copy()
    third[:3] = False
    pairs = duels({"A": first, "B": second, "C": third})
    assert [(pair.first, pair.second) for pair in pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [pair.p for pair in pairs] == [mcnemar(90, 50), mcnemar(3, 0), mcnemar(53, 90)]
    assert [pair.adjusted for pair in pairs] == holm([pair.p for pair in pairs])
    assert ties("ABC", pairs) == {"A": ["C"], "B": [], "C": ["A"]}
    assert pairs[1].sentence == "A is tied with C (Holm p 0.250)"
    assert pairs[2].sentence.startswith("C is better than B by 3.70 points [1.")
    assert "A is better than B by 4.00 points" in pairs[0].sentence


def test_one_person_cannot_decide_between_two_nets() -> None:
    """All that the second net gains are the faces of one of twenty people: McNemar is sure, over people nothing is."""
    first = np.ones(200, bool)
    second = first.copy()
    second[:10] = False
    people = np.repeat(np.arange(20), 10).astype(str).tolist()
    (alone,), (grouped,) = duels({"A": first, "B": second}), duels({"A": first, "B": second}, people)
    assert alone.p == mcnemar(10, 0) < 0.01 and not alone.tied
    assert grouped.p == 1 and grouped.tied and grouped.interval.low == 0
    assert grouped.sentence == "A is tied with B (Holm p 1.000 over subjects)"


def test_the_test_over_subjects_is_scipys_and_mcnemars_where_each_has_one_face() -> None:
    generator = np.random.default_rng(0)
    for sums in generator.integers(-5, 9, (5, 9)):
        expected = stats.permutation_test(
            (sums, np.zeros_like(sums)), lambda a, b: np.sum(a - b), permutation_type="samples"
        )
        assert sign_flip(sums) == pytest.approx(min(1, expected.pvalue))
    first, second = flags((500, 14, 7, 60))
    alone = [str(place) for place in range(len(first))]
    assert chance(first, second, alone) == pytest.approx(mcnemar(14, 7))
    assert sign_flip(np.ones(6, int)) == 2 / 2**6 and sign_flip(np.zeros(3, int)) == 1
    many = np.concatenate([np.full(260, 3), np.full(240, -3)])
    assert sign_flip(many) == pytest.approx(stats.binomtest(260, 500).pvalue)


@pytest.mark.parametrize("nets, effect", [(3, 0.6), (5, 1.0)])
def test_nets_that_are_equal_are_seldom_called_better(nets, effect) -> None:
    """Ten people of 21 faces, of whom each suits each net more or less by luck: no net is better on new people."""
    generator = np.random.default_rng(nets)
    people, wrong, rounds = np.repeat(np.arange(10), 21).astype(str).tolist(), 0, 200
    for _ in range(rounds):
        ease = 1.2 + generator.normal(0, 0.8, 10) + generator.normal(0, effect, (nets, 10))
        right = generator.random((nets, 210)) < np.repeat(1 / (1 + np.exp(-ease)), 21, axis=1)
        found = holm([chance(one, other, people) for one, other in combinations(right, 2)])
        wrong += min(found) < ALPHA
    assert wrong <= stats.binom(rounds, ALPHA).ppf(0.999)


def test_wilson_and_the_difference_of_two_shares() -> None:
    for hits, count in ((63, 150), (0, 10), (10, 10), (2630, 3589)):
        expected = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert wilson(hits / count, count) == pytest.approx((expected.low, expected.high))
    # Newcombe 1998, table II, example (a): 56/70 - 48/80, method 10
    gap = difference(56 / 70, wilson(56 / 70, 70), 48 / 80, wilson(48 / 80, 80))
    assert gap == pytest.approx((0.0524, 0.3339), abs=5e-5)
    exact = Interval(math.nan, math.nan)
    assert difference(0.6, Interval(0.5, 0.65), 0.55, exact) == pytest.approx((-0.05, 0.10))
    z = stats.chi2_contingency([[56, 14], [48, 32]], correction=False)
    assert same_share(56 / 70, 48 / 80, 70, 80) == pytest.approx(z.pvalue)
    assert same_share(1.0, 1.0, 5, 9) == 1


def test_two_published_figures_of_fer2013_are_the_same_number() -> None:
    """73.28 and 73.70 of 3,589 faces: the half-width at 73% is 1.45 points."""
    low, high = wilson(0.73, 3589)
    assert (high - low) / 2 == pytest.approx(0.0145, abs=5e-5)
    gap = difference(0.7370, wilson(0.7370, 3589), 0.7328, wilson(0.7328, 3589))
    assert gap.low < 0 < gap.high
