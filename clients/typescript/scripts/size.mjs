// Bundle and minify the main entry, as an application does, and fail above the limits.
//
// What is needed to read files loads first; uploads, listings, links and rotations load when they
// are first used, where the bundler splits.
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const FIRST_LIMIT_BYTES = 12_000;
const ALL_LIMIT_BYTES = 21_000;

const bundled = await build({
  absWorkingDir: fileURLToPath(new URL("..", import.meta.url)),
  entryPoints: ["dist/esm/index.js"],
  outdir: "unused",
  bundle: true,
  splitting: true,
  minify: true,
  format: "esm",
  platform: "neutral",
  target: "es2022",
  write: false,
  metafile: true,
});

const { outputs } = bundled.metafile;
const first = new Set();
const add = (path) => {
  if (!first.has(path)) {
    first.add(path);
    for (const { kind, path: imported } of outputs[path].imports) {
      if (kind === "import-statement") {
        add(imported);
      }
    }
  }
};
add("unused/index.js");
const sum = (paths) => [...paths].reduce((bytes, path) => bytes + outputs[path].bytes, 0);
const [loaded, all] = [sum(first), sum(Object.keys(outputs))];
console.log(`keyturn: ${loaded} bytes minified (at most ${FIRST_LIMIT_BYTES}), ${all} in all`);
if (loaded > FIRST_LIMIT_BYTES || all > ALL_LIMIT_BYTES) {
  process.exitCode = 1;
}
