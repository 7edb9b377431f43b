#!/usr/bin/env bash
# Backs a running stack up, destroys it, restores it, and proves by digests and counts that nothing is missing.
#
# usage: drill.sh [BIN_DIR]      BIN_DIR: built services and demo; without it they are built for release
#
# The stack is the demo's three services on PostgreSQL and S3 (SeaweedFS), with vectors in rag's folder. Decisions are made
# all the time until everything is killed and deleted. Backed up are
#
#   PostgreSQL  a base backup, and the log from then on as it is written, which a commit waits for
#   artifacts   a copy of every object (aws s3 sync)
#   vectors     a copy of rag's folder, while rag is stopped for it
#
# Told at the end: what of each would be lost (RPO) and how long until all of it served again (RTO).
set -euo pipefail

# shellcheck source=scripts/servers.sh
source "$(dirname "${BASH_SOURCE[0]}")/servers.sh"
cd "$root"
work="$root/.verdict/drill"
stack="$work/stack" backup="$work/backup"
abstracts=200
readonly searches=("boundary layer on a flat plate with heat transfer" "slipstream and lift of a wing" "supersonic flow past a cone")

step() { printf '\n── %s\n' "$*"; }
now() { date +%s.%N; }
seconds_between() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f", b - a }'; }

if [[ -e $work ]]; then
  "$root/scripts/servers.sh" stop "$work/postgres"
  "$root/scripts/servers.sh" stop "$work/s3"
  rm -rf "$work"
fi
mkdir -p "$stack" "$backup"
exec > >(tee "$work/log") 2>&1

"$root/scripts/tools.sh" test
"$root/scripts/models.py" >/dev/null
packages=$("$root/scripts/python_env.sh" drill)
export PATH="$tools:$PATH"
bin=${1:-}
if [[ -z $bin ]]; then
  echo "building the services (minutes the first time)"
  bin="${CARGO_TARGET_DIR:-$root/target}/release"
  cargo build --release --quiet -p model-registry -p predict -p rag -p verdict-demo
fi
postgres=$(postgres_bin)
# The drill destroys servers: only its own.
unset TEST_POSTGRES_URL TEST_S3_ENDPOINT

read -ra ports < <(free_ports 7)
readonly registry=127.0.0.1:${ports[0]} predict=127.0.0.1:${ports[3]} rag=127.0.0.1:${ports[5]}

demo() {
  "$bin/verdict-demo" "$@" --bin-dir "$bin" --data-dir "$stack" --abstracts "$abstracts" \
    --registry "$registry" --registry-admin "127.0.0.1:${ports[1]}" --registry-mlflow "127.0.0.1:${ports[2]}" \
    --predict "$predict" --predict-admin "127.0.0.1:${ports[4]}" --rag "$rag" --rag-admin "127.0.0.1:${ports[6]}"
}

pid_of() { cat "$stack/run/$1.pid" 2>/dev/null; }

# Ends what still runs; each by its pid.
end() {
  local pid
  for pid in "${writer:-}" "${receiver:-}"; do
    if [[ -n $pid ]]; then kill "$pid" 2>/dev/null || true; fi
  done
  demo down >/dev/null 2>&1 || true
  "$root/scripts/servers.sh" stop "$work/postgres" || true
  "$root/scripts/servers.sh" stop "$work/s3" || true
  if [[ -n ${wal:-} ]]; then rm -rf "$wal"; fi
}
trap end EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

aws() { PYTHONPATH="$packages" AWS_EC2_METADATA_DISABLED=true python3 -m awscli --endpoint-url "$AWS_ENDPOINT_URL_S3" "$@"; }
s3() { aws s3 "$@"; }

# Starts an S3 server and tells the services where it is.
start_s3() {
  unset TEST_S3_ENDPOINT
  TEST_POSTGRES_URL=none "$root/scripts/servers.sh" start "$work/s3"
  # shellcheck source=/dev/null
  source "$work/s3/env"
  export AWS_ENDPOINT_URL_S3=$TEST_S3_ENDPOINT AWS_ACCESS_KEY_ID=$TEST_S3_ACCESS_KEY
  export AWS_SECRET_ACCESS_KEY=$TEST_S3_SECRET_KEY AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
  export DEMO_ARTIFACT_STORE=s3://$TEST_S3_BUCKET/models
}

sql() { "$postgres/psql" -X -q -A -t -v ON_ERROR_STOP=1 -d "${TEST_POSTGRES_URL%/*}/$1" -c "$2"; }

# One line for each table: database, table, rows, digest of all rows.
tables() {
  local database table
  for database in registry predict; do
    for table in $(sql "$database" "SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"); do
      echo "$database $table $(sql "$database" "SELECT count(*) || ' ' || coalesce(md5(string_agg(md5(t::text), '' ORDER BY md5(t::text))), '-') FROM $table t")"
    done
  done
}

# One line for each object: SHA-256 of what is in it, and its key.
objects() {
  local copy="$work/objects"
  rm -rf "$copy"
  s3 sync --only-show-errors "$DEMO_ARTIFACT_STORE" "$copy"
  (cd "$copy" && find . -type f -print0 | sort -z | xargs -0 sha256sum)
  rm -rf "$copy"
}

files() { (cd "$1" && find . -type f -print0 | sort -z | xargs -0 sha256sum); }

# What rag finds and holds, without the times it took.
answers() {
  local query collection
  for collection in cranfield docs; do
    grpcurl -plaintext -d "{\"collection\": \"$collection\"}" "$rag" verdict.rag.v1.RagService/GetCollection
  done
  for query in "${searches[@]}"; do
    grpcurl -plaintext -d "{\"collection\": \"cranfield\", \"query\": \"$query\", \"limit\": 5}" "$rag" verdict.rag.v1.RagService/Search |
      python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["hits"], sort_keys=True))'
  done
}

# Decides until it is ended; a line for each decision that was acknowledged: its id and when.
decide() {
  local application body id
  application=$(python3 -c '
import json
first = json.load(open("crates/demo/data/credit-risk/applications.json"))[0]
print(json.dumps({k: {"text" if isinstance(v, str) else "number": v} for k, v in first.items()}))')
  while :; do
    body="{\"model\": \"credit-risk@champion\", \"features\": $application}"
    id=$(grpcurl -plaintext -max-time 5 -d "$body" "$predict" verdict.predict.v1.DecisionService/Decide 2>/dev/null |
      sed -n 's/.*"decisionId": "\([^"]*\)".*/\1/p') || continue
    if [[ -n $id ]]; then echo "$id $(now)" >>"$work/acknowledged"; fi
  done
}

step "Start PostgreSQL, S3 and the services; publish, decide, ingest, answer, swap"
"$root/scripts/servers.sh" start-durable "$work/postgres"
# shellcheck source=/dev/null
source "$work/postgres/env"
for database in registry predict; do sql postgres "CREATE DATABASE $database"; done
export DEMO_REGISTRY_DATABASE=${TEST_POSTGRES_URL%/*}/registry DEMO_PREDICT_DATABASE=${TEST_POSTGRES_URL%/*}/predict
start_s3
demo up >"$work/up.log" 2>&1 || { tail -20 "$work/up.log"; die "the stack did not start"; }
demo play >"$work/play.log" 2>&1 || { tail -20 "$work/play.log"; die "the story did not play"; }
: >"$work/acknowledged"
decide &
writer=$!

step "Back up PostgreSQL while decisions are made"
mkdir "$backup/wal"
"$postgres/pg_receivewal" -d "$TEST_POSTGRES_URL" --create-slot --slot=drill
"$postgres/pg_receivewal" -d "$TEST_POSTGRES_URL" --slot=drill --synchronous --no-loop -D "$backup/wal" >"$work/receivewal.log" 2>&1 &
receiver=$!
sql postgres "ALTER SYSTEM SET synchronous_standby_names = 'pg_receivewal'"
sql postgres "SELECT pg_reload_conf()" >/dev/null
for ((i = 0; i < 100; i++)); do
  [[ $(sql postgres "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'sync'") == 1 ]] && break
  sleep 0.1
done
((i < 100)) || die "nothing receives the log"
began=$(now)
"$postgres/pg_basebackup" -d "$TEST_POSTGRES_URL" -D "$backup/base" --checkpoint=fast
"$postgres/pg_verifybackup" --quiet "$backup/base"
echo "base backup of $(du -sh "$backup/base" | cut -f1) in $(seconds_between "$began" "$(now)") s, verified"

step "Back up artifacts"
began=$(now)
s3 sync --only-show-errors "$DEMO_ARTIFACT_STORE" "$backup/artifacts"
artifacts_at=$began
echo "$(find "$backup/artifacts" -type f | wc -l) objects, $(du -sh "$backup/artifacts" | cut -f1) in $(seconds_between "$began" "$(now)") s"

step "Back up vectors: rag stops for it"
answers >"$work/answers.before"
began=$(now)
pid=$(pid_of rag)
mapfile -d '' -t environment <"/proc/$pid/environ"
folder=$(readlink "/proc/$pid/cwd")
kill -TERM "$pid"
while [[ -d /proc/$pid ]]; do sleep 0.05; done
cp -a "$stack/rag" "$backup/vectors"
(cd "$folder" && exec env -i "${environment[@]}" "$bin/rag" serve >>"$stack/logs/rag.log" 2>&1) &
echo $! >"$stack/run/rag.pid"
disown
vectors_at=$began
for ((i = 0; i < 300; i++)); do
  grpcurl -plaintext "$rag" grpc.health.v1.Health/Check 2>/dev/null | grep -q '"SERVING"' && break
  sleep 0.1
done
((i < 300)) || die "rag did not come back"
echo "$(du -sh "$backup/vectors" | cut -f1) copied; rag was away for $(seconds_between "$began" "$(now)") s"
# Routes and models that were set by call, where there are any.
if [[ -f $stack/predict/serving.json ]]; then cp "$stack/predict/serving.json" "$backup/"; fi

step "Go on deciding for five seconds, then kill everything and delete all data"
sleep 5
kill "$writer" && wait "$writer" 2>/dev/null || true
writer=
disaster=$(now)
for name in rag predict model-registry; do kill -KILL "$(pid_of "$name")"; done
acknowledged=$(wc -l <"$work/acknowledged")
last=$(tail -1 "$work/acknowledged" | cut -d' ' -f2)
((acknowledged > 20)) || die "only $acknowledged decisions were made: the drill shows nothing"
# What is to come back, read from what is about to be destroyed.
tables >"$work/tables.before"
objects >"$work/objects.before"
password=$(sed -E 's,.*postgres:([^@]*)@.*,\1,' <<<"$TEST_POSTGRES_URL") port=$(sed -E 's,.*:([0-9]+)/.*,\1,' <<<"$TEST_POSTGRES_URL")
destroyed=$(now)
"$root/scripts/servers.sh" stop "$work/postgres"
"$root/scripts/servers.sh" stop "$work/s3"
wait "$receiver" 2>/dev/null || true
receiver=
rm -rf "$stack"
mkdir -p "$stack" "$work/postgres"
echo "$acknowledged decisions were acknowledged; PostgreSQL, S3 and the services' folders are gone"

step "Restore PostgreSQL: base backup, then the log to its end"
data=$(mktemp -d "${TMPDIR:-/tmp}/verdict-postgres-XXXXXX")
wal="$data.wal"
cp -a "$backup/base/." "$data"
cp -a "$backup/wal" "$wal"
# The last segment is not full: it is there under another name.
cat >>"$data/postgresql.auto.conf" <<CONF
restore_command = 'cp "$wal/%f" "%p" || cp "$wal/%f.partial" "%p"'
synchronous_standby_names = ''
CONF
touch "$data/recovery.signal"
chmod 700 "$data"
if [[ $(id -u) == 0 ]]; then chown -R postgres: "$data" "$wal"; fi
run_postgres "$work/postgres" "$data" "$port" ""
export TEST_POSTGRES_URL=postgres://postgres:$password@127.0.0.1:$port/postgres
for ((i = 0; i < 600; i++)); do
  [[ $(sql postgres "SELECT pg_is_in_recovery()") == f ]] && break
  sleep 0.1
done
((i < 600)) || die "PostgreSQL did not end its recovery"

step "Restore artifacts and vectors"
start_s3
s3 sync --only-show-errors "$backup/artifacts" "$DEMO_ARTIFACT_STORE"
cp -a "$backup/vectors" "$stack/rag"
if [[ -f $backup/serving.json ]]; then mkdir -p "$stack/predict" && cp "$backup/serving.json" "$stack/predict/"; fi

step "Compare before anything writes"
tables >"$work/tables.after"
objects >"$work/objects.after"
for what in tables objects; do
  diff -u "$work/$what.before" "$work/$what.after" || die "$what differ"
done
diff -u <(files "$backup/vectors") <(files "$stack/rag") || die "vectors differ"
echo "$(wc -l <"$work/tables.after") tables with $(awk '{rows += $3} END {print rows}' "$work/tables.after") rows and $(wc -l <"$work/objects.after") objects equal what was destroyed"
"$bin/model-registry" verify-audit --data-dir "$stack/model-registry" --database-url "$DEMO_REGISTRY_DATABASE" |
  tail -1

step "Start the services on it: predict fetches every model anew and verifies its digest"
demo up --as-is >"$work/up-again.log" 2>&1 || { tail -20 "$work/up-again.log"; die "the stack did not start again"; }
restored=$(now)
answers >"$work/answers.after"
diff -u "$work/answers.before" "$work/answers.after" || die "rag answers otherwise than before"
missing=0
while read -r id _; do
  grpcurl -plaintext -d "{\"decision_id\": \"$id\"}" "$predict" verdict.predict.v1.DecisionService/GetDecision >/dev/null 2>&1 || missing=$((missing + 1))
done <"$work/acknowledged"
((missing == 0)) || die "$missing of $acknowledged acknowledged decisions are missing"
echo "all $acknowledged acknowledged decisions are read back; searches and counts are as before"

step "Delete an object, and have it back from its versions (docs/runbooks/recover-object.md)"
aws s3api put-bucket-versioning --bucket "$TEST_S3_BUCKET" --versioning-configuration Status=Enabled
read -r digest file <<<"$(sort "$work/objects.after" | head -1)"
key=models/${file#./}
# Written anew: an object of before has no version that could be named.
s3 cp --only-show-errors "$backup/artifacts/$file" "s3://$TEST_S3_BUCKET/$key"
aws s3api delete-object --bucket "$TEST_S3_BUCKET" --key "$key" >/dev/null
if aws s3api head-object --bucket "$TEST_S3_BUCKET" --key "$key" >/dev/null 2>&1; then die "the object is there though it was deleted"; fi
marker=$(aws s3api list-object-versions --bucket "$TEST_S3_BUCKET" --prefix "$key" --query 'DeleteMarkers[0].VersionId' --output text)
aws s3api delete-object --bucket "$TEST_S3_BUCKET" --key "$key" --version-id "$marker" >/dev/null
aws s3api get-object --bucket "$TEST_S3_BUCKET" --key "$key" "$work/recovered" >/dev/null
[[ $(sha256sum "$work/recovered" | cut -d' ' -f1) == "$digest" ]] || die "what came back is another object"
echo "$key is back with the same SHA-256"

step "Result"
cat <<RESULT
RPO  PostgreSQL  0 of $acknowledged acknowledged decisions lost, the last $(seconds_between "$last" "$disaster") s before the end (a commit waits for the backup)
     artifacts   what was published within the $(seconds_between "$artifacts_at" "$disaster") s since their copy; nothing was
     vectors     what was ingested within the $(seconds_between "$vectors_at" "$disaster") s since their copy; nothing was
RTO  $(seconds_between "$destroyed" "$restored") s from the deletion to three services that serve
RESULT
