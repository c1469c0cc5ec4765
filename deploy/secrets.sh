#!/bin/sh
# Make the secrets that compose.yaml mounts, once: sh deploy/secrets.sh [FOLDER]
# The folder is private; the files in it can be read by the containers' users, who see them alone.
set -eu
folder=${1:-secrets}
test ! -e "$folder" || { echo "$folder is there already" >&2; exit 2; }
random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
mkdir -m 700 "$folder"
for name in postgres_password admin_password session_key; do
  random >"$folder/$name"
done
printf '[mlflow]\nmlflow_tracking_username = admin\nmlflow_tracking_password = %s\n' \
  "$(cat "$folder/admin_password")" >"$folder/mlflow_credentials"
chmod 644 "$folder"/*
echo "made $folder/: the password of the user admin is in $folder/admin_password"
