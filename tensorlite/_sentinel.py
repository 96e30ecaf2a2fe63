"""The sentinel: a small process that says which of several processes has died.

When a process is killed, launchers kill the others at once, so none of them can be relied on to say
what has happened. Each holds a connection to this process instead, which the system closes however
its end comes about. The first that is closed without a farewell is the one that died: the sentinel
says so and ends, and by that all the others learn of it, on whichever machine they are.

Run as a script, with a token that those who connect must know: it needs the standard library only.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys

PATIENCE = 60.0  # seconds until somebody has connected
FAREWELL, FAILED = "ended", "failed"  # what a process says that is done, or has said why it is not
SAID = b"!"  # to the others, before the end, where it is known why there is one
ADVICE = "advice"  # before what is to be said of going on when one has died


def main(token: str) -> None:
    """Listen on a port, which is printed, until one has died or all have ended."""
    selector = selectors.DefaultSelector()  # on Linux: in the order in which things happened
    listener = socket.create_server(("", 0))
    selector.register(listener, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    names: dict[socket.socket, str] = {}
    advice = ""
    while ready := selector.select(None if names else PATIENCE):
        for key, _ in ready:
            if key.fileobj is listener:
                connection = listener.accept()[0]
                connection.settimeout(PATIENCE)
                found, _, name = _line(connection).partition(" ")
                if found == token:
                    names[connection] = name
                    selector.register(connection, selectors.EVENT_READ)
                else:
                    connection.close()
                continue
            connection = key.fileobj  # type: ignore[assignment]
            word, _, text = _line(connection).partition(" ")
            if word == ADVICE:
                advice = f"; {text}"
                continue
            if word != FAREWELL:
                if word != FAILED:
                    print(f"error: {names[connection]} has died, and the others stop{advice}",
                          file=sys.stderr, flush=True)
                for other in names:
                    with contextlib.suppress(OSError):  # the one that has died
                        other.sendall(SAID)
                return
            selector.unregister(connection)
            del names[connection]
            if not names:
                return


def _line(connection: socket.socket) -> str:
    """A line from a connection, as far as it comes."""
    text = b""
    try:
        while not text.endswith(b"\n") and (more := connection.recv(1)):
            text += more
    except OSError:
        return ""
    return text.decode(errors="replace").strip()


if __name__ == "__main__":
    main(sys.argv[1])
