"""What stands in a street: trees, cars, persons."""

import numpy as np

from uss_utils.datasets._paint import RGB, Dice, Painter, fraction, profile

SKY, BUILDING, ROAD, SIDEWALK, VEGETATION, CAR, PERSON = range(7)

# Hue, saturation and value of dark panes.
GLASS = ((0.5, 0.7), (0.05, 0.35), (0.12, 0.5))


def _shadow(
    painter: Painter, x: float, y: float, wide: float, flat: float, dark: float
):
    """A soft dark ellipse on the ground."""
    patch = painter.patch(x - wide, y - flat, x + wide, y + flat)
    if patch is None:
        return
    across = (patch.x - x) / np.float32(wide)
    down = (patch.y - y) / np.float32(flat)
    far = across * across + down * down
    patch.multiply(far < 1, dark)
    patch.multiply(far < 0.5, (1 + dark) / 2)


def tree(painter: Painter, dice: Dice, x: float, y: float, scale: float, colour: RGB):
    """A trunk and a noisy crown: round, several balls, poplar or conifer."""
    tall = dice.u(3.6, 7.5) * scale
    tall = min(max(tall, 0.16), 0.85)
    kind = dice.pick(("round", "round", "balls", "balls", "poplar", "conifer"))
    wide = tall * dice.u(0.28, 0.42)
    high = tall * dice.u(0.28, 0.38)
    trunk = max(tall * dice.u(0.02, 0.035), 0.004)
    bark = dice.colour((0.02, 0.12), (0.15, 0.5), (0.2, 0.42))
    if kind == "poplar":
        wide, high = tall * dice.u(0.14, 0.2), tall * 0.43
    elif kind == "conifer":
        wide, high = tall * dice.u(0.2, 0.3), tall * 0.45
    ragged, sun = dice.u(0.3, 0.75), dice.sign() * dice.u(0.05, 0.3)
    holes = dice.u(-1.6, -0.75)
    offsets = [(dice.u(), dice.u()) for _ in range(2)]
    balls = [(dice.u(-0.5, 0.5), dice.u(-0.45, 0.5), dice.u(0.5, 0.72)) for _ in "123"]
    middle = y - tall + high
    _shadow(painter, x, y, wide * 0.9, 0.02 * min(1.0, tall * 2), 0.72)
    patch = painter.patch(x - 2 * trunk, middle, x + 2 * trunk, y)
    if patch is not None:
        across = (patch.x - x) / np.float32(trunk)
        flare = 0.7 + 0.5 * np.clip((patch.y - (y - 0.2 * tall)) / (0.2 * tall), 0, 1)
        shade = 1 - sun * across + 0.3 * patch.texture("fine", offsets[0])
        patch.fill(np.abs(across) < flare, bark, shade, VEGETATION)
    grown = 1.3
    patch = painter.patch(
        x - wide * grown, middle - high * grown, x + wide * grown, middle + high * grown
    )
    if patch is None:
        return
    leaf = patch.texture("leaf" if tall > 0.36 else "leaflet", offsets[1])
    across = (patch.x - x) / np.float32(wide)
    down = (patch.y - middle) / np.float32(high)
    if kind == "balls":
        far = None
        for ball_x, ball_y, radius in balls:
            side, lower = across - ball_x, down - ball_y
            one = (side * side + lower * lower) / np.float32(radius * radius)
            far = one if far is None else np.minimum(far, one)
    elif kind == "conifer":
        half = np.clip((down + 1.1) * 0.5, 0.02, 2) * (
            0.8 + 0.35 * fraction(down * np.float32(2.5))
        )
        far = np.abs(across) / half
        far = np.where(down < 1, far * far, np.float32(9))
    else:
        far = across * across + down * down
    crown = (far + ragged * leaf < 1) & (leaf > holes * (1.6 - far))
    shade = 0.85 + 0.55 * leaf - 0.22 * down - sun * across
    patch.fill(crown, colour, np.maximum(shade, 0.12), VEGETATION)


# Outline of a car from the side: height of the body along its length.
_CAR_SHAPES = {
    "sedan": (
        (0.0, 0.04, 0.22, 0.34, 0.64, 0.8, 0.97, 1.0),
        (0.38, 0.56, 0.62, 0.98, 0.98, 0.64, 0.58, 0.36),
    ),
    "hatch": (
        (0.0, 0.04, 0.26, 0.42, 0.86, 0.97, 1.0),
        (0.38, 0.55, 0.62, 1.0, 0.97, 0.6, 0.38),
    ),
    "van": (
        (0.0, 0.03, 0.14, 0.26, 0.95, 0.98, 1.0),
        (0.36, 0.6, 0.66, 1.15, 1.15, 1.1, 0.4),
    ),
}


def car(painter: Painter, dice: Dice, x: float, y: float, scale: float):
    """A car on the ground at (x, y), from the side, the front or the back."""
    body = dice.colour((0, 1), (0.0, 0.9), (0.2, 0.95))
    if dice.chance(0.35):
        body = dice.colour((0, 1), (0.0, 0.1), (0.12, 0.95))
    glass = dice.colour(*GLASS)
    thing, size = painter.new_thing(), dice.u(0.95, 1.15) * scale
    if dice.chance(0.5):
        _car_side(painter, dice, x, y, size, body, glass, thing)
    else:
        _car_front(painter, dice, x, y, size, body, glass, thing)


def _car_side(
    painter: Painter,
    dice: Dice,
    x: float,
    y: float,
    scale: float,
    body: RGB,
    glass: RGB,
    thing: int,
):
    long, high = 4.1 * scale, 1.45 * scale
    knots, heights = _CAR_SHAPES[dice.pick(tuple(_CAR_SHAPES))]
    facing, lamp = dice.sign(), dice.chance(0.6)
    wheels = (dice.u(0.17, 0.2), dice.u(0.79, 0.82))
    _shadow(painter, x, y, long * 0.55, high * 0.14, 0.5)
    patch = painter.patch(x - long / 2, y - 1.2 * high, x + long / 2, y)
    if patch is None:
        return
    across = (patch.x - x) / np.float32(long)
    along = across * facing + np.float32(0.5)
    up = (y - patch.y) / np.float32(high)
    roof = profile(along, knots, heights)
    shape = (up < roof) & (up > 0.16)
    shade = 0.72 + 0.42 * up
    shade = shade - 0.2 * ((up > 0.36) & (up < 0.4))
    patch.fill(shape, body, shade, CAR, thing)
    cabin = shape & (up > 0.62) & (up < roof - 0.07)
    pillars = np.abs(fraction(along * 4.2 + 0.2) - 0.5) < 0.44
    patch.fill(cabin & pillars, glass, 0.7 + 0.6 * (up - 0.5))
    front, rear = (along < 0.06), (along > 0.94)
    lamps = (up > 0.42) & (up < 0.55) & shape
    patch.fill(lamps & front, (1.0, 0.97, 0.8) if lamp else (0.8, 0.8, 0.8))
    patch.fill(lamps & rear, (0.85, 0.1, 0.08))
    patch.fill(shape & (up < 0.23), (0.1, 0.1, 0.1))
    for place in wheels:
        side = (along - np.float32(place)) * np.float32(long / high)
        lower = up - np.float32(0.2)
        far = side * side + lower * lower
        patch.fill(far < 0.21**2, (0.07, 0.07, 0.08), None, CAR, thing)
        patch.fill(far < 0.1**2, (0.6, 0.6, 0.62))


def _car_front(
    painter: Painter,
    dice: Dice,
    x: float,
    y: float,
    scale: float,
    body: RGB,
    glass: RGB,
    thing: int,
):
    wide, high = 1.8 * scale, 1.5 * scale * dice.u(0.95, 1.25)
    back = dice.chance(0.5)
    lamp = (0.85, 0.08, 0.08) if back else (1.0, 0.98, 0.85)
    plate = dice.pick(((0.95, 0.95, 0.9), (0.95, 0.85, 0.3)))
    cabin_width = dice.u(0.34, 0.4)
    _shadow(painter, x, y, wide * 0.62, high * 0.13, 0.5)
    patch = painter.patch(x - 0.6 * wide, y - high, x + 0.6 * wide, y)
    if patch is None:
        return
    aside = np.abs(patch.x - x) / np.float32(wide)
    up = (y - patch.y) / np.float32(high)
    tyres = (up < 0.25) & (np.abs(aside - 0.38) < 0.1)
    patch.fill(tyres, (0.07, 0.07, 0.08), None, CAR, thing)
    half = profile(
        up,
        (0.1, 0.2, 0.5, 0.6, 0.93, 1.0),
        (0.46, 0.5, 0.5, 0.46, cabin_width, cabin_width - 0.07),
    )
    shape = (aside < half) & (up > 0.13)
    patch.fill(shape, body, 0.7 + 0.42 * up, CAR, thing)
    pane = (aside < half - 0.06) & (up > 0.6) & (up < 0.92)
    patch.fill(pane, glass, 0.75 + 0.5 * (up - 0.6))
    mirrors = (np.abs(aside - 0.53) < 0.045) & (np.abs(up - 0.62) < 0.05)
    patch.fill(mirrors, body, 0.8, CAR, thing)
    lamps = (np.abs(aside - 0.4) < 0.075) & (np.abs(up - 0.45) < 0.055)
    patch.fill(lamps, lamp)
    if not back:
        grille = (aside < 0.24) & (np.abs(up - 0.42) < 0.06)
        patch.fill(grille, (0.12, 0.12, 0.13))
    patch.fill((aside < 0.14) & (np.abs(up - 0.27) < 0.035), plate)
    patch.fill(shape & (up < 0.18), (0.1, 0.1, 0.1))


def person(painter: Painter, dice: Dice, x: float, y: float, scale: float):
    """A person standing or walking: head, hair, torso, arms, legs, shoes."""
    tall = dice.u(1.6, 1.95) * scale * (0.72 if dice.chance(0.1) else 1.0)
    coat = dice.colour((0, 1), (0.0, 0.85), (0.2, 0.95))
    trousers = dice.colour((0, 1), (0.0, 0.6), (0.12, 0.6))
    skin = dice.colour((0.04, 0.09), (0.25, 0.6), (0.35, 0.95))
    hair = dice.colour((0.02, 0.14), (0.1, 0.7), (0.08, 0.6))
    stride = dice.u(0.03, 0.11) if dice.chance(0.65) else 0.015
    swing, lean = dice.u(-0.07, 0.07), dice.u(-0.015, 0.015)
    stout, facing = dice.u(0.105, 0.14), dice.sign()
    skirt, bag = dice.chance(0.2), dice.chance(0.3)
    bag_colour = dice.colour()
    thing = painter.new_thing()
    _shadow(painter, x, y, 0.2 * tall, 0.035 * tall, 0.6)
    patch = painter.patch(x - 0.3 * tall, y - tall, x + 0.3 * tall, y)
    if patch is None:
        return
    across = (patch.x - x) / np.float32(tall)
    up = (y - patch.y) / np.float32(tall)
    sun = 1 - 1.2 * facing * across

    def limb(low, high, start, stop, half, colour, shade=None):
        """A slanted strip from height ``low`` at ``start`` to ``high`` at ``stop``."""
        middle = start + (up - low) * ((stop - start) / (high - low))
        strip = (np.abs(across - middle) < half) & (up > low) & (up < high)
        patch.fill(strip, colour, shade, PERSON, thing)

    for side in (-1, 1):
        foot = side * (stride + 0.028)
        limb(0.0, 0.49, foot, side * 0.042, 0.038, trousers, 0.85 + 0.15 * side)
        limb(0.0, 0.04, foot + 0.012 * facing, foot + 0.012 * facing, 0.05, hair)
    if bag:
        limb(0.52, 0.76, -0.12 * facing, -0.12 * facing, 0.06, bag_colour)
    for side in (-1, 1):
        reach = side * (stout + 0.015) + swing
        limb(0.46, 0.8, reach, side * stout, 0.03, coat, 0.78)
        limb(0.42, 0.47, reach, reach, 0.028, skin)
    width = stout * (0.8 + 0.25 * np.clip((up - 0.45) / 0.35, 0, 1))
    if skirt:
        width = width + np.clip(0.5 - up, 0, 0.2) * np.float32(0.35)
    width = width - np.clip(up - 0.78, 0, 1) * np.float32(1.3)
    torso = (np.abs(across - lean) < width) & (up > (0.3 if skirt else 0.45))
    torso &= up < 0.84
    patch.fill(torso, coat, sun, PERSON, thing)
    limb(0.82, 0.88, lean, lean, 0.03, skin, 0.85)
    side, lower = (across - 2 * lean) / 0.062, (up - 0.92) / np.float32(0.078)
    head = side * side + lower * lower < 1
    patch.fill(head, skin, sun, PERSON, thing)
    cap = head & (up > 0.945 + 0.03 * (side * facing))
    patch.fill(cap, hair)
