# recursia for Cloud TPU. From the root of the repository:
#   docker build --file docker/tpu.Dockerfile --tag IMAGE .
FROM python:3.11-slim
WORKDIR /recursia
COPY . .
RUN pip install --no-cache-dir --constraint requirements.txt ".[tpu]"
WORKDIR /work
ENTRYPOINT []
CMD ["recursia", "doctor"]
