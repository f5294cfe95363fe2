"""The error families, named for the culprit.

| Family              | Means                                   | Handled by                        |
|---------------------|-----------------------------------------|-----------------------------------|
| `ConfigError`       | the operator's input is wrong           | exit 1 with the variable and value |
| `PeerBrokeProtocol` | they sent what the spec forbids         | answer with the code, close that peer |
| `WeBrokeProtocol`   | our bug against a core                  | crash the task, loud              |
| `Unusable`          | what we run on is not what we can run on | exit 1 with its name and version |
| `Unavailable`       | something we need is not there yet      | retry or refuse                   |
| `model.refusal.Refused` | a decision's refusal leaving the pure world | access log, status        |

`OSError` stays `OSError` until the access log turns it into text.
"""


class ZtunnelError(Exception):
    """Base of the families; never raised itself."""


class ConfigError(ZtunnelError):
    """The operator's input is wrong; the text names the variable and the value."""


class PeerBrokeProtocol(ZtunnelError):
    """A peer sent what its protocol forbids. `code` is the wire's error code where it has one."""

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


class WeBrokeProtocol(ZtunnelError):
    """A caller used a core against its rules: a bug of ours."""


class Unusable(ZtunnelError):
    """A library, or the interpreter, is none we can run on; the text names it and its version."""


class Unavailable(ZtunnelError):
    """Something needed is not there yet: a workload, a certificate, a resolver's answer."""
