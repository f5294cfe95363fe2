"""gRPC's status codes, with the names and sentences operators know from the Rust ztunnel (tonic `Code`)."""

from enum import IntEnum
from typing import Final


class GrpcCode(IntEnum):
    """Status codes (grpc/doc/statuscodes.md)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16

    @property
    def title(self) -> str:
        """The code as log lines name it, e.g. `PermissionDenied`."""
        return "".join(word.capitalize() for word in self.name.split("_"))

    @property
    def sentence(self) -> str:
        """What the code means, in tonic's words (tonic/src/status.rs, `Code::description`)."""
        return _SENTENCES[self]


_SENTENCES: Final = {
    GrpcCode.OK: "The operation completed successfully",
    GrpcCode.CANCELLED: "The operation was cancelled",
    GrpcCode.UNKNOWN: "Unknown error",
    GrpcCode.INVALID_ARGUMENT: "Client specified an invalid argument",
    GrpcCode.DEADLINE_EXCEEDED: "Deadline expired before operation could complete",
    GrpcCode.NOT_FOUND: "Some requested entity was not found",
    GrpcCode.ALREADY_EXISTS: "Some entity that we attempted to create already exists",
    GrpcCode.PERMISSION_DENIED: "The caller does not have permission to execute the specified operation",
    GrpcCode.RESOURCE_EXHAUSTED: "Some resource has been exhausted",
    GrpcCode.FAILED_PRECONDITION: "The system is not in a state required for the operation's execution",
    GrpcCode.ABORTED: "The operation was aborted",
    GrpcCode.OUT_OF_RANGE: "Operation was attempted past the valid range",
    GrpcCode.UNIMPLEMENTED: "Operation is not implemented or not supported",
    GrpcCode.INTERNAL: "Internal error",
    GrpcCode.UNAVAILABLE: "The service is currently unavailable",
    GrpcCode.DATA_LOSS: "Unrecoverable data loss or corruption",
    GrpcCode.UNAUTHENTICATED: "The request does not have valid authentication credentials",
}
