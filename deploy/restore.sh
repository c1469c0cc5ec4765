#!/bin/sh
# Bring back what deploy/backup.sh saved, in place of what is there: sh deploy/restore.sh FOLDER
# Then start the rest: docker compose up --wait
set -eu
folder=${1:?usage: sh deploy/restore.sh FOLDER}
for file in mlflow.dump mlflow_auth.dump artifacts.tar; do
  test -s "$folder/$file" || { echo "$folder/$file is missing" >&2; exit 2; }
done
docker compose stop tracking
docker compose up --wait postgres
for database in mlflow mlflow_auth; do
  docker compose exec -T postgres pg_restore --username mlflow --dbname "$database" --clean --if-exists \
    --exit-on-error <"$folder/$database.dump"
done
docker compose run --rm -T --no-deps --entrypoint sh tracking \
  -c 'find /artifacts -mindepth 1 -delete; tar -C /artifacts -xf -' <"$folder/artifacts.tar"
