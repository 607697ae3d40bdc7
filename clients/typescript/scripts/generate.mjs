// Write src/openapi.ts, the types of the gateway's HTTP API, from openapi.json.
//
// With --check, compare instead and exit with 1 if the committed file is out of date.
import { readFileSync, writeFileSync } from "node:fs";
import openapiTS, { astToString } from "openapi-typescript";

const contract = new URL("../../../workers/keyturn_workers/gateway/openapi.json", import.meta.url);
const target = new URL("../src/openapi.ts", import.meta.url);
const header =
  "// Generated from workers/keyturn_workers/gateway/openapi.json by `npm run generate`. Do not edit.\n\n";

const generated = header + astToString(await openapiTS(contract, { alphabetize: true }));
if (process.argv.includes("--check")) {
  if (readFileSync(target, "utf8") !== generated) {
    console.error("src/openapi.ts differs from openapi.json: run `npm run generate`");
    process.exitCode = 1;
  }
} else {
  writeFileSync(target, generated);
}
