# ConvServe's container image. One file, two variants:
#   make image                 onnxruntime for CPUs, on Debian
#   make image VARIANT=cuda    onnxruntime-gpu, on NVIDIA's CUDA and cuDNN runtime
# Docker and Podman build it (podman build --format docker: OCI's own format has no HEALTHCHECK).
ARG BASE=docker.io/library/debian:bookworm-slim

# Python of the base's own distribution, so that its security updates are the base's; a base that has Python keeps its own.
# Bytecode is unchecked: a build that sets all file times to one (reproducibly) would make checked bytecode stale, and a
# read-only root could not replace it: a second of every start.
# hadolint ignore=DL3006
FROM ${BASE} AS python
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null || { \
      apt-get update && \
      apt-get install --yes --no-install-recommends python3 && \
      python3 -m compileall -q -f -j 0 --invalidation-mode unchecked-hash /usr/lib/python3*/ && \
      rm -rf /var/lib/apt/lists/* /var/cache/apt /var/cache/debconf /var/cache/ldconfig /var/log/*; \
    }

FROM python AS build
ARG VARIANT=cpu
# hadolint ignore=DL3008
RUN python3 -c 'import ensurepip' 2>/dev/null || { \
      apt-get update && apt-get install --yes --no-install-recommends python3-venv; \
    }
COPY requirements/serve.txt requirements/serve-cuda.txt /requirements/
# Two environments, so that the one that is shipped never held pip.
RUN case "${VARIANT}" in cpu) file=serve.txt;; cuda) file=serve-cuda.txt;; *) echo "VARIANT is cpu or cuda"; exit 1;; esac && \
    python3 -m venv /pip && \
    python3 -m venv --without-pip /opt/venv && \
    /pip/bin/pip --python /opt/venv/bin/python --disable-pip-version-check install --quiet \
      --no-cache-dir --no-compile --require-hashes -r "/requirements/${file}"
# Left out: test suites, and onnxruntime's tools for PyTorch and for model files, which serving never imports.
# Kept: bytecode of all the rest.
RUN set -e; \
    for packages in /opt/venv/lib/python3*/site-packages; do \
      rm -rf "${packages}"/onnxruntime/transformers "${packages}"/onnxruntime/quantization \
        "${packages}"/onnxruntime/tools "${packages}"/onnxruntime/datasets; \
      find "${packages}" -type d -name tests -prune -exec rm -rf {} +; \
    done; \
    /opt/venv/bin/python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/venv/lib
COPY LICENSE /srv/convserve/
COPY models /srv/convserve/models
COPY app /srv/convserve/app
RUN /opt/venv/bin/python -m compileall -q --invalidation-mode unchecked-hash /srv/convserve/app

FROM python
# `make image` adds version, revision, created, source and base: as --label, since podman's cache ignores changed arguments.
LABEL org.opencontainers.image.title="ConvServe" \
      org.opencontainers.image.description="Serves an image classifier, one self-describing ONNX file, over REST" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/venv /opt/venv
COPY --from=build /srv/convserve /srv/convserve
# glibc keeps up to 8 arenas per core, each with its own free memory; two are enough for a few threads.
ENV PATH=/opt/venv/bin:${PATH} PYTHONDONTWRITEBYTECODE=1 MALLOC_ARENA_MAX=2
WORKDIR /srv/convserve
# nobody's number, as in the distroless images: nothing on the file system belongs to it.
USER 65532:65532
EXPOSE 8000
# Plain sockets and no site packages: about 20 ms of CPU a probe, where urllib takes ten times that.
HEALTHCHECK --interval=5s --timeout=3s --start-period=10s --retries=3 CMD ["python3", "-ISc", \
  "import os, socket; s = socket.create_connection(('127.0.0.1', int(os.environ.get('CONVSERVE_PORT', 8000))), 2); s.sendall(b'GET /readyz HTTP/1.0\\r\\n\\r\\n'); raise SystemExit(b' 200 ' not in s.recv(32))"]
# Exec form: Python is process 1 and gets SIGTERM itself; it unreadies, drains, answers what it accepted and exits with 0.
ENTRYPOINT ["python3", "-m", "app"]
