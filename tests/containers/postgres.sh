#!/bin/sh
set -eu
export PGDATA=/var/lib/postgresql/data PGUSER="$POSTGRES_USER"
if [ ! -s "$PGDATA/PG_VERSION" ]; then
  initdb --encoding UTF8 --locale C.UTF-8 --username "$POSTGRES_USER" --pwfile "$POSTGRES_PASSWORD_FILE" --auth-host scram-sha-256 --auth-local trust
  echo "host all all all scram-sha-256" >>"$PGDATA/pg_hba.conf"
  pg_ctl --wait --options "-c listen_addresses='' -k /var/run/postgresql" start
  export PGHOST=/var/run/postgresql
  createdb "$POSTGRES_DB"
  for script in /docker-entrypoint-initdb.d/*.sql; do
    psql --no-psqlrc -v ON_ERROR_STOP=1 --dbname "$POSTGRES_DB" --file "$script"
  done
  pg_ctl --wait stop
fi
exec postgres -c listen_addresses='*' -k /var/run/postgresql
