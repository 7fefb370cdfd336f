"""Logistic regression on few effects, and Bradley-Terry strengths of many tallies at once."""

import numpy as np
from scipy import special

from ui.outcomes import FloatArray

_MOST_STEPS, _SHORTEST_STEP = 100, 1e-6
_SETTLED = 1e-14  # squared distance to the optimum in standard errors


def fit_logistic(
    design: FloatArray, score: FloatArray, weights: FloatArray, ridge: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return the effects that make the scores likeliest, and the curvature there.

    Newton's method, with steps halved until the loss falls; it is convex. (Importing scikit-learn
    for it would take longer than everything else on a page.)

    Args:
        design: shape (n, effects).
        score: shape (n,), from 0 to 1.
        weights: shape (n,).
        ridge: shape (effects,), precision of a Gaussian prior around 0. Without it, and where the
            scores are separated, there is no optimum.
    """

    def loss(beta: FloatArray) -> float:
        odds = design @ beta
        return float(weights @ (np.logaddexp(0, odds) - score * odds) + ridge @ beta**2 / 2)

    beta = np.zeros(design.shape[1])
    for _ in range(_MOST_STEPS):
        p = special.expit(design @ beta)
        slope = design.T @ (weights * (p - score)) + ridge * beta
        curvature = (design * (weights * p * (1 - p))[:, None]).T @ design + np.diag(ridge)
        step = np.linalg.solve(curvature, slope)
        if float(slope @ step) < _SETTLED:
            break
        before, size = loss(beta), 1.0
        while loss(beta - size * step) > before and size > _SHORTEST_STEP:
            size /= 2
        beta = beta - size * step
    return beta, curvature


def fit_strengths(wins: FloatArray) -> FloatArray:
    """Return the likeliest Bradley-Terry strengths of each of many tallies.

    Newton's method as above, for all tallies at once: fitted one by one, as many as a bootstrap
    draws take most of a second.

    Args:
        wins: shape (tallies, models, models), how often the row's model beat the column's; every
            two models must have won against each other, be it through others.

    Returns:
        Shape (tallies, models): log odds, of mean 0.
    """
    tallies, models, _ = wins.shape
    met, own = wins + wins.transpose(0, 2, 1), wins.sum(axis=2)
    strengths = np.zeros((tallies, models))

    def ahead(of: FloatArray) -> FloatArray:
        difference: FloatArray = of[:, :, None] - of[:, None, :]
        return difference

    def loss(of: FloatArray) -> FloatArray:
        lost: FloatArray = (wins * np.logaddexp(0, -ahead(of))).sum(axis=(1, 2))
        return lost

    for _ in range(_MOST_STEPS):
        p = special.expit(ahead(strengths))
        slope = (met * p).sum(axis=2) - own
        weight = met * p * (1 - p)
        curvature = np.eye(models) * weight.sum(axis=2)[:, :, None] - weight
        # Adding the same to all strengths changes nothing; this holds their mean at 0.
        curvature += weight.mean(axis=(1, 2), keepdims=True)
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        if (slope * step).sum(axis=1).max() < _SETTLED:
            break
        before, size = loss(strengths), np.ones((tallies, 1))
        while (
            worse := (loss(strengths - size * step) > before) & (size[:, 0] > _SHORTEST_STEP)
        ).any():
            size[worse] /= 2
        strengths -= size * step
    centred: FloatArray = strengths - strengths.mean(axis=1, keepdims=True)
    return centred
