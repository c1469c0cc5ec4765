#!/bin/sh
# Save the runs, the registry, the users and the artifacts of the running compose project: sh deploy/backup.sh FOLDER
# The databases come first: what is logged meanwhile is then an artifact too many, and never one too few.
set -eu
folder=${1:?usage: sh deploy/backup.sh FOLDER}
mkdir -p "$folder"
for database in mlflow mlflow_auth; do
  docker compose exec -T postgres pg_dump --username mlflow --format custom "$database" >"$folder/$database.part"
  mv "$folder/$database.part" "$folder/$database.dump"
done
docker compose exec -T tracking tar -C /artifacts -cf - . >"$folder/artifacts.part"
mv "$folder/artifacts.part" "$folder/artifacts.tar"
