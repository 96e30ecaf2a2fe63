"""Makes the pictures of the step-through page in the README: `python docs/screenshots.py`.

They show the page that `python -m recres.flow` makes: at its start, where two paths meet, and its
grid of time and layers. Needs Playwright and a Chromium (`pip install 'recres[test]'`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from bench.browser import visit
from recres import flow

HERE = Path(__file__).resolve().parent
# The second place in the walk at which paths meet in the block with the temporal skip.
MEETING = """Flow.meetings.find(step => Flow.tape.events[step].pieces.some(piece =>
    piece.before && Flow.tape.ops[Flow.tape.events[step].op].module.startsWith("block4.0")))"""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flow.html"
        if flow.main(["--html", str(file)]):
            raise SystemExit("recres.flow failed")
        with visit(file, width=1500, height=1000) as seen:
            meeting = seen.page.evaluate(MEETING) + 1
        for name, fragment in (("start", ""), ("meeting", f"step={meeting}&open=block4"),
                               ("grid", "step=130&panel=grid")):
            with visit(file, fragment, width=1500, height=1000) as seen:
                seen.page.wait_for_timeout(500)
                seen.page.screenshot(path=HERE / f"flow-{name}.png")


if __name__ == "__main__":
    main()
