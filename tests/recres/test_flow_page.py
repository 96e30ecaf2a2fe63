"""The page of a recurrent residual network, stepped through in a real browser, from a file."""

from __future__ import annotations

import os
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
        assert f"{abs(piece.check.numeric[0]):.3f}"[:5] in text
        assert seen.complaints == []


@pytest.mark.parametrize("width, height", [(1280, 720), (1920, 1080), (700, 900)])
def test_nothing_sticks_out_sideways(file: Path, width: int, height: int) -> None:
    with visit(file, "step=90&panel=ledger", width, height) as seen:
        wide = seen.page.evaluate(
            "[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert wide[0] <= wide[1] and seen.complaints == []


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
