"""Whether anybody answers at a cluster's address, asked within seconds.

Ray itself retries for more than five minutes where nobody listens, and then ends the process.
"""

import socket

ANSWER_SECONDS = 5
# HTTP/2's preface and an empty SETTINGS frame, RFC 9113 section 3.4: a gRPC server answers with its own.
_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))


def refuse_silence(address: str) -> None:
    """Ask before Ray does, within seconds. Raises OSError or ValueError where no Ray answers."""
    if address == "auto":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("an address is HOST:PORT, ray://HOST:PORT or auto")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_SECONDS) as line:
        line.settimeout(ANSWER_SECONDS)
        line.sendall(_GREETING)
        frame = line.recv(9)
    # The fourth byte of a frame is its type; 4 is SETTINGS.
    if len(frame) < 4 or frame[3] != 4:
        raise ValueError("something else than Ray answers there")
