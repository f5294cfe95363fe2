"""One of the workshop's services: says its name, and what the next one says.

NAME and, where there is a next one, UPSTREAM (a URL) are in the environment; it listens on PORT (8080).
"""

import json
import os
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hello(BaseHTTPRequestHandler):
    """Answers every GET."""

    def do_GET(self) -> None:
        body = {"name": os.environ["NAME"]}  # noqa: TID251  its settings
        if upstream := os.environ.get("UPSTREAM"):  # noqa: TID251
            with urllib.request.urlopen(upstream, timeout=5) as answer:
                body["upstream"] = json.load(answer)
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8080"))  # noqa: TID251
    ThreadingHTTPServer(("", port), Hello).serve_forever()
