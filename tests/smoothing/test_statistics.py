"""Statistics against published goldens, closed forms and simulated coverage; laws of certificates."""

import functools

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.stats

from robustjax import base, smoothing
from robustjax.smoothing import certificates, radii

GRID_P = np.array([0.5, 0.55, 0.7, 0.9, 0.99, 0.999, 0.99993])


def votes(*rows):
    return np.array(rows, np.int64)


@pytest.mark.parametrize(
    ("num_votes", "radius"),
    [
        (99_999, 3.739127), (99_990, 3.490208), (99_900, 3.000201), (99_000, 2.290000), (95_000, 1.624214), (90_000, 1.264845),
        (75_000, 0.661165), (60_000, 0.240945), (51_000, 0.012808),
    ],
)  # fmt: skip
def test_radii_of_cohens_procedure(num_votes, radius):
    certificate = smoothing.certify(votes([90, 10]), votes([num_votes, 100_000 - num_votes]), sigma=2.0)
    assert certificate.radius[0] == pytest.approx(2 * radius, abs=2e-6) and certificate.prediction[0] == 0 and certificate.certified[0]


@pytest.mark.parametrize(("num_samples", "largest", "least", "least_predicted"), [
    (100, 1.50048, 66, 67), (1000, 2.46326, 550, 553), (10_000, 3.19858, 5156, 5166), (100_000, 3.81146, 50_490, 50_521),
])  # fmt: skip
def test_largest_radius_and_least_votes(num_samples, largest, least, least_predicted):
    radius = lambda count: float(radii.gaussian_l2(smoothing.binomial_lower(count, num_samples, 0.001), 1.0))  # noqa: E731
    assert radius(num_samples) == pytest.approx(largest, abs=5e-6)
    assert radius(least) >= 0 > radius(least - 1)
    decided = smoothing.predict(
        votes([least_predicted, num_samples - least_predicted], [least_predicted - 1, num_samples - least_predicted + 1])
    )
    np.testing.assert_array_equal(decided, [0, -1])


def test_clopper_pearson_solves_its_equation_to_1e_9():
    for num_samples in (10, 1000, 100_000):
        count = np.unique(np.linspace(1, num_samples, 7).astype(int))
        p = smoothing.binomial_lower(count, num_samples, 0.001)
        np.testing.assert_allclose(scipy.stats.binom.sf(count - 1, num_samples, p), 0.001, rtol=1e-7)
        exact = [scipy.stats.binomtest(int(k), num_samples).proportion_ci(0.998, method="exact").low for k in count]
        np.testing.assert_allclose(p, exact, atol=1e-9)
        upper = smoothing.binomial_upper(num_samples - count, num_samples, 0.001)
        np.testing.assert_allclose(upper, 1 - p, atol=1e-12)
    assert smoothing.binomial_lower(0, 10, 0.1) == 0 and smoothing.binomial_upper(10, 10, 0.1) == 1


def test_abstention_half_and_ties():
    certificate = smoothing.certify(votes([5, 5, 0], [0, 9, 1]), votes([40, 60, 0], [0, 100, 0]), sigma=1.0)
    np.testing.assert_array_equal(certificate.prediction, [-1, 1])  # the first of a tie is class 0, which has too few votes
    np.testing.assert_array_equal(certificate.radius[0], 0.0)
    assert certificate.radius.dtype == np.float64 and not certificate.certified[0]
    exactly_half = certificates.certificate(np.array([2]), np.array([0.5]), 1.0, radii.gaussian_l2)
    assert exactly_half.prediction[0] == 2 and not exactly_half.certified[0]


def test_certificates_shrink_with_alpha_and_two_sided_gains_where_many_classes_share_the_rest():
    selection, estimation = votes([9, 1, 0], [9, 0, 1]), votes([9000, 500, 500], [4600, 2700, 2700])
    by_alpha = [smoothing.certify(selection, estimation, sigma=1.0, alpha=a).radius[0] for a in (0.1, 0.01, 0.001)]
    assert by_alpha[0] > by_alpha[1] > by_alpha[2] > 0
    one, two = (verb(selection, estimation, sigma=1.0) for verb in (smoothing.certify, smoothing.certify_two_sided))
    assert two.radius[0] > one.radius[0]
    np.testing.assert_array_equal(one.certified, [True, False])
    np.testing.assert_array_equal(two.certified, [True, True])
    p_a = smoothing.binomial_lower(9000, 10_000, 0.0005)
    p_b = smoothing.binomial_upper(500, 10_000, 0.00025)
    assert two.radius[0] == pytest.approx(0.5 * (scipy.stats.norm.ppf(p_a) - scipy.stats.norm.ppf(p_b)), abs=1e-12)


def test_gaussian_radii_in_the_order_of_their_history():
    cohen, renyi, privacy, lipschitz = (f(GRID_P, 0.5) for f in (radii.gaussian_l2, radii.renyi_l2, radii.pixel_dp_l2, radii.lipschitz_l2))
    assert (privacy <= renyi + 1e-9).all() and (renyi <= cohen + 1e-4).all() and (lipschitz <= cohen + 1e-12).all()
    assert (renyi[2:] < 0.95 * cohen[2:]).all() and (privacy[2:] < 0.5 * renyi[2:]).all()
    near = 0.5 + np.geomspace(1e-16, 1e-3, 200)  # where rounding under a root would pass for a radius
    assert (radii.renyi_l2(near, 0.5) <= radii.gaussian_l2(near, 0.5)).all() and (radii.pixel_dp_l2(near, 0.5) <= 1e-3).all()
    np.testing.assert_allclose(cohen, 0.5 * scipy.stats.norm.ppf(GRID_P), rtol=1e-12)
    np.testing.assert_allclose(lipschitz, 0.5 * np.sqrt(np.pi / 2) * (GRID_P - 0.5), rtol=1e-12)


def test_pixel_dp_and_renyi_solve_their_own_problems():
    for p in (0.8, 0.99):

        def privacy(e, p=p):
            d = (p - np.exp(2 * e) * (1 - p)) / (1 + np.exp(e))
            return -e / np.sqrt(2 * np.log(1.25 / d)) if d > 0 else 0.0

        best = min(scipy.optimize.minimize_scalar(privacy, bounds=b, method="bounded").fun for b in ((0, 0.3), (0.3, 0.7), (0.7, 1.0)))
        assert float(radii.pixel_dp_l2(p, 1.0)) == pytest.approx(-best, rel=2e-3)

        def renyi(log_a, p=p):
            a = 1 + np.exp(log_a)
            mean = (0.5 * (p ** (1 - a) + (1 - p) ** (1 - a))) ** (1 / (1 - a))
            return -np.sqrt(-2 / a * np.log(2 * mean))

        assert float(radii.renyi_l2(p, 1.0)) == pytest.approx(
            -scipy.optimize.minimize_scalar(renyi, bounds=(-5, 4), method="bounded").fun, rel=1e-4
        )


def test_radii_of_other_noises_hold_on_the_worst_half_space_and_are_tight():
    sigma = 0.3
    lam = 3**0.5 * sigma
    # Uniform noise, one coordinate: a half space x_1 > t loses probability at rate 1 / (2 lam) until 1/2.
    p = 0.8
    assert scipy.stats.uniform(-lam, 2 * lam).cdf(float(radii.uniform_l1(p, sigma))) == pytest.approx(p)
    # Laplace: P(x_1 + noise > t) = p at distance -b log(2 (1 - p)) from the half.
    b = sigma / 2**0.5
    distance = float(radii.laplace_l1(p, sigma))
    assert scipy.stats.laplace(scale=b).cdf(distance) == pytest.approx(p)
    # Uniform noise in linf: of the noise around x, p - 1/2 lies outside the cube around x + r, and a class may have nothing else there.
    r = float(radii.uniform_linf(p, sigma, num_features=5))
    is_outside = (np.random.default_rng(0).uniform(-lam, lam, (100_000, 5)) < r - lam).any(axis=1)
    assert is_outside.mean() == pytest.approx(p - 0.5, abs=5 * np.sqrt(0.3 * 0.7 / 100_000))


@pytest.mark.parametrize("num_images", [3, 1000])
def test_a_radius_is_of_its_own_image(num_images):
    p, sigma = np.linspace(0.4, 0.999, num_images), np.linspace(0.1, 2.0, num_images)
    for radius_fn in (
        radii.gaussian_l2, radii.lipschitz_l2, radii.pixel_dp_l2, radii.renyi_l2, radii.uniform_l1, radii.laplace_l1,
        functools.partial(radii.gaussian_lp, order=np.inf, num_features=5), functools.partial(radii.uniform_linf, num_features=5),
    ):  # fmt: skip
        one_by_one = [float(radius_fn(p[i : i + 1], sigma[i : i + 1])[0]) for i in range(num_images)]
        np.testing.assert_allclose(radius_fn(p, sigma), one_by_one, rtol=1e-12)


def test_the_curse_of_large_p():
    l2 = radii.gaussian_l2(GRID_P, 0.5)
    for order, factor in ((1, 1.0), (2, 1.0), (4, 784**0.25), (np.inf, 784**0.5)):
        np.testing.assert_allclose(radii.gaussian_lp(GRID_P, 0.5, order=order, num_features=784), l2 / factor)


def test_soft_bounds():
    mean, variance, n, alpha = 0.9, 0.01, 1000, 0.001
    assert smoothing.hoeffding_lower(mean, variance, n, alpha) == pytest.approx(0.9 - np.sqrt(np.log(1000) / 2000))
    t = np.log(2000)
    assert smoothing.bernstein_lower(mean, variance, n, alpha) == pytest.approx(0.9 - np.sqrt(0.02 * t / 1000) - 7 * t / (3 * 999))


def test_soft_bounds_cover_exactly_the_samples_that_vary_most():
    # Samples that are 0 or 1: their mean takes n + 1 values, so that the probability of a bound above the truth is a sum, not a simulation.
    n = 200
    hits = np.arange(n + 1)
    mean, variance = hits / n, hits * (n - hits) / n / (n - 1)

    def worst(bound_fn, alpha):
        return max(scipy.stats.binom.pmf(hits, n, p)[bound_fn(mean, variance, n, alpha) > p].sum() for p in np.linspace(0.01, 0.99, 99))

    for alpha in (0.001, 0.01, 0.05):
        for bound_fn in (smoothing.hoeffding_lower, smoothing.bernstein_lower):
            assert worst(bound_fn, alpha) <= alpha
        # Such a check sees what it must: Bernstein's bound without its second term, and Hoeffding's of samples in [0, 1/2], do not cover.
        assert worst(lambda m, v, n, a: m - np.sqrt(2 * v * np.log(2 / a) / n), alpha) > alpha
        assert worst(lambda m, v, n, a: smoothing.hoeffding_lower(m, v, 4 * n, a), alpha) > alpha


def test_soft_certificate_by_hand():
    unit = 1 / smoothing.SOFT_UNIT
    h = np.array([0.9, 0.8, 1.0, 0.95])
    low = np.array([[(h * unit).astype(int).sum(), ((1 - h) * unit).astype(int).sum()]]) * 250
    squares = np.array([[np.ceil(h**2 * unit).sum(), np.ceil((1 - h) ** 2 * unit).sum()]]).astype(np.int64) * 250
    soft = smoothing.SoftVotes(low, low + 1000, squares, np.array([1000]))
    certificate = smoothing.certify_soft(votes([90, 10]), soft, 1000, sigma=0.5, alpha=0.001)
    expected = smoothing.bernstein_lower(h.mean(), h.var() * 1000 / 999, 1000, 0.001)
    assert certificate.radius[0] == pytest.approx(0.5 * scipy.stats.norm.ppf(expected), abs=1e-3)
    for wrong in (1, 990, 999, 1001, 1010):  # too few would overstate the mean
        with pytest.raises(ValueError, match="not the sum of num_samples"):
            smoothing.certify_soft(votes([90, 10]), soft, wrong, sigma=0.5)


@pytest.mark.parametrize("p", [0.3, 0.7, 0.99])
def test_the_anytime_bound_covers_at_every_time(p):
    # 10,000 streams looked at 40 times, stopped at the worst; more than alpha + 3 standard errors has probability < .0014 if it is valid.
    alpha, num_streams = 0.05, 10_000
    looks = np.unique(np.geomspace(1, 2000, 40).astype(int))
    rng = np.random.default_rng(1)
    steps = rng.binomial(np.diff(looks, prepend=0)[None], p, (num_streams, len(looks)))
    bounds = smoothing.anytime_lower(steps.cumsum(axis=1), looks[None], alpha)
    violated = (bounds > p).any(axis=1).mean()
    assert violated <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / num_streams)
    assert violated > alpha / 100, "a bound that is never violated is too loose"


def test_the_whole_sequential_certificate_covers():
    # As above, with the real rule: stop when the radius passes a grid point for good, else look last at num_samples.
    alpha, num_streams, num_samples, p = 0.05, 10_000, 1000, 0.93
    rng = np.random.default_rng(2)
    selection = np.tile([[9, 1]], (num_streams, 1))
    estimation = np.zeros((num_streams, 2), np.int64)
    rule = {"num_samples": num_samples, "sigma": 1.0, "alpha": alpha}
    for _ in range(20):
        going = smoothing.undecided(selection, estimation, grid=(0.0, 0.5, 1.0, 1.5), **rule)
        hits = rng.binomial(50, p, going.sum())
        estimation[going] += np.stack([hits, 50 - hits], axis=1)
    drawn = estimation.sum(axis=1)
    assert len(np.unique(drawn)) > 3
    certificate = smoothing.certify_sequential(selection, estimation, **rule)
    wrong = (certificate.radius > scipy.stats.norm.ppf(p)).mean()
    assert wrong <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / num_streams)


def test_alpha_is_spent_once_by_whoever_stops_where_the_bound_is_wrong():
    # The worst rule there is. With all of alpha for either kind of look .065 of the streams go wrong, where .0565 are allowed; a valid
    # bound is refused with probability < .0014.
    alpha, num_streams, p, looks = 0.05, 10_000, 0.9, np.arange(20, 1001, 20)
    hits = np.random.default_rng(4).binomial(20, p, (num_streams, len(looks))).cumsum(axis=1)
    bounds = smoothing.lower_bound(hits, np.broadcast_to(looks, hits.shape), num_samples=1000, alpha=alpha)
    violated = (bounds > p).any(axis=1).mean()
    assert alpha / 3 < violated <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / num_streams)


def test_the_anytime_bound_is_the_root_of_its_equation_and_the_last_look_hardly_costs():
    k, n, alpha = 95, 100, 0.01
    p = float(smoothing.anytime_lower(k, n, alpha))
    prior = scipy.stats.beta(1.0, 0.05)
    mixture, _ = scipy.integrate.quad(lambda q: q**k * (1 - q) ** (n - k) * prior.pdf(q), 0, 1, points=[0.9, 0.95, 0.99], limit=500)
    assert mixture / (p**k * (1 - p) ** (n - k)) == pytest.approx(1 / alpha, rel=1e-3)
    last = smoothing.lower_bound(100_000, 100_000, num_samples=100_000, alpha=0.001)
    assert float(radii.gaussian_l2(last, 1.0)) == pytest.approx(3.8077, abs=1e-4)
    with pytest.raises(ValueError, match="more than the planned"):
        smoothing.lower_bound(10, 20, num_samples=10)


def test_stopping_asks_only_for_what_can_still_change():
    rule = {"num_samples": 100_000, "sigma": 0.5, "grid": (0.0, 0.5, 1.0, 1.5, 2.0)}
    selection = np.tile([[99, 1]], (5, 1))
    estimation = votes([0, 0], [400, 600], [4000, 0], [20_000, 0], [9900, 100])
    # unseen; hopeless; may still reach 1.5; beyond 1.5, and 2.0 is out of reach; between 1.0 and 1.5 for good
    np.testing.assert_array_equal(smoothing.undecided(selection, estimation, **rule), [True, False, True, False, False])
    gains = smoothing.undecided(selection, estimation, num_samples=100_000, sigma=0.5, tolerance=0.2)
    np.testing.assert_array_equal(gains, [True, False, True, True, False])


def test_curves_and_averages():
    certificate = base.Certificate(np.array([1, 2, -1, 0]), np.array([0.5, 1.0, 0.0, 0.25]), np.array([True, True, False, True]))
    y = np.array([1, 0, 0, 0])
    np.testing.assert_array_equal(smoothing.certified_accuracy(certificate, y, (0.0, 0.25, 0.3, 0.5, 0.6)), [0.5, 0.5, 0.25, 0.25, 0.0])
    assert smoothing.average_radius(certificate, y) == pytest.approx(0.75 / 4)
    assert smoothing.failures(500, 0.001, 0.999) == scipy.stats.binom.ppf(0.999, 500, 0.001)


ENOUGH = {  # of votes for a plan: certified where all of them are for one class
    "certify": lambda n, alpha: smoothing.certify(votes([9, 1]), votes([n, 0]), sigma=1.0, alpha=alpha),
    "certify, planned": lambda n, alpha: smoothing.certify(votes([9, 1]), votes([n, 0]), sigma=1.0, alpha=alpha, num_samples=n),
    "certify_two_sided": lambda n, alpha: smoothing.certify_two_sided(votes([9, 1, 0]), votes([n, 0, 0]), sigma=1.0, alpha=alpha),
    "certify_sequential": lambda n, alpha: smoothing.certify_sequential(
        votes([9, 1]), votes([n, 0]), sigma=1.0, alpha=alpha, num_samples=n
    ),
    "certify_soft": lambda n, alpha: certain(n, alpha, smoothing.bernstein_lower),
    "certify_soft, Hoeffding": lambda n, alpha: certain(n, alpha, smoothing.hoeffding_lower),
}


def certain(n, alpha, bound_fn):
    unit = int(1 / smoothing.SOFT_UNIT)
    soft = smoothing.SoftVotes(*(votes([n * unit, 0]) for _ in range(3)), np.array([n]))
    return smoothing.certify_soft(votes([9, 1]), soft, n, sigma=1.0, alpha=alpha, bound_fn=bound_fn)


@pytest.mark.parametrize(("name", "least"), list(zip(ENOUGH, (10, 10, 11, 11, 37, 14), strict=True)))
def test_too_few_votes_to_certify_anything_are_named_with_the_least_that_are_enough(name, least):
    for few in range(2, least):
        with pytest.raises(ValueError, match=rf"num_samples={few} votes certify nothing at alpha=0\.001: .* num_samples={least},"):
            ENOUGH[name](few, 0.001)
    assert ENOUGH[name](least, 0.001).certified[0]


def test_a_run_that_stops_early_is_told_before_its_first_vote_that_it_can_certify_nothing():
    for rule in ({"grid": (0.0,)}, {"tolerance": 0.1}):
        with pytest.raises(ValueError, match="draw at least num_samples=11"):
            smoothing.undecided(votes([9, 1]), votes([0, 0]), num_samples=10, sigma=1.0, **rule)


def test_bonferroni_holds_for_all_at_once():
    # 50 images of 100 votes each: with alpha for each, more than half of the sets have a wrong bound.
    p, alpha, num_sets = 0.9, 0.05, 4000
    hits = np.random.default_rng(6).binomial(100, p, (num_sets, 50))

    def any_wrong(each):
        return (smoothing.binomial_lower(hits, 100, each) > p).any(axis=1).mean()

    assert any_wrong(alpha) > 0.5
    assert any_wrong(smoothing.bonferroni(alpha, 50)) <= alpha


def test_a_bound_for_a_fixed_number_refuses_votes_that_were_stopped():
    # Stopped at the first look where the bound looked good: Clopper-Pearson at that look fails three times as often as promised.
    rng = np.random.default_rng(3)
    looks, p, alpha = np.arange(20, 1001, 20), 0.9, 0.05
    hits = rng.binomial(20, p, (4000, len(looks))).cumsum(axis=1)
    bounds = smoothing.binomial_lower(hits, looks, alpha)
    stop = np.where((bounds > p).any(axis=1), (bounds > p).argmax(axis=1), len(looks) - 1)
    rows = np.arange(len(stop))
    assert (bounds[rows, stop] > p).mean() > 3 * alpha
    estimation = np.stack([hits[rows, stop], looks[stop] - hits[rows, stop]], axis=1)
    selection = np.tile([[9, 1]], (len(stop), 1))
    for verb in (smoothing.certify, smoothing.certify_two_sided):
        with pytest.raises(ValueError, match="use certify_sequential"):
            verb(selection, estimation, sigma=1.0, alpha=alpha)
    certificate = smoothing.certify_sequential(selection, estimation, num_samples=1000, sigma=1.0, alpha=alpha)
    assert (certificate.radius > scipy.stats.norm.ppf(p)).mean() <= alpha
