# Jetson Orin with JetPack 6, not yet run; on the board:
#   docker build -f docker/l4t.Dockerfile -t tinyllava-edge:l4t .
#   docker run --rm --runtime nvidia -v "$PWD":/work tinyllava-edge:l4t doctor
# The base has CUDA 12.6 with its compiler, cuDNN and TensorRT 10.3 with its Python part.
FROM nvcr.io/nvidia/l4t-jetpack:r36.4.0
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv g++ libgomp1 && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --system-site-packages /opt/tinyllava
COPY . /src
RUN cd /src && /opt/tinyllava/bin/python -m tinyllava_edge.install --cuda 87
RUN /opt/tinyllava/bin/pip install '/src[ort,llamacpp,packs]'
RUN useradd --create-home user && usermod -aG video user
ENV PATH=/opt/tinyllava/bin:$PATH
USER user
ENTRYPOINT ["tinyllava-edge"]
