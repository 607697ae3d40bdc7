// Bundle and minify both entries, as an application does, and fail above the limits.
//
// What is needed to read files loads first; uploads, listings, links and rotations load when they
// are first used, where the bundler splits.
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const FIRST_LIMIT_BYTES = 12_750;
const ALL_LIMIT_BYTES = 25_600;
const OPEN_LIMIT_BYTES = 19_250;

const bundle = async (entry) => {
  const bundled = await build({
    absWorkingDir: fileURLToPath(new URL("..", import.meta.url)),
    entryPoints: [entry],
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
  return bundled.metafile;
};

const { outputs } = await bundle("dist/esm/index.js");
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

// `keyturn/open` is for readers that need no gateway: nothing of the client may come with it.
const opening = await bundle("dist/esm/open/index.js");
const size = Object.values(opening.outputs).reduce((bytes, output) => bytes + output.bytes, 0);
console.log(`keyturn/open: ${size} bytes minified (at most ${OPEN_LIMIT_BYTES})`);
const brought = Object.keys(opening.inputs).filter((path) =>
  /\/(client|links|list|rotation|upload|write)\.js$/.test(path),
);
if (size > OPEN_LIMIT_BYTES || brought.length > 0) {
  console.error(`too large, or with parts of the client: ${brought.join(", ")}`);
  process.exitCode = 1;
}
