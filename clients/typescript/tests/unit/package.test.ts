/** The built package, as an application gets it. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { build } from "esbuild";
import * as main from "keyturn";
import * as open from "keyturn/open";

const require = createRequire(import.meta.url);

test("ESM and CommonJS export the same", () => {
  assert.deepEqual(Object.keys(require("keyturn")).sort(), Object.keys(main).sort());
  assert.deepEqual(Object.keys(require("keyturn/open")).sort(), Object.keys(open).sort());
});

test("both entries throw errors of one class, in either format", () => {
  assert.equal(open.KeyturnError, main.KeyturnError);
  assert.equal(require("keyturn/open").KeyturnError, require("keyturn").KeyturnError);
});

test("CommonJS loads what is loaded on first use", async () => {
  const { Keyturn } = require("keyturn") as typeof main;
  const fetch = async () =>
    new Response('{"upload_id": "2f6c9a0e-0000-4000-8000-000000000000"}', { status: 201 });
  const options = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40), fetch };
  assert.equal((await new Keyturn(options).put("k", "x")).stored, true);
});

test("the types need no DOM: those of Node.js are enough", () => {
  const root = join(import.meta.dirname, "../..");
  const folder = mkdtempSync(join(root, "node_modules/.types-"));
  try {
    const program = 'import { Keyturn } from "keyturn";\nimport { open } from "keyturn/open";\n';
    writeFileSync(join(folder, "main.mts"), `${program}void [Keyturn, open];\n`);
    const tsc = join(root, "node_modules/typescript/bin/tsc");
    const options = "--noEmit --strict --target es2022 --lib es2022 --types node --module nodenext";
    const done = spawnSync(process.execPath, [tsc, ...options.split(" "), "main.mts"], {
      cwd: folder,
      encoding: "utf8",
    });
    assert.equal(done.stdout, "");
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("what is not used is not bundled", async () => {
  const bundled = await build({
    stdin: { contents: 'export { NotFoundError } from "keyturn"', resolveDir: import.meta.dirname },
    bundle: true,
    minify: true,
    format: "esm",
    platform: "neutral",
    target: "es2022",
    write: false,
  });
  const size = bundled.outputFiles[0]?.contents.length ?? 0;
  assert(size > 100 && size < 1500, `${size} bytes for one class of errors`);
});

test("the sources import no module of a runtime", async () => {
  const { readdir, readFile } = await import("node:fs/promises");
  const folder = new URL("../../src/", import.meta.url);
  const files = (await readdir(folder, { recursive: true })).filter((name) => name.endsWith(".ts"));
  assert(files.length > 15);
  for (const file of files) {
    const text = await readFile(new URL(file, folder), "utf8");
    for (const [, imported] of text.matchAll(/(?:from|import)\s*\(?\s*"([^"]+)"/g)) {
      assert.match(`${imported}`, /^\.\.?\//, file);
    }
  }
});
