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
declare const pepper: string, size: number, bytes: Uint8Array, stream: ReadableStream<Uint8Array>;
declare const destination: WritableStream<Uint8Array>, bar: { set(part: number): void };
declare const file: File, signal: AbortSignal;
declare const process: { env: { ACME_API_KEY?: string } };
`;

test("the examples of the README compile", () => {
  const readme = readFileSync(join(ROOT, "README.md"), "utf8");
  const examples = [...readme.matchAll(/^```ts\n(.*?)^```$/gms)].map(([, code]) => `${code}`);
  assert(examples.length >= 5);
  const folder = mkdtempSync(join(ROOT, "node_modules/.readme-"));
  try {
    examples.forEach((code, at) => {
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
    const config = {
      extends: join(ROOT, "tsconfig.json"),
      compilerOptions: { noUnusedLocals: false },
      include: ["*.ts"],
    };
    writeFileSync(join(folder, "tsconfig.json"), JSON.stringify(config));
    const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
    execFileSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8", stdio: "pipe" });
  } catch (error) {
    assert.fail(`${(error as { stdout?: string }).stdout ?? error}`);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
