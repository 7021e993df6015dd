"""Aerial scenes, seen straight from above; painted from the ground up.

Positions are fractions of the canvas, whose side stands for about a hundred metres.
"""

import math
from typing import NamedTuple

import numpy as np

from uss_utils.datasets import _aerial_objects as objects
from uss_utils.datasets._aerial_objects import GRASS, ROAD, WATER
from uss_utils.datasets._paint import (
    RGB,
    Dice,
    Light,
    Painter,
    direction,
    draw_light,
    fraction,
    mix,
    scaled,
)

_WAVE = np.array([math.sin(2 * math.pi * i / 256) for i in range(256)], np.float32)


class Road(NamedTuple):
    """A bent road.

    Attributes:
        x: horizontal position of its middle.
        y: vertical position of its middle.
        cos: of its direction.
        sin: of its direction.
        bend: sideways shift per squared distance along the road.
        half: half its width.
    """

    x: float
    y: float
    cos: float
    sin: float
    bend: float
    half: float

    def coordinates(self, x, y):
        """Distance along the road and signed distance to its right."""
        along = (x - self.x) * self.cos + (y - self.y) * self.sin
        across = (y - self.y) * self.cos - (x - self.x) * self.sin
        return along, across - along * along * self.bend

    def place(self, along: float, across: float) -> tuple[float, float, float]:
        """Position (x, y) and direction (radians) beside the road."""
        slope = 2 * self.bend * along
        norm = math.sqrt(1 + slope * slope)
        along, across = (
            along - across * slope / norm,
            self.bend * along * along + across / norm,
        )
        x = self.x + along * self.cos - across * self.sin
        y = self.y + along * self.sin + across * self.cos
        return x, y, math.atan2(self.sin, self.cos) + math.atan(slope)


class Lake(NamedTuple):
    """Water: a round lake, a river or a coast, with an irregular shore."""

    kind: str
    course: Road
    radius: float
    stretch: float
    shore: np.ndarray

    def depth(self, x, y):
        """Roughly the distance to the shore, positive in the water."""
        along, across = self.course.coordinates(x, y)
        if self.kind == "lake":
            far = along * along + across * across * self.stretch
            return (self.radius * self.radius - far) / (2 * self.radius)
        if self.kind == "river":
            return self.radius * 0.45 - abs(across)
        return across


def paint(painter: Painter, dice: Dice) -> Light:
    """Paint an aerial scene; returns the light to develop it with."""
    angle = dice.u(0, 2 * math.pi)
    sun = direction(angle)
    tint = _meadow_colour(dice)
    _meadow(painter, dice, tint)
    lakes = []
    for _ in range(1 + dice.chance(0.2)):
        if dice.chance(0.8):
            lakes.append(_lake(painter, dice))
    roads = _roads(painter, dice)
    taken: list[tuple[float, float, float]] = []

    def free(x: float, y: float, reach: float, off_road: bool = True) -> bool:
        """Whether a circle keeps clear of roads, water and what stands already."""
        if any(
            (x - a) * (x - a) + (y - b) * (y - b) < (reach + r) * (reach + r)
            for a, b, r in taken
        ):
            return False
        if off_road and any(
            abs(road.coordinates(x, y)[1]) < road.half + reach for road in roads
        ):
            return False
        return all(lake.depth(x, y) < -reach for lake in lakes)

    _car_park(painter, dice, roads, free, taken)
    _buildings(painter, dice, roads, free, taken, sun)
    _cars(painter, dice, roads)
    _trees(painter, dice, free, taken, sun)
    return draw_light(dice, gain=(0.78, 1.25))


def _meadow_colour(dice: Dice) -> RGB:
    """Colour of the grass: green, dry or any tint."""
    kind = dice.u()
    if kind < 0.45:
        return dice.colour((0.2, 0.4), (0.2, 0.6), (0.3, 0.65))
    if kind < 0.7:
        return dice.colour((0.05, 0.18), (0.2, 0.55), (0.35, 0.7))
    return dice.colour((0.0, 1.0), (0.1, 0.45), (0.3, 0.7))


def _meadow(painter: Painter, dice: Dice, tint: RGB):
    """Grass in two tones with tufts; sometimes mown or ploughed in stripes."""
    other = mix(
        tint, dice.colour((0.05, 0.4), (0.1, 0.5), (0.3, 0.7)), dice.u(0.1, 0.5)
    )
    wide = dice.grid(6, 6)
    offsets = [(dice.u(), dice.u()) for _ in range(3)]
    tuft, spot = dice.u(0.08, 0.16), dice.u(0.08, 0.2)
    stripes = dice.u(0.05, 0.13) if dice.chance(0.35) else 0.0
    (cos, sin), pitch = direction(dice.u(0, math.pi)), dice.u(20, 45)
    zone = dice.u(-0.4, 0.4)
    patch = painter.patch()
    low = patch.field(wide)
    blend = np.clip(0.5 + 0.9 * low, 0, 1)
    shade = 1 + tuft * patch.texture("fine", offsets[0])
    shade += spot * patch.texture("leaf", offsets[1])
    shade += np.float32(0.08) * patch.texture("blotch", offsets[2])
    if stripes:
        across = patch.x * (cos * pitch) + patch.y * (sin * pitch)
        shade += stripes * ((fraction(across) < 0.5) & (low > zone))
    for plane, a, b in zip(patch.image, tint, other, strict=True):
        plane[:] = (a + (b - a) * blend) * shade
    patch.label[:] = GRASS


def _lake(painter: Painter, dice: Dice) -> Lake:
    """Paint water with ripples and a darker or sandy shore."""
    cos, sin = direction(dice.u(0, 2 * math.pi))
    kind = dice.pick(("lake", "lake", "river", "coast"))
    reach = 0.25 if kind == "river" else 0.45
    x, y = 0.5 + dice.u(-reach, reach), 0.5 + dice.u(-reach, reach)
    if kind == "coast":  # water lies beyond the line, away from the middle
        x, y = 0.5 - 0.22 * sin, 0.5 + 0.22 * cos
    course = Road(x, y, cos, sin, dice.u(-0.8, 0.8) * (kind != "lake"), 0)
    lake = Lake(kind, course, dice.u(0.12, 0.25), dice.u(1.0, 2.5), dice.grid(7, 7))
    ragged, offset = dice.u(0.008, 0.025), (dice.u(), dice.u())
    colour = dice.colour((0.42, 0.68), (0.25, 0.7), (0.15, 0.6))
    if dice.chance(0.3):
        colour = dice.colour((0.0, 1.0), (0.1, 0.5), (0.12, 0.55))
    waves, wind = dice.u(40, 75), direction(dice.u(0, 2 * math.pi))
    bent, swell, glint = dice.u(1.2, 3.0), dice.u(0.05, 0.13), dice.chance(0.5)
    wander = dice.grid(12, 12)
    bank = mix(colour, dice.colour((0.08, 0.14), (0.2, 0.5), (0.3, 0.85)), 0.7)
    patch = painter.patch()
    depth = lake.depth(patch.x, patch.y)
    depth = depth + patch.field(lake.shore) * np.float32(0.05)
    depth += ragged * patch.texture("leaf", offset)
    phase = patch.x * (wind[0] * waves) + patch.y * (wind[1] * waves)
    phase = phase + patch.field(wander) * np.float32(bent)
    phase += np.float32(0.12) * patch.texture("leaflet", offset)
    ripple = _WAVE[(phase * 256).astype(np.int32) & 255]
    shade = 1 + swell * ripple
    shade += np.clip(depth * 1.5, 0, 0.25) * np.float32(-0.8)
    wet = depth > 0
    patch.fill(wet, colour, shade, WATER)
    if glint:
        patch.fill(wet & (ripple > 0.95), mix(colour, (1.0, 1.0, 1.0), 0.22))
    patch.fill((depth > -0.012) & ~wet, bank, 0.95)
    patch.fill(wet & (depth < 0.006), scaled(colour, 0.72))
    return lake


def _roads(painter: Painter, dice: Dice) -> list[Road]:
    """Two or three roads with marks; crossings are left free of marks."""
    roads = []
    angle = dice.u(0, math.pi)
    for number in range(2 + dice.chance(0.4)):
        if number:
            angle += dice.u(0.3, 0.7) * math.pi
        x, y = 0.5 + dice.u(-0.25, 0.25), 0.5 + dice.u(-0.25, 0.25)
        bend = dice.u(-0.6, 0.6) if dice.chance(0.65) else 0.0
        half = dice.u(0.028, 0.045)
        roads.append(Road(x, y, *direction(angle), bend, half))
    asphalt = dice.colour(saturation=(0.0, 0.28), value=(0.22, 0.65))
    line = (0.92, 0.9, 0.86) if dice.chance(0.75) else (0.9, 0.78, 0.35)
    offsets = [(dice.u(), dice.u()) for _ in range(2)]
    speckle, dash, edges = dice.u(0.05, 0.12), dice.u(18, 30), dice.chance(0.5)
    kerb = scaled(asphalt, dice.u(1.15, 1.4) if dice.chance(0.5) else 0.7)
    patch = painter.patch()
    shade = 1 + speckle * patch.texture("grain", offsets[0])
    shade += np.float32(0.07) * patch.texture("blotch", offsets[1])
    found = [road.coordinates(patch.x, patch.y) for road in roads]
    found = [(along, np.abs(across)) for along, across in found]
    inside = [aside < road.half for road, (_, aside) in zip(roads, found, strict=True)]
    for on_road in inside:
        patch.fill(on_road, asphalt, shade, ROAD)
    crossing = sum(mask.astype(np.uint8) for mask in inside) > 1
    for road, (along, aside), on_road in zip(roads, found, inside, strict=True):
        free = on_road & ~crossing
        patch.fill(free & (aside > road.half - 0.005), kerb)
        patch.fill(free & (aside < 0.0042) & (fraction(along * dash) < 0.55), line)
        if edges:
            patch.fill(free & (np.abs(aside - road.half * 0.8) < 0.0028), line)
    return roads


def _car_park(painter: Painter, dice: Dice, roads: list[Road], free, taken):
    """A paved lot beside a road with rows of cars."""
    if not dice.chance(0.45):
        return
    for _ in range(5):
        road = dice.pick(roads)
        side, slots = dice.sign(), dice.n(3, 6)
        along = dice.u(-0.35, 0.35)
        deep, wide = 0.055, 0.017 * slots
        x, y, angle = road.place(along, side * (road.half + deep * 0.9))
        if not (0.1 < x < 0.9 and 0.1 < y < 0.9 and free(x, y, 0.0, False)):
            continue
        others = (r for r in roads if r is not road)
        if any(abs(r.coordinates(x, y)[1]) < r.half + wide for r in others):
            continue
        taken.append((x, y, max(deep, wide)))
        objects.car_park(painter, dice, x, y, angle, wide, deep, slots, side)
        return


def _buildings(painter: Painter, dice: Dice, roads, free, taken, sun):
    """Buildings, most of them in line with a road."""
    style = dice.colour((0.0, 1.0), (0.1, 0.7), (0.3, 0.85))
    for _ in range(dice.n(4, 9)):
        long, wide = dice.u(0.045, 0.1), dice.u(0.035, 0.06)
        for _ in range(8):
            if dice.chance(0.75):
                road = dice.pick(roads)
                setback = road.half + wide + dice.u(0.012, 0.08)
                x, y, angle = road.place(dice.u(-0.6, 0.6), dice.sign() * setback)
            else:
                x, y, angle = dice.u(), dice.u(), dice.u(0, math.pi)
            reach = 0.85 * math.sqrt(long * long + wide * wide)
            seen = 0.02 < x < 0.98 and 0.02 < y < 0.98
            if seen and free(x, y, wide) and free(x, y, reach, False):
                taken.append((x, y, reach))
                roof = style if dice.chance(0.35) else None
                objects.building(painter, dice, x, y, angle, long, wide, roof, sun)
                break


def _cars(painter: Painter, dice: Dice, roads: list[Road]):
    """Cars in the lanes of the roads, at a distance from one another."""
    parked: list[tuple[float, float]] = []
    for _ in range(dice.n(4, 9)):
        road, side = dice.pick(roads), dice.sign()
        x, y, angle = road.place(dice.u(-0.6, 0.6), side * road.half * 0.45)
        near = any(abs(x - a) + abs(y - b) < 0.06 for a, b in parked)
        if near or not (0.02 < x < 0.98 and 0.02 < y < 0.98):
            continue
        parked.append((x, y))
        objects.car(painter, dice, x, y, angle + (math.pi if side < 0 else 0.0))


def _trees(painter: Painter, dice: Dice, free, taken, sun):
    """Single trees, groves and rows."""
    tint = objects.leaf_colour(dice)
    for _ in range(dice.n(14, 22)):
        x, y, radius = dice.u(), dice.u(), dice.u(0.022, 0.046)
        count = dice.n(2, 6) if dice.chance(0.45) else 1
        cos, sin = direction(dice.u(0, 2 * math.pi))
        row = dice.chance(0.4)
        for number in range(count):
            size = radius * dice.u(0.75, 1.15)
            step = 2 * radius * number
            a, b = x + step * cos, y + step * sin
            if not row and number:
                a, b = x + dice.u(-0.08, 0.08), y + dice.u(-0.08, 0.08)
            if free(a, b, size * 0.9):
                taken.append((a, b, size * 0.6))
                colour = tint if dice.chance(0.6) else objects.leaf_colour(dice)
                objects.tree(painter, dice, a, b, size, colour, sun)
