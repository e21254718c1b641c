"""The paired test against scipy, Holm's correction against hand values, and both on simulated claims."""

import numpy as np
import pytest
import scipy.stats

from vpd.report.paired import ALPHA, Paired, differences, half_width, holm, seeds_to_decide, slopes


def by_seed(values):
    return dict(enumerate(values))


@pytest.mark.parametrize("seeds", [2, 3, 8])
@pytest.mark.parametrize("alpha", [0.05, 0.005])
def test_p_and_interval_equal_scipy_s_paired_test(seeds, alpha):
    generator = np.random.default_rng(seeds)
    first, second = generator.normal(31, 1.2, seeds), generator.normal(30, 0.4, seeds)
    change, reference = differences(by_seed(first), by_seed(second)), scipy.stats.ttest_rel(first, second)
    assert change.p == pytest.approx(reference.pvalue)
    assert change.interval(alpha) == pytest.approx(tuple(reference.confidence_interval(1 - alpha)))


def test_pairing_sees_what_independent_seeds_hide():
    """Seeds differ by several points, and the rows of one seed by a tenth: values of a measured ablation."""
    first, second = [18.77, 17.41, 19.12], [18.70, 17.40, 19.21]
    change = differences(by_seed(first), by_seed(second))
    assert change.values == pytest.approx((0.07, 0.01, -0.09))
    low, high = change.interval(0.05)  # 4.303 * 0.0808 / sqrt(3)
    assert (low, high) == pytest.approx((-0.204, 0.197), abs=1e-3)
    independent = scipy.stats.ttest_ind(first, second, equal_var=False).confidence_interval()
    assert independent.high - independent.low > 10 * (high - low)


def test_only_seeds_of_both_sides_are_paired():
    assert differences({0: 3.0, 1: 5.0, 7: 9.0}, {7: 8.0, 1: 3.0, 2: 0.0}).values == (2.0, 1.0)
    assert differences({0: 3.0}, {1: 3.0}) is None


def test_one_seed_and_no_spread():
    assert (Paired((2.0,)).p, Paired((2.0,)).interval(0.05)) == (None, None)
    assert (Paired((1.0, 1.0)).p, Paired((1.0, 1.0)).interval(0.05)) == (0.0, (1.0, 1.0))
    assert (Paired((0.0, 0.0)).p, Paired((0.0, 0.0)).interval(0.05)) == (1.0, (0.0, 0.0))


def test_slopes_per_doubling_equal_numpy():
    steps = [60, 150, 350, 700, 1300]
    curves = np.random.default_rng(3).normal(20, 1, (4, 5)) + np.arange(5)
    assert slopes(steps, curves.tolist()).values == pytest.approx(
        [np.polyfit(np.log2(steps), curve, 1)[0] for curve in curves]
    )


@pytest.mark.parametrize(
    ("p_values", "adjusted", "alphas"),
    [
        # A textbook example: 4 * 0.005, 3 * 0.01, 2 * 0.03, and the last is not below the one before.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02], [0.05 / 3, 0.0125, 0.0125, 0.0125]),
        ([0.04], [0.04], [0.05]),
        ([0.02, 0.04], [0.04, 0.04], [0.025, 0.05]),
        ([0.6, 0.7], [1.0, 1.0], [0.025, 0.025]),
        ([0.02, None, None], [0.06, None, None], [0.05 / 3] * 3),  # what was not run counts
        ([None], [None], [0.05]),
    ],
)
def test_holm_equals_hand_values(p_values, adjusted, alphas):
    results = holm(p_values)
    assert [p if p is None else pytest.approx(p) for p, _ in results] == adjusted
    assert [alpha for _, alpha in results] == pytest.approx(alphas)


def test_simulated_claims_rarely_show_a_difference_that_is_none_and_intervals_agree():
    """Three rows against a common one, four seeds, no difference: at most one claim in twenty shows one."""
    generator, wrong, runs = np.random.default_rng(11), 0, 600
    for shift in [0.0] * runs + [2.0] * 60:
        values = generator.normal(30, 1, (4, 4)) + generator.normal(0, 3, 4)
        changes = [differences(by_seed(values[0] + shift), by_seed(other)) for other in values[1:]]
        tested = zip(changes, holm([change.p for change in changes]), strict=True)
        found = [(p <= ALPHA, change.interval(alpha)) for change, (p, alpha) in tested]
        assert [not low <= 0 <= high for _, (low, high) in found] == [significant for significant, _ in found]
        wrong += shift == 0 and any(significant for significant, _ in found)
    assert wrong / runs < ALPHA + 2 * (ALPHA * (1 - ALPHA) / runs) ** 0.5


@pytest.mark.parametrize(
    ("margin", "noise", "comparisons", "seeds"), [(0.5, 0.2, 1, 5), (1.0, 1.0, 1, 18), (1.0, 0.5, 10, 13)]
)
def test_planned_seeds_make_an_interval_no_wider_than_the_margin(margin, noise, comparisons, seeds):
    assert seeds_to_decide(margin, noise, comparisons) == seeds
    alpha = ALPHA / comparisons
    assert 2 * half_width(noise, seeds, alpha) <= margin < 2 * half_width(noise, seeds - 1, alpha)
