/** Run the vectors outside a browser: their paths come as arguments, the result goes out as JSON. */
import { readFileSync } from "node:fs";
import process from "node:process";
import { runVectors } from "./open_vectors.ts";

const [cobblestone, keyturn] = process.argv
  .slice(2)
  .map((path) => JSON.parse(readFileSync(path, "utf8")));
const result = await runVectors({ cobblestone, keyturn });
process.stdout.write(`${JSON.stringify(result)}\n`, () => process.exit(0));
