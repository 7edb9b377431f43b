#!/usr/bin/env bash
# Run by the image of PostgreSQL once, on an empty volume: a database and a user for each service that has one.
set -euo pipefail

for name in registry predict; do
  password=$(<"/run/secrets/postgres-$name")
  psql --username "$POSTGRES_USER" --dbname "$POSTGRES_DB" --set ON_ERROR_STOP=1 --quiet \
    --set name="$name" --set password="$password" <<'SQL'
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name";
REVOKE ALL ON DATABASE :"name" FROM PUBLIC;
SQL
done
