-- Run once, at the first start; the image itself makes the database `prefect`.
CREATE DATABASE mlflow OWNER omnimri;
