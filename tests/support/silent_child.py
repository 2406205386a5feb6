"""A child process that loads nothing, answers /health, and begins answers that it never goes on with.

It stands for a llama.cpp whose threads wait for each other: `engines.child_process.MODULE` is set to this module.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = {"choices": [{"index": 0, "delta": {"content": "Half"}, "finish_reason": None}]}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.answer(b'{"status": "ok"}')

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/apply-template":
            return self.answer(b'{"prompt": "Hello"}')
        if self.path == "/tokenize":
            return self.answer(b'{"tokens": [1, 2, 3]}')
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"data: " + json.dumps(TOKEN).encode() + b"\n\n")
        while request["messages"][-1]["content"] == "Go on":
            self.wfile.write(b"data: " + json.dumps(TOKEN).encode() + b"\n\n")
            threading.Event().wait(0.05)
        threading.Event().wait()

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def exit_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    sys.stdin.readline()
    threading.Thread(target=exit_with_parent, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    sys.stdout.write(json.dumps({"address": f"http://127.0.0.1:{server.server_port}"}) + "\n")
    sys.stdout.flush()
    server.serve_forever()
