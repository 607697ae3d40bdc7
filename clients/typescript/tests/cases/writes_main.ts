/** What arrives of writes on a connection that was kept alive and breaks then; in any runtime. */
import { type AddressInfo, createServer } from "node:net";
import process from "node:process";
import { Keyturn } from "../../src/index.ts";

const arrived: string[] = [];
const gateway = createServer((socket) => {
  socket.on("error", () => undefined);
  socket.on("data", (bytes) => {
    const [, method] = /^([A-Z]+) /.exec(bytes.toString("latin1")) ?? [];
    if (method === "HEAD") {
      socket.write('HTTP/1.1 200 OK\r\ncontent-length: 0\r\netag: "v1"\r\n\r\n');
    } else if (method !== undefined) {
      arrived.push(method);
      setTimeout(() => socket.destroy(), 20);
    }
  });
});
await new Promise((resolve) => gateway.listen(0, "127.0.0.1", () => resolve(undefined)));

const { port } = gateway.address() as AddressInfo;
const url = `http://127.0.0.1:${port}`;
const keyturn = new Keyturn({ url, project: "acme", apiKey: "k".repeat(40) });
const errors: string[] = [];
for (const write of [
  () => keyturn.put("k", "body"),
  () => keyturn.put("k", ""),
  () => keyturn.delete("k"),
  () => keyturn.rotate("n".repeat(40)),
]) {
  await keyturn.stat("k");
  await new Promise((resolve) => setTimeout(resolve, 20));
  await write().catch((error) => errors.push(error.name));
}
process.stdout.write(`${JSON.stringify({ arrived, errors })}\n`, () => process.exit(0));
