# The node proxy and nothing else: interpreter, libraries, package. image/assemble.py says what goes in and why.
#
#   docker build --build-arg VERSION=0.2.0 --build-arg REVISION=$(git rev-parse HEAD) --tag ztunnel-trio:0.2.0 .
#
# Behind a package index of your own, hand in how pip finds it: --secret id=pip.conf,src=/etc/pip.conf (and, where that
# file names one as /run/secrets/ca.crt, the index's root certificate: --secret id=ca.crt,src=FILE).
ARG BASE=debian:trixie-slim

FROM ${BASE} AS build
RUN apt-get -qq update \
 && apt-get -qq install --yes --no-install-recommends ca-certificates python3 python3-venv
WORKDIR /build
COPY pyproject.toml hatch_build.py README.md LICENSE ./
COPY image/ image/
COPY ztunnel_trio/ ztunnel_trio/
ARG REVISION
RUN --mount=type=secret,id=pip.conf,target=/etc/pip.conf --mount=type=secret,id=ca.crt \
    python3 -m image.assemble /root-of-the-image ${REVISION}

FROM scratch
ARG VERSION=unknown
ARG REVISION=unknown
COPY --from=build /root-of-the-image/ /
LABEL org.opencontainers.image.title="ztunnel-trio" \
      org.opencontainers.image.description="Istio ambient's node proxy in Python on Trio" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# Relative paths of settings begin here, as ./var/run/secrets/istio/root-cert.pem.
WORKDIR /
USER 0:1337
ENTRYPOINT ["/usr/local/bin/ztunnel-trio"]
