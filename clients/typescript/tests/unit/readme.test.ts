/** The examples of the README have right types. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

const ROOT = join(import.meta.dirname, "../..");

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
    const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
    execFileSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8", stdio: "pipe" });
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
