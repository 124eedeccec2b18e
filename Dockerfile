# Kimi Transcribe as an image.
#
#   docker build --tag kimi-transcribe .                              for NVIDIA GPUs, on vLLM's own image
#   docker build --tag kimi-transcribe:cpu --build-arg VARIANT=cpu .  for machines without one
#
# The steps are the Makefile's: deploy/install installs in both places.

ARG VARIANT=vllm
ARG VLLM_IMAGE=vllm/vllm-openai:v0.32.0
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


# Has vLLM and torch.
FROM ${VLLM_IMAGE} AS base-vllm


FROM ${PYTHON_IMAGE} AS base-cpu
# vLLM's CPU kernels are linked with libnuma1. Debian keeps no superseded versions, so it cannot be pinned.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*


# One of the two above, both pinned.
# hadolint ignore=DL3006
FROM base-${VARIANT}
ARG VARIANT

# Dependencies are a layer of their own, because the code changes more often.
WORKDIR /opt/kimi-transcribe
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY deploy/install deploy/
COPY app/__init__.py app/
COPY model/__init__.py model/
RUN PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1 COMPILE=--compile deploy/install python3 ${VARIANT}
COPY app app
COPY model model

# Not root, by number so that Kubernetes can tell. The home directory holds what is fetched and compiled: keep it in a volume.
RUN useradd --uid 10001 --create-home kimi && install --directory --owner kimi /home/kimi/.cache
USER 10001
ENV HOME=/home/kimi KIMI_HOST=0.0.0.0 KIMI_PORT=8000
VOLUME /home/kimi/.cache
EXPOSE 8000

# Healthy means ready: what waits for this container wants to send recordings. The first start of a large model fetches it, which
# may take half an hour; failures do not count until then. There is no need to be restarted for a dead engine: the process ends.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30m --retries=3 CMD ["python3", "-c", \
    "import os, urllib.request; urllib.request.urlopen('http://127.0.0.1:' + os.environ['KIMI_PORT'] + '/health/ready')"]

# No shell between: SIGTERM reaches the service, which lets the recordings under way finish.
ENTRYPOINT ["python3", "-m", "app"]
