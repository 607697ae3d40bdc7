// Bundle and minify the main entry, as an application does, and fail above the limit.
import { fileURLToPath } from "node:url";
import { build } from "esbuild";

const LIMIT_BYTES = 12_000;

const bundled = await build({
  absWorkingDir: fileURLToPath(new URL("..", import.meta.url)),
  entryPoints: ["dist/esm/index.js"],
  bundle: true,
  minify: true,
  format: "esm",
  platform: "neutral",
  target: "es2022",
  write: false,
});
const size = bundled.outputFiles[0].contents.length;
console.log(`keyturn: ${size} bytes minified, at most ${LIMIT_BYTES}`);
if (size > LIMIT_BYTES) {
  process.exitCode = 1;
}
