-- Runs once, at the first start; the image itself creates the database `prefect`.
CREATE DATABASE mlflow OWNER omnimri;
