// Compile src/ to dist/esm and dist/cjs, each with its own types.
//
// Two compilations, no bundler: both entries of one format share their modules, so that
// an error thrown by `keyturn/open` is an instance of the class that `keyturn` exports.
import { execFileSync } from "node:child_process";
import { rmSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

process.chdir(fileURLToPath(new URL("..", import.meta.url)));
rmSync("dist", { recursive: true, force: true });
for (const [format, type] of [
  ["esm", "module"],
  ["cjs", "commonjs"],
]) {
  execFileSync(
    process.execPath,
    ["node_modules/typescript/bin/tsc", "-p", `tsconfig.${format}.json`],
    {
      stdio: "inherit",
    },
  );
  writeFileSync(`dist/${format}/package.json`, `${JSON.stringify({ type, sideEffects: false })}\n`);
}
