"""The controls in a group of widgets, and how a reader moves each of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

SLIDER = ".noUi-handle"
CHOICE = "select"
SWITCH = "input[type=checkbox], button.widget-toggle-button:not([data-value])"
ONE_OF = ".widget-toggle-buttons, .widget-radio"
PATCHES = ".widget-gridbox"
TEXT = "input[type=text], input[type=number], textarea"
BUTTON = "button:not(.widget-toggle-button):not(.widget-gridbox button)"
ANY = "input, select, textarea, button, .noUi-handle"
WORDS = ("a word", "another word")
LABEL = r"""
element => {
  const box = element.closest('.widget-inline-hbox') || element;
  const labels = [...box.querySelectorAll('.widget-label, .widget-label-basic')];
  const words = labels.map(label => label.textContent).join('') || box.textContent;
  return words.replace(/\u200b/g, '').trim();
}
"""


@dataclass
class Control:
    """One control, and the moves that try it.

    Attributes:
        name: the words beside it.
        moves: what a move is called, and what makes it; it returns False when there
            was nothing to move.
        returns: the last move puts the control back to where it stood.
        parts: how many elements of the page it is made of.
    """

    name: str
    moves: list[tuple[str, Callable[[], object]]]
    returns: bool = True
    parts: int = 1


def elements(group) -> int:
    """How many elements of a group can be clicked or filled in."""
    return group.locator(ANY).count()


def controls(group) -> Iterator[Control]:
    """All controls of a group, kind by kind."""
    for handle in group.locator(SLIDER).all():
        yield Control(handle.evaluate(LABEL), _along(handle))
    for choice in group.locator(CHOICE).all():
        yield Control(choice.evaluate(LABEL), _each_option(choice))
    for switch in group.locator(SWITCH).all():
        there_and_back = [("other", switch.click), ("back", switch.click)]
        yield Control(switch.evaluate(LABEL), there_and_back)
    for several in group.locator(ONE_OF).all():
        buttons = several.locator("button, input").all()
        moves = _clicks(buttons[::-1])
        yield Control(several.evaluate(LABEL), moves, False, len(buttons))
    for patches in group.locator(PATCHES).all():
        buttons = patches.locator("button").all()
        yield Control("patches", _clicks(_some(buttons)), False, len(buttons))
    yield from _forms(group)


def _along(handle) -> list[tuple[str, Callable]]:
    """To both ends by key, and back to the start by typing it."""
    box = handle.locator("xpath=ancestor::*[contains(@class, 'widget-slider')]")
    readout = box.locator(".widget-readout")
    start = readout.text_content()

    def press(key: str, limit: str) -> bool:
        if handle.get_attribute("aria-valuenow") == handle.get_attribute(limit):
            return False
        handle.press(key)
        return True

    def back() -> bool:
        if readout.text_content() == start:
            return False
        readout.fill(start)
        readout.press("Enter")
        return True

    return [
        ("to its end", partial(press, "End", "aria-valuemax")),
        ("to its beginning", partial(press, "Home", "aria-valuemin")),
        (f"back to {start}", back),
    ]


def _each_option(choice) -> list[tuple[str, Callable]]:
    names = choice.locator("option").all_text_contents()
    start = choice.evaluate("choice => choice.selectedIndex")
    order = [*range(start + 1, len(names)), *range(start + 1)]
    return [(names[i], partial(choice.select_option, index=i)) for i in order]


def _some(buttons: list) -> list:
    """The corners at both ends, and two places between."""
    last = len(buttons) - 1
    return [buttons[i] for i in sorted({0, last // 3, 2 * last // 3, last})]


def _clicks(buttons: list) -> list[tuple[str, Callable]]:
    return [(f"click {i}", button.click) for i, button in enumerate(buttons, 1)]


def _forms(group) -> Iterator[Control]:
    """What is typed may count only when a button is pressed: one control of all."""
    texts = group.locator(TEXT).all()
    buttons = group.locator(BUTTON).all()
    if not texts and not buttons:
        return

    def submit(word: str) -> None:
        for text in texts:
            text.fill(word)
            text.press("Tab")
        for button in buttons:
            button.click()

    moves = [(f"submit {word!r}", partial(submit, word)) for word in WORDS]
    name = ", ".join(each.evaluate(LABEL) for each in (*texts, *buttons))
    yield Control(name, moves, False, len(texts) + len(buttons))
