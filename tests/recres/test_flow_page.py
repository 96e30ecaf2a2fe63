"""The page of a recurrent residual network, stepped through in a real browser, from a file."""

from __future__ import annotations

import os
import re
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tensorlite as tl
from bench.browser import executable, visit
from bench.trace import step_times
from recres.models import recurrent_resnet
from tensorlite import trace
from tensorlite.autograd import Function


@pytest.fixture(scope="module", autouse=True)
def chromium() -> None:
    """Skip these tests where there is no browser; where CI runs, fail them."""
    if executable() is None:
        if os.environ.get("CI") == "true":
            pytest.fail("chromium is not installed: the pages would go untested")
        pytest.skip("chromium is not installed")
    if os.environ.get("CI") != "true":
        pytest.importorskip("playwright")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small network on two chunks of three frames."""
    rng = np.random.default_rng(0)
    model = recurrent_resnet(18, classes=5, width=2, context=3, skip="conv", rng=0)
    chunks = tl.Tensor(rng.standard_normal((2, 3, 24, 24, 3)))
    with trace.record("A small network", ledger=True) as tape:
        trace.frames(chunks)
        loss = tl.cross_entropy(model.to(dtype=np.float64)(chunks), np.array([1, 2]))
        loss.backward()
    path = tmp_path_factory.mktemp("page") / "flow.html"
    tape.save_html(path)
    return path


def where(page: Any) -> str:
    return page.inner_text("#where").partition(":")[0]


def test_it_opens_from_disk_and_asks_the_network_for_nothing(file: Path) -> None:
    with visit(file) as seen:
        seen.page.wait_for_timeout(500)
        assert seen.requests_outside == [] and seen.complaints == []
        assert [url for url in seen.requests if url.startswith("file:")] == [
            file.resolve().as_uri()]
        assert "A small network" in seen.page.inner_text("h1")
        assert seen.page.inner_text("#outline").count("not yet") > 5


def test_stepping_to_the_end_and_back(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        count = page.evaluate("Flow.tape.events.length")
        headings = []
        for step in range(1, count + 1):
            page.keyboard.press("ArrowRight")
            assert where(page) == f"{step} of {count}"
            headings.append(page.inner_text("#panel-step h2"))
        page.keyboard.press("ArrowRight")
        assert where(page) == f"{count} of {count}"
        assert headings == page.evaluate("""Flow.tape.events.map(event =>
            Flow.tape.ops[event.op ?? Flow.tape.tensors[event.tensor].op].op)""")
        # Of what has a gradient, all is known now.
        assert "not yet" not in page.inner_text("#outline")
        for step in range(count - 1, -1, -1):
            page.keyboard.press("ArrowLeft")
            assert where(page) == f"{step} of {count}"
        assert seen.complaints == []


def test_from_meeting_to_meeting(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        expected = page.evaluate("""Flow.tape.events.flatMap((event, i) =>
            event.pieces.some(piece => piece.before !== null) ? [i + 1] : [])""")
        assert len(expected) > 8
        count = page.evaluate("Flow.tape.events.length")
        for step in expected:
            page.keyboard.press("m")
            assert where(page) == f"{step} of {count}"
            assert "meet" in page.inner_text("#where")
        page.keyboard.press("Shift+M")
        assert where(page) == f"{expected[-2]} of {count}"
        assert seen.complaints == []


def test_a_block_opens_with_the_mouse_and_with_the_keyboard(file: Path) -> None:
    opened = "[...Flow.store.state.open]"
    with visit(file) as seen:
        page = seen.page
        assert page.evaluate(opened) == []
        box = page.locator("#graph canvas").first.bounding_box()
        place = page.evaluate("""() => {
            const node = Flow.graph.cy.nodes().filter(n => /block2/.test(n.id())).first();
            return node.renderedPosition();
        }""")
        page.mouse.click(box["x"] + place["x"], box["y"] + place["y"])
        seen.wait("Flow.store.state.open.has('block2')")
        # Its parts are now there to be seen, in both views.
        assert page.locator("#outline [data-key='module:block2.0']").is_visible()
        page.locator("#outline [data-key='module:block4']").focus()
        page.keyboard.press("ArrowRight")
        assert page.evaluate(opened) == ["block2", "block4"]
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.dataset.key") == "module:block4.0"
        page.keyboard.press("Enter")
        assert "block4.0" in page.evaluate(opened)
        page.keyboard.press("ArrowLeft")
        assert "block4.0" not in page.evaluate(opened)
        assert seen.complaints == []


def test_a_link_leads_to_the_same_view(file: Path) -> None:
    view = """({where: document.getElementById("where").innerText,
               panel: document.querySelector("[role=tab][aria-selected=true]").innerText,
               text: document.querySelector("[role=tabpanel]:not([hidden])").innerText,
               outline: document.getElementById("outline").innerText})"""
    with visit(file) as seen:
        for _ in range(9):
            seen.page.keyboard.press("m")
        seen.page.locator("#outline [data-key='module:block3']").focus()
        seen.page.keyboard.press("ArrowRight")
        seen.page.keyboard.press("2")
        before = seen.page.evaluate(view)
        link = seen.page.evaluate("Flow.link()")
        seen.wait("location.href === Flow.link()")  # and in the address
    with visit(file, link.partition("#")[2]) as seen:
        assert seen.page.evaluate(view) == before
        assert "block3" in before["outline"] and before["panel"].endswith("Arrays")
        seen.page.evaluate("location.hash = '#step=3'")
        seen.wait("Flow.store.state.step === 2")
        assert seen.complaints == []
    with visit(file, "step=99999&select=op:99999&open=nowhere&panel=what&frame=77") as seen:
        count = seen.page.evaluate("Flow.tape.events.length")
        assert where(seen.page) == f"{count} of {count}" and seen.complaints == []


def test_the_ledger_adds_up_to_the_gradient(file: Path) -> None:
    with visit(file, "panel=ledger") as seen:
        page = seen.page
        page.keyboard.press("End")
        blocks = page.evaluate("Flow.tape.ledgers.map(ledger => ledger.block)")
        assert {"block4.0", "block4.1"} <= set(blocks)
        norms = page.evaluate(
            "Object.fromEntries(Flow.tape.tensors.filter(t => t.grad)"
            ".map(t => [t.name, t.grad.norm]))")

        def row(kind: str) -> list[float]:
            return page.eval_on_selector_all(f"table.ledger tr.{kind} data",
                                             "all => all.map(data => Number(data.value))")

        for block in ("block4.1", "block3.0"):
            page.get_by_label("Paths of block").select_option(block)
            names = page.get_by_label("Gradient of").locator("option").all_inner_texts()
            for name in names[:: max(1, len(names) // 6)]:
                page.get_by_label("Gradient of").select_option(name)
                share, *total = row("total")
                whole_norm, *whole = row("whole")
                norm, *run = row("run")
                parts = page.eval_on_selector_all(
                    "table.ledger tbody tr", "rows => rows.map(row => "
                    "[...row.querySelectorAll('data')].map(data => Number(data.value)))")
                values = np.array([part[-len(run):] for part in parts])
                scale = np.abs(run).max()
                assert norm == pytest.approx(norms[name], rel=1e-12)
                assert whole_norm == pytest.approx(norm, rel=1e-12)
                assert share == pytest.approx(1, abs=1e-10)
                assert sum(part[-len(run) - 1] for part in parts) == pytest.approx(1, abs=1e-10)
                np.testing.assert_allclose(values.sum(axis=0), run, rtol=0, atol=1e-11 * scale)
                np.testing.assert_allclose(total, run, rtol=0, atol=1e-11 * scale)
                np.testing.assert_allclose(whole, run, rtol=0, atol=1e-11 * scale)
        assert seen.complaints == []


def test_every_panel_at_a_meeting(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        page.keyboard.press("m")
        for key, words in (("1", "before"), ("2", "gradient"), ("3", "trace.record(check=true)"),
                           ("4", "not yet"), ("5", "share")):
            page.keyboard.press(key)
            text = page.inner_text("[role=tabpanel]:not([hidden])").lower()
            assert words in text, (key, text)
        assert seen.complaints == []


def test_a_wrong_backward_is_shown_where_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = tl.Tensor(rng.standard_normal((2, 4, 4, 2)), requires_grad=True)
    weight = tl.Tensor(rng.standard_normal((3, 3, 2, 2)), requires_grad=True)
    gamma, beta = (tl.Tensor(rng.standard_normal(2), requires_grad=True) for _ in range(2))
    cotangent = rng.standard_normal((2, 4, 4, 2))
    with trace.record("A bug", check=True) as tape, trace.inject("norm-means"):
        y = tl.conv2d(x, weight, padding=1)
        y = tl.batch_norm(y, gamma, beta, np.zeros(2), np.ones(2)).tanh()
        (y * cotangent).sum().backward()
    tape.save_html(tmp_path / "bug.html")
    with visit(tmp_path / "bug.html", "panel=check") as seen:
        page = seen.page
        wrong = page.evaluate("""Flow.failures.map(failure =>
            Flow.tape.ops[Flow.tape.events[failure.step].op].op)""")
        assert wrong == ["batch_norm"]
        page.keyboard.press("End")
        page.locator("#panel-check [data-step]").first.click()
        assert "backward through batch_norm" in page.inner_text("#where")
        assert "✗" in page.inner_text("#panel-check")
        # A table of the derivatives themselves, with the analytic ones that are wrong.
        piece = next(p for e in tape.events for p in e.pieces
                     if p.check is not None and not p.check.right)
        text = page.inner_text("#panel-check")
        assert "analytic" in text and "numeric" in text
        assert piece.check is not None and piece.check.numeric[0] is not None
        assert f"{abs(piece.check.numeric[0]):.3f}"[:5] in text
        assert seen.complaints == []


@pytest.mark.parametrize("width, height", [
    (700, 900), (1024, 768), (1101, 700), (1280, 720), (1440, 810), (1600, 900), (1920, 1080)])
def test_nothing_sticks_out_sideways(file: Path, width: int, height: int) -> None:
    with visit(file, "step=90&panel=ledger", width, height) as seen:
        wide = seen.page.evaluate("""["html", "#panel-ledger .scroll"]
            .map(name => document.querySelector(name))
            .map(element => [element.scrollWidth, element.clientWidth])""")
        assert all(inner <= outer for inner, outer in wide) and seen.complaints == []


def test_it_plays_without_motion_where_motion_is_unwanted(file: Path) -> None:
    with visit(file, reduced_motion="reduce") as seen:
        seen.page.keyboard.press("Space")
        seen.wait("Flow.store.state.step >= 1")
        seen.page.keyboard.press("Space")
        moving = "document.getAnimations().filter(a => a.playState === 'running').length"
        assert seen.page.evaluate(moving) == 0 and seen.complaints == []


def test_a_step_is_drawn_within_100_ms(file: Path) -> None:
    everything = ",".join(f"block{s},block{s}.0,block{s}.1" for s in range(1, 5))
    assert statistics.median(step_times(file, f"open={everything}")) < 100


def page_of(tape: trace.Tape, tmp_path: Path) -> Path:
    tape.save_html(tmp_path / "flow.html")
    return tmp_path / "flow.html"


def boxes(page: Any, selector: str) -> list[list[float]]:
    """Left, top, right and bottom of what is shown."""
    return page.eval_on_selector_all(selector, """all => all.map(element => {
        const { left, top, right, bottom } = element.getBoundingClientRect();
        return [left, top, right, bottom]; }).filter(([l, t, r, b]) => r > l && b > t)""")


def apart(one: list[float], other: list[float]) -> bool:
    return one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


@pytest.mark.parametrize("width, height", [(1280, 720), (1440, 810), (1920, 1080)])
def test_at_first_the_whole_network_is_seen_and_then_the_step(
        file: Path, width: int, height: int) -> None:
    inside = """Flow.graph.cy.nodes().filter(node => {
        const box = node.renderedBoundingBox({ includeLabels: false });
        return box.x1 >= 0 && box.x2 <= Flow.graph.cy.width() && box.y1 >= 0
            && box.y2 <= Flow.graph.cy.height(); }).length === Flow.graph.cy.nodes().length"""
    with visit(file, "", width, height) as seen:
        seen.wait(inside)
        seen.page.keyboard.press("ArrowRight")
        seen.wait("Flow.graph.cy.zoom() >= 0.6")
        seen.wait("""(() => { const { y1, y2 } = Flow.graph.cy.nodes(".current").first()
            .renderedBoundingBox(); return y1 > 0 && y2 < Flow.graph.cy.height(); })()""")
        assert seen.complaints == []


def test_results_are_called_by_what_made_them(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        names = set()
        for step in range(1, page.evaluate("Flow.tape.events.length") + 1):
            page.evaluate(f"Flow.store.set({{ step: {step - 1} }})")
            names |= set(page.locator("#panel-step [data-select^=tensor]").all_inner_texts())
        unnamed = {name for name in names if "%" in name}
        assert len(unnamed) > 20
        assert all(re.fullmatch(r"\w+( of [\w.]+)? \(%\d+\)", name) for name in unnamed)


def test_many_walks_on_the_time_line(tmp_path: Path) -> None:
    x = tl.Tensor(2.0, requires_grad=True)
    with trace.record("Walks") as tape:
        for count in (1, 9, 1, 1, 20, 1, 1):
            y = x
            for _ in range(count):
                y = y * 1.5
            y.backward()
    with visit(page_of(tape, tmp_path), "", 1280, 720) as seen:
        assert len(boxes(seen.page, ".phase")) == 14
        # What is seen of a name: as far as its element, which cuts off what does not fit in a line.
        names = seen.page.evaluate("""[...document.querySelectorAll(".phase span")].flatMap(
            span => {
            const range = document.createRange();
            range.selectNodeContents(span);
            const [text, line] = [range.getBoundingClientRect(), span.getBoundingClientRect()];
            return text.top < line.bottom - 1 ? [[text.left, text.right]] : []; })""")
        assert len(names) >= 3
        ends = sorted(names)
        assert all(left[1] <= right[0] for left, right in zip(ends, ends[1:], strict=False))
        assert seen.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_playing_is_not_announced_step_by_step(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        page.get_by_label("Speed").select_option("10")
        page.evaluate("document.activeElement.blur()")
        page.keyboard.press("ArrowRight")
        assert "Step 1 of" in page.inner_text("#live")
        page.keyboard.press("Space")
        seen.wait("Flow.store.state.step >= 4")
        assert "Step 1 of" in page.inner_text("#live")
        page.keyboard.press("Space")
        step = page.evaluate("Flow.store.state.step")
        assert f"Step {step + 1} of" in page.inner_text("#live")


@pytest.mark.parametrize("allowed", [True, False])
def test_copy_link_copies_what_leads_here(file: Path, allowed: bool) -> None:
    with visit(file) as seen:
        page = seen.page
        page.evaluate("""allowed => {
            const clipboard = { writeText: text => { window.written = text;
                return allowed ? Promise.resolve() : Promise.reject(new Error("no")); } };
            Object.defineProperty(navigator, "clipboard", { value: clipboard });
            document.execCommand = () => { window.selected = getSelection().toString()
                || document.activeElement.value; return true; };
        }""", allowed)
        page.keyboard.press("m")
        page.click("#copy")
        seen.wait("document.getElementById('copy').innerText === 'Copied'")
        link = page.evaluate("allowed => allowed ? window.written : window.selected", allowed)
        assert link == page.evaluate("Flow.link()") and "#step=" in link
        seen.wait("document.getElementById('copy').innerText === 'Copy link'")
        assert page.locator("textarea").count() == 0


def test_the_grid_ends_with_the_input(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = recurrent_resnet(18, classes=3, width=2, context=3, rng=0)
    chunks = tl.Tensor(rng.standard_normal((2, 3, 24, 24, 3)), requires_grad=True)
    with trace.record("Input") as tape:
        trace.frames(chunks)
        tl.cross_entropy(model.to(dtype=np.float64)(chunks), np.array([1, 2])).backward()
    assert chunks.grad is not None
    with visit(page_of(tape, tmp_path), "panel=grid&step=9999") as seen:
        last = seen.page.locator("table.grid tbody tr").last
        assert last.locator("th").inner_text() == "chunks"
        norms = last.locator("data").evaluate_all("all => all.map(data => Number(data.value))")
        assert norms == pytest.approx(np.sqrt((chunks.grad**2).sum(axis=(0, 2, 3, 4))), rel=1e-12)


def test_each_step_of_a_loop_is_a_cell_of_the_input_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    w = tl.Tensor(rng.standard_normal((2, 2)), requires_grad=True)
    xs = [tl.Tensor(rng.standard_normal((1, 2)), requires_grad=True) for _ in range(3)]
    with trace.record("Loop") as tape:
        h = tl.Tensor(np.zeros((1, 2)))
        for t, x in enumerate(xs):
            trace.frame(x, t)
            h = ((x + h) @ w).tanh()
        h.sum().backward()
    with visit(page_of(tape, tmp_path), "panel=grid&step=9999") as seen:
        norms = seen.page.locator("table.grid tbody tr").last.locator("data").evaluate_all(
            "all => all.map(data => Number(data.value))")
        grads = [x.grad for x in xs if x.grad is not None]
        assert norms == pytest.approx([np.linalg.norm(grad) for grad in grads], rel=1e-12)


def test_a_gradient_that_is_zero_has_no_shares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = recurrent_resnet(18, classes=3, width=2, context=2, rng=0).to(dtype=np.float64)
    chunks = tl.Tensor(rng.standard_normal((2, 2, 24, 24, 3)))
    with trace.record("Zero", ledger=True) as tape:
        trace.frames(chunks)
        (tl.cross_entropy(model(chunks), np.array([1, 2])) * 0.0).backward()
    with visit(page_of(tape, tmp_path), "panel=ledger&step=9999") as seen:
        text = seen.page.inner_text("#panel-ledger")
        assert "not finite" not in text and "no shares" in text and seen.complaints == []


def test_parts_that_cancel_have_no_shares(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = recurrent_resnet(18, classes=3, width=2, context=2, rng=0).to(dtype=np.float64)
    chunks = tl.Tensor(rng.standard_normal((2, 2, 24, 24, 3)))
    with trace.record("Cancelling", ledger=True) as tape:
        trace.frames(chunks)
        tl.cross_entropy(model(chunks), np.array([1, 2])).backward()
    for ledger in tape.ledgers:
        for entry in ledger.parameters.values():
            entry["whole"] = {"norm": 0.0, "values": [0.0] * len(entry["where"])}
            for part in (*entry["parts"], entry["rest"]):
                part["share"] = None
    with visit(page_of(tape, tmp_path), "panel=ledger&step=9999") as seen:
        text = seen.page.inner_text("#panel-ledger")
        assert "not finite" not in text and "is zero: there are no shares" in text
        assert "–" in seen.page.inner_text("table.ledger tr.total") and seen.complaints == []


def test_what_is_not_finite_is_called_so(tmp_path: Path) -> None:
    x = tl.Tensor(np.array([0.0, 1.0, 4.0]), requires_grad=True)
    with np.errstate(all="ignore"), trace.record("Logarithm", check=True) as tape:
        (x.log() * x).sum().backward()
    with visit(page_of(tape, tmp_path), "step=9999") as seen:
        labels = seen.page.evaluate("Flow.graph.cy.elements().map(e => e.data('label'))")
        assert any("∇ not finite" in label for label in labels)
        assert "agree: " not in seen.page.inner_text("#panel-step")
        seen.page.keyboard.press("2")
        assert "1 elements" in seen.page.inner_text("#panel-arrays")
        assert seen.complaints == []


def test_a_recording_of_nothing(tmp_path: Path) -> None:
    with trace.record("Nothing") as tape:
        pass
    with visit(page_of(tape, tmp_path)) as seen:
        page = seen.page
        for key in ("ArrowRight", "End", "m", "Space", "Enter", "g", "2", "3", "4", "5", "1"):
            page.keyboard.press(key)
        assert page.is_disabled("#play") and page.locator("[data-step]").count() == 0
        assert where(page) == "0 of 0" and seen.complaints == []


def test_an_input_that_is_sent_nothing(tmp_path: Path) -> None:
    class Product(Function):
        @staticmethod
        def forward(ctx: Any, a: Any, b: Any) -> Any:
            ctx.save(a, b)
            return a * b

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            return grad * ctx.saved[1], None

    a, b = (tl.Tensor(value, requires_grad=True) for value in (2.0, 3.0))
    with trace.record("Forgotten", check=True) as tape:
        Product.apply(a, b).backward()
    with visit(page_of(tape, tmp_path), "step=9999") as seen:
        page = seen.page
        assert "A gradient is missing" in page.inner_text("#panel-step")
        page.get_by_role("button", name="Compare them").click()
        assert "nothing sent" in page.inner_text("#panel-check")
        assert "never computed" not in page.inner_text("#panel-check") and seen.complaints == []


def test_help_tells_every_key(file: Path) -> None:
    with visit(file) as seen:
        page = seen.page
        page.keyboard.press("?")
        keys = " ".join(page.locator("#help kbd").all_inner_texts()).replace(",", " ").split()
        assert set(keys) >= {"→", "n", "←", "b", "Home", "End", "Space", "m", "Shift+m", "1", "5",
                             "g", "Enter", "Escape", "?", "↑", "↓", "w", "s", "a", "d", "+", "−",
                             "0"}
        page.keyboard.press("Escape")
        assert page.evaluate("document.getElementById('help').open") is False


def test_on_a_small_screen_nothing_covers_anything(file: Path) -> None:
    with visit(file, "step=90", 400, 800) as seen:
        page = seen.page
        (legend,) = boxes(page, ".graph-legend")
        (tools,) = boxes(page, ".graph-tools")
        (outline,) = boxes(page, "#outline")
        (graph,) = boxes(page, "#graph")
        assert apart(legend, tools) and apart(outline, graph) and graph[2] - graph[0] == 400
        page.evaluate("document.getElementById('tabs').scrollIntoView()")
        (transport,) = boxes(page, ".transport")
        assert transport[1] == 0 and transport[3] < 80  # the buttons stay, and leave room
        assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_with_the_keyboard_alone(file: Path) -> None:
    """Tab comes to everything, and where it is can always be seen."""
    shown = """(() => { const at = document.activeElement;
        const styles = [getComputedStyle(at), getComputedStyle(at, "::after"),
            ...(at.firstElementChild ? [getComputedStyle(at.firstElementChild)] : [])];
        return [at.id || at.className || at.tagName,
            styles.some(s => s.outlineStyle === "solid" && parseFloat(s.outlineWidth) >= 3)
            || styles[1].borderTopStyle === "solid" && parseFloat(styles[1].borderTopWidth) >= 3];
        })()"""
    with visit(file, "step=90", 1280, 720) as seen:
        reached: list[str] = []
        while not reached or reached[-1] != "BODY":
            seen.page.keyboard.press("Tab")
            name, visible = seen.page.evaluate(shown)
            assert visible or name == "BODY", name
            reached.append(name)
        assert {"speed", "copy", "help-button", "first", "back", "play", "next", "meeting", "last",
                "slider", "tab-step", "panel-step", "SUMMARY"} <= set(reached)
        assert any("graph-canvas" in name for name in reached)


@pytest.mark.parametrize("across", ["layers", "frames"])
def test_a_weight_of_many_uses_is_drawn_without_thousands_of_dashes(
        across: str, tmp_path: Path) -> None:
    w = tl.Tensor(np.eye(2), requires_grad=True)
    with trace.record("A long chain") as tape:
        h = tl.Tensor(np.ones((1, 2)))
        for t in range(60):
            x = tl.Tensor(np.ones((1, 2)))
            if across == "frames":
                trace.frame(x, t)
                h = h * x
            h = (h @ w).tanh()
        h.sum().backward()
    with visit(page_of(tape, tmp_path)) as seen:
        styles = seen.page.evaluate("""Flow.graph.cy.edges(".parameter").map(edge => {
            const [from, to] = [edge.source().position(), edge.target().position()];
            return [Math.hypot(from.x - to.x, from.y - to.y), edge.style("line-style")]; })""")
        assert len(styles) == 60 and max(styles)[0] > 5000
        assert all(style == "solid" for length, style in styles if length > 2000)
        assert any(style == "dashed" for _, style in styles) and seen.complaints == []
