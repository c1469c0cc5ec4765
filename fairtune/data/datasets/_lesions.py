"""Drawing skin lesions: the image model behind the data set `synthetic`.

An image is what light is left after skin, lesion and hair have absorbed theirs, the Beer-Lambert
law for two pigments and three colour channels:

    intensity = exposure * exp(-(melanin * M + blood * B + hair))   + noise

where melanin and blood are fields over the image. The skin has a tone, a flush and wrinkles. The
lesion is a blob whose border is a sum of harmonics of the angle, low ones (lobes) and high ones
(jags); inside, its melanin varies by a coarse texture (blotches), a fine one (network), from centre
to rim, and from one side to the other. Position, orientation, hairs, light and white balance are
nuisance. Everything is NumPy over a batch of images at once; no image depends on another.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]

MELANIN = (0.35, 0.75, 1.25)
"""Absorption of melanin in red, green and blue."""
BLOOD = (0.12, 0.75, 0.55)
"""Absorption of blood; together the two span the colours of skin."""
HAIR = 1.2
LOBES = {2: 1.0, 3: 0.8, 4: 0.4, 5: 0.2}
"""Harmonics of the border that `lobes` scales, and their share."""
JAGS = {4: 0.3, 5: 0.6, 6: 0.8, 7: 0.8, 8: 0.7}
"""Harmonics that `jags` scales."""
MOST_HAIRS = 8


@dataclass(frozen=True)
class Lesions:
    """What n images show; each field is (n,). Lengths are in half image widths."""

    x: Field
    """Centre, -1 to 1 across the image."""
    y: Field
    radius: Field
    elongation: Field
    """Length over width of the blob, square root."""
    softness: Field
    """Width of the border."""
    lobes: Field
    """Amplitude of the border's coarse irregularity."""
    jags: Field
    """Amplitude of its fine irregularity."""
    blotches: Field
    """Amplitude of the coarse texture, in logarithms of melanin."""
    network: Field
    """Amplitude of the fine texture."""
    rim: Field
    """How much darker the rim is than the centre (negative: a dark centre)."""
    asymmetry: Field
    """How much darker one side is than the other."""
    pigment: Field
    """Melanin of the lesion."""
    redness: Field
    """Blood of the lesion."""
    skin: Field
    """Melanin of the skin."""
    flush: Field
    """Blood of the skin."""
    wrinkles: Field
    """Amplitude of the skin's fine lines."""
    hairs: Field
    """Their number, at most `MOST_HAIRS`."""
    exposure: Field

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: slice) -> Lesions:
        return Lesions(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def plane(self, name: str) -> Field:
        """Return a field of the dataclass as (n, 1, 1) float32, to broadcast over pixels."""
        values: Field = getattr(self, name).astype(np.float32)[:, None, None]
        return values


def draw(lesions: Lesions, size: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Draw the images.

    Parameters
    ----------
    lesions
        What they show.
    size
        Height and width in pixels.
    rng
        Of all that `Lesions` does not say: phases of the harmonics and textures, hairs, light.

    Returns
    -------
    numpy.ndarray
        (n, size, size, 3) uint8.
    """
    n, plane = len(lesions), lesions.plane
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2 - 1).astype(np.float32)
    distance, border, cos, sin = _shape(lesions, axis, rng)
    inside = 1 / (1 + np.exp(np.clip((distance - border) / plane("softness"), -30, 30)))
    depth = np.minimum(distance / border, 1.2)  # 0 at the centre, 1 on the border
    side = _angle(rng, n)
    profile = plane("rim") * (2 * depth - 1)
    profile += plane("asymmetry") * depth * (cos * np.cos(side) + sin * np.sin(side))
    blotches = _waves(axis, rng, n, 4, (1.0, 2.5))
    texture = plane("blotches") * blotches
    texture += plane("network") * _waves(axis, rng, n, 5, (4.5, 7.5))
    lines = _waves(axis, rng, n, 4, (4.0, 8.0), spread=0.25)
    melanin = plane("skin") * (1 + plane("wrinkles") * lines)
    melanin += inside * plane("pigment") * np.exp(texture + profile)
    blood = plane("flush") + inside * plane("redness") * np.exp(0.3 * np.roll(blotches, 3, axis=1))
    hair = _hairs(lesions, axis, rng)
    light, white = _light(lesions, axis, rng)
    image = np.empty((n, size, size, 3), np.float32)
    for channel in range(3):
        absorbed = melanin * np.float32(MELANIN[channel]) + blood * np.float32(BLOOD[channel])
        image[..., channel] = light * white[:, channel] * np.exp(-(absorbed + hair))
    image += np.float32(0.02) * rng.standard_normal(image.shape, dtype=np.float32)
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def _shape(
    lesions: Lesions, axis: Field, rng: np.random.Generator
) -> tuple[Field, Field, Field, Field]:
    """Return, per pixel, the distance from the centre, the border's there, and the direction."""
    n, plane = len(lesions), lesions.plane
    dx, dy = axis[None, None, :] - plane("x"), axis[None, :, None] - plane("y")
    turn = _angle(rng, n)
    u = (np.cos(turn) * dx + np.sin(turn) * dy) * plane("elongation")
    v = (np.cos(turn) * dy - np.sin(turn) * dx) / plane("elongation")
    distance = np.sqrt(u * u + v * v) + np.float32(1e-6)
    cos, sin = u / distance, v / distance
    real, imaginary = cos, sin  # of exp(i k angle), by repeated multiplication
    wave = np.zeros_like(distance)
    for k in range(2, max(JAGS) + 1):
        real, imaginary = real * cos - imaginary * sin, real * sin + imaginary * cos
        scale = plane("lobes") * np.float32(LOBES.get(k, 0)) + plane("jags") * np.float32(
            JAGS.get(k, 0)
        )
        a, b = rng.standard_normal((2, n, 1, 1), dtype=np.float32)
        wave += scale * (a * real + b * imaginary)
    return distance, plane("radius") * np.exp(np.clip(wave, -0.8, 0.8)), cos, sin


def _waves(
    axis: Field,
    rng: np.random.Generator,
    n: int,
    count: int,
    cycles: tuple[float, float],
    spread: float | None = None,
) -> Field:
    """Add up `count` plane waves of so many cycles per image to n fields of unit variance.

    They run in all directions, or in about one, to a deviation of `spread` radians.
    """
    frequency = np.pi * rng.uniform(*cycles, (n, count))
    if spread is None:
        angle = rng.uniform(0, 2 * np.pi, (n, count))
    else:
        angle = rng.uniform(0, np.pi, (n, 1)) + spread * rng.standard_normal((n, count))
    phase = rng.uniform(0, 2 * np.pi, (n, count))
    out = np.zeros((n, len(axis), len(axis)), np.float32)
    for k in range(count):  # cos(a + b), with a of the column and b of the row alone
        a = ((frequency * np.cos(angle))[:, k, None] * axis + phase[:, k, None]).astype(np.float32)
        b = ((frequency * np.sin(angle))[:, k, None] * axis).astype(np.float32)
        out += np.cos(a)[:, None, :] * np.cos(b)[:, :, None]
        out -= np.sin(a)[:, None, :] * np.sin(b)[:, :, None]
    return out * np.float32(np.sqrt(2 / count))


def _hairs(lesions: Lesions, axis: Field, rng: np.random.Generator) -> Field:
    """Return what hairs absorb: thin dark parabolas across the image."""
    out = np.zeros((len(lesions), len(axis), len(axis)), np.float32)
    for k in range(MOST_HAIRS):
        rows = np.flatnonzero(lesions.hairs > k)
        n = len(rows)
        turn = _angle(rng, n)
        offset = rng.uniform(-0.9, 0.9, (n, 1, 1)).astype(np.float32)
        bend = np.float32(0.4) * rng.standard_normal((n, 1, 1), dtype=np.float32)
        width = rng.uniform(0.6, 1.2, (n, 1, 1)).astype(np.float32) / np.float32(len(axis))
        along = np.cos(turn) * axis[None, None, :] + np.sin(turn) * axis[None, :, None]
        across = np.cos(turn) * axis[None, :, None] - np.sin(turn) * axis[None, None, :]
        away = (across - offset - bend * along * along) / width
        out[rows] += np.float32(HAIR) * np.exp(-np.minimum(away * away, 30))
    return out


def _light(lesions: Lesions, axis: Field, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return the light over the image, (n, size, size), and the white balance, (n, 3, 1, 1)."""
    n = len(lesions)
    right, down = np.float32(0.12) * rng.standard_normal((2, n, 1, 1), dtype=np.float32)
    light = lesions.plane("exposure") * (
        1 + right * axis[None, None, :] + down * axis[None, :, None]
    )
    return light, 1 + np.float32(0.04) * rng.standard_normal((n, 3, 1, 1), dtype=np.float32)


def _angle(rng: np.random.Generator, n: int) -> Field:
    return rng.uniform(0, 2 * np.pi, (n, 1, 1)).astype(np.float32)
