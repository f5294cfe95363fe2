"""Generated protobuf code, never edited: `nox -s protos`.

Here: what comes by the hundred thousand, on the protobuf runtime. In `messages`: what comes one at a
time, as betterproto2 dataclasses.
"""
