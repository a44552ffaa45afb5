"""HTTP/1.1 as bytes: a client that reads responses strictly and shows them as they came.

Python's own client is forgiving and hides what was on the wire; these tests are about just that.
"""
import json
import re
import socket
import time


class Response:
    def __init__(self, status, reason, headers, body, head):
        self.status, self.reason, self.headers, self.body, self.head = status, reason, headers, body, head

    def json(self):
        return json.loads(self.body)

    def error(self):
        """The error object; asserts OpenAI's shape."""
        parsed = json.loads(self.body)
        assert set(parsed) == {"error"}, parsed
        error = parsed["error"]
        assert set(error) == {"message", "type", "param", "code"}, error
        assert isinstance(error["message"], str) and error["message"], error
        assert isinstance(error["type"], str) and error["type"], error
        assert error["code"] is None or isinstance(error["code"], str), error
        assert error["param"] is None or isinstance(error["param"], str), error
        return error


class Wire:
    """One connection. Every header line, chunk and length is checked while it is read."""

    def __init__(self, daemon, timeout=60):
        self.socket = socket.create_connection(("127.0.0.1", daemon.port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.socket.close()

    def reset(self):
        """Ends the connection with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data if isinstance(data, bytes) else data.encode())
        return self

    def request(self, method, path, body=None, headers=(), version="1.1"):
        """Sends a request; body may be bytes, text, or an object for JSON."""
        lines = [f"{method} {path} HTTP/{version}", "Host: localhost", *headers]
        if body is not None:
            if not isinstance(body, (bytes, str)):
                body = json.dumps(body)
                lines.append("Content-Type: application/json")
            body = body if isinstance(body, bytes) else body.encode()
            lines.append(f"Content-Length: {len(body)}")
        self.send("\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b""))
        return self

    def more(self):
        data = self.socket.recv(65536)
        self.buffer += data
        return len(data) > 0

    def take(self, size):
        while len(self.buffer) < size:
            assert self.more(), f"the connection ended within {size} bytes: {self.buffer[:200]!r}"
        data, self.buffer = self.buffer[:size], self.buffer[size:]
        return data

    def line(self):
        while b"\r\n" not in self.buffer:
            assert self.more(), f"the connection ended within a line: {self.buffer[:200]!r}"
        line, self.buffer = self.buffer.split(b"\r\n", 1)
        assert b"\n" not in line and b"\r" not in line, line
        return line

    def response(self, head_only=False):
        """The next response; interim ones (100) are returned as such, without a body."""
        first = self.line()
        match = re.fullmatch(rb"HTTP/1\.1 (\d{3}) ([A-Za-z -]+)", first)
        assert match, first
        status, headers, head = int(match[1]), {}, [first]
        while True:
            line = self.line()
            if not line:
                break
            head.append(line)
            pair = re.fullmatch(rb"([A-Za-z0-9-]+): ?([\x20-\x7e]*)", line)
            assert pair, line
            name = pair[1].decode().lower()
            assert name not in headers, f"{name} is there twice"
            headers[name] = pair[2].decode()
        body = b""
        if status < 200 or status == 204 or head_only:
            assert status >= 200 or not headers
        elif "content-length" in headers:
            assert "transfer-encoding" not in headers
            body = self.take(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = b"".join(self.chunks())
        else:
            assert headers["connection"] == "close"
            while self.more():
                pass
            body, self.buffer = self.buffer, b""
        return Response(status, match[2].decode(), headers, body, b"\r\n".join(head))

    def head(self):
        """The head of a response whose body the test reads itself."""
        return self.response(head_only=True)

    def chunks(self):
        while True:
            size = self.line()
            assert re.fullmatch(rb"[0-9a-f]+", size), size
            data = self.take(int(size, 16))
            assert self.take(2) == b"\r\n"
            if not data:
                return
            yield data

    def ended(self, seconds=10):
        """True when the server has closed its side and sent nothing more."""
        self.socket.settimeout(seconds)
        try:
            return not self.more() and not self.buffer
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def quiet(self, seconds=0.2):
        """True when nothing arrives for a while."""
        self.socket.settimeout(seconds)
        try:
            return self.buffer == b"" and not self.socket.recv(1, socket.MSG_PEEK) and False
        except TimeoutError:
            return True
        finally:
            self.socket.settimeout(60)


def ask(daemon, method, path, body=None, headers=(), version="1.1"):
    with Wire(daemon) as wire:
        return wire.request(method, path, body, headers, version).response(method == "HEAD")


def wait_until(condition, seconds=20, what="the condition"):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"{what} did not come true within {seconds} s")
