# NVIDIA cards on x86-64, not yet run:  docker build -f docker/cuda.Dockerfile -t tinyllava-edge:cuda .
#   docker run --rm --gpus all -v "$PWD":/work tinyllava-edge:cuda doctor
# ARCHITECTURES: 75 is a T4 or RTX 20, 86 an RTX 30, 89 an RTX 40, 120 an RTX 50 (CUDA 12.8 and newer).
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build
ARG ARCHITECTURES=75;80;86;89;90;120
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tinyllava
COPY . /src
RUN cd /src && /opt/tinyllava/bin/python -m tinyllava_edge.install --cuda "$ARCHITECTURES"
RUN /opt/tinyllava/bin/pip install '/src[gpu,llamacpp,packs]' 'onnxruntime-gpu[cuda,cudnn]'

FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update && apt-get install -y --no-install-recommends python3 libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/tinyllava /opt/tinyllava
RUN useradd --create-home user
ENV PATH=/opt/tinyllava/bin:$PATH
USER user
ENTRYPOINT ["tinyllava-edge"]
