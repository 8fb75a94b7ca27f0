# A server on the CPU: `docker build -t foveate .`, `docker run -p 8000:8000 foveate` (docs/serving.md).
# Uses the locked versions. requirements/dev.txt pins the packages of the extra `serve`, and all of core.txt at the same
# versions (tests/test_packaging.py). It is used as a constraints file, so that no other packages are installed.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/foveate
ENV PATH=/opt/foveate/bin:$PATH

# PyPI's torch for Linux installs gigabytes of CUDA libraries. PyTorch's own index has a CPU build of the same version
# ("+cpu"), which satisfies the pin; with --no-deps this index is used for torch only.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements requirements
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep -oE '^torch==[^ ;]+' requirements/core.txt)"

# The wheel, as it is released. The build tools are not part of the environment that is copied.
COPY pyproject.toml README.md LICENSE ./
COPY examples examples
COPY recipes recipes
COPY src src
RUN python -m venv /opt/builder \
 && /opt/builder/bin/pip install -c requirements/core.txt hatchling \
 && /opt/builder/bin/pip wheel --no-deps --no-build-isolation -w dist .
RUN wheel=$(echo dist/foveate-*.whl) \
 && pip install -c requirements/dev.txt "${wheel}[serve]" \
 && pip check \
 && pip uninstall -y pip

FROM python:3.13-slim

LABEL org.opencontainers.image.title="foveate" \
      org.opencontainers.image.description="OpenAI-compatible server for multimodal models with fewer visual tokens" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/foveate /opt/foveate
RUN useradd --uid 10001 --create-home foveate
USER 10001
WORKDIR /home/foveate

# Nothing is downloaded unless the container is started with HF_HUB_OFFLINE=0.
ENV PATH=/opt/foveate/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

EXPOSE 8000
# A model of several GB takes a while to load; after that /health is 200 while requests are accepted.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# After SIGTERM, open requests have --drain seconds to finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["foveate", "serve", "--host", "0.0.0.0", "--port", "8000"]
