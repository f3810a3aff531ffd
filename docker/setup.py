"""Runs once before the servers: buckets, tables, and the worker's account at MLflow. Again, it changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys

import boto3
from botocore.exceptions import ClientError


def buckets(names: list[str]) -> None:
    """Create what is missing; endpoint and key come from AWS_ENDPOINT_URL_S3 and AWS_SHARED_CREDENTIALS_FILE."""
    s3 = boto3.client("s3")
    there = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            try:
                s3.create_bucket(Bucket=name)
            except ClientError as e:
                sys.exit(f"bucket {name}: {e}")


def tables(uri: str) -> None:
    """MLflow's tables, created or brought to this version, before its worker processes open them all at once."""
    subprocess.run([sys.executable, "-m", "mlflow", "db", "upgrade", uri], check=True)


def account(name: str, password: str) -> None:
    """A user at MLflow that is no administrator; one that is there gets the present password."""
    from mlflow.server.auth import auth_config, store

    store.init_db(auth_config.database_uri)
    if not store.has_user(name):
        store.create_user(name, password)
    elif not store.authenticate_user(name, password):
        store.update_user(name, password=password)


if __name__ == "__main__":
    buckets(os.environ["S3_BUCKETS"].split())
    tables(os.environ["MLFLOW_BACKEND_STORE_URI"])
    account("worker", os.environ["MLFLOW_WORKER_PASSWORD"])
