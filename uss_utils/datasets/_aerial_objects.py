"""What stands on the ground of an aerial scene: buildings, trees, cars."""

import math

import numpy as np

from uss_utils.datasets._paint import (
    RGB,
    Dice,
    Painter,
    Patch,
    direction,
    fraction,
    mix,
    scaled,
)

GRASS, ROAD, BUILDING, TREE, WATER, CAR = range(6)


def _turned(patch: Patch, x: float, y: float, angle: float):
    """Coordinates (h, w) along and across a direction, from the point (x, y)."""
    cos, sin = direction(angle)
    right, down = patch.x - np.float32(x), patch.y - np.float32(y)
    return right * cos + down * sin, down * cos - right * sin


def _around(painter: Painter, x: float, y: float, reach: float) -> Patch | None:
    return painter.patch(x - reach, y - reach, x + reach, y + reach)


def building(
    painter: Painter,
    dice: Dice,
    x: float,
    y: float,
    angle: float,
    long: float,
    wide: float,
    roof: RGB | None,
    sun: tuple[float, float],
):
    """A building from above: gable, hip or flat roof, with its shadow.

    Args:
        painter: where to paint.
        dice: source of the choices.
        x: horizontal position of its middle.
        y: vertical position of its middle.
        angle: direction of its longer side, radians.
        long: half its length.
        wide: half its width.
        roof: colour; None for one of its own.
        sun: unit vector away from the sun.
    """
    kind = dice.pick(("gable", "gable", "gable", "hip", "hip", "flat"))
    colour = dice.colour((0, 1), (0.0, 0.7), (0.25, 0.9)) if roof is None else roof
    other = scaled(colour, dice.u(0.55, 0.8))
    ribs, depth = dice.u(80, 140), dice.u(0.1, 0.3)
    corner = dice.chance(0.35)  # an L-shaped house
    notch = (dice.u(-0.2, 0.35), dice.u(-0.2, 0.2), dice.sign(), dice.sign())
    tall, offset = dice.u(0.015, 0.035), (dice.u(), dice.u())
    blocks = [(dice.u(-0.7, 0.7), dice.u(-0.6, 0.6), dice.u(0.08, 0.2)) for _ in "123"]
    chimney = (dice.u(-0.7, 0.7), dice.u(-0.5, 0.5)) if dice.chance(0.6) else None
    thing = painter.new_thing()
    reach = math.sqrt(long * long + wide * wide)
    patch = _around(painter, x, y, reach + tall)
    if patch is None:
        return

    def footprint(shift: float):
        """Building moved along its shadow: mask and coordinates in -1..1."""
        p, q = _turned(patch, x + sun[0] * shift, y + sun[1] * shift, angle)
        p, q = p / np.float32(long), q / np.float32(wide)
        mask = (np.abs(p) < 1) & (np.abs(q) < 1)
        if corner:
            mask &= (p * notch[2] < 0.4 + notch[0]) | (q * notch[3] < notch[1])
        return mask, p, q

    shadow = footprint(tall)[0]
    for part in (0.33, 0.66):
        shadow |= footprint(tall * part)[0]
    patch.multiply(shadow, 0.5)
    mask, p, q = footprint(0.0)
    light = 1 + 0.06 * patch.texture("fine", offset)
    cos, sin = direction(angle)
    lit_below = cos * sun[1] - sin * sun[0] < 0
    if kind == "flat":
        patch.fill(mask, colour, light * 0.95, BUILDING, thing)
        rim = mask & ((np.abs(p) > 1 - 0.007 / long) | (np.abs(q) > 1 - 0.007 / wide))
        patch.fill(rim, mix(colour, (1.0, 1.0, 1.0), 0.45))
        for a, b, size in blocks:
            box = (np.abs(p - a) < size * 0.6) & (np.abs(q - b) < size) & mask
            patch.fill(box, mix(colour, (0.85, 0.85, 0.88), 0.6), 0.9)
            edge = (p - a < -size * 0.4) & box
            patch.fill(edge, scaled(colour, 0.4))
    else:
        upper = (q > 0) == lit_below
        patch.fill(mask, other, light, BUILDING, thing)
        patch.fill(mask & upper, colour, light)
        steep = np.float32(wide / long)
        ends = np.abs(p) > 1 - (1 - np.abs(q)) * steep
        rib = fraction(p * np.float32(long * ribs)) < 0.4
        if kind == "hip":
            patch.fill(mask & ends, mix(colour, other, 0.5), light)
            crease = np.abs(np.abs(p) - (1 - (1 - np.abs(q)) * steep)) < 0.05
            rib = np.where(ends, fraction(q * np.float32(wide * ribs)) < 0.4, rib)
            patch.multiply(mask & crease, 1.2)
        patch.multiply(mask & rib, 1 - depth)
        ridge = (np.abs(q) < 0.004 / wide) & mask
        if kind == "hip":
            ridge &= ~ends
        patch.fill(ridge, mix(colour, (1.0, 1.0, 1.0), 0.35))
        if chimney is not None:
            stack = np.abs(p - chimney[0]) * long < 0.006
            stack = stack & (np.abs(q - chimney[1]) * wide < 0.006) & mask
            patch.fill(stack, (0.35, 0.2, 0.17))


def leaf_colour(dice: Dice) -> RGB:
    """Colour of a crown: green, autumn or any tint."""
    kind = dice.u()
    if kind < 0.5:
        return dice.colour((0.22, 0.42), (0.3, 0.75), (0.22, 0.55))
    if kind < 0.75:
        return dice.colour((0.0, 0.15), (0.35, 0.8), (0.3, 0.65))
    return dice.colour((0.0, 1.0), (0.15, 0.6), (0.25, 0.7))


def tree(
    painter: Painter,
    dice: Dice,
    x: float,
    y: float,
    radius: float,
    colour: RGB,
    sun: tuple[float, float],
):
    """A crown from above, lit from one side, with its shadow."""
    offset, ragged = (dice.u(), dice.u()), dice.u(0.25, 0.6)
    tall = radius * dice.u(0.5, 1.1)
    conifer = dice.chance(0.25)
    patch = _around(painter, x, y, radius * 1.3 + tall)
    if patch is None:
        return
    leaf = patch.texture("leaflet", offset)
    size = np.float32(radius)

    def far(shift: float):
        """Squared distance to the middle of the crown or of its shadow."""
        right = (patch.x - (x + sun[0] * shift)) / size
        down = (patch.y - (y + sun[1] * shift)) / size
        return right * right + down * down

    patch.multiply(far(tall) + ragged * leaf < 1, 0.5)
    round_off = far(0.0)
    crown = round_off + ragged * leaf < 1
    slope = ((patch.x - x) * sun[0] + (patch.y - y) * sun[1]) / size
    shade = 0.95 + 0.5 * leaf - 0.38 * slope
    if conifer:  # the top is bright, the skirts are dark
        shade = shade + 0.35 - 0.75 * np.clip(round_off, 0, 1)
    patch.fill(crown, colour, np.maximum(shade, 0.15), TREE)


def car(painter: Painter, dice: Dice, x: float, y: float, angle: float):
    """A car from above: bonnet, windscreen, roof, rear window."""
    body = dice.colour((0, 1), (0.0, 0.9), (0.2, 0.95))
    if dice.chance(0.4):
        body = dice.colour((0, 1), (0.0, 0.1), (0.15, 0.97))
    glass = dice.colour((0.5, 0.7), (0.1, 0.4), (0.08, 0.3))
    long, wide = dice.u(0.023, 0.027), dice.u(0.0105, 0.012)
    if dice.chance(0.12):  # a lorry or a bus
        long, wide = dice.u(0.036, 0.046), dice.u(0.0125, 0.014)
    thing = painter.new_thing()
    patch = _around(painter, x, y, long + 0.012)
    if patch is None:
        return
    p, q = _turned(patch, x + 0.003, y + 0.004, angle)
    patch.multiply((np.abs(p) < long) & (np.abs(q) < wide), 0.6)
    p, q = _turned(patch, x, y, angle)
    p, q = p / np.float32(long), np.abs(q) / np.float32(wide)
    corner = np.abs(p) * np.float32(1.0) + q * np.float32(wide / long) < 1.22
    shape = (np.abs(p) < 1) & (q < 1) & corner
    patch.fill(shape, body, 1.05 - 0.25 * q, CAR, thing)
    screen = (p > 0.12) & (p < 0.42) & (q < 0.82)
    rear = (p < -0.55) & (p > -0.78) & (q < 0.76)
    patch.fill((screen | rear) & shape, glass)
    patch.fill((p > -0.55) & (p < 0.12) & (q < 0.7) & shape, scaled(body, 1.15))
    patch.fill((p > 0.9) & (np.abs(q - 0.65) < 0.25) & shape, (0.95, 0.93, 0.8))
    patch.fill((p < -0.9) & (np.abs(q - 0.65) < 0.25) & shape, (0.7, 0.1, 0.1))


def car_park(
    painter: Painter,
    dice: Dice,
    x: float,
    y: float,
    angle: float,
    wide: float,
    deep: float,
    slots: int,
    side: int,
):
    """A paved lot with marked bays, most of them taken."""
    asphalt = dice.colour(saturation=(0.0, 0.2), value=(0.3, 0.65))
    offset = (dice.u(), dice.u())
    bays = [dice.chance(0.7) for _ in range(slots)]
    patch = _around(painter, x, y, math.sqrt(wide * wide + deep * deep))
    if patch is not None:
        p, q = _turned(patch, x, y, angle)
        lot = (np.abs(p) < wide) & (np.abs(q) < deep)
        shade = 1 + 0.1 * patch.texture("grain", offset)
        patch.fill(lot, asphalt, shade, ROAD)
        place = (p + np.float32(wide)) * np.float32(slots / (2 * wide))
        line = np.abs(fraction(place + 0.5) - 0.5) < 0.07
        outer = q * side > deep - 0.06
        patch.fill(lot & line & outer, (0.9, 0.9, 0.87))
    cos, sin = direction(angle)
    for number, full in enumerate(bays):
        if full:
            p = -wide + (number + 0.5) * (2 * wide / slots)
            q = side * (deep - 0.032)
            turn = angle + math.pi / 2 * dice.sign()
            car(painter, dice, x + p * cos - q * sin, y + p * sin + q * cos, turn)
