# Any machine with a processor:  docker build -f docker/cpu.Dockerfile -t tinyllava-edge .
#   docker run --rm -v "$PWD":/work tinyllava-edge run nano /work/picture.jpg "What is this?"
FROM debian:bookworm-slim AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv g++ && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/tinyllava
COPY . /src
RUN cd /src && /opt/tinyllava/bin/python -m tinyllava_edge.install
RUN /opt/tinyllava/bin/pip install '/src[ort,llamacpp,packs]'

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends python3 libgomp1 && rm -rf /var/lib/apt/lists/*
COPY --from=build /opt/tinyllava /opt/tinyllava
RUN useradd --create-home user
ENV PATH=/opt/tinyllava/bin:$PATH
USER user
ENTRYPOINT ["tinyllava-edge"]
