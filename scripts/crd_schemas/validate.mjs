// Validates custom resources, given as a JSON array on standard input, against the schemas of their operators.
// Prints one line for each that does not hold, and ends with 1 if there is one. Run where the packages are installed.
import path from "node:path";
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";

const packages = {
  "external-secrets.io": "@kubernetes-models/external-secrets",
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
};

let failed = 0;
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const [group, version] = resource.apiVersion.split("/");
  const name = `${resource.kind} ${resource.metadata?.name}`;
  try {
    if (!packages[group]) throw new Error(`there is no schema of ${group}`);
    const file = path.join(process.cwd(), "node_modules", packages[group], group, version, "index.js");
    const models = await import(pathToFileURL(file));
    if (!models[resource.kind]) throw new Error(`there is no such kind in ${resource.apiVersion}`);
    new models[resource.kind](resource).validate();
  } catch (error) {
    failed += 1;
    console.log(`${name}: ${error.message.split("\n").join(" ")}`);
  }
}
process.exit(failed ? 1 : 0);
