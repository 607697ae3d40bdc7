/** A project's keys: what the customer's KMS needs, and responses that describe none. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { CodedError, Keyturn, UnexpectedResponseError } from "../../src/index.ts";

const WRAPPED = {
  store: "kms-eu",
  key: "arn:aws:kms:eu-central-1:111122223333:key/a",
  secret_id: "5f0c1a7be2d94386",
  wrapped: "YQ==",
  context: { "keyturn:project": "acme" } as unknown,
};

function client(document: unknown, status = 200, type = "application/json"): Keyturn {
  const fetch = async (url: unknown) => {
    assert.equal(url, "https://gateway.test/v1/projects/acme/keys");
    return new Response(JSON.stringify(document), { status, headers: { "content-type": type } });
  };
  const options = { url: "https://gateway.test", project: "acme", apiKey: "k".repeat(40), fetch };
  return new Keyturn({ retries: 0, ...options });
}

test("the generations and what their secrets are decrypted with", async () => {
  const vault = { ...WRAPPED, wrapped: "vault:v1:YQ==", context: "YWNtZQ==" };
  const generations = [
    { generation: 3, dek_since: 0 },
    { generation: 4, dek_since: 0, customer_key: WRAPPED },
    { generation: 5, dek_since: 0, customer_key: vault },
  ];
  const { dekFloor, generations: found } = await client({ dek_floor: 0, generations }).keys();
  assert.equal(dekFloor, 0);
  const [plain, ...others] = found;
  assert.deepEqual(plain, { generation: 3, dekSince: 0, customerKey: undefined });
  for (const [index, { secret_id: secretId, ...same }] of [WRAPPED, vault].entries()) {
    const customerKey = { ...same, secretId };
    assert.deepEqual(others[index], { generation: 4 + index, dekSince: 0, customerKey });
  }
  assert.equal(others.length, 2);
});

for (const document of [
  {},
  { dek_floor: 0, generations: [] },
  { dek_floor: 0, generations: {} },
  { dek_floor: -1, generations: [{ generation: 1, dek_since: 0 }] },
  { dek_floor: 0, generations: [null] },
  { dek_floor: 0, generations: [{ generation: "1", dek_since: 0 }] },
  ...[7, null, {}, { ...WRAPPED, context: null }, { ...WRAPPED, context: { a: 1 } }].map(
    (customer_key) => ({
      dek_floor: 0,
      generations: [{ generation: 1, dek_since: 0, customer_key }],
    }),
  ),
]) {
  test(`no keys: ${JSON.stringify(document)}`, async () => {
    await assert.rejects(client(document).keys(), UnexpectedResponseError);
  });
}

test("a refused customer key may be given again later", async () => {
  const problem = { status: 403, title: "Forbidden", code: "customer_key_refused" };
  await assert.rejects(client(problem, 403, "application/problem+json").keys(), (error) => {
    return error instanceof CodedError && error.transient && error.code === "customer_key_refused";
  });
});
