#!/bin/sh
# Makes the secrets that compose.yaml names, in docker/secrets, once; what is there stays.
# The files are readable for all, because each container reads them as a user of its own; the folder is not.
set -eu
folder=${1:-"$(dirname "$0")/secrets"}
mkdir -p "$folder"
cd "$folder"
chmod 700 .
umask 022

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

once() { # NAME CONTENT
  [ -s "$1" ] || printf '%s' "$2" > "$1"
}

once postgres_password "$(random)"
once mlflow_db_password "$(random)"
once prefect_db_password "$(random)"
once expunge_db_password "$(random)"
once mlflow_admin_password "$(random)"
once mlflow_worker_password "$(random)"
once mlflow_secret_key "$(random)"
once prefect_auth "expunge:$(random)"

# One S3 identity each: who may do what stands in s3_identities, the key pair in NAME_credentials.
if [ ! -s s3_identities ]; then
  identity() { # NAME ACTIONS
    key=$(random)
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$1" "$key" > "$1_credentials"
    printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": [%s]}' "$1" "$1" "$key" "$2"
  }
  {
    printf '{"identities": [\n  '
    identity s3_admin '"Admin"'
    printf ',\n  '
    identity s3_mlflow '"Read:mlflow", "Write:mlflow", "List:mlflow"'
    printf ',\n  '
    identity s3_dvc '"Read:dvc", "Write:dvc", "List:dvc"'
    printf '\n]}\n'
  } > s3_identities
fi
