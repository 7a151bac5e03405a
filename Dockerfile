# distill on a CPU:      docker build -t distill .
#   the demo:            docker run --rm -v "$PWD/runs:/work/runs" distill run quickstart
#   an endpoint's key:   docker run --rm -e OPENAI_API_KEY -v "$PWD:/work" distill run my.yaml
# distill on a GPU:      docker build -t distill-cuda --build-arg BASE=nvidia/cuda:13.0.1-cudnn-runtime-ubuntu24.04 \
#                          --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#                        docker run --rm --gpus all -v "$PWD:/work" distill-cuda run my.yaml
# Any base with packages of Debian or Ubuntu will do whose Python is 3.11 or newer; bookworm has 3.11, which the tests use.
ARG BASE=debian:bookworm-slim
FROM ${BASE}

# The index that holds the build of torch: by default that for a CPU.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# What to install of distill: `.` is enough to ask endpoints, curate and export.
ARG DISTILL=.[train]

RUN apt-get update \
 && apt-get install -y --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*

ENV PATH=/opt/distill/bin:$PATH LANG=C.UTF-8 PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
COPY . /src
RUN python3 -m venv /opt/distill \
 && cd /src \
 && if [ "$DISTILL" != . ]; then pip install --index-url "$TORCH_INDEX" "$(sed -n 's/^\(torch==.*\)/\1/p' constraints.txt)"; fi \
 && pip install --constraint constraints.txt "$DISTILL" \
 && rm -rf /src

# Runs, recipes and the cache of models lie in what is mounted.
WORKDIR /work
ENV DISTILL_CACHE=/work/.cache
ENTRYPOINT ["distill"]
CMD ["--help"]
