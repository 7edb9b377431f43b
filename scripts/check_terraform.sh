#!/usr/bin/env bash
# Checks the Terraform code: format, validity, its tests, and that both environments can be planned and give the charts
# their values. Nothing is asked of AWS.
#
# usage: check_terraform.sh OUT          writes OUT/<environment>.json: what `terraform output -json chart_values` prints
#
# AWS's own provider is half a gigabyte from a registry that not every machine reaches: a stand-in takes its place, which
# knows the provider's schema and none of its own checks (scripts/terraform_schema). VERDICT_TERRAFORM_PROVIDER=registry
# validates and tests with the real one besides.
set -euo pipefail

root=$(cd "$(dirname "$0")/.." && pwd)
out=${1:?usage: check_terraform.sh OUT}
cache="${VERDICT_CACHE:-$HOME/.cache/verdict}"
command -v terraform >/dev/null || { echo "error: terraform is missing: install version 1.11 or newer" >&2; exit 1; }
export CHECKPOINT_DISABLE=1 TF_IN_AUTOMATION=1 TF_INPUT=0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$out"

# Installs the stand-in as a provider of its version, once for each version of the bindings and of itself.
stand_in() {
  local packages schemas digest platform version
  packages=$("$root/scripts/python_env.sh" deploy)
  schemas=$("$root/scripts/tools.sh" schemas)
  digest=$(cat "$root"/scripts/terraform_schema/*.py "$root/scripts/crd_schemas/package-lock.json" | sha256sum | cut -c1-12)
  schema="$cache/terraform/$digest"
  if [[ ! -e $schema/.complete ]]; then
    echo "reading the schema of AWS's provider out of its bindings" >&2
    rm -rf "$schema"
    mkdir -p "$schema"
    python3 "$root/scripts/terraform_schema/generate.py" "$schemas/node_modules/@cdktn/provider-aws" "$schema/schema.json" >"$schema/version"
    touch "$schema/.complete"
  fi
  version=$(cat "$schema/version")
  platform=$(terraform version -json 2>/dev/null | python3 -c 'import json, sys; print(json.load(sys.stdin)["platform"])')
  local plugin="$work/mirror/registry.terraform.io/hashicorp/aws/$version/$platform/terraform-provider-aws_v$version"
  mkdir -p "$(dirname "$plugin")"
  cat >"$plugin" <<SCRIPT
#!/usr/bin/env bash
export PYTHONPATH="$packages" VERDICT_TF_SCHEMA="$schema/schema.json" VERDICT_TF_COMPUTED="$root/terraform/tests/computed.json"
exec python3 "$root/scripts/terraform_schema/provider.py"
SCRIPT
  chmod +x "$plugin"
  cat >"$work/terraformrc" <<RC
provider_installation {
  filesystem_mirror {
    path = "$work/mirror"
  }
}
RC
  echo "terraform: the schema of hashicorp/aws $version, without the provider's own checks" >&2
}

# A copy with its state on this disk.
copy() {
  rm -rf "$1"
  cp -r "$root/terraform" "$1"
  rm -rf "$1/.terraform" "$1/.terraform.lock.hcl"
  printf 'terraform {\n  backend "local" {}\n}\n' >"$1/backend_override.tf"
}

with_stand_in() {
  TF_CLI_CONFIG_FILE="$work/terraformrc" terraform "$@"
}

TF_CLI_CONFIG_FILE=/dev/null terraform fmt -check -recursive -diff "$root/terraform"
stand_in
copy "$work/root"
cd "$work/root"
with_stand_in init -no-color >"$work/init.log" 2>&1 || { cat "$work/init.log" >&2; exit 1; }
with_stand_in validate -no-color
with_stand_in test -no-color
for environment in staging production; do
  # Applied to nothing: what comes of it is the outputs.
  with_stand_in apply -no-color -auto-approve -state="$work/$environment.tfstate" -var-file="env/$environment.tfvars" \
    >"$work/apply.log" 2>&1 || { cat "$work/apply.log" >&2; exit 1; }
  with_stand_in output -no-color -state="$work/$environment.tfstate" -json chart_values >"$out/$environment.json"
done

if [[ ${VERDICT_TERRAFORM_PROVIDER:-} == registry ]]; then
  copy "$work/registry"
  cd "$work/registry"
  export TF_CLI_CONFIG_FILE=/dev/null
  terraform init -no-color
  terraform validate -no-color
  terraform test -no-color
else
  echo "terraform: left out: AWS's own provider (VERDICT_TERRAFORM_PROVIDER=registry fetches it)" >&2
fi
