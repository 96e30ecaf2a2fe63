"""The paper's tables: which runs make a cell, what came of them, and how that is shown."""
