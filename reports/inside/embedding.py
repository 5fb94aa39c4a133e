"""Classifier inputs in two dimensions, and the class that is predicted around them."""

from dataclasses import dataclass

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.neighbors import KNeighborsClassifier

_SEED = 0
FEWEST_FOR_TSNE = 50  # neighbourhoods of fewer points say little
_PERPLEXITY = 30
_GRID = 200  # points along each side
_MARGIN = 0.05  # of the range, so that no point lies on the frame


@dataclass(frozen=True)
class Regions:
    """A grid over the picture; ``classes`` are (rows, columns), the lowest y first."""

    extent: tuple[float, float, float, float]  # left, right, bottom, top
    classes: np.ndarray


def project(features: np.ndarray) -> np.ndarray:
    """Features, (n, hidden), in two dimensions, (n, 2): t-SNE, or PCA below 50 points.

    The same features give the same picture. t-SNE is van der Maaten and Hinton 2008; it keeps
    neighbours, and neither distances nor densities.
    """
    features = features.astype(np.float64)
    spread = features - features.mean(axis=0)
    if len(features) < 2 or not np.abs(spread).max() > 0:
        return np.zeros((len(features), 2))
    if len(features) < FEWEST_FOR_TSNE:
        return PCA(n_components=2, svd_solver="full").fit_transform(spread)
    perplexity = min(_PERPLEXITY, (len(features) - 1) / 3)
    return TSNE(init="pca", perplexity=perplexity, random_state=_SEED).fit_transform(spread)


def decision_regions(points: np.ndarray, predictions: np.ndarray) -> Regions:
    """Each grid point's class is the prediction for its nearest text: an interpolation in 2-D."""
    low, high = points.min(axis=0), points.max(axis=0)
    margin = np.maximum(_MARGIN * (high - low), 1e-9)
    left, bottom = low - margin
    right, top = high + margin
    x, y = np.meshgrid(np.linspace(left, right, _GRID), np.linspace(bottom, top, _GRID))
    nearest = KNeighborsClassifier(n_neighbors=1).fit(points, predictions)
    classes = nearest.predict(np.column_stack([x.ravel(), y.ravel()])).reshape(x.shape)
    return Regions((float(left), float(right), float(bottom), float(top)), classes)
