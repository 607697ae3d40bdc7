import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { test } from "node:test";
import { runVectors } from "../../cases/open_vectors.ts";

const FOLDER = new URL("../../../../../../shared/vectors/", import.meta.url);
const NAMES = [
  "wycheproof_c2sp_chunked_encryption_aes_256_gcm_test.json",
  "keyturn_v1.json",
] as const;
const isMissing = !NAMES.every((name) => existsSync(new URL(name, FOLDER)));

test("the shared known answers", { skip: isMissing && "no shared vectors" }, async () => {
  const [cobblestone, keyturn] = NAMES.map((name) =>
    JSON.parse(readFileSync(new URL(name, FOLDER), "utf8")),
  );
  assert.deepEqual(await runVectors({ cobblestone, keyturn }), { cases: 35 + 27, failures: [] });
});
