"""The error that means "what you gave cannot be used".

Commands print it as one line on stderr and exit with status 2. Everything a user can get wrong
in a file or an option is an `InputError`; anything else that is raised is our mistake.
"""

from __future__ import annotations


class InputError(ValueError):
    """A file or an option cannot be used; the message is one line and names it and the reason."""
