#!/bin/sh
# Install into /opt/venv at the pinned versions: install.sh [--device cpu|gpu] ARGUMENTS OF `uv pip install`...
# uv knows where the CPU builds of PyTorch are. It leaves no trace in the image's layer.
set -eu
backend=""
if [ "$1" = --device ]; then
  case "$2" in
    cpu) backend="--torch-backend=cpu" ;;
    gpu) ;;
    *) echo "DEVICE must be cpu or gpu, got '$2'" >&2; exit 2 ;;
  esac
  shift 2
fi
export SSL_CERT_FILE="${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt}"
python3 -m venv /tmp/uv
/tmp/uv/bin/pip install --quiet --no-cache-dir --disable-pip-version-check -c /opt/fairtune/constraints.txt uv
/tmp/uv/bin/uv pip install --quiet --no-cache --compile-bytecode --python /opt/venv/bin/python \
  --constraint /opt/fairtune/constraints.txt $backend "$@"
rm -rf /tmp/uv
