#!/usr/bin/env bash
# Starts and stops the servers that tests talk to, on free ports of 127.0.0.1: PostgreSQL, SeaweedFS (S3) and moto (AWS
# Secrets Manager).
#
# usage: servers.sh start [DIR] | start-durable [DIR] | env [DIR] | stop [DIR] | postgres-bin
#
#   start         starts all and writes DIR/env (default .verdict/test-servers); prints what runs where
#   start-durable starts PostgreSQL alone, with commits on disk before they are acknowledged
#   env           prints DIR/env, for: eval "$(scripts/servers.sh env)"
#   stop          stops them by pid and removes what they kept
#   postgres-bin  prints the directory of PostgreSQL's server programs
#
# A server the environment already names (TEST_POSTGRES_URL, TEST_S3_ENDPOINT, TEST_SECRETS_MANAGER_ENDPOINT) is used as it is
# and not started.
# PostgreSQL runs without fsync unless it is started durable, and stop removes all data.
#
# Sourced, it gives its functions and does nothing.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools="${VERDICT_CACHE:-$HOME/.cache/verdict}/tools/bin"
readonly start_timeout_seconds=60

die() {
  echo "error: $*" >&2
  exit 1
}

postgres_bin() {
  local candidate
  for candidate in "${PGBIN:-}" $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -rV); do
    [[ -x $candidate/initdb && -x $candidate/postgres ]] && { echo "$candidate"; return; }
  done
  candidate=$(command -v initdb) || die "PostgreSQL's server is missing; run: scripts/tools.sh test"
  dirname "$(readlink -f "$candidate")"
}

# Prints as many free ports as asked for; all are held at once, so they differ.
free_ports() {
  python3 -c '
import socket, sys
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(int(sys.argv[1]))]
print(*(s.getsockname()[1] for s in held))' "$1"
}

# PostgreSQL refuses to run as root: there it runs as user postgres, in a directory that user can reach.
as_postgres() {
  if [[ $(id -u) == 0 ]]; then
    setpriv --reuid=postgres --regid=postgres --init-groups --reset-env -- env LC_ALL=C.UTF-8 "$@"
  else
    env LC_ALL=C.UTF-8 "$@"
  fi
}

# Starts PostgreSQL on a data directory, which belongs to whom it runs as. $4: further settings of the server.
run_postgres() {
  local dir=$1 data=$2 port=$3 settings=$4 bin
  bin=$(postgres_bin)
  echo "$data" >"$dir/postgres.data"
  # shellcheck disable=SC2024 # the log belongs to us, not to user postgres
  as_postgres "$bin/pg_ctl" -D "$data" -w -t "$start_timeout_seconds" -l "$data/server.log" -o \
    "-p $port -h 127.0.0.1 -c unix_socket_directories='' -c max_connections=300 $settings" \
    start >"$dir/pg_ctl.log" 2>&1 || { cat "$dir/pg_ctl.log" "$data/server.log" >&2; die "PostgreSQL did not start"; }
  head -1 "$data/postmaster.pid" >"$dir/postgres.pid"
  echo "PostgreSQL $("$bin/postgres" --version | grep -oE '[0-9.]+' | head -1) on port $port" >&2
}

# $2: further settings of the server.
start_postgres() {
  local dir=$1 bin data port password
  bin=$(postgres_bin)
  data=$(mktemp -d "${TMPDIR:-/tmp}/verdict-postgres-XXXXXX")
  echo "$data" >"$dir/postgres.data"
  password=$(python3 -c 'import secrets; print(secrets.token_hex(16))')
  read -r port < <(free_ports 1)
  (umask 077 && printf %s "$password" >"$data.password")
  if [[ $(id -u) == 0 ]]; then chown postgres: "$data" "$data.password"; fi

  as_postgres "$bin/initdb" -D "$data" -U postgres --pwfile="$data.password" --auth=scram-sha-256 -E UTF8 \
    --locale=C.UTF-8 --no-sync --no-instructions >"$dir/initdb.log" 2>&1 || { cat "$dir/initdb.log" >&2; die "initdb failed"; }
  rm -f "$data.password"
  run_postgres "$dir" "$data" "$port" "$2"
  echo "export TEST_POSTGRES_URL=postgres://postgres:$password@127.0.0.1:$port/postgres" >>"$dir/env"
}

start_seaweed() {
  local dir=$1 data access secret ports i
  [[ -x $tools/weed ]] || die "weed is missing; run: scripts/tools.sh test"
  data="$dir/seaweed"
  mkdir -p "$data"
  access=verdict-test
  secret=$(python3 -c 'import secrets; print(secrets.token_hex(16))')
  read -ra ports < <(free_ports 8)
  (umask 077 && cat >"$data/s3.json" <<JSON
{"identities": [{"name": "test", "credentials": [{"accessKey": "$access", "secretKey": "$secret"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
JSON
  )
  # Telemetry is on by default, and a put would create its bucket by default: both are switched off. Keys in the shell
  # would be taken for more of its users.
  env -u AWS_ACCESS_KEY_ID -u AWS_SECRET_ACCESS_KEY setsid "$tools/weed" -logdir="$data" server -dir="$data" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
    -master.telemetry=false -master.port="${ports[1]}" -master.port.grpc="${ports[2]}" \
    -master.volumeSizeLimitMB=64 -master.electionTimeout=1s \
    -volume.port="${ports[3]}" -volume.port.grpc="${ports[4]}" -volume.max=100 -volume.preStopSeconds=0 \
    -filer=true -filer.port="${ports[5]}" -filer.port.grpc="${ports[6]}" \
    -s3=true -s3.port="${ports[0]}" -s3.port.grpc="${ports[7]}" -s3.port.iceberg=0 -s3.port.lance=0 \
    -s3.autoCreateBucket=false -s3.config="$data/s3.json" >"$dir/seaweed.log" 2>&1 </dev/null 9>&- &
  echo $! >"$dir/seaweed.pid"
  for ((i = 0; i < start_timeout_seconds * 5; i++)); do
    if answers "http://127.0.0.1:${ports[0]}/status" && answers "http://127.0.0.1:${ports[5]}/?limit=1"; then break; fi
    kill -0 "$(cat "$dir/seaweed.pid")" 2>/dev/null || { tail -20 "$dir/seaweed.log" >&2; die "SeaweedFS did not start"; }
    sleep 0.2
  done
  echo "s3.bucket.create -name verdict-test" |
    "$tools/weed" shell -master="127.0.0.1:${ports[1]}.${ports[2]}" -filer="127.0.0.1:${ports[5]}.${ports[6]}" \
      >"$dir/bucket.log" 2>&1 || { cat "$dir/bucket.log" >&2; die "the bucket could not be created"; }
  cat >>"$dir/env" <<ENV
export TEST_S3_ENDPOINT=http://127.0.0.1:${ports[0]}
export TEST_S3_ACCESS_KEY=$access
export TEST_S3_SECRET_KEY=$secret
export TEST_S3_BUCKET=verdict-test
ENV
  echo "SeaweedFS (S3) on port ${ports[0]}" >&2
}

start_moto() {
  local dir=$1 packages port i
  packages=$("$root/scripts/python_env.sh" moto)
  read -r port < <(free_ports 1)
  PYTHONPATH="$packages" setsid python3 "$packages/bin/moto_server" -H 127.0.0.1 -p "$port" >"$dir/moto.log" 2>&1 </dev/null 9>&- &
  echo $! >"$dir/moto.pid"
  for ((i = 0; i < start_timeout_seconds * 5; i++)); do
    if answers "http://127.0.0.1:$port/moto-api/"; then break; fi
    kill -0 "$(cat "$dir/moto.pid")" 2>/dev/null || { tail -20 "$dir/moto.log" >&2; die "moto did not start"; }
    sleep 0.2
  done
  echo "export TEST_SECRETS_MANAGER_ENDPOINT=http://127.0.0.1:$port" >>"$dir/env"
  echo "moto (AWS Secrets Manager) on port $port" >&2
}

answers() {
  python3 -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$1" 2>/dev/null
}

# Kills the pid in FILE if it still is the program started for MARK (a path on its command line), and waits for its end.
stop_pid() {
  local file=$1 mark=$2 signal=$3 pid i
  [[ -f $file ]] || return 0
  pid=$(cat "$file")
  if [[ -r /proc/$pid/cmdline ]] && tr '\0' ' ' <"/proc/$pid/cmdline" | grep -qF -- "$mark"; then
    kill "-$signal" "$pid" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do
      kill -0 "$pid" 2>/dev/null || break
      sleep 0.1
    done
    kill -0 "$pid" 2>/dev/null && kill -KILL "$pid" 2>/dev/null
  fi
  rm -f "$file"
}

start() {
  local dir=$1 mode=$2 settings=
  [[ $mode == start-durable ]] || settings="-c fsync=off -c synchronous_commit=off -c full_page_writes=off"
  [[ ! -e $dir/env ]] || die "servers are running already ($dir/env); stop them with: scripts/servers.sh stop $dir"
  mkdir -p "$dir"
  trap 'stop "$dir"' EXIT
  : >"$dir/env"
  chmod 600 "$dir/env"
  if [[ -n ${TEST_POSTGRES_URL:-} ]]; then echo "PostgreSQL: TEST_POSTGRES_URL" >&2; else start_postgres "$dir" "$settings"; fi
  [[ $mode == start ]] || { trap - EXIT; return; }
  if [[ -n ${TEST_S3_ENDPOINT:-} ]]; then echo "S3: $TEST_S3_ENDPOINT" >&2; else start_seaweed "$dir"; fi
  if [[ -n ${TEST_SECRETS_MANAGER_ENDPOINT:-} ]]; then
    echo "Secrets Manager: $TEST_SECRETS_MANAGER_ENDPOINT" >&2
  else
    start_moto "$dir"
  fi
  trap - EXIT
}

stop() {
  local dir=$1 data
  [[ -d $dir ]] || return 0
  if [[ -f $dir/postgres.data ]]; then
    data=$(cat "$dir/postgres.data")
    [[ -f $dir/postgres.pid || ! -f $data/postmaster.pid ]] || head -1 "$data/postmaster.pid" >"$dir/postgres.pid"
    stop_pid "$dir/postgres.pid" "$data" QUIT
    rm -rf "$data" "$data.password"
  fi
  # SeaweedFS takes 20 seconds to end by itself and has nothing worth keeping.
  stop_pid "$dir/seaweed.pid" "$dir/seaweed" KILL
  stop_pid "$dir/moto.pid" moto_server TERM
  rm -rf "$dir"
}

[[ ${BASH_SOURCE[0]} == "$0" ]] || return 0

dir=${2:-$root/.verdict/test-servers}
case ${1:-} in
  start | start-durable) start "$dir" "$1" ;;
  env) cat "$dir/env" 2>/dev/null || die "no servers are running; start them with: scripts/servers.sh start" ;;
  stop) stop "$dir" ;;
  postgres-bin) postgres_bin ;;
  *)
    sed -n '5,11s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
