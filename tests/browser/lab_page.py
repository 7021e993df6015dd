"""A notebook opened in JupyterLab: run it, hear its kernel, look at its outputs."""

import base64
import io
import re
import time
from collections.abc import Callable

import numpy as np
from PIL import Image

from uss_utils import publishing

MOMENT = 5.0  # seconds that a busy browser may need to draw what it was sent
MESSAGES = ", ".join(
    f'[data-mime-type="application/vnd.jupyter.{kind}"]' for kind in ("stderr", "error")
)
GROUP = ".jp-Cell-outputArea > * > .jp-OutputArea-output > .jupyter-widgets"
# Answers to what was asked before listening began are not of interest.
LISTEN = r"""
async () => {
  const panel = jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
  const kernel = panel.sessionContext.session.kernel;
  await kernel.info;
  window.heard = {panel, sent: 0, open: new Set(), errors: []};
  kernel.anyMessage.connect((_, {msg, direction}) => {
    if (direction === 'send' && msg.channel === 'shell') {
      heard.sent += 1;
      heard.open.add(msg.header.msg_id);
    }
  });
  kernel.iopubMessage.connect((_, msg) => {
    const {header, content} = msg;
    if (header.msg_type === 'error') heard.errors.push(content.traceback.join('\n'));
    if (header.msg_type === 'stream' && content.name === 'stderr')
      heard.errors.push(content.text);
    if (header.msg_type === 'status' && content.execution_state === 'idle')
      heard.open.delete(msg.parent_header.msg_id);
  });
}
"""
# Views that every code cell of the model holds.
VIEWS = """
type => heard.panel.content.widgets.filter(cell => cell.model.type === 'code').map(
  cell => cell.model.outputs.toJSON().filter(out => type in (out.data || {})).length)
"""
# Everything drawn in a cell; a picture that cannot be decoded is an error.
PICTURES = """
async outputs => {
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const all = [];
  for (const img of outputs.querySelectorAll('img')) {
    await img.decode();
    if (!img.src.startsWith('blob:')) { all.push(img.src); continue; }
    const bytes = new Uint8Array(await (await fetch(img.src)).arrayBuffer());
    all.push(bytes.join());
  }
  for (const canvas of outputs.querySelectorAll('canvas')) all.push(canvas.toDataURL());
  for (const drawing of outputs.querySelectorAll('.jp-RenderedSVG'))
    all.push(drawing.innerHTML);
  return all;
}
"""


EARLY = "No such comm target registered: jupyter.widget.control"
COMM = re.compile(r"No such comm( target registered)?: [\w.-]+\s*$")


class LabPage:
    """A page of the browser that shows one notebook.

    Attributes:
        page: playwright's.
        console: what the browser complained of.
    """

    def __init__(self, page):
        self.page = page
        self.console: list[str] = []
        page.on("console", self._listen)
        page.on("pageerror", lambda error: self.console.append(str(error)))

    def _listen(self, message) -> None:
        if message.type == "error":
            place = message.location.get("url", "")
            self.console.append(f"{message.text} ({place})")

    def open(self, address: str) -> None:
        """Load JupyterLab with the notebook, and wait for its kernel."""
        self.page.goto(address)
        # The notebook's own indicator says idle before there is a kernel.
        bar = self.page.locator("#jp-main-statusbar")
        bar.get_by_text(re.compile(r"\| Idle$")).wait_for()
        self.page.evaluate(LISTEN)

    def start(self) -> None:
        """Run All Cells; returns at once, the page goes on by itself."""
        self.page.evaluate(
            "() => { jupyterapp.commands.execute('notebook:run-all-cells')"
            ".finally(() => { heard.done = true; }); }"
        )

    def finish(self, seconds: float) -> None:
        """Wait until the last cell is done, or one has failed."""
        self._wait("() => heard.done && heard.open.size === 0", seconds)

    def errors(self) -> list[str]:
        """What the kernel reported since the last call, by whatever code."""
        told = self.page.evaluate("() => heard.errors.splice(0)")
        told = [re.sub(r"\x1b\[[\d;]*m", "", text) for text in told]
        # A page that opens asks the kernel for widgets of an earlier visit. Where no
        # cell has imported ipywidgets yet, the kernel complains; nothing is lost.
        early = any(EARLY in text for text in told)
        return [text for text in told if not (early and COMM.match(text))]

    def views(self) -> list[int]:
        """Number of groups of widgets in each code cell, in order."""
        return self.page.evaluate(VIEWS, publishing.WIDGET)

    def outputs(self, cell: int):
        """The outputs of a code cell, scrolled to."""
        found = self.page.locator(".jp-CodeCell").nth(cell)
        found.scroll_into_view_if_needed()
        return found.locator(".jp-Cell-outputWrapper")

    def groups(self, outputs, views: int) -> list:
        """The groups of widgets among a cell's outputs, once all views are drawn."""
        found = outputs.locator(GROUP)
        if views:
            found.nth(views - 1).wait_for()
        return found.all()

    def make(self, move: Callable[[], object]) -> float | None:
        """Make a move, and wait until the kernel has answered it.

        Returns:
            Seconds until the answer; None when the move returned False: no move.
        """
        sent = self.page.evaluate("() => heard.sent")
        started = time.perf_counter()
        if move() is False:
            return None
        self._wait(f"() => heard.sent > {sent}")
        self._wait("() => heard.open.size === 0")
        return time.perf_counter() - started

    def picture(self, outputs, before: list[str] | None = None) -> list[str]:
        """All that is drawn in a cell, as text.

        Args:
            outputs: the cell's.
            before: an earlier picture; another one is waited for, but not long.
        """
        deadline = time.monotonic() + MOMENT
        while True:
            drawn = outputs.evaluate(PICTURES)
            if drawn != before or time.monotonic() > deadline:
                return drawn

    def messages(self, group) -> list[str]:
        """Errors that a group of widgets shows to the reader."""
        return group.locator(MESSAGES).all_inner_texts()

    def close(self) -> None:
        """Leave; the kernel ends on its own, other notebooks need its memory."""
        if not self.page.is_closed():
            self.page.evaluate(
                "() => { window.heard?.panel.sessionContext.shutdown(); }"
            )
            self.page.close()

    def _wait(self, condition: str, seconds: float = 60) -> None:
        self.page.wait_for_function(condition, timeout=1000 * seconds)


def alike(one: list[str], two: list[str]) -> bool:
    """Whether two pictures of a cell are the same but for a measured time or so."""
    return len(one) == len(two) and all(map(_alike, one, two))


def _alike(one: str, two: str) -> bool:
    if one == two:
        return True
    if not (one.startswith("data:image/") and two.startswith("data:image/")):
        return False
    first, second = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))))
        for text in (one, two)
    )
    if first.shape != second.shape:
        return False
    return (abs(first.astype(int) - second) > 32).mean() < 0.01
