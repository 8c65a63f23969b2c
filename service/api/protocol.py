"""HTTP/1.1 with a bound on the head of a request, and problems for what is no HTTP."""

from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.api.problems import malformed
from service.api.tracing import new_trace_id

HEAD_BYTES_MAX: Final = 64 * 1024
"""Request line and headers together; uvicorn alone keeps as much as it is sent."""


class BoundedHttp(HttpToolsProtocol):
    """uvicorn's protocol, which refuses a head that does not end.

    Counted in packets, for a body may begin in the one that ends the head: the packet in which the
    head begins is free, and so is the one that passes the bound.
    """

    _in_head = False
    _head_bytes = 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            if self._head_bytes > HEAD_BYTES_MAX:
                self.send_400_response(f"The request's head is over {HEAD_BYTES_MAX} bytes.")
                return
            self._head_bytes += len(data)
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        trace_id = new_trace_id()
        body = malformed(msg, trace_id)
        head = (
            "HTTP/1.1 400 Bad Request\r\n"
            "content-type: application/problem+json\r\n"
            f"content-length: {len(body)}\r\n"
            "x-should-retry: false\r\n"
            f"x-request-id: {trace_id}\r\n"
            "connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
