"""How many cases were read, in the summary of a test run."""

from __future__ import annotations

import pytest

COUNTS: dict[str, int] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if COUNTS:
        each = ", ".join(f"{name} {count}" for name, count in COUNTS.items())
        terminalreporter.write_line(f"fuzzed: {sum(COUNTS.values())} cases ({each})")
