"""Whether two images are one picture, by their pixels: resized, compressed anew, brightened or cropped a little.

One image is laid over the other by a scale and a shift on either axis, found by least squares from coarse to fine
(Lucas and Kanade, IJCAI 1981). Then every block has to show the same: its structure is the local correlation of SSIM
(Wang et al., IEEE TIP 2004), with a constant that forgives what compression does to even surfaces. Pages of one form
agree nearly everywhere, and differ in the blocks of their words.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 512
"""Most pixels of the longer side that are compared."""
LEAST_STRUCTURE = 0.56
"""Blocks of one picture correlate at least so much."""
MOST_DIFFERENCE = 32.0
"""No channel of a block of one picture differs by more in its mean, of 255."""
_LEVELS = (32, 64, 128, 256)
_STEPS = 12
_FINE_STEPS = 3
_BLOCK = 16
_FORGIVEN_VARIANCE = 400.0
_COARSE_STRUCTURE, _COARSE_VARIANCE = 0.6, 100.0
"""The same at the last level but one, where noise is less: it rules most pairs out in a quarter of the time."""
_MOST_OUTLYING = 16
"""A block differs by at most so many times what a quarter of the detailed blocks differ by, and one hundredth."""
_LEAST_OVERLAP = 0.7

View = NDArray[np.uint8]
"""Pixels of an image as they are compared, uint8 [height, width, 3]."""
_Plane = NDArray[np.float32]
_Placement = NDArray[np.float64]
"""Where a pixel (x, y) of the first view lies in the second: x * (1 + p[0]) + p[1], y * (1 + p[2]) + p[3]."""


def view_of(image: Image.Image) -> View:
    """Return an RGB image that stands upright, resized to at most SIDE pixels on its longer side."""
    return np.asarray(_resized(image, _size(image.size, min(SIDE, max(image.size)))))


def show_the_same(first: View, second: View) -> bool:
    """Tell whether two views are of one picture."""
    if max(first.shape[:2]) > max(second.shape[:2]):
        first, second = second, first
    images = [Image.fromarray(view) for view in (first, second)]
    placement = np.zeros(4)
    last = images[0].size
    for side in _LEVELS:
        if side < max(images[0].size):
            agree, placement, last = _compare(images, side, placement, last)
            if side == _LEVELS[-1] and not agree:
                return False
    return _compare(images, max(images[0].size), placement, last)[0]


def _compare(
    images: list[Image.Image], side: int, placement: _Placement, last: tuple[int, int]
) -> tuple[bool, _Placement, tuple[int, int]]:
    """Compare two images at one level.

    Args:
        placement: at the level before, whose size is `last`.

    Returns:
        Whether they show the same, and placement and size at this level.
    """
    size = _size(images[0].size, side)
    first, second = (np.asarray(_resized(image, size), np.float32) for image in images)
    placement = placement * (1, size[0] / last[0], 1, size[1] / last[1])
    gain, offset, placement = _lay_over(first, second, placement, _STEPS if side <= _LEVELS[1] else _FINE_STEPS)
    moved, inside = _moved(second, placement)
    is_coarse = side <= _LEVELS[-1]
    least = (_COARSE_STRUCTURE, _COARSE_VARIANCE) if is_coarse else (LEAST_STRUCTURE, _FORGIVEN_VARIANCE)
    return _agree(first, gain * moved + offset, inside, *least), placement, size


def _size(size: tuple[int, int], side: int) -> tuple[int, int]:
    scale = side / max(size)
    return max(2, round(size[0] * scale)), max(2, round(size[1] * scale))


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)  # as wide as it shrinks


def _lay_over(first: _Plane, second: _Plane, placement: _Placement, steps: int) -> tuple[float, float, _Placement]:
    """Return gain and offset of the second image's brightness, and where the first lies in it, by Gauss-Newton."""
    target, moving = first.mean(axis=2), second.mean(axis=2)
    across = np.arange(target.shape[1], dtype=np.float32)
    down = np.arange(target.shape[0], dtype=np.float32)[:, None]
    gain, offset = 1.0, 0.0
    for _ in range(steps):
        moved, inside = _moved(moving, placement)
        slope_down, slope_across = np.gradient(moved)
        columns = (slope_across * across, slope_across, slope_down * down, slope_down, moved, np.ones_like(moved))
        factors = np.stack([column[inside] for column in columns], axis=1).astype(np.float64)
        normal = factors.T @ factors
        normal[np.diag_indices(6)] += 1e-6 * np.trace(normal)
        solution = np.linalg.solve(normal, factors.T @ target[inside])
        gain, offset = float(solution[4]), float(solution[5])
        change = solution[:4] / (gain or 1.0)
        if not np.isfinite(change).all() or np.abs(placement[::2] + change[::2]).max() > 0.3:
            break
        placement = placement + change
        if np.abs(change[1::2]).max() < 0.02 and np.abs(change[::2]).max() * max(target.shape) < 0.02:
            break
    return gain, offset, placement


def _moved(plane: _Plane, placement: _Placement) -> tuple[_Plane, NDArray[np.bool_]]:
    """Return the plane's values where a placement says, between its pixels, and which of them lie inside of it."""
    height, width = plane.shape[:2]
    left, right, has_column = _between(width, *placement[:2])
    above, below, has_row = _between(height, *placement[2:])
    left, above = left if plane.ndim == 2 else left[:, None], above if plane.ndim == 2 else above[:, None]
    rows = plane[below] + above[:, None] * (plane[below + 1] - plane[below])
    moved: _Plane = rows[:, right] + left * (rows[:, right + 1] - rows[:, right])
    return moved, has_row[:, None] & has_column


def _between(count: int, scale: float, shift: float) -> tuple[_Plane, NDArray[np.intp], NDArray[np.bool_]]:
    """Return how far behind which pixel each one lies along an axis, and whether that is inside."""
    places = np.arange(count) * (1 + scale) + shift
    before = np.clip(np.floor(places), 0, count - 2).astype(np.intp)
    behind: _Plane = np.clip(places - before, 0, 1).astype(np.float32)
    return behind, before, (places >= -0.5) & (places <= count - 0.5)


def _agree(first: _Plane, second: _Plane, inside: NDArray[np.bool_], least: float, forgiven: float) -> bool:
    """Tell whether every block that lies inside shows the same in every channel."""
    if inside.mean() < _LEAST_OVERLAP:
        return False
    whole = _means(inside.astype(np.float32)[..., None])[..., 0] == 1
    one, other = _softened(first), _softened(second)
    mean, other_mean = _means(one), _means(other)
    spread = np.maximum(_means(one * one) - mean**2, 0) * np.maximum(_means(other * other) - other_mean**2, 0)
    shared = _means(one * other) - mean * other_mean
    spread = np.sqrt(spread)[whole]
    structure = (shared[whole] + forgiven) / (spread + forgiven)
    detailed = structure[spread >= forgiven]
    if detailed.size:  # where all else agrees better, one block that does not is no compression
        usual = 1 - float(np.quantile(detailed, 0.25))
        least = max(least, 1 - _MOST_OUTLYING * (usual + 0.01))
    return bool((structure >= least).all() and (np.abs(mean - other_mean)[whole] <= MOST_DIFFERENCE).all())


def _softened(plane: _Plane) -> _Plane:
    """Return the means of neighbouring pixels, so that sharpness counts less than what is shown."""
    down = np.concatenate([plane[:-1] + plane[1:], 2 * plane[-1:]]) / 2
    softened: _Plane = np.concatenate([down[:, :-1] + down[:, 1:], 2 * down[:, -1:]], axis=1) / 2
    return softened


def _means(plane: _Plane) -> _Plane:
    """Return the mean of every block; what is left at the edges belongs to the last ones."""
    height, width = plane.shape[:2]
    rows, columns = (np.arange(0, max(n - _BLOCK + 1, 1), _BLOCK) for n in (height, width))
    sums = np.add.reduceat(np.add.reduceat(plane.astype(np.float64), rows, axis=0), columns, axis=1)
    counts = np.diff([*rows, height])[:, None] * np.diff([*columns, width])
    means: _Plane = (sums / counts[..., None]).astype(np.float32)
    return means
