import numpy as np
import pytest
from scipy import special

from ui.logistic import fit_logistic, fit_strengths


def drawn(n=3000, seed=4):
    rng = np.random.default_rng(seed)
    design = np.column_stack([np.ones(n), rng.normal(size=(n, 2))])
    score = rng.binomial(2, special.expit(design @ [0.5, -1.0, 0.3])) / 2
    return design, score, rng.uniform(0.2, 2, n)


def test_it_is_the_regression_of_scikit_learn():
    from sklearn.linear_model import LogisticRegression

    design, score, weights = drawn()
    ridge = np.array([0.0, 0.7, 0.7])
    beta, _ = fit_logistic(design, score, weights, ridge)
    model = LogisticRegression(C=1 / 0.7, tol=1e-10, max_iter=1000)
    won = np.repeat([1, 0], len(score))  # each row as so much of a win and so much of a loss
    model.fit(np.tile(design[:, 1:], (2, 1)), won, np.r_[weights * score, weights * (1 - score)])
    assert beta == pytest.approx([*model.intercept_, *model.coef_[0]], abs=1e-6)


def test_the_curvature_is_that_of_the_loss():
    design, score, weights = drawn(200)
    ridge = np.array([0.0, 0.1, 0.1])
    beta, curvature = fit_logistic(design, score, weights, ridge)

    def slope(at):
        return design.T @ (weights * (special.expit(design @ at) - score)) + ridge * at

    assert slope(beta) == pytest.approx(np.zeros(3), abs=1e-5)
    for effect in range(3):
        step = np.eye(3)[effect] * 1e-5
        numeric = (slope(beta + step) - slope(beta - step)) / 2e-5
        assert curvature[effect] == pytest.approx(numeric, rel=1e-5)


def test_a_first_step_that_goes_too_far_is_shortened():
    # Newton's full steps from zero jump to and fro on data as lopsided as these.
    design = np.array([[1.0, -30.0], [1.0, 1.0], [1.0, 2.0]])
    score, weights = np.array([0.0, 0.0, 1.0]), np.array([1.0, 300.0, 300.0])
    ridge = np.array([0.0, 1e-3])
    beta, _ = fit_logistic(design, score, weights, ridge)
    slope = design.T @ (weights * (special.expit(design @ beta) - score)) + ridge * beta
    assert slope == pytest.approx(np.zeros(2), abs=1e-3)


@pytest.mark.parametrize("models", [2, 3, 7])
def test_strengths_are_those_of_choix(models):
    import choix

    rng = np.random.default_rng(models)
    wins = rng.gamma(0.5, 4.0, (40, models, models)) * (1 - np.eye(models))
    wins[:20, 0, 1:] *= 1e5  # hardly ever beaten
    found = fit_strengths(wins)
    assert found.mean(axis=1) == pytest.approx(np.zeros(40), abs=1e-9)
    for one, tally in zip(found, wins, strict=True):
        theirs = choix.ilsr_pairwise_dense(tally, alpha=1e-12, max_iter=10_000)
        assert one == pytest.approx(theirs - theirs.mean(), abs=1e-4)


def test_two_models_have_the_odds_of_their_wins():
    wins = np.array([[[0, 3.0], [1.0, 0]], [[0, 1e-6], [1e5, 0]]])
    (one, other), (loser, winner) = fit_strengths(wins)
    assert one - other == pytest.approx(np.log(3))
    assert winner - loser == pytest.approx(np.log(1e11), abs=1e-3)
