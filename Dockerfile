# Built with buildah on plain Debian 12 and 13, where it trains on a CPU; not on NVIDIA's images, and not run on a GPU.
# Code in /code, no root at run time; data and results are mounted:
#
#   docker build --tag referring-segmentation .
#   docker run --rm --gpus all --shm-size 8g --user "$(id -u):$(id -g)" --volume DATA:/data:ro --volume RUNS:/work \
#       referring-segmentation python /code/train.py --refer_data_root /data …
#
# RUNS, a folder of yours, receives checkpoints/ and models/. For a driver older than 580, give
# --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 --build-arg REQUIREMENTS="-r requirements.txt torch<2.11 torchvision<0.26".
# pip brings the libraries of CUDA, so a base without them does.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}
ARG REQUIREMENTS="-r requirements-lock.txt"
# Triton, which --compile uses, compiles C against Python's headers at run time.
RUN apt-get update \
    && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 python3-venv python3-dev g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /code
COPY requirements*.txt ./
# Unquoted, since it is several arguments; the shell would take < for a redirection if it stood in the command itself.
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir ${REQUIREMENTS}
COPY . .
# Readable for every user, whatever the umask of the checkout was.
RUN chmod -R a+rX . && useradd --uid 10001 --no-create-home runner && mkdir /work /data && chown runner /work
# Any user can be given by --user: files that packages keep go to /tmp, where everyone may write.
ENV PATH=/opt/venv/bin:$PATH HOME=/tmp HF_HOME=/work/.cache/huggingface PYTHONDONTWRITEBYTECODE=1
USER runner
WORKDIR /work
CMD ["python", "/code/train.py", "--help"]
