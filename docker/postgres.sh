#!/bin/sh
# Run once, by the image, on an empty data volume: a role and a database each for MLflow, Prefect and erasure requests,
# which no other role can open, and one more database for MLflow's users.
set -eu
psql --username "$POSTGRES_USER" --dbname postgres --no-psqlrc --quiet -v ON_ERROR_STOP=1 <<'SQL'
\set mlflow `cat /run/secrets/mlflow_db_password`
\set prefect `cat /run/secrets/prefect_db_password`
\set expunge `cat /run/secrets/expunge_db_password`
CREATE ROLE mlflow LOGIN PASSWORD :'mlflow';
CREATE ROLE prefect LOGIN PASSWORD :'prefect';
CREATE ROLE expunge LOGIN PASSWORD :'expunge';
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE expunge OWNER expunge;
REVOKE CONNECT ON DATABASE mlflow, mlflow_auth, prefect, expunge FROM PUBLIC;
SQL
