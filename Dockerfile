# ai-cli in a container: docker build -t d0ttino . && docker run --rm d0ttino send "hello"
#
# Backends are reached by their servers' addresses and keys: docker run --rm -e OPENROUTER_API_KEY d0ttino send "hello"
# Mount a volume at /home/user to keep configuration, logs and installed plug-ins.
FROM python:3.13-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/d0ttino && /opt/d0ttino/bin/pip install --no-cache-dir .

FROM python:3.13-slim
RUN useradd --create-home user
# Plug-ins are installed beside the program: the user may write there, and owns nothing else.
COPY --from=build --chown=user /opt/d0ttino /opt/d0ttino
ENV PATH=/opt/d0ttino/bin:$PATH
USER user
WORKDIR /home/user
ENTRYPOINT ["ai-cli"]
CMD ["--help"]
