"""The socket of a server."""

import socket

import uvicorn

from foveate.serving import TRANSPORT, listening_socket


def test_connections_send_every_piece_at_once():
    config = uvicorn.Config("no:app", port=0, log_level="critical", **TRANSPORT)
    with listening_socket(config) as listening:
        listening.listen()
        with socket.create_connection(listening.getsockname()):
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
