# Three images from one file. The default, on a machine with Docker:
#
#   docker build -t fairtune .                                          serving, for a CPU
#   docker build -t fairtune-training --target training --build-arg DEVICE=gpu .
#   docker build -t fairtune-tracking --target tracking .               mlflow server
#
# compose.yaml runs them together; docs/deploy.md tells how. Nothing here needs BuildKit, so that
# `fairtune image build` can build them through the API of any engine.

FROM python:3.11-slim AS base
# All of it runs as a user without rights and on a read-only root: only /tmp and volumes are written to.
RUN useradd --uid 10001 --user-group --create-home fairtune \
 && mkdir -p /var/lib/fairtune /artifacts && chown fairtune: /var/lib/fairtune /artifacts \
 && python -m venv --without-pip /opt/venv
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 \
    XDG_CACHE_HOME=/tmp/cache MPLCONFIGDIR=/tmp/matplotlib GIT_PYTHON_REFRESH=quiet
WORKDIR /var/lib/fairtune
COPY constraints.txt deploy/install.sh deploy/healthcheck.py /opt/fairtune/

FROM base AS tracking
RUN sh /opt/fairtune/install.sh 'mlflow[auth]' 'psycopg[binary]'
COPY deploy/tracking.sh deploy/basic_auth.ini /opt/fairtune/
USER fairtune
EXPOSE 5000
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "/opt/fairtune/healthcheck.py", "http://127.0.0.1:5000/health"]
ENTRYPOINT ["sh", "/opt/fairtune/tracking.sh"]

FROM base AS build
COPY pyproject.toml README.md LICENSE /source/
COPY fairtune /source/fairtune
RUN python -m venv /tmp/wheel \
 && /tmp/wheel/bin/pip wheel --quiet --no-deps --no-cache-dir --wheel-dir /dist /source

# What a registered model asks for, and no fairtune: a model brings its code along.
FROM base AS runtime
# cpu, or gpu: the wheels that carry CUDA.
ARG DEVICE=cpu
COPY deploy/serving.txt /opt/fairtune/
RUN sh /opt/fairtune/install.sh --device "$DEVICE" --requirement /opt/fairtune/serving.txt

FROM runtime AS training
ARG DEVICE=cpu
COPY --from=build /dist /opt/fairtune/dist
RUN sh /opt/fairtune/install.sh --device "$DEVICE" \
    "$(echo /opt/fairtune/dist/*.whl)[medical]" 'psycopg[binary]'
COPY configs /var/lib/fairtune/configs
RUN mkdir /var/lib/fairtune/cache && chown fairtune: /var/lib/fairtune/cache
ENV FAIRTUNE_CACHE=/var/lib/fairtune/cache
USER fairtune
CMD ["fairtune", "--help"]

FROM runtime AS serving
COPY --from=build /dist /opt/fairtune/dist
RUN sh /opt/fairtune/install.sh --no-deps /opt/fairtune/dist/*.whl
USER fairtune
EXPOSE 5001
HEALTHCHECK --interval=5s --timeout=5s --start-period=180s --retries=3 \
    CMD ["python", "/opt/fairtune/healthcheck.py", "http://127.0.0.1:5001/health"]
ENTRYPOINT ["fairtune"]
CMD ["serve", "--help"]
