"""What the checks run inside a pod: `client.py get URL` prints a body, `client.py resolve NAME` addresses.

It exits with 1 and the reason where there is no answer.
"""

import socket
import sys
import urllib.request

SECONDS = 5


def main(question: str, what: str) -> None:
    try:
        if question == "get":
            with urllib.request.urlopen(what, timeout=SECONDS) as answer:
                sys.stdout.write(answer.read().decode())
        else:
            found = {entry[4][0] for entry in socket.getaddrinfo(what, None, type=socket.SOCK_STREAM)}
            sys.stdout.write("\n".join(sorted(str(address) for address in found)))
    except OSError as error:  # a refusal is a reset, a name that is not there an error of its own
        sys.exit(f"{what}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
