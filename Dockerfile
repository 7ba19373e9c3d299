# docker run -p 8000:8000 penstock                          the demo model
# docker run -p 8000:8000 -v ./model:/model penstock /model
FROM python:3.11-slim
RUN useradd --create-home penstock
WORKDIR /home/penstock/src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY penstock penstock
# --build-arg TORCH_OPTIONS="--index-url ..." takes a CPU-only build of torch, a tenth of the size.
ARG TORCH_OPTIONS=""
RUN pip install --no-cache-dir $TORCH_OPTIONS "$(grep '^torch==' constraints.txt)" \
 && pip install --no-cache-dir -c constraints.txt '.[plot]'
USER penstock
WORKDIR /home/penstock
EXPOSE 8000
# Inside a container loopback reaches nobody, so the server listens on all of its addresses.
ENTRYPOINT ["penstock", "serve", "--host", "0.0.0.0"]
