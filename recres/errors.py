"""The error that means "what you gave cannot be used".

Commands print it as one line on stderr and exit with status 2. Everything a user can get wrong
in a file or an option is an `InputError`; anything else that is raised is our mistake.
"""

from __future__ import annotations

from tensorlite.io import one_line


class InputError(ValueError):
    """A file or an option cannot be used; the message is one line and names it and the reason.

    What a name from outside has that cannot be printed, such as a new line, is escaped in it.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))
