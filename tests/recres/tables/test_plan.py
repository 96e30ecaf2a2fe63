"""Which cells the tables are made of: the paper's rows, its numbers, and the controls it lacks."""

from __future__ import annotations

import pytest

from recres.tables.plan import NUMBERS, make


def plan_of(numbers, truncate="none", pretrained=None):
    return make(numbers, truncate, 32, pretrained)


def test_the_papers_numbers():
    """Each number of the paper's tables stands where FACTS of the paper put it."""
    tables = {table.number: table for table in plan_of(NUMBERS).tables}
    numbers = {n: [[place.paper for place in row.places] for row in table.rows]
               for n, table in tables.items()}
    assert numbers[1] == [[0.236, 0.237], [0.239, 0.276], [0.309, 0.313], [0.403, 0.325],
                          [0.431, 0.434], [0.440, 0.493]]
    assert numbers[2] == [[0.265], [0.234], [0.231], [0.219], [None], [None]]
    assert numbers[3] == [[0.197], [0.219], [0.210], [0.219], [0.210], [None], [None]]
    assert numbers[4] == [[0.236], [0.197], [0.194], [0.209], [None], [None]]
    assert [row for row in numbers[5] if any(row)] == [
        [None, None, 0.141], [0.231, None, None], [0.270, 0.163, 0.120], [0.247, 0.142, 0.107],
        [0.216, 0.130, 0.086], [None, None, 0.066], [0.198, None, None]]


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("truncate", "pretrained"), [
    ("none", None), ("block3", None), ("block3", "block3"), ("none", "block3"), ("none", "block4"),
    ("block3", "block4")])
def test_every_cell_of_a_table_is_planned_and_no_other(number, truncate, pretrained):
    plan = plan_of([number], truncate, pretrained)
    (table,) = plan.tables
    named = {name for row in table.rows for place in row.places for name in place.cells}
    extra = set(plan.cells) - named
    assert named <= set(plan.cells)
    assert extra <= ({"none-frames"} if pretrained is None else set())
    assert table.reference in named
    if truncate == "block3" or pretrained == "block3":
        assert not [name for name in plan.cells if name.startswith("block4")]


def test_a_backbone_is_trained_before_the_cells_that_start_from_it():
    names = list(plan_of([1]).cells)
    assert names[0] == "none-frames"
    assert all("none-frames" not in plan_of([1], pretrained=stage).cells
               for stage in ("block3", "block4"))


def test_stages_that_nothing_has_trained_are_not_run_and_stay_in_the_table():
    plan = plan_of([1], "none", "block3")
    assert not [name for name in plan.cells if name.startswith("block4")]
    (table,) = plan.tables
    rows = [row for row in table.rows if row.label[0] == "block4"]
    assert len(rows) == 2
    assert all(row.note and not place.cells for row in rows for place in row.places)


def test_positions_speak_of_the_last_stage():
    assert {"conv-block1", "conv-block2", "conv-mid_block3", "conv-block3"} <= set(
        plan_of([2], "block3", "block3").cells)
    assert {"conv-mid_block4", "conv-block4"} <= set(plan_of([2]).cells)


def test_updates_see_the_same_number_of_frames():
    """Whatever the context, to less than a chunk."""
    for cell in plan_of([2, 3, 4, 5]).cells.values():
        if cell.budgeted:
            frames = cell.options["batch"] * cell.options["context"]
            assert 32 - cell.options["context"] < frames <= 32


def test_tables_share_the_cells_that_are_the_same_run():
    alone = sum(len(plan_of([number]).cells) for number in (2, 3, 4))
    assert len(plan_of([2, 3, 4]).cells) < alone
