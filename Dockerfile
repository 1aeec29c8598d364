# syntax=docker/dockerfile:1
# One image for flows, services (Prefect, MLflow) and training pods.
#
#   docker build --target cpu  -t omnimri:0.2.0      --build-arg COMMIT=$(git rev-parse HEAD) .
#   docker build --target cuda -t omnimri:0.2.0-cuda --build-arg COMMIT=$(git rev-parse HEAD) .
#
# Pin the base image with --build-arg PYTHON_BASE=python@sha256:...; the default names a version for builds without a known digest.
ARG PYTHON_BASE=python:3.11.14-slim-bookworm

# ---- Python environment. torch is installed first with its exact pin, so that no other package pulls in a different build.
# pip compiles packages, but not an editable one, and pods cannot write: each process would compile the sources anew.
FROM ${PYTHON_BASE} AS packages
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PATH=/opt/venv/bin:$PATH
WORKDIR /opt/omnimri
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt constraints-cluster.txt ./

FROM packages AS packages-cpu
# The default wheels of torch include CUDA: set this to PyTorch's index of CPU wheels for an image of a quarter of the size.
ARG TORCH_INDEX=
# hadolint ignore=DL3013
RUN pip install ${TORCH_INDEX:+--index-url "${TORCH_INDEX}"} "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --constraint constraints.txt --constraint constraints-cluster.txt --editable '.[cluster]' \
    && python -m compileall -q flows components model_core kernels

FROM packages AS packages-cuda
RUN pip install "$(grep '^torch==' constraints.txt)"
COPY . .
RUN pip install --constraint constraints.txt --constraint constraints-cluster.txt --editable '.[cluster]' \
    && python -m compileall -q flows components model_core kernels

# ---- base of both images
FROM ${PYTHON_BASE} AS runtime
ARG COMMIT=unknown
LABEL org.opencontainers.image.title="OmniMRI" \
      org.opencontainers.image.description="One vision-language model for the MRI workflow. Research software, not a medical device." \
      org.opencontainers.image.version="0.2.0" \
      org.opencontainers.image.revision="${COMMIT}"
# Disable telemetry and model downloads. (DL3064: TOKENIZERS_PARALLELISM is not a secret.)
# hadolint ignore=DL3064
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 HOME=/tmp OMNIMRI_COMMIT=${COMMIT} \
    DO_NOT_TRACK=1 PREFECT_SERVER_ANALYTICS_ENABLED=false DVC_NO_ANALYTICS=1 MLFLOW_DISABLE_TELEMETRY=true GX_ANALYTICS_ENABLED=false \
    HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
RUN groupadd --gid 10001 omnimri && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp omnimri
WORKDIR /opt/omnimri
ENTRYPOINT ["omnimri"]
CMD ["--help"]

# ---- CPU: services, flows, training without GPUs
FROM runtime AS cpu
COPY --from=packages-cpu /opt/venv /opt/venv
COPY --from=packages-cpu /opt/omnimri /opt/omnimri
USER 10001:10001
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s --retries=3 CMD ["omnimri", "--help"]

# ---- CUDA: training pods. The wheels contain the CUDA libraries; the node's container toolkit mounts the driver; Triton needs gcc.
FROM runtime AS cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*
COPY --from=packages-cuda /opt/venv /opt/venv
COPY --from=packages-cuda /opt/omnimri /opt/omnimri
USER 10001:10001
HEALTHCHECK --interval=60s --timeout=30s --start-period=30s --retries=3 CMD ["omnimri", "--help"]
