# A server on the CPU: `docker build -t foveate .`, `docker run -p 8000:8000 foveate` (docs/serving.md).
# Versions are those of the lock. requirements/dev.txt pins what the extra `serve` needs, and all of core.txt at the same
# versions (tests/test_packaging.py); it serves as constraints, so that nothing else of it is installed.
FROM python:3.13-slim AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN python -m venv /opt/foveate
ENV PATH=/opt/foveate/bin:$PATH

# PyPI's torch for Linux brings gigabytes of CUDA. PyTorch's own index has a build for CPUs of the same version ("+cpu"),
# which satisfies the pin; --no-deps, so that the index decides about nothing but torch.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY requirements requirements
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep -oE '^torch==[^ ;]+' requirements/core.txt)"

# The wheel, as it is released. What builds it stays out of the environment that is copied.
COPY pyproject.toml README.md LICENSE ./
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
      org.opencontainers.image.description="OpenAI's API for multimodal models that read fewer visual tokens" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/foveate /opt/foveate
RUN useradd --uid 10001 --create-home foveate
USER 10001
WORKDIR /home/foveate

# Nothing is downloaded unless the container is started with HF_HUB_OFFLINE=0.
ENV PATH=/opt/foveate/bin:$PATH PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1

EXPOSE 8000
# A model of several GB takes a while to load; after that /health is 200 while requests are taken.
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=3 \
  CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# SIGTERM lets open requests end for --drain seconds.
STOPSIGNAL SIGTERM
ENTRYPOINT ["foveate", "serve", "--host", "0.0.0.0", "--port", "8000"]
