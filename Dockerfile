# Not built yet: no container engine was at hand. Code in /code, no root at run time; data and results are mounted:
#
#   docker build --tag referring-segmentation .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume DATA:/data:ro --volume RUNS:/work \
#       referring-segmentation python /code/train.py --refer_data_root /data …
#
# RUNS, a folder of yours, receives checkpoints/ and models/. For a driver older than 580, give
# --build-arg BASE=nvidia/cuda:12.8.1-runtime-ubuntu24.04 --build-arg REQUIREMENTS="-r requirements.txt torch<2.11 torchvision<0.26".
ARG BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
FROM ${BASE}
ARG REQUIREMENTS="-r requirements-lock.txt"
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /code
COPY requirements.txt requirements-lock.txt ./
# Unquoted, since it is several arguments; the shell would take < for a redirection if it stood in the command itself.
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir ${REQUIREMENTS}
COPY . .
RUN useradd --uid 10001 --create-home runner && mkdir /work /data && chown runner /work
# Any user can be given by --user: files that packages keep go to /tmp, where everyone may write.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp HF_HOME=/work/.cache/huggingface PYTHONDONTWRITEBYTECODE=1
USER runner
WORKDIR /work
CMD ["python", "/code/train.py", "--help"]
