# An image that serves. The bundled model on the CPU, for whoever has the key:
#   docker build -t shardwise .
#   docker run -p 8000:8000 -e SHARDWISE_API_KEY=secret shardwise
# A model of your own:            docker run -v /path/to/model:/model:ro ... shardwise /model -tp 2
# With GPUs, torch of another index:  docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
FROM python:3.11-slim AS build
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /src
COPY constraints.txt pyproject.toml README.md LICENSE ./
RUN python -m venv /opt/shardwise
# torch by itself, pinned and first: a range would fetch another, far larger build. A layer of its own: it seldom changes.
RUN /opt/shardwise/bin/pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple \
      -c constraints.txt "$(grep '^torch==' constraints.txt)"
COPY src src
RUN /opt/shardwise/bin/pip install --no-cache-dir -c constraints.txt .

FROM python:3.11-slim
RUN useradd --create-home --home-dir /srv/shardwise --uid 1000 shardwise
COPY --from=build /opt/shardwise /opt/shardwise
ENV PATH=/opt/shardwise/bin:$PATH PYTHONUNBUFFERED=1
USER shardwise
WORKDIR /srv/shardwise
EXPOSE 8000
# Ready, and not only up: a model takes its time to load. The port is the one that the server was told.
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s CMD ["python", "-c", \
  "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ.get(\"SHARDWISE_PORT\", 8000)}/ready', timeout=4)"]
# Others can reach 0.0.0.0: it starts with a key (SHARDWISE_API_KEY, or --api-key-file and a mount) or not at all.
ENTRYPOINT ["shardwise", "serve", "--host", "0.0.0.0"]
