# recursia for NVIDIA GPUs, whose driver the host has. From the root of the repository:
#   docker build --file docker/gpu.Dockerfile --tag IMAGE .
FROM python:3.11-slim
WORKDIR /recursia
COPY . .
RUN pip install --no-cache-dir --constraint requirements.txt ".[cuda]"
WORKDIR /work
ENTRYPOINT []
CMD ["recursia", "doctor"]
