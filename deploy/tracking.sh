#!/bin/sh
# `mlflow server` with passwords. Secrets come from files, and never appear in a command line or an image.
set -eu
secret() {
  test -s "/run/secrets/$1" || { echo "no secret $1: make them with deploy/secrets.sh" >&2; exit 2; }
  cat "/run/secrets/$1"
}
PGPASSWORD=$(secret postgres_password)
MLFLOW_AUTH_ADMIN_PASSWORD=$(secret admin_password)
MLFLOW_FLASK_SERVER_SECRET_KEY=$(secret session_key)
export PGPASSWORD MLFLOW_AUTH_ADMIN_PASSWORD MLFLOW_FLASK_SERVER_SECRET_KEY
export MLFLOW_AUTH_ADMIN_USERNAME=admin MLFLOW_AUTH_CONFIG_PATH=/opt/fairtune/basic_auth.ini
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false  # jobs of the server's own, which fairtune has no use for
exec mlflow server --app-name basic-auth --host 0.0.0.0 --port 5000 --workers "${WORKERS:-2}" \
  --allowed-hosts "${ALLOWED_HOSTS:-tracking:5000,localhost:5000,127.0.0.1:5000}" \
  --backend-store-uri postgresql+psycopg://mlflow@postgres/mlflow \
  --artifacts-destination /artifacts "$@"
