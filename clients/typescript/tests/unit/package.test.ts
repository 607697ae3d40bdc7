/** The built package, as an application gets it, and the examples of its README. */
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { test } from "node:test";
import { build } from "esbuild";
import * as main from "keyturn";
import * as open from "keyturn/open";

const require = createRequire(import.meta.url);
const ROOT = join(import.meta.dirname, "../..");
const TSC = join(ROOT, "node_modules/typescript/bin/tsc");

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
  const folder = mkdtempSync(join(ROOT, "node_modules/.types-"));
  try {
    const program = 'import { Keyturn } from "keyturn";\nimport { open } from "keyturn/open";\n';
    writeFileSync(join(folder, "main.mts"), `${program}void [Keyturn, open];\n`);
    const options = "--noEmit --strict --target es2022 --lib es2022 --types node --module nodenext";
    const done = spawnSync(process.execPath, [TSC, ...options.split(" "), "main.mts"], {
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

/** What the examples take as given. */
const GIVEN = `
declare const keyturn: Keyturn, url: string, project: string, apiKey: string, newApiKey: string;
declare const pepper: string, size: number, stream: ReadableStream<Uint8Array>;
declare const destination: WritableStream<Uint8Array>, bar: { set(part: number): void };
declare const file: File, signal: AbortSignal;
`;

const README = readFileSync(join(ROOT, "README.md"), "utf8");
const [FIRST = "", ...EXAMPLES] = [...README.matchAll(/^```ts\n(.*?)^```$/gms)].map(
  ([, code]) => `${code}`,
);

/** Compile all files that `write` makes in a folder. */
function compile(compilerOptions: object, write: (folder: string) => void, base?: string): void {
  const folder = mkdtempSync(join(ROOT, "node_modules/.readme-"));
  try {
    write(folder);
    const config = { extends: base, compilerOptions, include: ["*.ts"] };
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
    execFileSync(process.execPath, [TSC, "-p", folder], { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    assert.fail(`${(error as { stdout?: string }).stdout ?? error}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("the first program of the README is complete, and compiles with its tsconfig.json", () => {
  const { compilerOptions } = JSON.parse(README.match(/^```json\n(.*?)^```$/ms)?.[1] ?? "{}");
  assert(compilerOptions.strict);
  assert.match(FIRST, /new Keyturn/);
  compile({ ...compilerOptions, noEmit: true }, (folder) => {
    writeFileSync(join(folder, "first.ts"), FIRST);
  });
});

test("the examples of the README compile", () => {
  assert(EXAMPLES.length >= 5);
  const write = (folder: string) => {
    EXAMPLES.forEach((code, at) => {
      const own = code.replace(/^import .*\n/gm, "");
      const imports = code.match(/^import .*\n/gm) ?? [];
      // What the example itself declares is not given.
      const given = GIVEN.replace(
        /declare const keyturn: Keyturn, /,
        /const keyturn =/.test(own)
          ? "declare const "
          : 'declare const keyturn: import("keyturn").Keyturn, ',
      );
      writeFileSync(
        join(folder, `example${at}.ts`),
        `${imports.join("")}${given}\nasync function example() {\n${own}\n}\nvoid example;\nexport {};\n`,
      );
    });
  };
  compile({ noUnusedLocals: false }, write, join(ROOT, "tsconfig.json"));
});
