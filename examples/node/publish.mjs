// Store one file by the specification alone, with nothing of Keyturn, and wait for the answer.
//
//     node publish.mjs PROJECT KEY FILE
//
// Settings come from the environment: see publisher.env, which `keyturn init` writes.
// The numbers are the sections of docs/spec.md.
import * as crypto from "node:crypto";
import { readFile } from "node:fs/promises";
import { Aes256Gcm, CipherSuite, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";
import amqp from "amqplib";

const { KEYTURN_AMQP_URL, KEYTURN_DEPLOYMENT = "default", KEYTURN_PUBLISHER_NAME } = process.env;
const { KEYTURN_PUBLISHER_KEY, KEYTURN_INTAKE_PUBLIC_KEY, KEYTURN_EVENT_PUBLIC_KEY } = process.env;
const [project, key, file] = process.argv.slice(2);
const CHUNK_BYTES = 16384;
const INLINE_BYTES = 256 * 1024;
const TIMEOUT_MS = 60_000;

const label = (...parts) => Buffer.from(parts.join("\0"));
const fromBase64 = (text) => Buffer.from(text, "base64");
const toBase64 = (bytes) => Buffer.from(bytes).toString("base64");

// 3: Cobblestone-256, which is C2SP chunked-encryption with SHA-512 and AES-256-GCM.
function seal(sealingKey, context, plaintext) {
  const salt = crypto.randomBytes(24);
  const name = label("c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM", "");
  // HKDF-Expand alone: node:crypto has it only together with HKDF-Extract.
  const expand = (previous, counter) =>
    crypto
      .createHmac("sha512", sealingKey)
      .update(Buffer.concat([previous, name, salt, context, Buffer.from([counter])]))
      .digest();
  const first = expand(Buffer.alloc(0), 1);
  const derived = Buffer.concat([first, expand(first, 2)]);
  const [aeadKey, nonce] = [derived.subarray(0, 32), derived.subarray(32, 44)];
  // The salt and the commitment.
  const sealed = [salt, derived.subarray(44, 76)];
  // The last chunk is always shorter than a full one, so it may be empty.
  for (let number = 0; number * CHUNK_BYTES <= plaintext.length; number++) {
    const chunkNonce = Buffer.from(nonce);
    chunkNonce.writeUInt32BE((chunkNonce.readUInt32BE(8) ^ number) >>> 0, 8);
    const cipher = crypto.createCipheriv("aes-256-gcm", aeadKey, chunkNonce);
    const chunk = plaintext.subarray(number * CHUNK_BYTES, (number + 1) * CHUNK_BYTES);
    sealed.push(cipher.update(chunk), cipher.final(), cipher.getAuthTag());
  }
  return Buffer.concat(sealed);
}

// 3.2: HPKE base mode to the workers' intake key.
async function sealToWorkers(secret, info) {
  const [kem, kdf, aead] = [new XWing(), new HkdfSha256(), new Aes256Gcm()];
  const suite = new CipherSuite({ kem, kdf, aead });
  const [id, publicKey] = KEYTURN_INTAKE_PUBLIC_KEY.split(":");
  const recipientPublicKey = await suite.kem.deserializePublicKey(fromBase64(publicKey));
  const sender = await suite.createSenderContext({ recipientPublicKey, info });
  const sealed = [sender.enc, await sender.seal(secret)].map((part) => Buffer.from(part));
  return { intake_key: id, ciphertext: toBase64(Buffer.concat(sealed)) };
}

// 6.4: the request.
async function uploadRequest(uploadId, plaintext) {
  const transportKey = crypto.randomBytes(32);
  const body = seal(transportKey, label("keyturn/v1/transport", uploadId), plaintext);
  const info = label("keyturn/v1/intake", "upload", uploadId, project, key);
  return Buffer.from(
    JSON.stringify({
      type: "upload.requested",
      upload_id: uploadId,
      project,
      key,
      requested_at: new Date().toISOString(),
      content_type: "application/octet-stream",
      sealed_key: await sealToWorkers(transportKey, info),
      body: { inline: toBase64(body) },
    }),
  );
}

// 6.3: a signature of exactly the bytes that are sent.
function signature(body) {
  const pkcs8 = Buffer.from("302e020100300506032b657004220420", "hex");
  const privateKey = crypto.createPrivateKey({
    key: Buffer.concat([pkcs8, fromBase64(KEYTURN_PUBLISHER_KEY)]),
    format: "der",
    type: "pkcs8",
  });
  const signed = label("keyturn/v1/request", KEYTURN_DEPLOYMENT, KEYTURN_PUBLISHER_NAME, "");
  return toBase64(crypto.sign(null, Buffer.concat([signed, body]), privateKey));
}

// 6.7: the events of a message, or none if no event key verifies it.
function verifiedEvents(message) {
  const header = message.properties.headers?.["keyturn-signature"];
  if (typeof header !== "string") return [];
  for (const encoded of KEYTURN_EVENT_PUBLIC_KEY.split(",")) {
    const x = fromBase64(encoded).toString("base64url");
    const publicKey = crypto.createPublicKey({
      key: { kty: "OKP", crv: "Ed25519", x },
      format: "jwk",
    });
    const verifies = (name) => {
      const signed = Buffer.concat([label(name, KEYTURN_DEPLOYMENT, ""), message.content]);
      return crypto.verify(null, signed, publicKey, fromBase64(header));
    };
    if (verifies("keyturn/v1/event")) return [JSON.parse(message.content)];
    if (verifies("keyturn/v1/events")) return JSON.parse(message.content).events;
  }
  return [];
}

// 6.7: an id by itself proves nothing, because any publisher may use any id.
function isAnswer(event, uploadId, request) {
  const isRefusal = event.type === "upload.rejected";
  return (
    (isRefusal || event.type === "upload.stored") &&
    event.upload_id === uploadId &&
    event.publisher === KEYTURN_PUBLISHER_NAME &&
    (event.project === project || (isRefusal && event.project === null)) &&
    event.request === crypto.createHash("sha256").update(request).digest("hex")
  );
}

const plaintext = await readFile(file);
if (plaintext.length > INLINE_BYTES) throw new Error("stage a body of more than 256 KiB in S3");
// Keep the id: a retry needs the same one.
const uploadId = crypto.randomUUID();
const request = await uploadRequest(uploadId, plaintext);

const connection = await amqp.connect(KEYTURN_AMQP_URL);
const channel = await connection.createConfirmChannel();
await channel.prefetch(100);
const answered = Promise.withResolvers();
setTimeout(() => answered.reject(new Error("no event within 60 seconds")), TIMEOUT_MS).unref();
channel.on("return", () => answered.reject(new Error("no worker has declared the queue yet")));

// Listen first: `next` skips what is already in the stream.
await channel.consume(
  `keyturn.events.${KEYTURN_PUBLISHER_NAME}`,
  (message) => {
    channel.ack(message);
    const found = verifiedEvents(message).find((event) => isAnswer(event, uploadId, request));
    if (found) answered.resolve(found);
  },
  { arguments: { "x-stream-offset": "next" } },
);
channel.publish("keyturn", "upload.requested", request, {
  mandatory: true,
  persistent: true,
  contentType: "application/json",
  messageId: uploadId,
  headers: {
    "keyturn-publisher": KEYTURN_PUBLISHER_NAME,
    "keyturn-signature": signature(request),
  },
});
// After this, the request is on the queue.
await channel.waitForConfirms();

const event = await answered.promise;
await connection.close();
if (event.type === "upload.stored") {
  console.log(`stored: ${event.key}, ${event.size} bytes, generation ${event.generation}`);
} else {
  console.error(`refused: ${event.code}: ${event.detail}`);
  process.exitCode = 1;
}
