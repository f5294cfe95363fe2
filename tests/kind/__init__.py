"""A cluster made by kind: Istio's charts, this one, the workshop's applications and policies, the promises.

`run` does it; `nox -s kind` runs that where there is a Docker daemon. The tests here need none: they
render and validate what would be applied, run the applications on loopback, and follow the commands.
"""
