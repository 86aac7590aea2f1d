# The service of tools/serve.py, for CPUs, with the weights that ship: docs/serving.md, "In a container".
#
#   docker build -t denoise .
#   docker run --rm -p 127.0.0.1:8000:8000 denoise

ARG BASE=debian:bookworm-slim

# Everything is installed into one folder here, and the engine compiled for several generations of processors.
FROM ${BASE} AS build
# Debian's mirrors keep no older version that one could name.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/denoise
ENV PATH=/opt/denoise/bin:${PATH}
WORKDIR /src
COPY requirements-common.txt requirements-cpu.txt requirements-serve.txt ./
RUN pip install --no-cache-dir -r requirements-common.txt -r requirements-cpu.txt -r requirements-serve.txt
COPY . .
RUN pip install --no-cache-dir --no-deps .
WORKDIR /
RUN python -m denoising.engine.build

# Only that folder goes on, to where there is no compiler.
FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin denoise
COPY --from=build /opt/denoise /opt/denoise
COPY tools/serve.py /opt/denoise/tools/serve.py
COPY LICENSE NOTICE /usr/share/doc/denoise/
ENV PATH=/opt/denoise/bin:${PATH} \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001
WORKDIR /tmp
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=10s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=8)"]
ENTRYPOINT ["python", "/opt/denoise/tools/serve.py", "--host", "0.0.0.0"]
