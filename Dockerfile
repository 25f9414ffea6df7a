# An image that serves. The bundled model on the CPU, for whoever has the key:
#   docker build -t shardwise .
#   docker run -p 8000:8000 -e SHARDWISE_API_KEY=secret shardwise
# A model of your own:            docker run -v /path/to/model:/model:ro ... shardwise /model -tp 2
# Another port inside:            docker run -p 9000:9000 -e SHARDWISE_PORT=9000 ..., so that the health check knows it, too
# With GPUs, torch of another index:  docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --gpus all --shm-size 1g ..., as NCCL keeps its buffers in shared memory
FROM python:3.11-slim AS build
# For the compiled kernels; the image that serves is made of the stage below, which has none of it.
RUN apt-get update && apt-get install --no-install-recommends --yes g++ && rm -rf /var/lib/apt/lists/*
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt ./
# A variable and not a flag: it also holds for what builds the wheel.
ENV PIP_CONSTRAINT=/src/constraints.txt PIP_NO_CACHE_DIR=1
RUN python -m venv /opt/shardwise
# torch by itself, pinned and first: a range would fetch another, far larger build. A layer of its own: it seldom changes.
RUN /opt/shardwise/bin/pip install --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
      "$(grep '^torch==' constraints.txt)"
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY native native
COPY src src
RUN /opt/shardwise/bin/pip install .

FROM python:3.11-slim
RUN useradd --create-home --home-dir /srv/shardwise --uid 1000 shardwise
COPY --from=build /opt/shardwise /opt/shardwise
ENV PATH=/opt/shardwise/bin:$PATH PYTHONUNBUFFERED=1
USER shardwise
WORKDIR /srv/shardwise
EXPOSE 8000
# Ready, and not only up: a model takes its time to load. Not urllib, which would ask a proxy that the environment names.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", \
  "import http.client, os; c = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('SHARDWISE_PORT', 8000)), timeout=4); \
c.request('GET', '/ready'); raise SystemExit(c.getresponse().status != 200)"]
# Others can reach 0.0.0.0: it starts with a key (SHARDWISE_API_KEY, or --api-key-file and a mount) or not at all.
ENTRYPOINT ["shardwise", "serve", "--host", "0.0.0.0"]
