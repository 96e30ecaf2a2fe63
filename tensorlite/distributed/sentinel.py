"""The sentinel: a small process that says which of several processes has died.

When a process is killed, launchers kill the others at once, so none of them can be relied on to say
what has happened. Each holds a connection to this process instead, which the system closes however
its end comes about. The first that is closed without a farewell is the one that died: the sentinel
says so and ends, and by that all the others learn of it, on whichever machine they are.

Run as a script, by a path alone: it needs the standard library only. Those who connect must know a
token, and whoever else does is not listened to. Standard input is a pipe that whoever has started
it holds: if that one dies before all have connected, it ends, for they will never come.
"""

from __future__ import annotations

import selectors
import socket
import sys

PATIENCE = 60.0  # seconds until somebody has connected
LINE_SECONDS = 1.0  # that the rest of a line may take
LINE_BYTES = 10_000
FAREWELL, FAILED = "ended", "failed"  # what a process says that is done, or has said why it is not
ADVICE = "advice"  # before what is to be said of going on when one has died


def main(token: str, processes: int, host: str) -> None:
    """Listen on a port of `host` (all addresses: ""), which is printed, for so many processes,
    until one of them has died or all have ended."""
    selector = selectors.DefaultSelector()  # on Linux: in the order in which things happened
    listener = socket.create_server((host, 0), backlog=processes)
    selector.register(listener, selectors.EVENT_READ)
    selector.register(sys.stdin, selectors.EVENT_READ)
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    names: dict[socket.socket, str] = {}
    advice = ""
    while ready := selector.select(None if names else PATIENCE):
        for key, _ in ready:
            if key.fileobj is listener:
                connection = listener.accept()[0]
                connection.settimeout(LINE_SECONDS)
                selector.register(connection, selectors.EVENT_READ)
                continue
            if key.fileobj is sys.stdin:
                if processes:
                    return
                selector.unregister(sys.stdin)  # its own connection says the rest
                continue
            connection = key.fileobj  # type: ignore[assignment]
            word, _, text = _line(connection).partition(" ")
            if connection in names:
                if word == ADVICE:
                    advice = f"; {text}"
                    continue
                if word == FAILED:
                    return
                if word != FAREWELL:
                    print(f"error: {names[connection]} has died, and the others stop{advice}",
                          file=sys.stderr, flush=True)
                    return
                del names[connection]
                if not (names or processes):
                    return
            elif word == token:
                names[connection] = text
                processes -= 1
                if not processes:
                    selector.unregister(listener)
                    listener.close()
                continue
            selector.unregister(connection)
            connection.close()


def _line(connection: socket.socket) -> str:
    """A line from a connection, as far as it comes."""
    text = b""
    try:
        while len(text) < LINE_BYTES and (more := connection.recv(1)) and more != b"\n":
            text += more
    except OSError:
        return ""
    return text.decode(errors="replace").strip()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
