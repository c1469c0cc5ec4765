-- Users and permissions stand apart from the runs; both are backed up together.
CREATE DATABASE mlflow_auth;
