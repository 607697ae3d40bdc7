/** Run the cases outside a browser: the scene comes in the environment, results go out as JSON. */
import process from "node:process";
import { run } from "./cases.ts";

const results = await run(JSON.parse(process.env["KEYTURN_SCENE"] ?? "{}"));
process.stdout.write(`${JSON.stringify(results)}\n`, () => process.exit(0));
